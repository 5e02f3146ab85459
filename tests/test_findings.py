"""Findings about finished runs with invented numbers."""

from __future__ import annotations

import json

import pytest

from bircher.experiments import compare, grid


@pytest.fixture
def cell(tmp_path):
    """Makes a run with these returns of training, and this mean of its evaluation."""

    def make(agent: str, env: str, mean: float, training: list[float], steps: int = 100) -> grid.Job:
        path = tmp_path / agent / env
        path.mkdir(parents=True)
        lines = [
            {"env_steps": steps * (n + 1) // len(training), "wall_seconds": n, "act/episode_return": value}
            for n, value in enumerate(training)
        ]
        lines.insert(0, {"env_steps": 0, "wall_seconds": 0, "act/episode_return": None})
        counters = {"learner_steps": 0, "episodes": 0}
        (path / "metrics.jsonl").write_text("".join(json.dumps({**counters, **line}) + "\n" for line in lines))
        (path / grid.EVALUATION).write_text(json.dumps({"mean": mean, "episodes": 1000}))
        return grid.Job(agent, env, 0, path, ())

    return make


def test_scores_begin_at_the_very_first_episodes(cell):
    """Not at the mean of a stretch of training, in which much may be learned already."""
    long = [10.0, *[90.0] * 300]
    runs = [cell("a", "x", 110.0, long), cell("b", "x", 60.0, long)]
    runs += [cell(agent, "y", 1.0, [0.0, 0.0]) for agent in "ab"]
    found = compare.findings(runs, "title")
    assert {name: {agent: one.value for agent, one in by.items()} for name, by in found.aggregates.items()} == {
        "IQM of runs, normalized return": {"a": 1.0, "b": 0.75},
        "median over environments of mean normalized return": {"a": 1.0, "b": 0.75},
    }
    assert found.over_steps["x"]["a"].mean[0] > 10.0, "the curve's first place is a mean"


def test_notes_name_possible_misreadings(cell):
    runs = [cell("a", "x", 1.0, [0, 1]), cell("a", "y", 1.0, [0, 1]), cell("b", "x", 2.0, [0, 1], steps=200)]
    notes = compare.findings(runs, "title", ["mine"]).notes
    assert notes[0] == "mine" and "on 1,000 fresh episodes" in notes[1]
    for sentence in (
        "b has no run on y",
        "x: the agents had different numbers of steps",
        "interval of fewer than 5 runs",
    ):
        assert sum(sentence in note for note in notes) == 1
    assert not any("with one environment" in note or note.startswith(("y:", "a has")) for note in notes)
