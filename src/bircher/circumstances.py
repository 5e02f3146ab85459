"""Red flags of what stands around a learner: evaluations, whoever waits for whom, and what environments call an end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bircher.flags import Facts, Flag
from bircher.series import BETTER, Line, episodes_ended, rise, series

FEWEST = 20
"""Lines that training's returns are judged by."""
FAR, EVALUATIONS, SURE = 0.5, 3, 3.0
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
        sure = abs(value - near) > SURE * chance.get(step, 0.0)
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
            "more env.num_envs or env.num_threads, loop=pipeline, or more optimiser.updates_per_step for the same wait",
        )  # fmt: skip
    elif 1 - mean > LEARNING and facts.replay_fraction == 0:
        yield Flag(
            11, "environments wait for the learner",
            f"learning takes {1 - mean:.0%} of the time",
            "updates are slow beside the environments",
            "fewer optimiser.epochs, larger minibatches, a smaller network, or loop=pipeline",
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
    """Equal observations and actions are followed by different rewards, nothing is learnt, and nothing is remembered.

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
