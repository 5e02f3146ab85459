"""Rewards after equal observations and actions: what they leave open, on rows that are written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bircher import ambiguity
from bircher.types import Trajectory


def rows(observation: list, action: list, reward: list, first: list, last: list) -> Trajectory:
    """One sequence; `reward` is that of arriving."""
    observation = np.array(observation, np.float32)[None, :, None]
    flags = (np.array(flag, bool)[None] for flag in (first, last))
    first_rows, last_rows = flags
    ones = np.ones(first_rows.shape, np.float32)
    legal = np.ones((*first_rows.shape, 2), bool)
    reward, action = np.array(reward, np.float32)[None], np.array(action)[None]
    return Trajectory(observation, reward, ones, first_rows, last_rows, last_rows, legal, action, {})


def joined(*sequences: Trajectory) -> Trajectory:
    fields = (np.concatenate(parts) for parts in zip(*(one[:-1] for one in sequences), strict=True))
    return Trajectory(*fields, {})


def episode(cue: float, answer: int) -> Trajectory:
    """A cue, a wait, a question, and a reward if the answer is the cue."""
    reward = 1.0 if answer == (cue > 0) else -1.0
    ends = [False, False, False, True]
    return rows([cue, 0, 2, 0], [0, 0, answer, 0], [0, 0, 0, reward], [True, False, False, False], ends)


def test_a_cue_that_is_gone_leaves_the_reward_open():
    cases = [(cue, answer) for cue in (-1.0, 1.0) for answer in (0, 1)] * 4
    found = ambiguity.measure(joined(*(episode(*case) for case in cases)))
    assert found["act/repeated_observations"] == 1.0
    assert found["act/reward_ambiguity"] == pytest.approx(1.0, abs=0.1)


def test_a_cue_that_is_still_seen_does_not():
    def told(cue: float, answer: int) -> Trajectory:
        one = episode(cue, answer)
        observation = one.observation.copy()
        observation[0, 2, 0] += cue
        return one._replace(observation=observation)

    cases = [(cue, answer) for cue in (-1.0, 1.0) for answer in (0, 1)] * 4
    assert ambiguity.measure(joined(*(told(*case) for case in cases)))["act/reward_ambiguity"] == 0.0


def test_nothing_could_be_remembered_on_the_first_row_of_an_episode():
    """A bandit whose arms pay by chance."""
    bandits = [rows([1, 1], [0, 0], [0, pay], [True, False], [False, True]) for pay in (0, 1, 0, 1)]
    assert ambiguity.measure(joined(*bandits)) == {}


def test_the_step_from_an_episode_to_the_next_is_none():
    seam = rows([5, 5, 5], [0, 0, 0], [0, 3, 0], [False, True, False], [False, False, False])
    assert ambiguity.measure(joined(seam, seam)) == {}


def test_rewards_that_are_all_equal_and_observations_that_never_repeat_show_nothing():
    same = rows([1, 1, 1], [0, 0, 0], [1, 1, 1], [False] * 3, [False] * 3)
    assert ambiguity.measure(joined(same, same)) == {"act/repeated_observations": 1.0}
    unlike = rows([1, 2, 3], [0, 0, 0], [1, 5, 7], [False] * 3, [False] * 3)
    assert ambiguity.measure(unlike) == {"act/repeated_observations": 0.0}
