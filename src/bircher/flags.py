"""What a red flag is, and what is known of a run beside its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bircher.series import Line


class Facts(NamedTuple):
    """What the lines do not say of a run."""

    steps: int
    """Environment steps that it is to take."""
    support: float
    """model.support"""
    terms: tuple[str, ...]
    """Loss terms that have a weight."""
    replay_capacity: int
    replay_fraction: float
    rewards_clipped: bool = False
    """Whether training's returns are of other rewards than those of evaluations."""


class Flag(NamedTuple):
    """One finding."""

    number: int
    name: str
    evidence: str
    cause: str
    advice: str


Rule = Callable[[Sequence[Line], Facts], Iterator[Flag]]
