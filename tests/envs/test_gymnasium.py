"""Tests of the Gymnasium adapter: rows equal to those of the toys, failures, masks and spaces."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium_twins import Counter, Masked, NotANumber, Raises, Spaces, counters
from rollouts import assert_same_rows, rollout

import environments
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.errors import EnvContractError, UnsupportedEnvironment
from bircher.types import Continuous, Discrete, Unsupported

ACTIONS = np.random.default_rng(0).integers(0, 2, (14, 3))


@pytest.mark.parametrize("truncates", [False, True])
def test_rows_equal_the_pure_twin(truncates):
    twin = environments.make("toy/counter-truncated" if truncates else "toy/counter", 3, seed=0)
    env = environments.make(counters(truncates=truncates), 3, seed=0)
    assert_same_rows(rollout(env, 14, ACTIONS), rollout(twin, 14, ACTIONS))


def test_max_steps_truncates_and_a_death_on_that_step_is_terminal():
    twin = environments.make("toy/counter", 3, seed=0, max_steps=2)
    assert_same_rows(
        rollout(environments.make(counters(), 3, 0, max_steps=2), 8, ACTIONS[:8]), rollout(twin, 8, ACTIONS[:8])
    )
    both = rollout(environments.make(counters(), 2, 0, max_steps=5), 5, ACTIONS[:5, :2])
    assert both.last[5].all() and both.terminal[5].all() and (both.discount[5] == 0).all()


def test_an_action_can_be_repeated():
    """Rewards are summed, also over an incomplete repetition at the end of an episode; max_steps counts actions."""
    env = environments.make(counters(), 2, 0, action_repeat=2)
    assert env.spec.action_repeat == 2
    rows = rollout(env, 4, ACTIONS[:4, :2])
    np.testing.assert_array_equal(rows.observation[:4, :, 1], [[0, 0], [2, 2], [4, 4], [5, 5]])
    assert rows.last[3].all() and rows.terminal[3].all() and rows.first[4].all()
    a = ACTIONS[:3, :2].astype(np.float32)
    index = 1000.0 * np.arange(2)
    np.testing.assert_allclose(rows.reward[1], 2 * index + 30 + 2 * a[0])
    np.testing.assert_allclose(rows.reward[2], 2 * index + 70 + 2 * a[1])
    np.testing.assert_allclose(rows.reward[3], index + 50 + a[2])
    cut = rollout(environments.make(counters(), 2, 0, max_steps=2, action_repeat=2), 2, ACTIONS[:2, :2])
    assert cut.last[2].all() and not cut.terminal[2].any() and (cut.observation[2, :, 1] == 4).all()
    lander = environments.make("LunarLander-v3", 1, 0, backend="gymnasium", action_repeat=3)
    assert lander.spec.max_steps == 334 and lander.spec.action_repeat == 3


def test_pure_environments_repeat_actions_as_gymnasium_does():
    """The toy and its twin in Gymnasium have the same rows: a death, and a limit in the middle of a repetition."""
    for truncates, settings in ((False, {}), (True, {}), (False, {"max_steps": 2})):
        twin = environments.make(counters(truncates=truncates), 3, seed=0, action_repeat=2, **settings)
        env = environments.make(
            "toy/counter-truncated" if truncates else "toy/counter", 3, seed=0, action_repeat=2, **settings
        )
        assert (env.spec.action_repeat, env.spec.max_steps) == (2, twin.spec.max_steps or env.spec.max_steps)
        assert_same_rows(rollout(env, 9, ACTIONS[:9]), rollout(twin, 9, ACTIONS[:9]))
        check_env(env, 9)


def test_random_starts_and_chances_are_drawn_anew_in_a_repetition():
    once, twice = (environments.make("small/key", 64, seed=0, action_repeat=repeat) for repeat in (1, 2))
    np.testing.assert_array_equal(once.reset()[1].observation, twice.reset()[1].observation)
    moved = np.abs(np.diff(rollout(twice, 1, np.ones((1, 64))).observation[:, :, :2], axis=0)).sum(-1)[0] * 5
    assert {0, 1, 2} <= set(np.round(moved).astype(int).tolist()), "two slips of one action are independent"


def test_where_actions_cannot_be_repeated_an_error_says_so():
    with pytest.raises(UnsupportedEnvironment, match="env.action_repeat=2 cannot repeat the actions of tic_tac_toe"):
        environments.make("tic_tac_toe", 1, seed=0, action_repeat=2)
    with pytest.raises(UnsupportedEnvironment, match=r"Atari games.* set env.options.frame_skip"):
        environments.make("Breakout-v5", 1, seed=0, action_repeat=2)


def test_registered_id_and_its_limit():
    gymnasium.register("bircher/Counter-v0", entry_point=Counter, max_episode_steps=4)
    try:
        assert environments.resolve("bircher/Counter-v0") == "gymnasium"
        env = environments.make("bircher/Counter-v0", 2, seed=0)
        assert env.spec.max_steps == 4 and environments.spec("bircher/Counter-v0", max_steps=9).max_steps == 9
        rows = rollout(env, 4, ACTIONS[:4, :2])
        assert rows.last[4].all() and not rows.terminal.any()
    finally:
        gymnasium.registry.pop("bircher/Counter-v0")


def test_each_environment_gets_its_own_seed_and_reset_repeats_them():
    env = environments.make("CartPole-v1", 3, seed=5, backend="gymnasium")
    _, one = env.reset()
    _, two = env.reset()
    _, other = environments.make("CartPole-v1", 3, seed=5, role="evaluation", backend="gymnasium").reset()
    np.testing.assert_array_equal(one.observation, two.observation)
    assert len({row.tobytes() for row in np.concatenate([one.observation, other.observation])}) == 6
    rows = rollout(env, 120)
    starts = rows.observation[rows.first]
    assert len(starts) > 6 and len({row.tobytes() for row in starts}) == len(starts), "later episodes repeat a start"


def test_an_exception_sets_failed_and_failure_returns_it():
    made = iter([0, 0, 1, 2])  # the probe, then three environments
    env = environments.make(lambda: Raises(next(made)), 3, seed=0)
    assert env.failure() is None
    rows = rollout(env, 12, np.zeros((12, 3)))
    np.testing.assert_array_equal(rows.failed.any(-1), rows.failed.all(-1))
    # Step 8 of the environment is row 9: one row between is a reset.
    np.testing.assert_array_equal(rows.failed[:, 0], np.arange(13) >= 9)
    for part in ("environment 1", "ZeroDivisionError", "after 8 steps", "the mill is broken"):
        assert part in env.failure()
    with pytest.raises(EnvContractError, match="the mill is broken"):
        made = iter([0, 0, 1, 2])
        check_env(environments.make(lambda: Raises(next(made)), 3, seed=0), 12)


def test_a_reward_of_nan_is_a_failure():
    env = environments.make(NotANumber, 2, seed=0)
    rows = rollout(env, 4, np.zeros((4, 2)))
    np.testing.assert_array_equal(rows.failed[:, 0], [False, False, False, True, True])
    assert env.failure() == "environment 0, step 3: the reward is nan, expected a finite number"


def test_action_mask_and_actions_that_start_below_zero():
    env = environments.make(Masked, 2, seed=0)
    assert env.spec.action == Discrete(3, start=-1)
    rows = rollout(env, 8)  # random legal actions: action t % 3 at time t, shifted by -1
    time = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2])
    np.testing.assert_array_equal(rows.legal_actions[:, 0], np.eye(3, dtype=bool)[time % 3])
    np.testing.assert_array_equal(rows.observation[:6, 0, 2], [0, -1, 0, 1, -1, 0])
    check_env(env, 20)


OBSERVATIONS = {
    "float64": (spaces.Box(-1, 1, (2, 3), np.float64), "float32 (2, 3)"),
    "int64": (spaces.Box(0, 9, (2,), np.int64), "int32 (2,)"),
    "bytes": (spaces.Box(0, 255, (4, 4, 3), np.uint8), "uint8 (4, 4, 3)"),
    "index": (spaces.Discrete(4, start=2), "int32 (1,)"),
    "many": (spaces.MultiDiscrete([3, 4]), "int32 (2,)"),
    "bits": (spaces.MultiBinary(3), "int32 (3,)"),
    "dict": (
        spaces.Dict({"eye": spaces.Box(0, 255, (2, 2), np.uint8), "place": spaces.Discrete(3)}),
        "{eye: uint8 (2, 2), place: int32 (1,)}",
    ),
    "tuple": (spaces.Tuple([spaces.Box(0, 1, (1,)), spaces.Discrete(2)]), "(float32 (1,), int32 (1,))"),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_spaces(name):
    space, text = OBSERVATIONS[name]
    env = environments.make(lambda: Spaces(space), 2, seed=0)
    assert registry.describe(env.spec.observation) == text
    check_env(env, 7)


def test_a_discrete_observation_is_an_index_from_zero_or_one_hot():
    space = spaces.Discrete(4, start=2)
    _, timestep = environments.make(lambda: Spaces(space), 1, seed=0).reset()
    _, as_given = environments.make(lambda: Spaces(space), 1, seed=0, layout="as_given").reset()
    space.seed(registry.seeds(0, "train", 1)[0])
    index = space.sample() - 2
    np.testing.assert_array_equal(timestep.observation[0], [index])
    np.testing.assert_array_equal(as_given.observation[0], np.eye(4, dtype=np.float32)[index])


def test_continuous_actions_step():
    env = environments.make(lambda: Spaces(action_space=spaces.Box(-2, 2, (3,))), 2, seed=0)
    assert env.spec.action == Continuous((3,), (-2.0,) * 3, (2.0,) * 3)
    check_env(env, 7)


def test_unsupported_spaces_are_named():
    env = environments.make(lambda: Spaces(action_space=spaces.Tuple([spaces.Discrete(2)])), 2, seed=0)
    assert env.spec.action == Unsupported("action space Tuple(Discrete(2))")
    check_env(env)
    with pytest.raises(UnsupportedEnvironment, match=r"action space Tuple\(Discrete\(2\)\) is not supported"):
        env.step(env.reset()[0], jnp.zeros(2, jnp.int32))
    env = environments.make(lambda: Spaces(spaces.Dict({"word": spaces.Text(3)})), 2, seed=0)
    assert "Text" in str(env.spec.observation)
    check_env(env)
    with pytest.raises(UnsupportedEnvironment, match="Text"):
        env.reset()


def test_a_callable_must_return_an_environment():
    def soup():
        return object()

    with pytest.raises(UnsupportedEnvironment, match="soup returned object, not a gymnasium.Env"):
        environments.make(soup, 1, seed=0)


def test_step_runs_in_order_inside_two_programs():
    env = environments.make(counters(length=50), 2, seed=0)
    state, timestep = env.reset()
    scan = jax.jit(lambda state: jax.lax.scan(lambda s, a: env.step(s, a), state, jnp.zeros((5, 2), jnp.int32)))
    for chunk in range(3):
        state, rows = scan(state)
        np.testing.assert_array_equal(rows.observation[:, 0, 1], np.arange(5) + 5 * chunk + 1)
