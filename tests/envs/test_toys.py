"""Tests of the toys against rows written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import assert_same_rows, play, rollout

import environments
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.errors import UnsupportedEnvironment

ACTIONS = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(("env_id", "dies"), [("toy/counter", True), ("toy/counter-truncated", False)])
def test_counter_rows_by_hand(env_id, dies):
    rows = rollout(environments.make(env_id, 2, seed=0, options={"length": 3}), 7, ACTIONS)
    # Three actions, a reset row that ignores its action, three more.
    time = [0, 1, 2, 3, 0, 1, 2, 3]
    before = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]]
    expected = np.array([[[b, time[t], before[t][b]] for b in range(2)] for t in range(8)])
    np.testing.assert_array_equal(rows.observation, expected)
    reward = [[0, 0], [10, 1011], [21, 1020], [31, 1031], [0, 0], [11, 1010], [20, 1021], [31, 1031]]
    np.testing.assert_array_equal(rows.reward, np.array(reward, np.float32))
    first, last = np.array(time) == 0, np.array(time) == 3
    for b in range(2):
        np.testing.assert_array_equal(rows.first[:, b], first)
        np.testing.assert_array_equal(rows.last[:, b], last)
        np.testing.assert_array_equal(rows.terminal[:, b], last & dies)
        np.testing.assert_array_equal(rows.discount[:, b], 1.0 - (last & dies))
    assert rows.legal_actions.shape == (8, 2, 2) and rows.legal_actions.all() and not rows.failed.any()


def test_max_steps_truncates_before_the_death():
    rows = rollout(environments.make("toy/counter", 2, seed=0, max_steps=2), 5, ACTIONS[:5])
    np.testing.assert_array_equal(rows.last[:, 0], [False, False, True, False, False, True])
    assert not rows.terminal.any() and (rows.discount == 1).all()


def test_a_death_on_the_last_allowed_step_is_terminal():
    rows = rollout(environments.make("toy/counter", 1, seed=0, max_steps=5), 5, np.zeros((5, 1)))
    assert rows.terminal[5, 0] and rows.discount[5, 0] == 0


def test_chain_rewards_only_the_known_best_actions():
    env = environments.make("toy/chain", 1, seed=0, options={"length": 4})
    rows = rollout(env, 4, np.array([[0], [1], [2], [0]]))
    np.testing.assert_array_equal(rows.reward[:, 0], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rows.terminal[:, 0], [False, False, False, False, True])
    np.testing.assert_array_equal(rows.observation[:4, 0], np.eye(4))
    np.testing.assert_array_equal(rows.observation[4, 0], np.zeros(4))
    wrong = rollout(env, 3, np.array([[0], [2], [0]]))
    np.testing.assert_array_equal(wrong.observation[:, 0].argmax(-1), [0, 1, 0, 1])
    assert not wrong.last.any()


def test_cliff_walks_to_its_limit_or_dies():
    env = environments.make("toy/cliff", 2, seed=0, options={"length": 3})
    rows = rollout(env, 3, np.array([[0, 0], [0, 1], [0, 0]]))
    np.testing.assert_array_equal(rows.reward, [[0, 0], [1, 1], [1, 2], [1, 0]])
    np.testing.assert_array_equal(rows.last, [[False, False], [False, False], [False, True], [True, False]])
    np.testing.assert_array_equal(rows.terminal, [[False, False], [False, False], [False, True], [False, False]])
    assert rows.first[3, 1] and rows.discount[3, 0] == 1 and rows.discount[2, 1] == 0


def test_bandit_rewards_depend_on_the_arm():
    rows = rollout(environments.make("toy/bandit", 4, seed=0), 1, np.arange(4)[None])
    np.testing.assert_array_equal(rows.reward[1], [0.0, 0.25, 0.5, 1.0])
    assert rows.terminal[1].all()


def test_catch_is_won_by_going_under_the_ball_and_lost_by_staying_away():
    def column(image, row):
        return image[:, row, :, 0].argmax(-1)

    def catch(image):
        falling = image[:, :-1, :, 0].sum(1).argmax(-1)  # before the end the ball is above the paddle's row
        return np.sign(falling - column(image, -1)) + 1

    env = environments.make("toy/catch", 16, seed=0)
    rows = play(env, catch, 9)
    assert len(set(rows.observation[0, :, 0, :, 0].argmax(-1))) > 1, "every ball starts in the same column"
    assert rows.terminal[9].all() and (rows.reward[9] == 1).all() and (rows.reward[:9] == 0).all()
    lost = play(env, lambda image: 2 - catch(image), 9)
    off_center = lost.observation[0, :, 0, :, 0].argmax(-1) != 2
    assert off_center.any() and (lost.reward[9, off_center] == -1).all()


def test_nim_rows_by_hand():
    """The last reward is that of the winner, who moved last; then the next game begins."""
    env = environments.make("toy/nim", 2, seed=0, options={"heap": 4})
    rows = rollout(env, 5, np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0]]))
    assert env.spec.num_players == 2
    heap = [[4, 4], [2, 3], [0, 1], [4, 0], [3, 4]]
    expected = np.eye(5)[np.array(heap)]
    np.testing.assert_array_equal(rows.observation[:5], expected)
    np.testing.assert_array_equal(rows.reward[:5], [[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(rows.discount[:5], [[1, 1], [-1, -1], [0, -1], [1, 0], [-1, 1]])
    np.testing.assert_array_equal(rows.terminal[:5], [[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(rows.first[:5], [[1, 1], [0, 0], [0, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(rows.legal_actions[2, 1], [True, False])
    assert rows.legal_actions[[0, 1, 3, 4], [0, 0, 0, 0]].all()


@pytest.mark.parametrize("env_id", registry.TOYS)
def test_toys_keep_the_contract(env_id):
    check_env(environments.make(env_id, 3, seed=1), 60)


def test_rows_repeat_and_differ_by_seed():
    one, again, other = (rollout(environments.make("toy/catch", 8, seed=seed), 30) for seed in (1, 1, 2))
    assert_same_rows(one, again)
    assert not np.array_equal(one.observation[0], other.observation[0])


def test_state_is_plain_arrays_that_can_be_continued():
    env = environments.make("toy/catch", 4, seed=3)
    state, timestep = env.reset()
    step = jax.jit(env.step)
    for _ in range(12):
        state, timestep = step(state, np.zeros(4, np.int32))
    copy = jax.tree.map(lambda leaf: leaf.copy(), state)
    for _ in range(12):
        state, timestep = step(state, np.ones(4, np.int32))
        copy, again = step(copy, np.ones(4, np.int32))
        assert_same_rows(jax.tree.map(np.asarray, timestep), jax.tree.map(np.asarray, again))


def test_an_unknown_option_is_an_error():
    with pytest.raises(UnsupportedEnvironment, match="toy/chain does not take the options.*'color'"):
        environments.make("toy/chain", 1, seed=0, options={"color": "red"})


def test_recall_asks_for_the_cue_after_a_random_wait():
    """The cue is on the first row only; each wait from length to length + spread occurs, with its answer."""
    env = environments.make("toy/recall", 64, seed=0, options={"length": 3, "spread": 2})
    state, row = env.reset()
    step, cue, time, ended = jax.jit(env.step), np.asarray(row.observation[:, 0]), np.zeros(64, int), set()
    for number in range(30):
        answer = (cue > 0) != (number % 2 == 0)  # right on odd rows, wrong on even ones
        asked = np.asarray(row.observation[:, 1]) == 1
        state, row = step(state, jnp.asarray(answer, jnp.int32))
        time = np.where(row.first, 0, time + 1)
        np.testing.assert_array_equal(asked, row.last, err_msg="the answer ends the episode")
        ended |= {
            (int(t), float(r), number % 2) for t, r in zip(time[asked], np.asarray(row.reward)[asked], strict=True)
        }
        assert (np.asarray(row.observation)[~np.asarray(row.first), 0] == 0).all()
        cue = np.where(row.first, row.observation[:, 0], cue)
    assert ended == {(t, 1.0 if odd else -1.0, odd) for t in (4, 5, 6) for odd in (0, 1)}


@pytest.mark.parametrize("flat", [False, True])
def test_riddle_rewards_the_answer_that_its_parts_give(flat):
    env = environments.make("toy/riddle", 64, seed=0, options={"length": 3, "flat": flat})
    actions = np.random.default_rng(0).integers(0, 2, (7, 64))
    rows = rollout(env, 7, actions)
    if flat:
        seen = np.asarray(rows.observation)
        picture, where, numbers = seen[..., :36], seen[..., 36:39].argmax(-1), seen[..., 39:]
    else:
        picture, where, numbers = (np.asarray(rows.observation[name]) for name in ("picture", "where", "numbers"))
        picture, where = picture.reshape(8, 64, 36) / 255, where[..., 0]
    assert set(np.unique(picture)) == {0, 1} and set(np.unique(where)) == {0, 1, 2}
    answers = np.stack([picture[..., 0] == 1, numbers[..., 0] < 0, numbers[..., 1] < 0], -1)
    right = np.take_along_axis(answers, where[..., None], -1)[..., 0]
    expected = np.where(rows.first[1:], 0, actions == right[:-1])
    np.testing.assert_array_equal(rows.reward[1:], expected)
    np.testing.assert_array_equal(rows.terminal[:, 0], [False, False, False, True, False, False, False, True])
