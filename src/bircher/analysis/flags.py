"""Red flags, and the rules that compare a run's log with them; `doctor` has the others.

These rules are about evaluations, waiting times, ends of episodes, and about observations and rewards far from the
scale that a network expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bircher.metrics import BETTER, Line, episodes_ended, rise, series
from bircher.ops.transforms import EPSILON


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


FEWEST = 20
"""Lines that training's returns are judged by."""
FAR, EVALUATIONS, STANDARD_ERRORS = 0.5, 3, 3.0
"""Of training's range of returns, or of half of their size where that is greater; and standard errors of a mean."""


def evaluation_apart(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Fresh episodes go otherwise than training's."""
    training, tested = series(lines, "act/episode_return"), series(lines, "eval/return_mean")
    if len(tested) < EVALUATIONS or len(training) < FEWEST or facts.rewards_clipped:
        return
    spread = float(np.quantile(training.values, 0.95) - np.quantile(training.values, 0.05))
    errors = series(lines, "eval/return_error")
    apart, chance = [], dict(zip(errors.env_steps, errors.values, strict=True))
    for value, step in zip(tested.values[-EVALUATIONS:], tested.env_steps[-EVALUATIONS:], strict=True):
        near = training.values[np.argsort(np.abs(training.env_steps - step))[:10]].mean()
        sure = abs(value - near) > STANDARD_ERRORS * chance.get(step, 0.0)
        apart.append((value - near) / max(spread, abs(near) / 2, 1e-8) if sure else 0.0)
    if all(gap < -FAR for gap in apart):
        yield Flag(
            10, "evaluation apart from training",
            f"the last {EVALUATIONS} evaluations lie {-np.mean(apart):.0%} of training's range below its returns",
            "the evaluated policy acts otherwise (greedy, no noise), or training's episodes all begin alike",
            "compare evaluation.mode=sample and greedy, and give training different starts",
        )  # fmt: skip


ACTING, LEARNING = 0.8, 0.95
"""Of the time; several epochs over a rollout may well take most of it."""


def waiting(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Acting and learning take turns, and one of them has nearly all of the time."""
    share = series(lines, "speed/acting_share").since(0.2 * facts.steps)
    if not len(share):
        return
    mean = float(share.values.mean())
    if mean > ACTING:
        yield Flag(
            11, "learner waits for environments",
            f"acting takes {mean:.0%} of the time",
            "environments are slow beside the updates",
            "more env.num_envs or env.num_threads, loop=pipeline, or more optimizer.updates_per_step for the same wait",
        )  # fmt: skip
    elif 1 - mean > LEARNING and facts.replay_fraction == 0:
        yield Flag(
            11, "environments wait for the learner",
            f"learning takes {1 - mean:.0%} of the time",
            "updates are slow beside the environments",
            "fewer optimizer.epochs, larger minibatches, a smaller network, or loop=pipeline",
        )  # fmt: skip


LIMITED, SHORTEST, VARYING = 0.5, 10, 0.9
"""Of the episodes; the length from which on a common length is no nature of the game; and the share of them at the
longest length below which lengths varied.  A task whose episodes all have one length ends by its own rules."""
PILED = 20
"""Fewest episodes since the longest one.  A line with one episode in it, the longest so far, has a share of 1."""


def limit_as_death(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Lengths varied, and then most episodes died at the very same length: a time limit reported as termination."""
    ended = [line for line in lines if "act/longest_episode" in line and "act/deaths_at_longest" in line]
    if not ended:
        return
    longest, shares = (
        np.array([line[f"act/{name}"] for line in ended]) for name in ("longest_episode", "deaths_at_longest")
    )
    # Since the longest episode: the line that it is in is no evidence.
    began = int(np.argmax(longest == longest[-1])) + 1
    late = np.array([line["env_steps"] for line in ended]) >= 0.2 * facts.steps
    late[:began] = False
    episodes = episodes_ended(ended)[late]
    if episodes.sum() < PILED or longest[-1] < SHORTEST or shares.min() >= VARYING:
        return
    share = float(np.average(shares[late], weights=episodes))
    if share > LIMITED:
        yield Flag(
            12, "time limit treated as death",
            f"{share:.0%} of the last {episodes.sum():,.0f} episodes end as terminal after exactly {longest[-1]:,.0f} "
            "steps, the greatest length there is, and others were shorter",
            "the environment reports its time limit as termination: values learn that it is an end",
            "report it as truncation (Gymnasium: truncated=True), or set env.max_steps just below it",
        )  # fmt: skip


AMBIGUOUS, REPEATED, MEASURES = 0.5, 0.1, 2
"""Of the variance of rewards, and of the transitions; and the fewest measurements."""
FORETOLD = 0.5
"""Explained variance from which on values do learn."""


def memoryless(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Equal observations and actions are followed by different rewards, nothing is learned, and nothing is remembered.

    A random environment looks the same, so that the flag needs an agent that does not improve.
    """
    ambiguity, repeated = (
        series(lines, f"act/{name}").since(0.2 * facts.steps).values
        for name in ("reward_ambiguity", "repeated_observations")
    )
    explained = series(lines, "target/explained_variance").since(0.5 * facts.steps).values
    risen = rise(lines)
    if facts.memory or len(ambiguity) < MEASURES or not len(explained) or risen is None:
        return
    share, often, foretold = (float(np.median(values)) for values in (ambiguity, repeated, explained))
    if share < AMBIGUOUS or often < REPEATED or foretold > FORETOLD or risen > BETTER:
        return
    stacked = f" (now {facts.stack})" if facts.stack > 1 else ""
    yield Flag(
        16, "memory is missing",
        f"{often:.0%} of the replayed transitions have an observation and an action that occur again, {share:.0%} of "
        "the variance of their rewards remains between equal ones, and returns do not rise",
        "what decides was seen earlier in the episode, and the agent does not remember it; or rewards are random",
        f"model.memory=lstm, or a higher env.stack{stacked} where it was seen a few steps before",
    )  # fmt: skip


LARGE, SMALL, LINES = 50.0, 1e-2, 3
"""Root mean square above which, and standard deviation below which, observations are far from unit scale."""
OFFSET, SURE = 10.0, 5.0
"""Root mean square, in standard deviations, above which what is constant drowns what varies; and the root mean square
above which that was seen to prevent all learning: at 10 ± 0.1, 30 ± 1, 1,000 ± 70.  Without an offset a scale of 10,000
was learned from, so that large numbers alone are a fault only where returns do not rise."""


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
        scaling = f"agent.normalize_observations=true, {scaling}"
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
