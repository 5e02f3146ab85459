"""Runs on Atari games: presets of all 57, counters of frames, clipped rewards, and human-normalized scores."""

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
from bircher.envs import atari
from bircher.envs.registry import ClippedEnv
from bircher.errors import ConfigError
from bircher.runs import build, loaded_agent
from bircher.training import evaluator
from bircher.types import TimeStep
from tiny import SETTINGS

TINY = {"observation.size": [8, 6], "observation.gray": True, "model.torso": "mlp", "env.stack": 2, "env.max_steps": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "run"
    return bircher.train("Breakout-v5", steps=64, out=out, **{**SETTINGS, **TINY})


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


@pytest.mark.slow
def test_frames_are_four_times_the_steps(run: Any) -> None:
    assert run.counters["env_steps"] >= 64 and run.counters["env_frames"] == 4 * run.counters["env_steps"]
    assert bircher.load(run.path).spec.action_repeat == 4


@pytest.mark.slow
def test_an_evaluation_has_the_human_normalized_score(run: Any) -> None:
    result = invoke("eval", str(run.path), "--episodes", "3", "--json")
    report = json.loads(result.stdout)
    found = report["human_normalized"]
    assert report["env"] == "Breakout-v5" and set(found) == {"mean", "median", "iqm"}
    for name, value in found.items():
        assert value == pytest.approx((report[name] - 1.7) / 28.8)
    printed = invoke("eval", str(run.path), "--episodes", "3").stdout
    assert f"human-normalized (0 a random player, 1 a human): mean {found['mean']:.4f}, median" in printed


def test_reports_of_scores_known_by_hand() -> None:
    """Pong's random player has -20.7 and its human 14.6."""
    returns, lengths = np.array([-20.7, 14.6, 14.6, 21.0]), np.ones(4, int)
    report = evaluator.summarize("Pong-v5", "dice", 0, "sample", returns, lengths, lengths == 2, 1.0)
    assert report.human_normalized == pytest.approx({"mean": (7.375 + 20.7) / 35.3, "median": 1.0, "iqm": 1.0})
    other = evaluator.summarize("CartPole-v1", "dice", 0, "sample", returns, lengths, lengths == 2, 1.0)
    assert other.human_normalized is None and "human_normalized" not in other.to_json()
    assert report.to_json()["human_normalized"] == report.human_normalized


def test_an_episode_is_watched_on_the_whole_screen(run: Any) -> None:
    frames = loaded_agent.episode_frames(bircher.load(run.path), seed=0, thoughts=False)
    assert len(frames) == 13 and {frame.shape for frame in frames} == {(210, 160, 3)}
    assert any((frame != frames[0]).any() for frame in frames)


class Given:
    """An environment of five rewards."""

    spec, num_envs, pure = None, 5, True
    rewards = jnp.array([-3.0, 0.2, 0.7, jnp.inf, jnp.nan])

    def reset(self) -> Any:
        return self.step((), ())

    def step(self, state: Any, action: Any) -> Any:
        flags, ones = jnp.zeros(5, bool), jnp.ones(5)
        return state, TimeStep(ones, self.rewards, ones, flags, flags, flags, flags[:, None], flags)

    def close(self) -> None:
        pass


def test_rewards_are_clipped_where_they_are_learned_from_alone() -> None:
    config = compose("toy/chain", {"env.reward_clip": 0.25})
    for roles, clip in ((("train", "check", "diagnose"), 0.25), (("monitor", "eval", "watch", "match"), None)):
        assert {getattr(build.make_env(config, None, 1, 0, role), "bound", None) for role in roles} == {clip}
    assert not isinstance(build.make_env(compose("toy/chain"), None, 1, 0, "train"), ClippedEnv)


def test_clipping_leaves_infinite_rewards() -> None:
    row = ClippedEnv(Given(), 0.5).step((), jnp.zeros(5, jnp.int32))[1]
    np.testing.assert_array_equal(row.reward, np.array([-0.5, 0.2, 0.5, np.inf, np.nan], np.float32))


def test_frames_that_cannot_be_counted_are_refused() -> None:
    config = compose("Breakout-v5", ["steps=6e8", "model.torso=mlp"])
    spec = environments.spec("Breakout-v5")
    with pytest.raises(
        ConfigError, match="steps=600,000,000 of 4 frames each .* expected fewer than 536,870,912 steps"
    ):
        build.make_parts(config, spec)


@pytest.mark.parametrize("agent", ["muesli", "muzero", "ppo"])
def test_every_game_has_its_preset(agent: str) -> None:
    assert len(atari.scores()) == 57
    for env_id in atari.scores() if agent == "muesli" else ("Pong-v5", "ALE/Zaxxon-v5", "Klax-v5"):
        config = compose(env_id, {"agent": agent})
        assert (config.preset, config.env.id, config.observation.name) == ("atari", env_id, "pixels")
        assert config.env.protocol == ("dqn" if agent == "ppo" else "paper")
        assert config.replay.capacity * 84 * 84 * config.env.stack < 2**29
    assert compose("Pong-v5", ["observation=pixels", f"agent={agent}"]).preset == "atari"


@pytest.mark.slow
@pytest.mark.parametrize("env_id", atari.scores())
def test_every_games_preset_builds_and_steps(env_id: str) -> None:
    config = compose(env_id, {})
    env = build.make_env(config, None, 1, 0, "train")
    parts = build.make_parts(config, env.spec)
    assert parts.template.replay.experience.observation.shape[2:] == (84, 84, 1)
    state, row = env.reset()
    assert row.observation.shape == (1, 84, 84, 4) and bool(row.first[0])
    for action in range(3):
        state, row = env.step(state, jnp.full(1, action, jnp.int32))
    assert not row.first.any() and row.observation.max() > 0
    assert str(env.spec.action) == atari.summary(env_id)[1]
    env.close()


def test_the_papers_presets_play_by_its_protocol() -> None:
    config = compose("Breakout-v5", ["preset=paper_base"])
    assert config.steps * 4 == 200_000_000 and config.env.protocol == "paper"
    assert config.observation.size == (96, 96) and config.observation.gray is False


def test_the_list_of_environments_names_games_and_presets() -> None:
    lines = invoke("envs", "Breakout-v5").stdout.splitlines()
    assert len(lines) == 2
    for word in ("Breakout-v5", "envpool", "uint8 (96, 96, 3)", "18 actions", "atari: muesli, muzero, ppo"):
        assert word in lines[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["CartPole-v1", "env.protocol=dqn"], "env.protocol=dqn is for Atari games, such as Breakout-v5"),
        (["Breakout-v5", "env.protocol=nature"], "expected one of paper, dqn or null"),
        (
            ["Breakout-v5", "preset=default"],
            "the only observation of Breakout-v5 is its screen: set observation=pixels",
        ),
        (["Breakout-v5", "observation=state"], "applies to pictures only: set observation=pixels"),
        (["Breakout-v5", "env.options.stack_num=4"], "env.options.stack_num of an Atari game is set by env.stack"),
        (["Breakout-v5", "env.reward_clip=0"], "env.reward_clip=0 is not possible: expected a number or null, above 0"),
        (["Breakot-v5"], "did you mean Breakout-v5"),
    ],
)
def test_refused_in_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    result = invoke("train", *words, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
