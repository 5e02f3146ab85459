"""Runs of callables continue from Python, and what leads there is named."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
from bircher.cli import app
from bircher.errors import ConfigError, RunFolderError, UnknownEnvironment, UnsupportedEnvironment
from bircher.runs.inspect import diagnose
from tiny import SETTINGS, Countdown


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a callable."""
    return bircher.train(Countdown, steps=32, out=tmp_path_factory.mktemp("runs") / "run", **SETTINGS).path


@pytest.mark.slow
def test_a_run_of_a_callable_continues(path: Path) -> None:
    before = bircher.load(path).env_steps
    run = bircher.resume(path, env=Countdown, steps=6.4e1)
    assert run.path == path and run.counters["env_steps"] >= 64 > before and not run.stopped
    assert bircher.load(path).env_steps == run.counters["env_steps"]
    again = bircher.resume(str(path), Countdown, **{"checkpoint.keep": 3, "evaluation": {"count": 0}})
    assert again.counters["env_steps"] == run.counters["env_steps"], "it was done"
    assert "resume" in bircher.__all__


def test_every_refusal_names_the_way_on(path: Path) -> None:
    call = f"bircher.resume({str(path)!r}, env=Countdown)"
    assert f"was the callable Countdown, which a file cannot contain: pass it from Python, {call}" in refused(
        "train", "--resume", str(path)
    )
    with pytest.raises(UnknownEnvironment, match="callable Countdown"):
        bircher.resume(path)
    with pytest.raises(RunFolderError) as told:
        bircher.train(Countdown, steps=64, out=path, **SETTINGS)
    assert f"choose another folder, or continue the run with {call} in Python" in str(told.value)
    with pytest.raises(
        ConfigError, match=r"continue a run with bircher train --resume RUN, in Python with bircher.res"
    ):
        bircher.train(Countdown, resume=path)
    assert "in Python with bircher.resume(path, steps=...)" in refused("train", "CartPole-v1", f"resume={path}")
    for command in (["eval"], ["watch", "--video", "a.mp4"], ["diagnose"], ["search"]):
        assert "bircher.load(path, env=Countdown)" in refused(command[0], str(path), *command[1:]), command


def test_another_environment_is_refused(path: Path) -> None:
    class Wider(Countdown):
        observation_space = gymnasium.spaces.Box(0, 30, (5,), np.float32)

        def reset(self, **kwargs):
            return np.zeros(5, np.float32), super().reset(**kwargs)[1]

        def step(self, action):
            return np.zeros(5, np.float32), *super().step(action)[1:]

    class ThreeActions(Countdown):
        action_space = gymnasium.spaces.Discrete(3)

    with pytest.raises(UnsupportedEnvironment) as told:
        bircher.resume(path, env=Wider, steps=96)
    assert str(told.value) == (
        "the run was trained with observations float32 (2,) and actions discrete, 2 actions, "
        "but Wider has observations float32 (5,) and actions discrete, 2 actions"
    )
    agent = bircher.load(path, env=Wider)
    for play in (bircher.evaluate, diagnose):
        with pytest.raises(UnsupportedEnvironment, match="but Wider has observations"):
            play(agent)
    with pytest.raises(UnsupportedEnvironment, match="but ThreeActions has .* discrete, 3 actions"):
        bircher.resume(path, env=ThreeActions, steps=96)
    with pytest.raises(ConfigError, match="agent.gamma cannot be changed when a run is resumed"):
        bircher.resume(path, env=Countdown, agent={"gamma": 0.5})


@pytest.mark.slow
def test_an_ordinary_run_continues_too(tmp_path: Path) -> None:
    bircher.train("toy/cliff", steps=16, out=tmp_path / "run", **SETTINGS)
    assert bircher.resume(tmp_path / "run", steps=32).counters["env_steps"] >= 32
    assert bircher.resume(tmp_path / "run", env="toy/cliff").counters["env_steps"] >= 32
    with pytest.raises(UnknownEnvironment, match="is a run of toy/cliff, which it must continue: remove env"):
        bircher.resume(tmp_path / "run", env=Countdown)
    with pytest.raises(RunFolderError, match="nowhere is not a run directory"):
        bircher.resume(tmp_path / "nowhere")
