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
    """Properties of a run that are not in the lines of its log."""

    steps: int
    """The number of environment steps of the whole run."""
    support: float
    """The setting `model.support`."""
    terms: tuple[str, ...]
    """The loss terms with a weight above 0."""
    replay_capacity: int
    replay_fraction: float
    weights: tuple[float, ...] = ()
    """The greatest weight that each of these terms has during the run."""
    rewards_clipped: bool = False
    """Whether rewards are clipped in training, so that its returns differ from those of evaluations."""
    normalizes_observations: bool | None = False
    """Whether the network takes normalized observations; None if the agent has no such setting."""
    atom_distance: float = 0.0
    """The distance between two atoms of a categorical value, in their units; 0 if the value is not categorical."""
    transform: bool = True
    """Whether atoms are in units of h(x)."""
    memory: bool = False
    """Whether the network has a memory of earlier observations."""
    stack: int = 1
    """The number of observations that are joined."""
    follows_returns: bool = False
    """Whether the unit of values follows the largest return, so that no support is too coarse or too small for them."""
    exploration_weight: float = 0.0
    """The setting `exploration.weight`; 0 without a bonus for exploring."""


class Flag(NamedTuple):
    """A finding: its number and name, the evidence, the likely cause, and the advice."""

    number: int
    name: str
    evidence: str
    cause: str
    advice: str


Rule = Callable[[Sequence[Line], Facts], Iterator[Flag]]


FEWEST = 20
"""The fewest lines with returns of training."""
FAR, EVALUATIONS, STANDARD_ERRORS = 0.5, 3, 3.0
"""The difference between evaluations and training, as a share of the range of training's returns or of half of their
size, whichever is greater; the number of last evaluations; and the difference in standard errors of their mean."""


def evaluation_unlike_training(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag evaluations whose returns are far below those of training at the same time."""
    training, evaluated = series(lines, "act/episode_return"), series(lines, "eval/return_mean")
    if len(evaluated) < EVALUATIONS or len(training) < FEWEST or facts.rewards_clipped:
        return
    spread = float(np.quantile(training.values, 0.95) - np.quantile(training.values, 0.05))
    errors = series(lines, "eval/return_error")
    gaps, chance = [], dict(zip(errors.env_steps, errors.values, strict=True))
    for value, step in zip(evaluated.values[-EVALUATIONS:], evaluated.env_steps[-EVALUATIONS:], strict=True):
        near = training.values[np.argsort(np.abs(training.env_steps - step))[:10]].mean()
        certain = abs(value - near) > STANDARD_ERRORS * chance.get(step, 0.0)
        gaps.append((value - near) / max(spread, abs(near) / 2, 1e-8) if certain else 0.0)
    if all(gap < -FAR for gap in gaps):
        yield Flag(
            10, "evaluation unlike training",
            f"the last {EVALUATIONS} evaluations are {-np.mean(gaps):.0%} of training's range below its returns",
            "the evaluated policy acts differently (greedy, no noise), or all training episodes start alike",
            "compare evaluation.mode=sample and greedy, and give training different starts",
        )  # fmt: skip


ACTING, LEARNING = 0.8, 0.95
"""The shares of the time above which acting or learning is a bottleneck.  The bound for learning is higher, because
several epochs over a rollout may take most of the time."""


def one_side_waits(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a run in which acting or learning takes nearly all of the time, while the other waits."""
    share = series(lines, "speed/acting_share").since(0.2 * facts.steps)
    if not len(share):
        return
    mean = float(share.values.mean())
    if mean > ACTING:
        yield Flag(
            11, "learner waits for environments",
            f"acting takes {mean:.0%} of the time",
            "environments are slow in comparison with the updates",
            "more env.num_envs or env.num_threads, loop=pipeline, or more optimizer.updates_per_step in the same time",
        )  # fmt: skip
    elif 1 - mean > LEARNING and facts.replay_fraction == 0:
        yield Flag(
            11, "environments wait for the learner",
            f"learning takes {1 - mean:.0%} of the time",
            "updates are slow in comparison with the environments",
            "fewer optimizer.epochs, larger minibatches, a smaller network, or loop=pipeline",
        )  # fmt: skip


LIMITED, SHORTEST, VARYING = 0.5, 10, 0.9
"""The share of episodes that end at the longest length; the shortest length that may be a time limit; and the share at
the longest length below which lengths have varied.  A task whose episodes all have one length ends by its own rules."""
PILED = 20
"""The fewest episodes since the longest one.  A line with a single episode, the longest so far, has a share of 1."""


def limit_as_death(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a time limit that the environment reports as termination.

    Lengths varied, and then most episodes terminated at exactly the same length.
    """
    ended = [line for line in lines if "act/longest_episode" in line and "act/deaths_at_longest" in line]
    if not ended:
        return
    longest, shares = (
        np.array([line[f"act/{name}"] for line in ended]) for name in ("longest_episode", "deaths_at_longest")
    )
    # Only lines after the one with the longest episode count.
    first = int(np.argmax(longest == longest[-1])) + 1
    late = np.array([line["env_steps"] for line in ended]) >= 0.2 * facts.steps
    late[:first] = False
    episodes = episodes_ended(ended)[late]
    if episodes.sum() < PILED or longest[-1] < SHORTEST or shares.min() >= VARYING:
        return
    share = float(np.average(shares[late], weights=episodes))
    if share > LIMITED:
        yield Flag(
            12, "time limit treated as death",
            f"{share:.0%} of the last {episodes.sum():,.0f} episodes end as terminal after exactly {longest[-1]:,.0f} "
            "steps, which is the greatest length, and others were shorter",
            "the environment reports its time limit as termination: values learn that nothing follows it",
            "report it as truncation (Gymnasium: truncated=True), or set env.max_steps just below it",
        )  # fmt: skip


AMBIGUOUS, REPEATED, MEASURES = 0.5, 0.1, 2
"""The share of the variance of rewards that remains between equal transitions, the share of transitions that repeat,
and the fewest measurements."""
PREDICTED = 0.5
"""The explained variance above which values do learn."""


def memoryless(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag an agent without memory that does not improve, where equal observations and actions have unequal rewards.

    An environment with random rewards has the same metrics, so that the flag requires an agent that does not improve.
    """
    ambiguity, repeated = (
        series(lines, f"act/{name}").since(0.2 * facts.steps).values
        for name in ("reward_ambiguity", "repeated_observations")
    )
    explained = series(lines, "target/explained_variance").since(0.5 * facts.steps).values
    risen = rise(lines)
    if facts.memory or len(ambiguity) < MEASURES or not len(explained) or risen is None:
        return
    share, often, predicted = (float(np.median(values)) for values in (ambiguity, repeated, explained))
    if share < AMBIGUOUS or often < REPEATED or predicted > PREDICTED or risen > BETTER:
        return
    stacked = f" (now {facts.stack})" if facts.stack > 1 else ""
    yield Flag(
        16, "memory is missing",
        f"{often:.0%} of the replayed transitions have an observation and an action that occur again, {share:.0%} of "
        "the variance of their rewards remains between equal ones, and returns do not rise",
        "rewards depend on earlier observations, which the agent does not remember; or rewards are random",
        f"model.memory=lstm, or a higher env.stack{stacked} if the observation was a few steps before",
    )  # fmt: skip


LARGE, SMALL, LINES = 50.0, 1e-2, 3
"""The root mean square above which, and the standard deviation below which, observations are far from unit scale; and
the fewest lines with them."""
OFFSET, SURE = 10.0, 5.0
"""The root mean square, in standard deviations, above which the constant part of an observation hides its differences;
and the root mean square above which that prevented all learning in experiments (10 ± 0.1, 30 ± 1, 1,000 ± 70).
Without an offset agents learned at a scale of 10,000, so that large numbers alone are a fault only where returns do not
rise."""


def observations_out_of_scale(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag observations that are far from unit scale and are not normalized."""
    sizes, deviations = (series(lines, f"act/observation_{name}").values for name in ("size", "deviation"))
    if facts.normalizes_observations or len(sizes) < LINES:
        return
    size, deviation = float(np.median(sizes)), float(np.median(deviations))
    offset, risen = 0 < OFFSET * deviation < size, rise(lines)
    certain = 0 < deviation < SMALL or (offset and size > SURE)
    if not certain and not ((offset or size > LARGE) and risen is not None and risen <= BETTER):
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
        "networks expect numbers near 1: large ones hide the differences between observations, and tiny differences "
        "have no effect",
        scaling,
    )  # fmt: skip


COARSE = 0.05
"""The typical size of a value target, in distances between atoms, below which a categorical value cannot resolve it."""
UNEXPLAINED = 0.5
"""The explained variance below which values have not learned their targets."""
FOLLOW_RETURNS = ("policy_gradient", "ppo_clip")
"""Terms that improve the policy by the returns of the actions that were taken."""
HEADROOM = 20.0
"""The advised support as a multiple of a typical value target; later returns are larger than the first."""


def scaled(value: float, facts: Facts) -> float:
    """Return a return in the units of the atoms."""
    return value / (math.sqrt(value + 1) + 1) + EPSILON * value if facts.transform else value


def value_size(lines: Sequence[Line]) -> float:
    """Return the typical size of the value targets that are not 0: the mean square over the mean size.

    Where rewards are rare, most targets are close to 0 and do not show how large a return is.
    """
    sizes, squares = (series(lines, f"target/value_{name}").values for name in ("size", "square"))
    return float(squares.sum() / sizes.sum()) if sizes.sum() > 0 else 0.0


def is_coarse(lines: Sequence[Line], facts: Facts) -> bool:
    """Whether the value targets of these lines are far smaller than the distance between two atoms."""
    return not facts.follows_returns and 0 < scaled(value_size(lines), facts) < COARSE * facts.atom_distance


def coarse_support(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag returns that are far smaller than the distance between two atoms, where values do not learn them.

    An agent whose policy follows returns needs values only as a baseline.  For such a run the flag also requires that
    returns have not risen by the second half.  A search, or a look-ahead alone, has only values to follow.
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
        f"model.value_unit=returns, or model.support={support:g}, or multiply rewards by about "
        f"{round_up(1 / size):,.10g}",
    )  # fmt: skip


OVERFLOW = 0.001
"""The share of targets beyond the support, above which it is saturated."""


def saturated(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag targets beyond the outermost atoms."""
    overflow = series(lines, "target/support_overflow")
    if not facts.follows_returns and len(overflow) and overflow.values.max() > OVERFLOW:
        worst = int(overflow.values.argmax())
        least = round_up(2 * max(facts.support, scaled(value_size(lines), facts)))
        yield Flag(
            8, "saturated support",
            f"{overflow.values[worst]:.1%} of the value and reward targets were beyond model.support={facts.support:g} "
            f"at learner step {overflow.learner_steps[worst]:,.0f}, and were clipped",
            "returns are greater than the categorical support",
            f"model.value_unit=returns, or model.support={least:g} or more (of h(x) where model.transform is true)",
        )  # fmt: skip


DROWNING, DISTRACTING = 5.0, 0.4
"""The factors of the largest discounted return above which discounted sums of bonuses are a fault, once rewards were
found: always, and where returns do not rise.  An end of the episode that is put off by a step costs only 1 - gamma of
its reward, and gains a step's bonus: on a chain a factor of 0.5 ended with no episode that reached the reward."""


def drowning_bonus(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a bonus for exploring that counts for more than the rewards that have been found."""
    bonus, found = (
        series(lines, f"target/{name}").since(0.5 * facts.steps).values for name in ("bonus_weight", "largest_return")
    )
    if len(bonus) < LINES or len(found) != len(bonus) or found.min() <= 0:
        return
    ratio, largest, risen = float(np.median(bonus / found)), float(found[-1]), rise(lines)
    if ratio > DROWNING or (ratio > DISTRACTING and risen is not None and risen <= BETTER):
        yield Flag(
            17, "bonus drowns rewards",
            f"discounted sums of bonuses are {plain(float(np.median(bonus)))} in size, {plain(ratio)} times the "
            f"largest discounted return of training, {plain(largest)}",
            "the agent gains more by seeing new things than by what it is rewarded for",
            f"let the bonus fall by exploration.final_weight=0, or lower exploration.weight (now "
            f"{facts.exploration_weight:g}) to {plain(largest / 10)}",
        )  # fmt: skip


def plain(value: float) -> str:
    """Return a number with three digits, or without decimals from 1,000 on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def round_up(value: float) -> float:
    """Round up to one significant digit."""
    step = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / step - 1e-9) * step
