"""Search trees as pictures: what is drawn is what was searched."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.viz import panels
from tiny import WORDS

EDGES = (
    panels.Edge(0, 1, 0, 5, 0.5, 0.0, 0.25, 0.2),
    panels.Edge(0, 2, 1, 3, 0.3, 1.5, -0.5, 1.1),
    panels.Edge(1, 3, 1, 4, 0.9, 0.0, 0.75, 0.6),
    panels.Edge(2, 4, 0, 2, 0.4, 0.0, 0.0, 0.0),
)
TREE = panels.Tree(EDGES, 0.1, 9)


def test_the_best_line_follows_the_most_visits():
    assert [edge.action for edge in TREE.best_line()] == [0, 1]
    assert [edge.child for edge in TREE.following(0)] == [1, 2]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9])
def test_a_pruned_tree_stays_connected(nodes):
    kept = TREE.pruned(nodes)
    assert len(kept.edges) == min(nodes, 4)
    known = {0, *(edge.child for edge in kept.edges)}
    assert all(edge.parent in known for edge in kept.edges)


def test_every_node_and_edge_is_drawn_once():
    svg = panels.draw(TREE, "a <tree> & more", lambda action: "LR"[action], ["x.o", "..."])
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 5 and len(root.findall(f"{space}line")) == 4
    texts = [element.text for element in root.findall(f"{space}text")]
    assert "a <tree> & more" in texts and "x.o" in texts
    assert "R p 0.30 r 1.50" in texts and "L p 0.50" in texts
    assert {"9", "5", "3", "4", "2"} <= set(texts) and "-0.50" in texts
    heavy = [line for line in root.findall(f"{space}line") if line.get("stroke") == "black"]
    assert len(heavy) == 2
    places = {(circle.get("cx"), circle.get("cy")) for circle in root.findall(f"{space}circle")}
    assert len(places) == 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("search") / "run")
    words = ["train", "tic_tac_toe", "steps=32", "agent=muzero", *WORDS, "model.torso=mlp", "search.num_simulations=4"]
    told = CliRunner().invoke(app, [*words, "--out", path])
    assert told.exit_code == 0, told.output
    return path


def test_the_command_draws_a_decision_on_its_board(run, tmp_path):
    out = tmp_path / "tree.svg"
    words = ["search", run, "search.num_simulations=20", "--step", "2", "--out", str(out), "--json"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert sum(edge["visits"] for edge in found["children"]) == 20
    assert len({edge["action"] for edge in found["children"]}) <= 7, "two squares are taken"
    assert all(edge["q_value"] == pytest.approx(edge["reward"] - edge["value"], abs=1e-5) for edge in found["children"])
    qs = [edge["q_value"] for edge in found["children"]]
    assert min(qs) - 0.2 <= found["value"] <= max(qs) + 0.2, "of who moves, as the actions' are"
    svg = out.read_text()
    assert len(ElementTree.fromstring(svg)) > 40
    assert len(re.findall(r"[XO]", " ".join(re.findall(r'monospace">([^<]*)<', svg)))) >= 2


def test_runs_without_a_search_are_refused(run, tmp_path):
    told = CliRunner().invoke(app, ["search", run, "search.num_simulations=0"])
    assert told.exit_code == 2 and "without a search" in told.output
    told = CliRunner().invoke(app, ["search", run, "--step", "12"])
    assert told.exit_code == 2 and "is beyond it" in told.output
