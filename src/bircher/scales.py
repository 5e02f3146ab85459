"""Red flags of numbers that a network cannot resolve: observations and rewards far from the scale that it expects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bircher.flags import Facts, Flag
from bircher.ops.transforms import EPSILON
from bircher.series import BETTER, Line, rise, series

LARGE, SMALL, LINES = 50.0, 1e-2, 3
"""Root mean square above which, and standard deviation below which, observations are far from unit scale."""
OFFSET, SURE = 10.0, 5.0
"""Root mean square, in standard deviations, above which what is constant drowns what varies; and the root mean square
above which that was seen to prevent all learning: at 10 ± 0.1, 30 ± 1, 1,000 ± 70.  Without an offset a scale of 10,000
was learnt from, so that large numbers alone are a fault only where returns do not rise."""


def observations_out_of_scale(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Observations are far from unit scale, and are given to the network as they are."""
    sizes, deviations = (series(lines, f"act/observation_{name}").values for name in ("size", "deviation"))
    if facts.normalizes_observations or len(sizes) < LINES:
        return
    size, deviation = float(np.median(sizes)), float(np.median(deviations))
    offset, risen = 0 < OFFSET * deviation < size, rise(lines)
    sure = 0 < deviation < SMALL or (offset and size > SURE)
    if not sure and not ((offset or size > LARGE) and risen is not None and risen <= BETTER):
        return
    scaling = "or scale them in the environment to a mean of 0 and a standard deviation of 1"
    if facts.normalizes_observations is None:
        scaling = f"{scaling[3:]} (gymnasium.wrappers.TransformObservation): this agent has no setting for it"
    else:
        scaling = f"agent.normalise_observations=true, {scaling}"
    yield Flag(
        14, "observations far from unit scale",
        f"the largest number of an observation has a root mean square of {plain(size)}, and the one that varies most "
        f"has a standard deviation of {plain(deviation)}",
        "networks expect numbers near 1: large ones drown the differences between observations, and differences that "
        "are tiny are not seen",
        scaling,
    )  # fmt: skip


COARSE = 0.05
"""Typical size of a value target, in distances between atoms, below which a categorical value cannot resolve it."""
UNEXPLAINED = 0.5
FOLLOW_RETURNS = ("policy_gradient", "ppo_clip")
"""Terms that improve the policy by the returns of the actions taken."""
HEADROOM = 20.0
"""The support that is advised, as a multiple of a typical value target: later returns are larger than the first."""


def scaled(value: float, facts: Facts) -> float:
    """A return in the units of the atoms."""
    return value / (math.sqrt(value + 1) + 1) + EPSILON * value if facts.transform else value


def value_size(lines: Sequence[Line]) -> float:
    """Return the typical size of the value targets that are not 0: the mean square over the mean size.

    Where rewards are rare, most targets are close to 0 and say nothing of how large a return is.
    """
    sizes, squares = (series(lines, f"target/value_{name}").values for name in ("size", "square"))
    return float(squares.sum() / sizes.sum()) if sizes.sum() > 0 else 0.0


def is_coarse(lines: Sequence[Line], facts: Facts) -> bool:
    """Whether the value targets of these lines are far smaller than the distance between two atoms."""
    return 0 < scaled(value_size(lines), facts) < COARSE * facts.atom_distance


def coarse_support(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Returns are far smaller than the distance between two atoms, and values do not learn them.

    An agent whose policy follows returns needs values as a baseline: of such a run returns must not have risen by the
    second half.  A search, or a look-ahead alone, has nothing else to go by.
    """
    if any(term in FOLLOW_RETURNS for term in facts.terms):
        risen = rise(lines)
        if risen is None or risen > BETTER or lines[-1]["env_steps"] < facts.steps / 2:
            return
    explained = series(lines, "target/explained_variance")
    late = explained.since(explained.env_steps.max(initial=0.0) / 2).values
    if len(late) < LINES or not is_coarse(lines, facts) or float(np.median(late)) > UNEXPLAINED:
        return
    size = value_size(lines)
    height = scaled(size, facts)
    support = round_up(HEADROOM * height)
    yield Flag(
        15, "support too coarse",
        f"value targets have a size of about {size:.2g}, which is {height / facts.atom_distance:.2g} of the distance "
        f"between two atoms of model.support={facts.support:g}; values explain {np.median(late):.0%} of their variance",
        "rewards are too small for this support: every return falls on the same atom",
        f"model.support={support:g}, or multiply rewards by about {round_up(1 / size):,.10g}",
    )  # fmt: skip


OVERFLOW = 0.001


def saturated(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Targets lie beyond the outermost atoms."""
    overflow = series(lines, "target/support_overflow")
    if len(overflow) and overflow.values.max() > OVERFLOW:
        worst = int(overflow.values.argmax())
        least = round_up(2 * max(facts.support, scaled(value_size(lines), facts)))
        yield Flag(
            8, "saturated support",
            f"{overflow.values[worst]:.1%} of the value and reward targets lay beyond model.support={facts.support:g} "
            f"at learner step {overflow.learner_steps[worst]:,.0f}, and were clipped",
            "returns are greater than the categorical support reaches",
            f"model.support={least:g} or more (of h(x) where model.transform is true), or smaller rewards",
        )  # fmt: skip


def plain(value: float) -> str:
    """A number with three digits, or all of its whole ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def round_up(value: float) -> float:
    """Round up to one significant digit."""
    step = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / step - 1e-9) * step
