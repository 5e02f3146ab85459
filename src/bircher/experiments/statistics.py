"""Statistics of agents over environments and seeds, with the uncertainty of few runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bircher.training.evaluator import interquartile_mean

RESAMPLES = 5000
CONFIDENCE = 0.95

Scores = Mapping[str, Sequence[float]]
"""One agent's runs: by environment, a number for each seed."""


class Estimate(NamedTuple):
    """A statistic of all runs with its stratified bootstrap interval."""

    value: float
    low: float
    high: float


def aggregate(
    scores: Scores, statistic: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator
) -> Estimate:
    """A statistic over all environments and seeds; its interval resamples the seeds within each environment."""
    drawn = np.concatenate([resampled(values, generator) for values in scores.values()], axis=-1)
    return _estimate(statistic(_flat(scores)), statistic(drawn))


def iqm(scores: Scores, generator: np.random.Generator) -> Estimate:
    """Interquartile mean: the mean of the middle half of all runs."""
    return aggregate(scores, interquartile_mean, generator)


def median(scores: Scores, generator: np.random.Generator) -> Estimate:
    """Median over environments of the means over seeds, as rliable's."""
    means = [np.asarray(values, float).mean() for values in scores.values()]
    drawn = np.stack([resampled(values, generator).mean(-1) for values in scores.values()], axis=-1)
    return _estimate(float(np.median(means)), np.median(drawn, axis=-1))


def probability_of_improvement(ours: Scores, theirs: Scores, generator: np.random.Generator) -> Estimate:
    """How probably a run of ours beats one of theirs, on a random environment of those that both have; ties count half.

    Raises:
      ValueError: they have no environment in common.
    """
    shared = [env for env in ours if env in theirs]
    if not shared:
        raise ValueError("no environment has runs of both: there is nothing to compare")
    value = float(np.mean([_wins(_row(ours[env]), _row(theirs[env])) for env in shared]))
    drawn = [_wins(resampled(ours[env], generator), resampled(theirs[env], generator)) for env in shared]
    return _estimate(value, np.mean(drawn, axis=0))


def resampled(values: Sequence[float], generator: np.random.Generator) -> Float[np.ndarray, "resamples runs"]:
    """As many runs as there are, drawn with replacement, over and over."""
    return _row(values)[generator.integers(len(values), size=(RESAMPLES, len(values)))]


def normalized(scores: Mapping[str, Scores], floor: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
    """Every agent's scores with 0 for `floor` and 1 for the best agent's mean in each environment.

    Returns of different games are no numbers to be averaged; where no agent is above the floor, all are 0.
    """
    best: dict[str, float] = {}
    for runs in scores.values():
        for env, values in runs.items():
            best[env] = max(best.get(env, -np.inf), float(np.mean(values)))

    def scaled(env: str, values: Sequence[float]) -> list[float]:
        span = best[env] - floor[env]
        return [(value - floor[env]) / span if span > 0 else 0.0 for value in values]

    return {agent: {env: scaled(env, values) for env, values in runs.items()} for agent, runs in scores.items()}


def _wins(x: Float[np.ndarray, "*B n"], y: Float[np.ndarray, "*B m"]) -> Float[np.ndarray, "*B"]:
    """Share of pairs in which x is above y, ties half: Mann and Whitney's U over n m."""
    difference = x[..., :, None] - y[..., None, :]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))


def _row(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, float)


def _flat(scores: Scores) -> np.ndarray:
    return np.concatenate([_row(values) for values in scores.values()])


def _estimate(value: np.ndarray | float, drawn: np.ndarray) -> Estimate:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high))


class Curve(NamedTuple):
    """How one run's returns went."""

    env_steps: list[int]
    wall_seconds: list[float]
    returns: list[float]


class Band(NamedTuple):
    """The runs of one agent on one environment, at common places."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    """The least and the greatest of the runs there."""


def band(curves: Sequence[Curve], axis: str, points: int = 100) -> Band:
    """Mean and range of several runs over environment steps or wall time, as far as the shortest of them goes.

    Each is read by straight lines between its points; before its first one it is not known, and the band begins later.
    """
    places = [np.asarray(getattr(curve, axis), float) for curve in curves]
    x = np.linspace(max(place[0] for place in places), min(place[-1] for place in places), points)
    y = np.stack([np.interp(x, place, curve.returns) for place, curve in zip(places, curves, strict=True)])
    return Band(x.tolist(), y.mean(0).tolist(), y.min(0).tolist(), y.max(0).tolist())
