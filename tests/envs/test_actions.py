"""Actions of every kind of space: what adapters pass to environments, and which spaces are refused."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import environments
from bircher.envs.base import check_env, random_actions
from bircher.envs.specs import action_spec
from bircher.runs.directory import spec_from, spec_to
from bircher.types import Continuous, Discrete, EnvSpec, MultiDiscrete, Unsupported

LOW, HIGH = np.array([[-0.1, 2.0]]), np.array([[0.3, 7.0]])
OWN = {
    "asymmetric": spaces.Box(LOW, HIGH, (1, 2), np.float64),
    "one number": spaces.Box(-2.0, 2.0, (1,), np.float32),
    "scalar": spaces.Box(-3.0, 1.0, (), np.float32),
    "multi-discrete": spaces.MultiDiscrete([2, 3], start=[5, -1]),
    "table": spaces.MultiDiscrete([[2, 3], [4, 1]]),
    "binary": spaces.MultiBinary([2, 2]),
    "whole numbers": spaces.Box(-1, 2, (2,), np.int32),
}


class Recorder(gymnasium.Env):
    """An environment that requires every action to be in its space, and observes its number."""

    def __init__(self, space: spaces.Space):
        self.action_space, self.observation_space = space, spaces.Box(-100, 100, (4,))
        self.actions: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        padded = np.zeros(4, np.float32)
        padded[: np.size(action)] = np.ravel(action)
        return padded, 0.0, False, False, {}


@pytest.mark.parametrize("name", OWN)
def test_gymnasium_receives_actions_of_its_space(name):
    """Also those at the bounds and beyond, in every environment of a batch its own."""
    env = environments.make(lambda: Recorder(OWN[name]), 3, seed=0)
    check_env(env, 5)
    size = int(np.prod(env.spec.action.shape))
    state, _ = env.reset()
    if isinstance(env.spec.action, Continuous):
        agents = jnp.linspace(-2.0, 2.0, 3)[:, None] * jnp.ones(size)
        low, high = OWN[name].low.ravel(), OWN[name].high.ravel()
        expected = np.stack([low, (low + high) / 2, high])
    else:
        agents = jnp.asarray(np.arange(3)[:, None] % np.asarray(env.spec.action.sizes), jnp.int32)
        expected = np.asarray(agents) + np.asarray(env.spec.action.start)
    _, row = jax.jit(env.step)(state, agents)
    assert not row.failed.any(), env.failure()
    np.testing.assert_allclose(row.observation[:, :size], expected, rtol=1e-6)
    assert row.legal_actions.shape == (3, 0)


def test_actions_are_decoded_alike_by_numpy_and_jax():
    for space in OWN.values():
        spec = EnvSpec("x", None, action_spec(space))
        action = random_actions(spec, jax.random.key(0), environments.make("toy/bandit", 4, seed=0).reset()[1])
        assert action.shape == (4, int(np.prod(space.shape)))
        own = spec.own_action(np.asarray(action))
        assert own.dtype == space.dtype and own.shape == (4, *space.shape)
        assert all(space.contains(np.asarray(one)) for one in own)
        np.testing.assert_allclose(spec.own_action(action), own, rtol=1e-6)


def test_spaces_of_actions():
    assert action_spec(OWN["asymmetric"]) == Continuous((1, 2), (-0.1, 2.0), (0.3, 7.0), "float64")
    assert action_spec(OWN["multi-discrete"]) == MultiDiscrete((2, 3), (2,), (5, -1))
    assert action_spec(OWN["binary"]) == MultiDiscrete((2,) * 4, (2, 2), (0,) * 4, "int8")
    assert action_spec(OWN["whole numbers"]) == MultiDiscrete((4, 4), (2,), (-1, -1), "int32")
    assert action_spec(spaces.Discrete(3, start=2)) == Discrete(3, 2)
    assert str(action_spec(OWN["multi-discrete"])) == "multi-discrete, 2 dimensions of 2, 3 actions"
    assert str(action_spec(OWN["binary"])) == "multi-discrete, 4 dimensions of 2 actions"


ENDLESS = spaces.Box(np.array([-np.inf, -1.0], np.float32), np.array([np.inf, 3.0], np.float32))


def test_infinite_bounds_are_refused_or_replaced():
    refused = action_spec(ENDLESS)
    assert isinstance(refused, Unsupported) and "env.action_bound=1" in str(refused)
    assert action_spec(ENDLESS, 2.5) == Continuous((2,), (-2.5, -1.0), (2.5, 3.0))
    huge = spaces.Box(-3.4e38, 3.4e38, (1,), np.float32)
    assert isinstance(action_spec(huge), Unsupported) and action_spec(huge, 1.0) == Continuous((1,), (-1.0,), (1.0,))
    env = environments.make(lambda: Recorder(ENDLESS), 2, seed=0, action_bound=2.5)
    assert env.spec.action == Continuous((2,), (-2.5, -1.0), (2.5, 3.0))
    above = spaces.Box(np.array([5.0], np.float32), np.array([np.inf], np.float32))
    assert "env.action_bound=1" in str(action_spec(above, 1.0))


@pytest.mark.parametrize("space", [
    spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (2, 0)),
    spaces.Box(-(2**31), 2**31 - 1, (1,), np.int32), spaces.Dict({"a": spaces.Discrete(2)}),
], ids=str)  # fmt: skip
def test_other_spaces_are_not_supported(space):
    spec = action_spec(space)
    assert isinstance(spec, Unsupported) and str(space) in str(spec)


@pytest.mark.parametrize("space", [*OWN.values(), spaces.Discrete(4, start=-1)], ids=str)
def test_a_checkpoint_keeps_the_space_of_actions(space):
    spec = EnvSpec("x", jax.ShapeDtypeStruct((3,), np.float32), action_spec(space))
    saved = json.loads(json.dumps(spec_to(spec)))
    assert spec_from(saved).action == spec.action
    assert ("num_actions" in saved) == isinstance(space, spaces.Discrete)


@pytest.mark.parametrize(("env_id", "backend", "bounds"), [
    ("Pendulum-v1", "envpool", (-2.0, 2.0)),
    ("LunarLanderContinuous-v3", "envpool", (-1.0, 1.0)),
    ("BipedalWalker-v3", "envpool", (-1.0, 1.0)),
    ("Pendulum-v1", "gymnax", (-2.0, 2.0)),
    ("MountainCarContinuous-v0", "gymnax", (-1.0, 1.0)),
    ("toy/dial", None, None),
    ("toy/lock", None, None),
    ("toy/shop", None, None),
    ("toy/reacher", None, (-1.0, 1.0)),
])  # fmt: skip
def test_continuous_environments_keep_the_contract(env_id, backend, bounds):
    env = environments.make(env_id, 2, seed=0, backend=backend)
    check_env(env, 12)
    if bounds is not None:
        assert env.spec.action.low[0] == bounds[0] and env.spec.action.high[0] == bounds[1]
    env.close()


def test_envpool_takes_the_agents_actions_in_the_environments_units():
    """The torque of a pendulum, -2 to 2, costs 0.001 u²: full torque costs 0.004 more than none."""
    costs = []
    for action in (0.0, 1.0, -1.0, 7.0):
        env = environments.make("Pendulum-v1", 1, seed=0, backend="envpool")
        state, _ = env.reset()
        _, row = jax.jit(env.step)(state, jnp.full((1, 1), action))
        costs.append(float(row.reward[0]))
        env.close()
    np.testing.assert_allclose(np.subtract(costs[0], costs[1:]), 0.004, atol=2e-6)
