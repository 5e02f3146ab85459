"""Every space that an adapter supports, through every command that acts.

The environments refuse an action outside their space, or one that their mask forbids.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from typer.testing import CliRunner

import bircher
from bircher.agents.actor_critic import PolicyAgentState
from bircher.cli import app
from bircher.config.config import compose
from bircher.errors import ConfigError, NotEnoughMemory
from bircher.ops.improvement import AdvantageNormalizer
from bircher.runs import build, directory, inspect, launch, loaded_agent
from bircher.runs.loaded_agent import LoadedAgent
from bircher.types import Policy
from tiny import SETTINGS

LENGTH = 6


class Strict(gymnasium.Env):
    """Episodes of six steps with observations drawn from the space; action number `t % n` alone is legal if masked."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, seen: spaces.Space, actions: spaces.Discrete, masked: bool, render_mode: str | None = None):
        self.observation_space, self.action_space, self.masked = seen, actions, masked
        self.render_mode = render_mode

    def _row(self) -> tuple[Any, dict[str, Any]]:
        observation = self.observation_space.sample()
        info: dict[str, Any] = {}
        if self.masked:
            info["action_mask"] = (np.arange(self.action_space.n) == self.t % self.action_space.n).astype(np.int8)
        return observation, info

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._row()

    def step(self, action: Any):
        if not self.action_space.contains(action):
            raise ValueError(f"action {action} is not in {self.action_space}")
        if self.masked and action - self.action_space.start != self.t % self.action_space.n:
            raise ValueError(f"action {action} is not legal in step {self.t}")
        self.t += 1
        observation, info = self._row()
        return observation, 1.0, self.t == LENGTH, False, info

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 20 * self.t, np.uint8)


TWO = spaces.Discrete(2)
WORLDS: dict[str, tuple[spaces.Space, spaces.Discrete, bool]] = {
    "action-from-minus-1": (spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(3, start=-1), False),
    "action-from-1-masked": (spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(3, start=1), True),
    "discrete": (spaces.Discrete(5), TWO, True),
    "discrete-from-2": (spaces.Discrete(5, start=2), spaces.Discrete(3, start=-1), True),
    "many": (spaces.MultiDiscrete([3, 4]), TWO, False),
    "bits": (spaces.MultiBinary(3), TWO, False),
    "integers": (spaces.Box(-9, 9, (2,), np.int64), TWO, False),
    "booleans": (spaces.Box(0, 1, (4,), np.bool_), TWO, False),
    "picture": (spaces.Box(0, 255, (16, 16, 3), np.uint8), TWO, False),
    "picture-channels-first": (spaces.Box(0, 255, (3, 16, 20), np.uint8), TWO, True),
    "picture-stacked": (spaces.Box(0, 255, (2, 16, 20, 3), np.uint8), TWO, False),
}
QUICK = {**SETTINGS, "model.torso": "mlp", "steps": 16}


@pytest.fixture
def world(request: pytest.FixtureRequest):
    """A registered environment by its name in WORLDS."""
    seen, actions, masked = WORLDS[request.param]
    env_id = f"Strict-{request.param}-v0"
    gymnasium.register(env_id, entry_point=Strict, kwargs={"seen": seen, "actions": actions, "masked": masked})
    yield env_id
    gymnasium.registry.pop(env_id)


def invoke(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def untrained(world: str, **settings: Any) -> LoadedAgent:
    """An agent with parameters that NumPy drew, which compiles nothing; its specification as a checkpoint holds it."""
    config = compose(world, {**QUICK, **settings})
    env = build.make_env(config, None, 1, 0, "test")
    spec = directory.spec_from(json.loads(json.dumps(directory.spec_to(env.spec))))
    env.close()
    assert (spec.observation, spec.action, spec.encoding) == (env.spec.observation, env.spec.action, env.spec.encoding)
    agent = build.make_parts(config, spec).agent
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), spec)).params
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    state = PolicyAgentState(AdvantageNormalizer.zero(), None)
    return LoadedAgent(config, spec, agent, Policy(params, state), None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_an_agent_acts_on_the_environments_own_observations(world: str):
    agent, env = untrained(world), gymnasium.make(world)
    observation, info = env.reset(seed=0)
    ended = False
    while not ended:  # the environment refuses actions that are not its own
        action = agent.act(observation, legal_actions=info.get("action_mask"))
        observation, _, ended, _, info = env.step(action)
    batch = np.asarray(env.observation_space.sample())[None]
    actions = agent.act(batch)
    assert actions.shape == (1,) and env.action_space.contains(actions[0]) and actions.dtype == action.dtype
    assert len(loaded_agent.episode_frames(agent, 0)) == LENGTH + 1


@pytest.mark.long
@pytest.mark.parametrize("world", ["discrete-from-2"], indirect=True)
def test_every_command_takes_the_same_environment(world: str, tmp_path: Path):
    run = bircher.train(world, out=tmp_path / "run", **{**QUICK, "search.num_simulations": 2, "model.unroll_steps": 1})
    assert "act/observation_size" not in (run.path / "metrics.jsonl").read_text(), "a number of a state has no scale"
    env = gymnasium.make(world)
    report = json.loads(invoke("eval", run.path, "--episodes", 3, "--json").stdout)
    assert report["returns"] == [float(LENGTH)] * 3
    video = tmp_path / "video.mp4"
    invoke("watch", run.path, "--video", video)
    assert video.stat().st_size > 0
    chosen = json.loads(invoke("search", run.path, "--step", 3, "--json").stdout)
    legal = env.action_space.start + 3 % env.action_space.n
    assert chosen["action"] == legal, "the only legal action, as the environment counts it"
    agent = bircher.load(run.path)
    mask = np.arange(env.action_space.n) == 1
    observation = env.observation_space.sample()
    assert agent.think(observation, legal_actions=mask).action == 1
    assert int(agent.search(observation, mask, 0).action[0]) == 1
    assert agent.act(observation, legal_actions=mask) == env.action_space.start + 1
    assert json.loads(invoke("diagnose", run.path, "--steps", 1024, "--json").stdout)["env"] == world


@pytest.mark.parametrize("world", ["discrete-from-2"], indirect=True)
def test_stacked_observations_are_joined_along_the_last_axis(world: str):
    agent = untrained(world, **{"env.stack": 2})
    assert agent.spec.observation.shape == (2,)
    one = agent.think(np.array([2, 6]), greedy=True)
    again = agent.think(np.array([[2, 6]]), greedy=True)
    np.testing.assert_array_equal(one.prior, again.prior)
    with pytest.raises(ValueError, match=r"contains 7, expected a whole number from 2 to 6"):
        agent.act(np.array([2, 7]))
    assert len(loaded_agent.episode_frames(agent, 0, thoughts=True)) == LENGTH + 1


@pytest.mark.parametrize("world", ["action-from-1-masked"], indirect=True)
def test_observations_of_another_shape_are_refused_in_a_sentence(world: str):
    agent = untrained(world)
    with pytest.raises(ValueError, match=r"has observations \(3,\), or \[B, …\] of them, not \(4,\)"):
        agent.act(np.zeros(4))
    with pytest.raises(ValueError, match=r"legal_actions has the shape \(4,\), but .* has 3 actions"):
        agent.act(np.zeros(3), legal_actions=np.ones(4, np.int8))
    with pytest.raises(ValueError, match="which the agent.s float32 cannot hold"):
        agent.act(np.array([0.0, 1e300, 0.0]))


def test_a_network_that_does_not_fit_is_refused():
    with pytest.raises(NotEnoughMemory, match=r"the networks, their optimizer and their gradients take"):
        bircher.train(lambda: Strict(spaces.Discrete(10**9), TWO, False), **QUICK)


@pytest.mark.parametrize("world", ["picture-channels-first"], indirect=True)
def test_a_turned_layout_is_said_before_a_run_begins(world: str, tmp_path: Path):
    training = launch.start(compose(world, QUICK), None, tmp_path / "run")
    assert training._sentences[0].startswith("observations (3, 16, 20) are taken as 3 channels first and converted to")
    os.close(training._claim)
    training._env.close()


def test_an_agent_without_a_model_is_not_diagnosed():
    with pytest.raises(ConfigError, match="agent ppo has no model to compare with episodes: diagnose is"):
        inspect.diagnose(untrained("toy/cliff", **{"agent": "ppo", "optimizer.updates_per_step": None}))
