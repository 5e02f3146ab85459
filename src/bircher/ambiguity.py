"""Whether observations leave open what happens next: rewards that differ after the same observation and action."""

from __future__ import annotations

import numpy as np

from bircher.types import Trajectory


def measure(rows: Trajectory) -> dict[str, float]:
    """Compare the rewards that followed equal observations and actions, over NumPy rows [B, T + 1].

    Only transitions that occur at least twice count.  The first row of an episode is left out, because nothing that
    could be remembered comes before it.  The ambiguity is missing where no transition repeats or all rewards are equal.
    """
    used = ~(rows.first | rows.last)[:, :-1] & ~rows.first[:, 1:]
    observation, action = rows.observation[:, :-1][used], np.asarray(rows.action)[:, :-1][used]
    reward = rows.reward[:, 1:][used].astype(np.float64)
    if not len(reward):
        return {}
    group, size = _groups(observation + observation.dtype.type(0), action)
    repeated = size[group] > 1
    metrics = {"act/repeated_observations": float(repeated.mean())}
    group, reward = group[repeated], reward[repeated]
    if len(reward) and np.ptp(reward) > 0:
        mean = np.bincount(group, reward, len(size)) / np.maximum(size, 1)
        within = np.square(reward - mean[group]).sum() / (size[size > 1] - 1).sum()
        metrics["act/reward_ambiguity"] = float(within / np.var(reward, ddof=1))
    return metrics


def _groups(observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of every row, by equal observation and action, and the number of rows in each group."""
    keys = [(row.tobytes(), int(choice)) for row, choice in zip(observation, action, strict=True)]
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([index[key] for key in keys])
    return group, np.bincount(group)
