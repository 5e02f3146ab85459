"""Tests of stacked observations, and of the check of an environment's contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium_twins import counters
from rollouts import assert_same_rows, rollout

import environments
from bircher.envs.base import check_env, row, stack_observations
from bircher.errors import EnvContractError, UnsupportedEnvironment
from bircher.types import Discrete, EnvSpec

ACTIONS = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]])


def test_stacks_of_vectors_by_hand():
    env = environments.make("toy/counter", 2, seed=0, stack=3, options={"length": 3})
    assert env.spec.observation.shape == (9,) and env.pure
    rows = rollout(env, 7, ACTIONS)
    time = rows.observation.reshape(8, 2, 3, 3)[:, 1, :, 1]
    one_episode = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    np.testing.assert_array_equal(time, one_episode + one_episode)
    plain = rollout(environments.make("toy/counter", 2, seed=0, options={"length": 3}), 7, ACTIONS)
    assert_same_rows(rows._replace(observation=plain.observation), plain)
    np.testing.assert_array_equal(rows.observation[..., 6:], plain.observation)


def test_stacks_of_images_gain_channels():
    env = environments.make("toy/catch", 2, seed=0, stack=2)
    assert env.spec.observation.shape == (10, 5, 2)
    check_env(env, 20)
    rows = rollout(env, 12, np.ones((12, 2)))
    np.testing.assert_array_equal(rows.observation[0, ..., 0], rows.observation[0, ..., 1])
    np.testing.assert_array_equal(rows.observation[4, ..., 0], rows.observation[3, ..., 1])
    assert rows.first[10].all()
    np.testing.assert_array_equal(rows.observation[10, ..., 0], rows.observation[10, ..., 1])


def test_stacks_of_environments_that_are_not_pure():
    for source, settings in ((counters(), {}), ("LunarLander-v3", {"max_steps": 4})):
        made = environments.make(source, 2, 0, stack=2, **settings)
        assert not made.pure
        check_env(made, 15)
        width = made.spec.observation.shape[0] // 2
        rows = rollout(made, 11, np.ones((11, 2)))
        old, new = rows.observation[..., :width], rows.observation[..., width:]
        np.testing.assert_array_equal(old[1:], np.where(rows.first[1:, :, None], new[1:], new[:-1]))
        made.close()


@pytest.mark.parametrize("source", ["toy/counter", "LunarLander-v3", counters])
@pytest.mark.parametrize("stack", [1, 2])
def test_state_and_row_may_be_donated(source, stack):
    """A program that donates its arguments returns the same rows as one that does not."""
    rows = []
    for donated in ((), (0, 1)):
        env = environments.make(source() if callable(source) else source, 2, seed=0, stack=stack)
        step = jax.jit(lambda state, _, env=env: env.step(state, jnp.ones(2, jnp.int32)), donate_argnums=donated)
        state, timestep = env.reset()
        for _ in range(7):
            state, timestep = step(state, timestep)
        rows.append(jax.tree.map(np.asarray, timestep))
        env.close()
    assert_same_rows(*rows)


def test_numbers_without_an_axis_become_vectors_when_stacked():
    flat = Broken(lambda timestep, _: timestep._replace(observation=timestep.observation[:, 0]))
    flat.spec = flat.spec._replace(observation=jax.ShapeDtypeStruct((), np.float32))
    env = stack_observations(flat, 3)
    check_env(env, 8)
    rows = rollout(env, 4, np.zeros((4, 2)))
    np.testing.assert_array_equal(rows.observation[:, 0], [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 0]])
    with pytest.raises(UnsupportedEnvironment, match="cannot be stacked 0 times"):
        stack_observations(flat, 0)


class Broken:
    """Two environments with episodes of three steps that break the contract by the function `fault`."""

    num_envs, pure = 2, True

    def __init__(self, fault=None, observation=None):
        self.fault = fault or (lambda timestep, time: timestep)
        observation = jax.ShapeDtypeStruct((1,), np.float32) if observation is None else observation
        self.spec = EnvSpec("broken", observation, Discrete(2), 3)

    def reset(self):
        return jnp.zeros(2, jnp.int32), self.fault(self.row(jnp.zeros(2, jnp.int32)), 0)

    def step(self, time, action):
        time = jnp.where(time == 3, 0, time + 1)
        return time, self.fault(self.row(time), time)

    def row(self, time):
        observation, never = time[:, None].astype(jnp.float32), jnp.zeros(2, bool)
        reward = jnp.ones(2)
        return row(self.spec, observation, reward, first=time == 0, terminal=time == 3, truncated=never)

    def close(self):
        pass


FAULTS = {
    "expected float32": lambda r, t: r._replace(observation=r.observation.astype(jnp.int32)),
    "an observation is": lambda r, t: r._replace(observation=r.observation[:, :, None]),
    "the observation has the structure": lambda r, t: r._replace(observation={"x": r.observation}),
    "a first row has a reward": lambda r, t: r._replace(reward=jnp.ones(2)),
    "reward is": lambda r, t: r._replace(reward=r.reward[:, None]),
    "discount does not fit terminal": lambda r, t: r._replace(discount=jnp.ones(2)),
    "terminal is set on a row that is not last": lambda r, t: r._replace(last=jnp.zeros(2, bool)),
    "first and last are both set": lambda r, t: r._replace(last=r.last | r.first),
    "first does not equal last of the previous row": lambda r, t: r._replace(
        last=jnp.zeros(2, bool), terminal=jnp.zeros(2, bool), discount=jnp.ones(2)
    ),
    "not first": lambda r, t: r._replace(first=jnp.zeros(2, bool)),
    "legal_actions is": lambda r, t: r._replace(legal_actions=jnp.ones((2, 3), bool)),
    "no action is legal": lambda r, t: r._replace(legal_actions=jnp.zeros((2, 2), bool)),
    "there is no second player": lambda r, t: r._replace(discount=jnp.where(r.first | r.last, r.discount, -1.0)),
    "failed is set": lambda r, t: r._replace(failed=jnp.array([False, True])),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_check_env_finds(sentence):
    with pytest.raises(EnvContractError, match=f"broken.*{sentence}"):
        check_env(Broken(FAULTS[sentence]), 8)


def test_check_env_names_row_and_environment():
    def fault(timestep, time):
        return timestep._replace(failed=jnp.array([False, True]) & (time == 2))

    with pytest.raises(EnvContractError, match=r"broken, row 2: failed is set .* in environments \[1\]"):
        check_env(Broken(fault), 8)
    check_env(Broken(), 8)
