"""Metrics over a run: the lines of ``metrics.jsonl`` as arrays, one metric at a time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Line = Mapping[str, Any]
"""One line of metrics."""


class Packed(Mapping[str, float]):
    """A line in a tenth of a dictionary's room: its numbers side by side, its names those of others like it.

    ``names`` are each metric's place, by name; lines that share them share the dictionary.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: dict[str, int], line: Line):
        self._names, self._values = names, array("d", (float(line[name]) for name in names))

    def __getitem__(self, name: str) -> float:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Series(NamedTuple):
    """One metric of the lines that have it."""

    values: np.ndarray
    learner_steps: np.ndarray
    env_steps: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def since(self, env_steps: float) -> Series:
        """Its part from a number of environment steps on."""
        late = self.env_steps >= env_steps
        return Series(self.values[late], self.learner_steps[late], self.env_steps[late])

    @property
    def updates(self) -> int:
        """Updates between its first and its last line."""
        return int(self.learner_steps[-1] - self.learner_steps[0]) if len(self) else 0


def series(lines: Sequence[Line], name: str) -> Series:
    """A metric's numbers, oldest first; NaN and lines without it are left out."""
    found = [line for line in lines if not math.isnan(line.get(name, math.nan))]
    columns = [np.array([line[key] for line in found], float) for key in (name, "learner_steps", "env_steps")]
    return Series(*columns)


def episodes_ended(lines: Sequence[Line]) -> Float[np.ndarray, " N"]:
    """The training episodes of each line, by their counter, at least one: these lines have an episode's return."""
    return np.maximum(np.diff([line.get("episodes", 0) for line in lines], prepend=0), 1).astype(float)


BETTER = 0.3
"""Rise of the returns, as a share of their range, from which on an agent does learn."""


def rise(lines: Sequence[Line]) -> float | None:
    """How far the last third of training's returns lies above the first, as a share of their range; None of few."""
    returns = series(lines, "act/episode_return").values
    third = len(returns) // 3
    if third < 2:
        return None
    spread = float(np.quantile(returns, 0.95) - np.quantile(returns, 0.05))
    return float(returns[-third:].mean() - returns[:third].mean()) / max(spread, 1e-12)


def by_span(
    at: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], spans: int
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Weighted means of places and of values over equal spans, first place to last; an empty span has none."""
    span = np.digitize(at, np.linspace(at.min(), at.max(), spans + 1)[1:-1])
    total = np.bincount(span, weights, spans)
    some = total > 0
    sums = (np.bincount(span, weights * column, spans) for column in (at, values))
    where, what = (column[some] / total[some] for column in sums)
    return where, what


def unfaded(lines: Sequence[Line], names: Sequence[str], share: float) -> list[Line]:
    """The lines but for those whose sum of these metrics is below so much of the greatest sum before."""
    kept, greatest = [], 0.0
    for line in lines:
        total = sum(line.get(name, 0.0) for name in names)
        greatest = max(greatest, total)
        if total >= share * greatest or not any(name in line for name in names):
            kept.append(line)
    return kept


def last_run(values: Series, holds: np.ndarray) -> Series:
    """The lines at the end where something holds without a break."""
    broken = np.flatnonzero(~holds)
    begin = int(broken[-1]) + 1 if len(broken) else 0
    return Series(values.values[begin:], values.learner_steps[begin:], values.env_steps[begin:])


def held(values: Series, bound: float) -> Series:
    """The longest stretch, by updates, of values above `bound`."""
    best, begin = Series(*(column[:0] for column in values)), None
    for at, value in enumerate(values.values):
        begin = None if value <= bound else at if begin is None else begin
        if begin is not None:
            stretch = Series(*(column[begin : at + 1] for column in values))
            best = stretch if stretch.updates >= best.updates else best
    return best
