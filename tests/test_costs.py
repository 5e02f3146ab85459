"""What a run will cost is said before it is paid, and only where it is much."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
from bircher import devices
from bircher.cli import app
from bircher.config import config
from bircher.errors import NotEnoughMemory
from bircher.runs import build, costs, launch
from bircher.types import Discrete, EnvSpec
from tiny import SETTINGS, Countdown


def spec(max_steps: int | None, players: int = 1) -> EnvSpec:
    return EnvSpec("test/env", jax.ShapeDtypeStruct((1,), np.float32), Discrete(2), max_steps, players)


def composed(**settings) -> config.Config:
    return config.compose("toy/cliff", {**SETTINGS, "evaluation.count": 10, "evaluation.episodes": 16, **settings})


class Endless(Countdown):
    """No episode ends."""

    steps = 0

    def step(self, action: int):
        Endless.steps += 1
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_without_any_limit_evaluations_take_as_much_as_the_training_or_1000_an_episode() -> None:
    assert costs.evaluation_limit(composed(steps=1_600_000), spec(None)) == 10_000
    assert costs.evaluation_limit(composed(steps=4096), spec(None)) == 1000
    # A limit that is there counts.
    assert costs.evaluation_limit(composed(steps=4096), spec(77)) is None
    assert costs.evaluation_limit(composed(steps=4096, **{"evaluation.max_steps": 50}), spec(None)) == 50
    assert costs.evaluation_limit(composed(steps=1_600_000, **{"evaluation.count": 0}), spec(None)) == 10_000


def test_an_agent_is_scored_as_in_training_where_nothing_limits_its_episodes() -> None:
    long, short = composed(steps=1_600_000), composed(steps=4096, **{"evaluation.max_steps": 50})
    assert [costs.scoring_limit(made, spec(None)) for made in (long, short)] == [10_000, 50]
    assert [costs.scoring_limit(made, spec(77)) for made in (long, short)] == [None, None], "episodes are whole"
    said = costs.scoring_sentence(long, spec(None), 100)
    assert said == (
        "test/env does not limit its episodes: each of 100 is cut short after 10,000 decisions (--max-steps), at "
        "most 1,000,000 in all"
    )
    assert costs.scoring_sentence(long, spec(77), 100) == ""


def test_evaluations_that_take_far_more_than_the_training_are_said_before_it() -> None:
    said = costs.evaluation_sentence(composed(steps=4096), spec(None))
    assert said.startswith(
        "test/env does not limit its episodes: evaluations during training cut them short after 1,000 dec"
    )
    assert (
        "evaluation.count=10 evaluations of evaluation.episodes=16 may take 160,000 decisions, compared with 4,096 of"
        in said
    )
    said = costs.evaluation_sentence(composed(steps=7000), spec(500))
    assert "may take 80,000 decisions, compared with 7,000 of the training: evaluation.max_steps makes" in said
    few = [
        costs.evaluation_sentence(composed(steps=8000), spec(500)),
        costs.evaluation_sentence(composed(steps=7000, **{"evaluation.max_steps": 100}), spec(500)),
        costs.evaluation_sentence(composed(steps=7000, **{"evaluation.count": 0}), spec(None)),
        costs.evaluation_sentence(composed(steps=7000), spec(None, players=2)),
    ]
    assert few == [""] * 4


@pytest.mark.long
def test_an_endless_environment_is_evaluated_to_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Endless.steps = 0
    settings = {**SETTINGS, "evaluation.count": 1, "evaluation.episodes": 2, "env.num_envs": 4}
    run = bircher.train(Endless, steps=64, out=tmp_path / "run", **settings)
    assert "Endless does not limit its episodes" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    (evaluated,) = [line for line in lines if "eval/return_mean" in line]
    assert (evaluated["eval/length_mean"], evaluated["eval/cut_short"]) == (1000.0, 1.0)
    assert Endless.steps < 4000, "and the picture of an episode ends there too"
    Endless.steps = 0
    report = bircher.evaluate(run.agent, episodes=2)
    assert report.lengths == [1000, 1000] and report.cut_short == 2 and Endless.steps <= 2 * 1000 + 1
    assert bircher.evaluate(run.agent, episodes=2, max_steps=7).lengths == [7, 7]


@pytest.mark.slow
def test_the_cost_of_scoring_is_said_before_it(tmp_path: Path) -> None:
    module = tmp_path / "never_ending.py"
    module.write_text("import gymnasium as g, test_costs\ng.register('Endless-v0', entry_point=test_costs.Endless)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        words = [f"{key}={value}" for key, value in {**SETTINGS, "evaluation.max_steps": 9, "steps": 16}.items()]
        invoke("train", "never_ending:Endless-v0", *words, "--out", tmp_path / "run")
        told, numbers = invoke("eval", tmp_path / "run", "--episodes", 3, "--json")
        assert told == (
            "never_ending:Endless-v0 does not limit its episodes: each of 3 is cut short after 9 decisions "
            "(--max-steps), at most 27 in all\n"
        )
        assert json.loads(numbers)["lengths"] == [9] * 3
        told, numbers = invoke("eval", tmp_path / "run", "--episodes", 3, "--max-steps", 4, "--json")
        assert told == "" and json.loads(numbers)["lengths"] == [4] * 3
    gymnasium.registry.pop("Endless-v0")


def invoke(*words: object) -> tuple[str, str]:
    """What a command wrote on stderr and on stdout."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stderr, result.stdout


def test_a_long_run_is_said_once_after_its_first_seconds() -> None:
    forecast = costs.Forecast(composed(steps=1_000_000))
    assert forecast(10, 100.0, 999_000) == "", "the first chunk is of a machine that warms up"
    assert forecast(60, 6.0, 999_000) == "", "too little to tell"
    said = forecast(60, 6.0, 998_000)
    assert said.startswith(
        "about 28 hours are left at this speed, 10 steps a second; fewer steps (now steps=1,000,000)"
    )
    assert "fewer optimizer.updates_per_step" in said and "dqn_cnn" not in said
    assert forecast(60, 6.0, 997_000) == ""


def test_of_pictures_the_small_torso_is_named_and_a_short_run_says_nothing() -> None:
    forecast = costs.Forecast(config.compose("Breakout-v5", ["steps=2.5e6"]))
    assert forecast(960, 41.0, 2_400_000) == ""
    said = forecast(960, 41.0, 2_400_000)
    assert said.startswith("about 28 hours") and "so may model.torso=dqn_cnn, " in said
    quick = costs.Forecast(composed(steps=1_000_000))
    assert [quick(10_000, 60.0, left) for left in (900_000, 890_000, 880_000)] == [""] * 3
    days = costs.Forecast(composed(steps=1_000_000))
    assert days(1, 50.0, 10**6) == "" and days(10, 50.0, 10**6).startswith("about 58 days")


@pytest.mark.slow
def test_the_memory_of_an_update_is_said_where_it_is_much_and_refused_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda device: 2**30)
    device = jax.devices()[0]
    assert costs.update_sentence(composed(), 2**20, device) == ""
    assert costs.update_sentence(composed(), 2**28, device) == "acting and an update take 256.0 MiB while they run"
    with pytest.raises(NotEnoughMemory, match=r"take 2\.0 GiB while they run, and 1\.0 GiB are left.*batch_size=4"):
        costs.update_sentence(composed(), 2**31, device)
    # The number is of the compiled programs.
    monkeypatch.setattr(costs, "SAID_FROM", 1)
    launch.start(composed(steps=16, **{"evaluation.count": 0}), out=tmp_path / "run").run()
    assert "acting and an update take 0." in capsys.readouterr().out


def test_the_memory_of_a_checkpoint_is_said_with_that_of_a_large_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    made, device = composed(), jax.devices()[0]
    env = build.make_env(made, None, 1, 0, "test")
    parts = build.make_parts(made, env.spec)
    assert build.replay_sentence(made, parts, device).endswith(" on the cpu")
    monkeypatch.setattr(build, "SAID_FROM", 1)
    said = build.replay_sentence(made, parts, device)
    assert said.endswith(" on the cpu, and up to three times as much again while a checkpoint is written")
    taken = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts.template.replay))
    monkeypatch.setattr(devices, "available_bytes", lambda device: 2 * taken - 1)
    with pytest.raises(NotEnoughMemory, match="and at least as much again while a checkpoint is written"):
        build.replay_sentence(made, parts, device)


def test_a_registered_limit_counts(tmp_path: Path) -> None:
    gymnasium.register("bircher/Endless-v0", Endless, max_episode_steps=40)
    try:
        training = launch.start(config.compose("bircher/Endless-v0", {**SETTINGS, "steps": 64}), out=tmp_path / "run")
    finally:
        del gymnasium.registry["bircher/Endless-v0"]
    assert training._limit is None and training._env.spec.max_steps == 40
    training._env.close()
