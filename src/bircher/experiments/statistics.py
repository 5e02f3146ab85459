"""Statistics of agents over environments and seeds, with the uncertainty of few runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bircher.training.evaluator import interquartile_mean

RESAMPLES = 5000
CONFIDENCE = 0.95
WINDOW, FEWEST = 100, 20
"""The number of training episodes whose mean is compared with a threshold, and how many there have to be."""

Scores = Mapping[str, Sequence[float]]
"""The runs of one agent: for each environment one number per seed."""


class Reference(NamedTuple):
    """The returns in one environment that have the normalized scores 0 and 1, and the return that counts as solved."""

    zero: float
    one: float
    threshold: float

    def scale(self, value: float) -> float:
        """Return the normalized score of a return."""
        return (value - self.zero) / (self.one - self.zero)


class Estimate(NamedTuple):
    """A statistic of all runs, with its stratified bootstrap interval."""

    value: float
    low: float
    high: float


def format_return(value: float) -> str:
    """Write a return so that it can be read at any scale: 1234.5, 0.0612."""
    return f"{value:.1f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"


def aggregate(
    scores: Scores, statistic: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator
) -> Estimate:
    """Estimate a statistic over all environments and seeds; its interval resamples the seeds of each environment."""
    resamples = np.concatenate([resampled(values, generator) for values in scores.values()], axis=-1)
    return _estimate(statistic(_flat(scores)), statistic(resamples))


def iqm(scores: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate the interquartile mean, the mean of the middle half of all runs."""
    return aggregate(scores, interquartile_mean, generator)


def mean(scores: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate the mean over environments of the means over seeds."""
    means, resamples = _means(scores, generator)
    return _estimate(float(np.mean(means)), resamples.mean(-1))


def difference(ours: Scores, theirs: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate how much the mean of `ours` is above that of `theirs` over the environments that both have.

    The interval resamples the seeds of each agent in each environment; the environments are fixed.

    Raises:
      ValueError: they have no environment in common.
    """
    shared = _shared(ours, theirs)
    (mine, my_resamples), (other, other_resamples) = (
        _means({env: scores[env] for env in shared}, generator) for scores in (ours, theirs)
    )
    return _estimate(float(np.mean(mine) - np.mean(other)), my_resamples.mean(-1) - other_resamples.mean(-1))


def ratio(ours: Scores, theirs: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate the median over shared environments of the ratio of the medians over seeds, for positive numbers.

    Raises:
      ValueError: they have no environment in common.
    """
    shared = _shared(ours, theirs)
    ratios = [np.median(_row(ours[env])) / np.median(_row(theirs[env])) for env in shared]
    resamples = [
        np.median(resampled(ours[env], generator), -1) / np.median(resampled(theirs[env], generator), -1)
        for env in shared
    ]
    return _estimate(float(np.median(ratios)), np.median(resamples, axis=0))


def median(scores: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate the median over environments of the means over seeds, as rliable does."""
    means, resamples = _means(scores, generator)
    return _estimate(float(np.median(means)), np.median(resamples, axis=-1))


def probability_of_improvement(ours: Scores, theirs: Scores, generator: np.random.Generator) -> Estimate:
    """Estimate the probability that a run of `ours` beats one of `theirs` on a random environment that both have.

    Ties count half.

    Raises:
      ValueError: they have no environment in common.
    """
    shared = _shared(ours, theirs)
    value = float(np.mean([_wins(_row(ours[env]), _row(theirs[env])) for env in shared]))
    resamples = [_wins(resampled(ours[env], generator), resampled(theirs[env], generator)) for env in shared]
    return _estimate(value, np.mean(resamples, axis=0))


def resampled(values: Sequence[float], generator: np.random.Generator) -> Float[np.ndarray, "resamples runs"]:
    """Return resamples of the runs, each as large as the original and drawn with replacement."""
    return _row(values)[generator.integers(len(values), size=(RESAMPLES, len(values)))]


def normalize(scores: Mapping[str, Scores], floor: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
    """Scale every agent's scores to 0 at `floor` and 1 at the best agent's mean in each environment.

    Returns of different games cannot be averaged without this. If no agent is above the floor, all scores are 0.
    """
    best: dict[str, float] = {}
    for runs in scores.values():
        for env, values in runs.items():
            best[env] = max(best.get(env, -np.inf), float(np.mean(values)))

    def scaled(env: str, values: Sequence[float]) -> list[float]:
        span = best[env] - floor[env]
        return [(value - floor[env]) / span if span > 0 else 0.0 for value in values]

    return {agent: {env: scaled(env, values) for env, values in runs.items()} for agent, runs in scores.items()}


def steps_to_threshold(
    steps: Sequence[int], returns: Sequence[float], episodes: Sequence[int], threshold: float
) -> int | None:
    """Return the step at which the last 100 training episodes first had a mean of the threshold; None if never.

    Each entry has the number of steps so far, and the mean return and the number of the episodes that ended since the
    entry before it. Between 20 and 100 episodes the mean is over all of them; with fewer there is none.
    """
    for end in range(1, len(steps) + 1):
        total, counted = 0.0, 0
        for value, number in zip(returns[end - 1 :: -1], episodes[end - 1 :: -1], strict=False):
            taken = min(number, WINDOW - counted)
            total, counted = total + taken * value, counted + taken
        if counted >= FEWEST and total / counted >= threshold:
            return int(steps[end - 1])
    return None


def _shared(ours: Scores, theirs: Scores) -> list[str]:
    shared = [env for env in ours if env in theirs]
    if not shared:
        raise ValueError("no environment has runs of both: there is nothing to compare")
    return shared


def _means(scores: Scores, generator: np.random.Generator) -> tuple[np.ndarray, Float[np.ndarray, "resamples envs"]]:
    """Return each environment's mean over seeds, and the same of resamples."""
    means = np.array([_row(values).mean() for values in scores.values()])
    return means, np.stack([resampled(values, generator).mean(-1) for values in scores.values()], axis=-1)


def _wins(x: Float[np.ndarray, "*B n"], y: Float[np.ndarray, "*B m"]) -> Float[np.ndarray, "*B"]:
    """Return the fraction of pairs in which x is above y, with ties as half: Mann and Whitney's U over n m."""
    difference = x[..., :, None] - y[..., None, :]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))


def _row(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, float)


def _flat(scores: Scores) -> np.ndarray:
    return np.concatenate([_row(values) for values in scores.values()])


def _estimate(value: np.ndarray | float, resamples: np.ndarray) -> Estimate:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resamples, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high))


class Curve(NamedTuple):
    """The returns of one run over its training."""

    env_steps: list[int]
    wall_seconds: list[float]
    returns: list[float]


class Band(NamedTuple):
    """The mean and the range of one agent's runs on one environment, at common values of x."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    """`low` and `high` are the least and the greatest of the runs at each x."""


def band(curves: Sequence[Curve], axis: str, points: int = 100) -> Band:
    """Return mean and range of several runs over environment steps or wall time, up to the end of the shortest run.

    Curves are interpolated linearly between their points. The band begins where every curve has a point.
    """
    places = [np.asarray(getattr(curve, axis), float) for curve in curves]
    x = np.linspace(max(place[0] for place in places), min(place[-1] for place in places), points)
    y = np.stack([np.interp(x, place, curve.returns) for place, curve in zip(places, curves, strict=True)])
    return Band(x.tolist(), y.mean(0).tolist(), y.min(0).tolist(), y.max(0).tolist())
