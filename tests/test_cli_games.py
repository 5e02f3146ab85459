"""The commands that play games of two, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bircher
from bircher.cli import app
from tiny import SETTINGS

FIELDS = [
    "env", "agent", "opponent", "episodes", "seed", "mode", "first", "second", "score", "score_low", "score_high",
    "opening_moves", "env_steps", "wall_seconds",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a few steps: two of tic-tac-toe, one of another game, and one that says it is of one player."""
    folder = tmp_path_factory.mktemp("runs")
    bircher.train("tic_tac_toe", steps=32, out=folder / "one", **SETTINGS)
    bircher.train("toy/nim", steps=32, out=folder / "nim", **SETTINGS)
    for name in ("two", "alone"):
        shutil.copytree(folder / "one", folder / name)
    text = (folder / "one" / "config.yaml").read_text()
    (folder / "alone" / "config.yaml").write_text(text.replace("id: tic_tac_toe", "id: toy/cliff"))
    return {name: folder / name for name in ("one", "two", "nim", "alone")}


def invoke(*words: object, typed: str | None = None, expect: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words], input=typed, catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result


def assert_refused(result: Any, sentence: str) -> None:
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("bircher: ") and result.stderr.count("\n") == 1 and sentence in result.stderr


@pytest.mark.slow
def test_an_evaluation_against_an_opponent_is_one_object(runs: dict[str, Path]) -> None:
    words = ("eval", runs["one"], "--opponent", "minimax", "--episodes", 11, "--seed", 4, "--json")
    report = json.loads(invoke(*words).stdout)
    assert list(report) == FIELDS
    assert (report["env"], report["agent"], report["opponent"]) == ("tic_tac_toe", "muesli", "minimax")
    assert (report["episodes"], report["seed"], report["mode"]) == (11, 4, "sample")
    for seat, games in (("first", 6), ("second", 5)):
        assert list(report[seat]) == ["win", "draw", "loss"] and sum(report[seat].values()) == games
        assert report[seat]["win"] == 0, "nobody beats minimax"
    again = json.loads(invoke(*words).stdout)
    assert {**again, "wall_seconds": 0} == {**report, "wall_seconds": 0}
    greedy = json.loads(invoke(*words, "--greedy", "--opening", 1).stdout)
    assert greedy["mode"] == "greedy" and greedy["opening_moves"] == 1


@pytest.mark.slow
def test_without_an_opponent_a_game_is_played_against_chance_and_that_is_said(runs: dict[str, Path]) -> None:
    result = invoke("eval", runs["one"], "--episodes", 4)
    assert result.stderr == "tic_tac_toe is a game of two: playing against random\n"
    lines = result.stdout.splitlines()
    assert lines[0] == "tic_tac_toe, muesli against random, 4 games, mode sample, seed 0"
    assert lines[1].startswith("moving first: ") and "95 % interval" in lines[3]


@pytest.mark.slow
def test_another_run_is_an_opponent(runs: dict[str, Path]) -> None:
    report = json.loads(invoke("eval", runs["one"], "--opponent", runs["two"], "--episodes", 6, "--json").stdout)
    assert report["opponent"] == str(runs["two"]) and sum(report["first"].values()) == 3


@pytest.mark.slow
def test_a_cross_table(runs: dict[str, Path]) -> None:
    words = ("match", runs["one"], runs["two"], "minimax", "--episodes", 8)
    table = json.loads(invoke(*words, "--json").stdout)
    names = [str(runs["one"]), str(runs["two"]), "minimax"]
    assert table["players"] == names and table["anchor"] == names[0] and table["elo"][0] == 0
    assert [(report["agent"], report["opponent"]) for report in table["matches"]] == [
        (names[0], names[1]), (names[0], names[2]), (names[1], names[2]),
    ]  # fmt: skip
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert table["scores"][i][j] + table["scores"][j][i] == 1 and table["scores"][i][i] is None
    assert table["elo"][2] == max(table["elo"]) > 0
    said = invoke(*words).stdout
    assert "Elo" in said and names[1] in said and f"{names[0]} at 0" in said


def test_a_person_plays_in_the_terminal(runs: dict[str, Path]) -> None:
    """Whatever it replies, the person who tries every square until one is free comes to an end."""
    said = invoke("play", runs["one"], typed="12\n1\n1\n" + "\n".join("123456789" * 5) + "\n").stdout
    assert said.startswith("You are X. A move is the number of a free square.")
    assert "1 2 3\n4 5 6\n7 8 9" in said and "'12' is not a move" in said and "muesli: " in said
    assert "'1' is not possible now" in said
    assert said.splitlines()[-1] in ("You win.", "A draw.", "You lose.")


def test_a_person_may_move_second_and_leave(runs: dict[str, Path]) -> None:
    result = invoke("play", runs["one"], "--second", typed="", expect=130)
    assert result.stdout.startswith("You are O.") and "muesli: " in result.stdout


@pytest.mark.slow
def test_bad_input_is_one_sentence(runs: dict[str, Path]) -> None:
    def refused(sentence: str, *words: object) -> None:
        assert_refused(CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False), sentence)

    one = runs["one"]
    refused("did you mean minimax?", "eval", one, "--opponent", "minmax")
    refused(f"{runs['nim']} plays toy/nim, and its opponent tic_tac_toe", "eval", one, "--opponent", runs["nim"])
    refused("a match is always played to its end", "eval", one, "--max-steps", 3)
    refused("toy/cliff has one player", "eval", runs["alone"], "--opponent", "random")
    refused("toy/cliff has one player", "match", runs["alone"], "random")
    refused("alphabeta plays connect_four only", "eval", one, "--opponent", "alphabeta:4")
    refused("mcts:0 is not possible", "eval", one, "--opponent", "mcts:0")
    refused("a match needs at least two players", "match", one)
    refused("unknown opponent 'nowhere'", "match", one, "nowhere")
    refused("toy/nim has no board for the terminal; these games have one: tic_tac_toe", "play", runs["nim"])
    refused("seed cannot be changed after training; only search.* can", "eval", one, "seed=3")
    refused("nowhere is not a run directory", "play", "nowhere")
    for words in (("eval", one, "search.num_simulations=-1"), ("play", one, "--simulations", -1)):
        refused("search.num_simulations=-1 is not possible", *words)
