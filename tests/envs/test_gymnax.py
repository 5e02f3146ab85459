"""Tests of the gymnax adapter: ends and starts of episodes, and classic control equal to Gymnasium's."""

from __future__ import annotations

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import rollout

import environments
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.specs import action_spec

MINATAR = [env_id for env_id in registry.GYMNAX if env_id.endswith("-MinAtar")]


def test_max_steps_truncates_and_the_next_row_is_a_reset():
    rows = rollout(environments.make("CartPole-v1", 3, seed=0, max_steps=7), 16)
    time = np.array([*range(8), *range(8), 0])
    for b in range(3):
        np.testing.assert_array_equal(rows.first[:, b], time == 0)
        np.testing.assert_array_equal(rows.last[:, b], time == 7)
    assert not rows.terminal.any() and (rows.discount == 1).all()
    np.testing.assert_array_equal(rows.reward, np.where(rows.first, 0, 1))
    assert (np.abs(rows.observation[rows.first]) <= 0.05).all()


def test_a_fallen_pole_is_terminal_with_its_final_observation():
    rows = rollout(environments.make("CartPole-v1", 4, seed=0), 40, np.ones((40, 4)))
    assert rows.terminal.any(0).all() and not (rows.last & ~rows.terminal).any()
    np.testing.assert_array_equal(rows.discount, np.where(rows.terminal, 0, 1))
    fallen = np.abs(rows.observation[..., 2]) > 12 * np.pi / 180
    np.testing.assert_array_equal(rows.terminal, fallen, "the final observation is the fallen pole, no other is")
    assert (rows.reward[rows.terminal] == 1).all(), "Gymnasium pays for the last step too"
    starts = rows.observation[rows.first]
    assert len({row.tobytes() for row in starts}) == len(starts) > 8


def test_a_fall_on_the_last_allowed_step_is_terminal():
    fall = int(np.argmax(rollout(environments.make("CartPole-v1", 1, 0), 40, np.ones((40, 1))).terminal))
    rows = rollout(environments.make("CartPole-v1", 1, 0, max_steps=fall), fall, np.ones((fall, 1)))
    assert rows.terminal[fall, 0] and rows.discount[fall, 0] == 0


STATES = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
    "MountainCarContinuous-v0": ("position", "velocity"),
    "Pendulum-v1": ("theta", "theta_dot"),
}


@pytest.mark.parametrize("env_id", STATES)
def test_classic_control_is_gymnasiums(env_id):
    """Steps from equal states give equal rows; limits, spaces and the range of starts are equal too."""
    theirs, (ours, params) = gymnasium.make(env_id), gymnax.make(env_id)
    assert environments.spec(env_id).max_steps == theirs.spec.max_episode_steps == params.max_steps_in_episode
    assert environments.spec(env_id).action == action_spec(theirs.action_space)
    step, key, rng = jax.jit(ours.step_env), jax.random.key(0), np.random.default_rng(0)
    ends = 0
    for episode in range(3):
        theirs.reset(seed=episode)
        _, state = ours.reset_env(jax.random.fold_in(key, episode), params)
        if env_id.startswith("MountainCar"):  # chance never ends it: start before the flag
            state = state.replace(position=jnp.float32(0.45), velocity=jnp.float32(0.03))
        for _ in range(60):
            theirs.unwrapped.state = np.array([getattr(state, name) for name in STATES[env_id]], np.float64)
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            if isinstance(theirs.action_space, gymnasium.spaces.Discrete):
                action = int(rng.integers(theirs.action_space.n))
            observation, reward, terminal, _, _ = theirs.step(action)
            seen, state, paid, dead, _ = step(key, state, action, params)
            np.testing.assert_allclose(seen, observation, atol=1e-5)
            assert float(paid) == pytest.approx(reward, abs=1e-5) and bool(dead) == terminal
            if terminal:
                ends += 1
                break
    assert ends == 3 or env_id in ("Acrobot-v1", "Pendulum-v1")
    starts = np.stack([theirs.reset(seed=seed)[0] for seed in range(200)])
    mine = np.asarray(jax.vmap(lambda k: ours.reset_env(k, params)[0])(jax.random.split(key, 200)))
    near = 0.03 * np.ptp(starts, axis=0).max()
    np.testing.assert_allclose(mine.min(0), starts.min(0), atol=near)
    np.testing.assert_allclose(mine.max(0), starts.max(0), atol=near)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", MINATAR)
def test_minatar_keeps_the_contract(env_id):
    env = environments.make(env_id, 2, seed=0, max_steps=6)
    check_env(env, 15)
    _, timestep = env.reset()
    assert timestep.observation.shape[1:3] == (10, 10) and timestep.observation.dtype == jnp.float32
    assert set(np.unique(timestep.observation)) == {0.0, 1.0}


def test_breakout_dies_when_the_ball_is_lost():
    rows = rollout(environments.make("Breakout-MinAtar", 4, seed=0), 60, np.zeros((60, 4)))
    assert rows.terminal.any(0).all()
    ball = rows.observation[..., 1][rows.terminal]
    assert (ball[:, 9].sum(-1) == 1).all(), "the final observation has the ball at the bottom"


def test_no_start_of_an_evaluation_occurs_in_training():
    starts = {}
    for role in ("train", "evaluation"):
        rows = rollout(environments.make("CartPole-v1", 32, seed=0, role=role, max_steps=3), 100)
        starts[role] = {row.tobytes() for row in rows.observation[rows.first]}
        assert len(starts[role]) == rows.first.sum()
    assert not starts["train"] & starts["evaluation"]


def test_spaces_other_than_float_vectors():
    assert registry.describe(environments.spec("FrozenLake-misc").observation) == "int32 (1,)"
    check_env(environments.make("FrozenLake-misc", 2, seed=0), 5)
    check_env(environments.make("Catch-bsuite", 2, seed=0), 5)
    check_env(environments.make("PointRobot-misc", 2, seed=0), 5)
