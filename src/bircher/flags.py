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
    weights: tuple[float, ...] = ()
    """Greatest weight of each of these terms."""
    rewards_clipped: bool = False
    """Whether training's returns are of other rewards than those of evaluations."""
    normalizes_observations: bool | None = False
    """Whether the network is given normalized observations; None where the agent has no such setting."""
    atom_distance: float = 0.0
    """Distance between two atoms of a categorical value, in their units; 0 where the value is not categorical."""
    transform: bool = True
    """Whether atoms are in units of h(x)."""
    memory: bool = False
    """Whether the network remembers earlier observations."""
    stack: int = 1
    """Observations that are joined."""


class Flag(NamedTuple):
    """One finding."""

    number: int
    name: str
    evidence: str
    cause: str
    advice: str


Rule = Callable[[Sequence[Line], Facts], Iterator[Flag]]
