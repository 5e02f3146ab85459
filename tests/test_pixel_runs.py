"""Runs whose agents see pictures: training, and all that is done with a run afterward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
import environments
from bircher.cli import app
from bircher.config.config import compose
from bircher.errors import ConfigError
from bircher.runs import loaded_agent
from tiny import SETTINGS

PICTURES = {"observation": "pixels", "observation.size": [6, 9], "env.stack": 2, "model.torso": "mlp"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "run"
    return bircher.train("CartPole-v1", steps=64, out=out, **{**SETTINGS, **PICTURES})


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


@pytest.mark.long
def test_a_run_of_pictures_is_evaluated_diagnosed_and_loaded(run: Any, tmp_path: Path) -> None:
    agent = bircher.load(run.path)
    assert agent.config.preset == "default" and agent.spec.observation.shape == (6, 9, 2)
    assert agent.spec.observation.dtype == np.uint8 and run.counters["env_steps"] >= 64
    assert agent.act(np.zeros((6, 9, 2), np.uint8)) in (0, 1)
    assert agent.act(np.zeros((3, 6, 9, 2), np.uint8)).shape == (3,)
    result = invoke("eval", str(run.path), "--episodes", "2", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["episodes"] == 2
    result = invoke("diagnose", str(run.path), "--steps", "1024", "--json", "--out", str(tmp_path / "it.png"))
    assert result.exit_code == 0 and json.loads(result.stdout)["env_steps"] > 900


def test_an_episode_is_watched_at_full_size_as_the_agent_saw_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, given = bircher.load(run.path), []
    choose = agent.choose

    def spied(inputs: Any, *arguments: Any) -> Any:
        given.append((inputs.observation, choose(inputs, *arguments)))
        return given[-1][1]

    monkeypatch.setattr(agent, "choose", spied)
    frames = loaded_agent.episode_frames(agent, seed=1)
    assert len(frames) == len(given) + 1 and {frame.shape for frame in frames} == {(400, 600, 3)}
    assert any((frame != frames[0]).any() for frame in frames)
    env = environments.make("CartPole-v1", 1, 1, "watch", stack=2, observation=agent.config.observation)
    state, row = env.reset()
    for observation, action in given:
        np.testing.assert_array_equal(observation, row.observation)
        state, row = env.step(state, jnp.asarray(action))
    assert row.last.all()


def test_presets_of_pictures() -> None:
    sizes = {"muesli": (48, 72), "gumbel_muzero": (64, 96), "ppo": (64, 96)}
    for agent, size in sizes.items():
        config = compose("LunarLander-v3", ["observation=pixels", f"agent={agent}"])
        assert config.preset == "lunarlander" and config.observation.size == size
        plain = compose("LunarLander-v3", [f"agent={agent}"])
        for_a_frame = [found.agent.gamma ** (1 / (found.env.action_repeat or 1)) for found in (config, plain)]
        assert for_a_frame[0] == pytest.approx(for_a_frame[1], abs=1e-4) and plain.observation.name == "state"
        other = compose("Acrobot-v1", {"observation": {"name": "pixels", "gray": False}, "agent": agent})
        assert other.preset == "default" and other.observation.gray is False and other.env.stack == 2
        assert config.replay.capacity * np.prod((*size, 1 if config.observation.gray else 3)) < 2**29
    assert compose("LunarLander-v3", ["preset=lunarlander", "observation=pixels"]).observation.name == "pixels"
    assert (
        compose(
            "LunarLander-v3", ["preset=lunarlander", "observation=pixels", "observation.size=null"]
        ).observation.size
        is None
    )


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["observation=pixel"], "unknown observation 'pixel'; did you mean pixels"),
        (["observation=pixels", "observation.size=[64]"], r"observation.size=\[64\] is not possible: expected a list"),
        (["observation.size=[8, 8]"], "observation.size applies to pictures only: set observation=pixels"),
        (["observation=pixels", "observation.size=[0, 8]"], r"observation.size=\[0, 8\] is not valid"),
        (["observation=pixels", "env.backend=gymnax"], "env.backend=gymnax is not possible"),
        (["preset=lunarlander", "observation=pixels", "env.backend=envpool"], "env.backend=envpool is not possible"),
    ],
)
def test_refused_in_one_sentence(pairs: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        compose("CartPole-v1", pairs)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("env", ["Breakout-MinAtar", "toy/catch", "hex"])
def test_undrawable_environments_are_refused_before_anything_is_made(env: str, tmp_path: Path) -> None:
    result = invoke("train", env, "observation=pixels", "--out", str(tmp_path / "run"))
    assert result.exit_code == 2 and f"{env} cannot be observed as pixels" in result.stderr
    assert result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_callable_is_drawn_where_it_can_be() -> None:
    with pytest.raises(ConfigError, match="gray applies to pictures only"):
        compose(lambda: None, {"observation.gray": True})
    assert compose(lambda: None, {"observation": "pixels"}).preset == "default"
