"""Runs that an earlier version saved: they load, score as they did, and go on from their last step."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import bircher
from bircher.runs import launch

ARCHIVES = sorted((Path(__file__).parent / "golden" / "runs").glob("*/*.tar.xz"))


@pytest.mark.slow
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_a_saved_run_loads_scores_as_before_and_resumes(archive: Path, tmp_path: Path) -> None:
    name = archive.name.split(".")[0]
    expected = json.loads((archive.parent / "expected.json").read_text())["runs"][name]
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    agent = bircher.load(tmp_path / name)
    assert agent.env_steps == expected["counters"]["env_steps"]
    report = bircher.evaluate(agent, len(expected["returns"]), seed=5, greedy=True)
    assert (report.returns, report.lengths) == (expected["returns"], expected["lengths"])

    goal = agent.env_steps + 32
    run = launch.resume(tmp_path / name, [f"steps={goal}", "evaluation.count=0"]).run()
    assert run.counters["env_steps"] >= goal
    assert run.counters["learner_steps"] > expected["counters"]["learner_steps"]
    assert bircher.load(run.path).env_steps == run.counters["env_steps"]


def test_every_kind_of_run_is_there() -> None:
    names = {path.name.split(".")[0] for path in ARCHIVES if path.parent.name == "0.1.0"}
    assert names == {"muesli-cartpole", "gumbel-muzero-tic-tac-toe", "ppo-frozen-lake", "muesli-lstm-recall"}
