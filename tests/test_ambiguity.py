"""Rewards after equal observations and actions: what they leave open, on rows that are written by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bircher.analysis import model_error
from bircher.types import Trajectory


def rows(observation: list, action: list, reward: list, first: list, last: list) -> Trajectory:
    """One sequence; `reward` is that of arriving."""
    observation = np.array(observation, np.float32)[None, :, None]
    flags = (np.array(flag, bool)[None] for flag in (first, last))
    first_rows, last_rows = flags
    ones = np.ones(first_rows.shape, np.float32)
    legal = np.ones((*first_rows.shape, 2), bool)
    reward, action = np.array(reward, np.float32)[None], np.array(action)[None]
    return Trajectory(observation, reward, ones, first_rows, last_rows, last_rows, legal, action)


def joined(*sequences: Trajectory) -> Trajectory:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *sequences)


def episode(cue: float, answer: int) -> Trajectory:
    """A cue, a wait, a question, and a reward if the answer is the cue."""
    reward = 1.0 if answer == (cue > 0) else -1.0
    ends = [False, False, False, True]
    return rows([cue, 0, 2, 0], [0, 0, answer, 0], [0, 0, 0, reward], [True, False, False, False], ends)


def test_a_cue_that_is_gone_leaves_the_reward_open():
    cases = [(cue, answer) for cue in (-1.0, 1.0) for answer in (0, 1)] * 4
    found = model_error.measure(joined(*(episode(*case) for case in cases)))
    assert found["act/repeated_observations"] == 1.0
    assert found["act/reward_ambiguity"] == pytest.approx(1.0, abs=0.1)


def test_a_cue_that_is_still_seen_does_not():
    def told(cue: float, answer: int) -> Trajectory:
        one = episode(cue, answer)
        observation = one.observation.copy()
        observation[0, 2, 0] += cue
        return one._replace(observation=observation)

    cases = [(cue, answer) for cue in (-1.0, 1.0) for answer in (0, 1)] * 4
    assert model_error.measure(joined(*(told(*case) for case in cases)))["act/reward_ambiguity"] == 0.0


def test_nothing_could_be_remembered_on_the_first_row_of_an_episode():
    """A bandit whose arms pay by chance."""
    bandits = [rows([1, 1], [0, 0], [0, pay], [True, False], [False, True]) for pay in (0, 1, 0, 1)]
    assert model_error.measure(joined(*bandits)) == {}


def test_the_step_from_an_episode_to_the_next_is_none():
    seam = rows([5, 5, 5], [0, 0, 0], [0, 3, 0], [False, True, False], [False, False, False])
    assert model_error.measure(joined(seam, seam)) == {}


def test_rewards_that_are_all_equal_and_observations_that_never_repeat_show_nothing():
    same = rows([1, 1, 1], [0, 0, 0], [1, 1, 1], [False] * 3, [False] * 3)
    assert model_error.measure(joined(same, same)) == {"act/repeated_observations": 1.0}
    unlike = rows([1, 2, 3], [0, 0, 0], [1, 5, 7], [False] * 3, [False] * 3)
    assert model_error.measure(unlike) == {"act/repeated_observations": 0.0}


def measured_by_a_loop(rows: Trajectory) -> dict[str, float]:
    """The same by plain Python: a transition begins at row t of sequence b and is rewarded on row t + 1."""
    groups: dict[tuple, list[float]] = {}
    count, length = rows.first.shape
    for b in range(count):
        for t in range(length - 1):
            if rows.first[b, t] or rows.last[b, t] or rows.first[b, t + 1]:
                continue
            seen = tuple(rows.observation[b, t].ravel().tolist())
            groups.setdefault((seen, int(rows.action[b, t])), []).append(float(rows.reward[b, t + 1]))
    total = sum(len(rewards) for rewards in groups.values())
    again = [rewards for rewards in groups.values() if len(rewards) > 1]
    flat = [reward for rewards in again for reward in rewards]
    metrics = {"act/repeated_observations": len(flat) / total}
    squares = sum((reward - sum(rewards) / len(rewards)) ** 2 for rewards in again for reward in rewards)
    mean = sum(flat) / len(flat)
    variance = sum((reward - mean) ** 2 for reward in flat) / (len(flat) - 1)
    metrics["act/reward_ambiguity"] = squares / sum(len(rewards) - 1 for rewards in again) / variance
    return metrics


@pytest.mark.parametrize("seed", range(4))
def test_the_measure_is_that_of_a_loop_over_sequences_and_rows(seed: int) -> None:
    """Rewards are 10 b + t, so that another order of axes, or another row, gives other numbers."""
    rng, (count, length) = np.random.default_rng(seed), (5, 8)
    first, last = (rng.random((count, length)) < share for share in (0.2, 0.1))
    position = 10.0 * np.arange(count)[:, None] + np.arange(length)
    observation = rng.integers(0, 2, (count, length, 2, 1)).astype(np.float32) * [[1.0], [0.0]]
    ones, legal = np.ones((count, length), np.float32), np.ones((count, length, 2), bool)
    action = rng.integers(0, 2, (count, length))
    given = Trajectory(observation, position, ones, first, last, last, legal, action)
    expected = measured_by_a_loop(given)
    assert model_error.measure(given) == pytest.approx(expected) and 0 < expected["act/reward_ambiguity"]
    turned = Trajectory(*(np.swapaxes(part, 0, 1) for part in given[:8]))
    assert model_error.measure(turned) != pytest.approx(expected)


def test_the_ambiguity_is_the_variance_within_equal_transitions_over_that_of_all() -> None:
    """After 4 and action 0 come 0 and 2, after 5 and action 1 come 5 and 5, and 4 with action 1 occurs once."""
    given = rows([4, 4, 5, 5, 4, 9], [0, 0, 1, 1, 1, 0], [0, 0, 2, 5, 5, 100], [False] * 6, [False] * 6)
    found = model_error.measure(given)
    within, all_of_them = (1 + 1) / 2, (9 + 1 + 4 + 4) / 3  # unbiased: 4 rewards less 2 means, and less 1 mean
    assert found == pytest.approx({"act/repeated_observations": 4 / 5, "act/reward_ambiguity": within / all_of_them})


def test_zero_has_no_sign() -> None:
    given = rows([0.0, -0.0, 0.0], [0, 0, 0], [0, 1, 2], [False] * 3, [False] * 3)
    assert model_error.measure(given)["act/repeated_observations"] == 1.0
