"""The doctor: numbered red flags, found in what a run logged, each with evidence, likely cause and a setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bircher import metrics
from bircher.analysis.flags import (
    Facts,
    Flag,
    Rule,
    coarse_support,
    drowning_bonus,
    evaluation_unlike_training,
    is_coarse,
    limit_as_death,
    memoryless,
    observations_out_of_scale,
    one_side_waits,
    saturated,
)
from bircher.metrics import Line, Series, last_stretch, longest_above, series, without_faded


def examine(lines: Sequence[Line], facts: Facts) -> list[Flag]:
    """Return all flags that these lines raise, by number, without flags that are consequences of others."""
    flags = [flag for rule in RULES for flag in rule(lines, facts)]
    explained = {number for flag in flags for number in CONSEQUENCES.get(flag.number, ())}
    return [flag for flag in flags if flag.number not in explained]


CONSEQUENCES = {2: (1, 6), 13: (3, 4, 5, 6), 14: (1, 3, 4, 5, 6, 13), 15: (3, 4, 5), 16: (3, 4, 5)}
"""Flags by number, with the flags that are their consequences.

A deterministic policy has no gradient left, so that other terms dominate.  If all latents are alike, all actions have
the same value; observations out of scale can make latents alike.  If returns cannot be resolved or predicted, values
explain nothing and no action seems better than another.
"""


HOLDING_BACK = ("entropy", "kl_to_behavior")
"""Terms that only regularize the policy."""
DOMINANT, DOMINANT_MEASURES, DOMINANT_UPDATES, FADED = 0.95, 3, 500, 0.1
"""The share of a dominant term, the fewest measurements and updates with it, and the share of their former gradient
that the other terms must still have.  Shares are measured rarely and on few sequences, so that one measurement is not
enough. PPO's value term had shares of 0.80 to 0.93 in a healthy run of LunarLander-v3."""
HEAVY, HEAVY_SHARE = 10.0, 0.7
"""The factor by which a weight must exceed both 1 and the greatest weight of all other terms for a smaller share to
count, and that share."""


def dominant_term(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a term with nearly all of the encoder's gradient, or with most of it because of a very large weight."""
    if len(facts.terms) < 2:
        return
    weights = dict(zip(facts.terms, facts.weights, strict=False))
    for term in facts.terms:
        # Terms that have been learned have no gradient left, which is no fault: PPO's value, once CartPole is solved.
        others = [f"gradient/{other}_encoder" for other in facts.terms if other not in (term, *HOLDING_BACK)]
        shares = series(without_faded(lines, others, FADED), f"gradient/{term}_share")
        weight, greatest = weights.get(term), max((weights[name] for name in weights if name != term), default=0.0)
        run, change = longest_above(shares, DOMINANT), ""
        if weight is not None and weight >= HEAVY * max(greatest, 1.0) and not _dominates(run):
            run = shares
            share = float(np.median(run.values)) if len(run) else 0.0
            # The share that the term would have with the greatest weight of the others.
            if share < HEAVY_SHARE or share * greatest / weight > (1 - share):
                continue
            change = f"from {weight:g} toward {greatest:g}, the greatest of the others"
        if _dominates(run):
            share = float(np.median(run.values))
            yield Flag(
                1, "dominant term",
                f"{term} has {share:.0%} of the encoder's gradient norm, the median of {len(run)} measurements over "
                f"{run.updates:,} updates",
                "its weight is so large that the other terms hardly change the encoder",
                f"lower losses.{term}.weight {change or _factor(share)}",
            )  # fmt: skip


def _dominates(run: Series) -> bool:
    """Return whether there are enough measurements, over enough updates."""
    return len(run) >= DOMINANT_MEASURES and run.updates >= DOMINANT_UPDATES


def _factor(share: float) -> str:
    """Return by how much to lower a weight so that its term has half of the norm."""
    return f"by a factor of {share / max(1 - share, 1e-6):,.0f} at least"


COLLAPSED, COLLAPSE_BEFORE = 0.02, 0.1
"""The share of log A below which entropy has collapsed, and the share of the steps within which that is a fault."""


def _entropy(lines: Sequence[Line]) -> Series:
    """Return the entropy of the decisions with more than one legal action."""
    return series([line for line in lines if line.get("act/choice_share") != 0.0], "act/entropy_share")


def entropy_collapse(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a policy that became nearly deterministic early in the run."""
    entropy = _entropy(lines)
    early = entropy.values[entropy.env_steps <= COLLAPSE_BEFORE * facts.steps]
    if len(early) and early[-1] < COLLAPSED:
        yield Flag(
            2, "entropy collapse",
            f"entropy fell to {early[-1]:.1%} of log A within the first {COLLAPSE_BEFORE:.0%} of the steps",
            "the policy became nearly deterministic before values differed between actions",
            "give losses.entropy.weight a value such as 0.01, or lower optimizer.learning_rate",
        )  # fmt: skip


UNIFORM, UNIFORM_AFTER = 0.95, 0.5
"""The share of log A above which a policy is nearly uniform, and the share of the steps after which that is a fault."""


def entropy_stuck(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a policy that is nearly uniform throughout the second half of the steps."""
    share = _entropy(lines).since(UNIFORM_AFTER * facts.steps).values
    if len(share) and share.min() > UNIFORM:
        yield Flag(
            3, "entropy stuck",
            f"entropy never fell below {share.min():.0%} of log A in the second half of the steps",
            "nothing that the policy learns distinguishes actions, or an entropy term holds it back",
            "lower losses.entropy.weight, raise optimizer.learning_rate, and check whether rewards are ever reached",
        )  # fmt: skip


UNEXPLAINED, UNEXPLAINED_UPDATES, LEARNED_LOSS = -0.05, 1000, 0.01
"""The explained variance below which values are worse than a constant, the fewest updates with it, and the loss in nats
below which a value is right in spite of it.  A constant explains 0, and so does a value where nothing can be predicted.
If all returns are alike, as on a solved CartPole, the remaining errors of a correct value explain less than 0."""


def unexplained(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag values that predict returns worse than a constant would."""
    coarse = is_coarse(lines, facts)  # then the loss is small for any value
    wrong = [line for line in lines if coarse or line.get("loss/value", math.inf) > LEARNED_LOSS]
    explained = series(wrong, "target/explained_variance")
    late = explained.since(explained.env_steps.max(initial=0.0) / 2)
    if late.updates >= UNEXPLAINED_UPDATES and float(np.median(late.values)) < UNEXPLAINED:
        yield Flag(
            4, "values explain nothing",
            f"explained variance is {np.median(late.values):.2f}, the median over the last {late.updates:,} updates",
            "the value learns too slowly, its targets move too fast, or it fits chance",
            "raise losses.value.weight; lower agent.target_update_rate, agent.returns.lambda or optimizer.epochs",
        )  # fmt: skip


IDLE_KL, IDLE_UPDATES = 1e-5, 300
"""The distance in nats within which CMPO's policy equals its prior, and the fewest updates with it."""


def idle_cmpo(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a CMPO target that equals the prior."""
    kl = series(lines, "target/cmpo_kl")
    run = last_stretch(kl, kl.values < IDLE_KL)
    if "cmpo" in facts.terms and run.updates >= IDLE_UPDATES:
        yield Flag(
            5, "idle CMPO",
            f"CMPO's policy is within {run.values.max():.0e} nats of its prior over the last {run.updates:,} updates",
            "normalized advantages of the model are all near 0: q^ is the same for every action",
            "look at gradient/model_reward_share and gradient/model_value_share; raise losses.model_value.weight",
        )  # fmt: skip


def dead_part(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a part of the network for which no term has a gradient."""
    measured = [line for line in lines if any(name.startswith("gradient/") for name in line)]
    parts: dict[str, float] = {}
    for line in measured[1:]:  # last layers begin at zero, so that at first no gradient passes them
        for name, value in line.items():
            for part in metrics.PARTS:
                if name.startswith("gradient/") and name.endswith(f"_{part}"):
                    parts[part] = max(parts.get(part, 0.0), 0.0 if math.isnan(value) else value)
    for part, greatest in parts.items():
        if greatest == 0.0:
            yield Flag(
                6, "part without gradient",
                f"no term has had a gradient for the {part.replace('_', ' ')} in {len(measured) - 1} measurements",
                "its terms are switched off, or its input is constant",
                "give a term that reaches it a weight above 0 (losses.TERM.weight)",
            )  # fmt: skip


SPIKE, SPIKE_BEFORE = 20.0, 20
"""The factor over the median that makes a spike, and the number of lines before it over which the median is taken."""


def spike(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a norm of the gradient that is far above its median before, and above every earlier one.

    In a task that has been solved gradients are tiny, and an ordinary one is many times their median.
    """
    norm = series(lines, "model/gradient_norm")
    for at in range(SPIKE_BEFORE, len(norm)):
        usual = float(np.median(norm.values[at - SPIKE_BEFORE : at]))
        if usual > 0 and norm.values[at] > max(SPIKE * usual, norm.values[:at].max()):
            yield Flag(
                7, "loss spike",
                f"the gradient's norm was {norm.values[at]:.3g} at learner step {norm.learner_steps[at]:,.0f}, "
                f"{norm.values[at] / usual:.0f} times its median before",
                "a step that was too large, or a reward far beyond earlier ones",
                "lower optimizer.learning_rate or optimizer.update_clip, and look at target/support_overflow",
            )  # fmt: skip
            return


STALE = 1.0
"""The mean distance in nats from the policy that acted, above which the replay is stale."""


def stale_replay(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag a replay whose sequences come from a policy that is far from the current one."""
    distance = series(lines, "act/kl_to_behavior").since(0.5 * facts.steps)
    age = series(lines, "target/replay_age").since(0.5 * facts.steps)
    if facts.replay_fraction and len(distance) and len(age) and distance.values.mean() > STALE:
        yield Flag(
            9, "stale replay",
            f"the policy is {distance.values.mean():.2f} nats from the one that acted in its batches, which are "
            f"{age.values.mean():,.0f} environment steps old on average",
            "the replay contains sequences that are too old for the agent to learn from",
            f"lower replay.capacity (now {facts.replay_capacity:,}) or replay.fraction (now {facts.replay_fraction:g})",
        )  # fmt: skip


BLIND, BLIND_UPDATES = 0.01, 1000
"""The standard deviation of latents, which are in [-1, 1], below which an encoder is blind, and the fewest updates with
it.  On LunarLander's pictures a network that did not react to them had 0.002, and those that learned had 0.1."""


def blind(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Flag an encoder whose latents are nearly the same for all observations."""
    deviation = series(lines, "model/latent_deviation")
    run = last_stretch(deviation, deviation.values < BLIND)
    if run.updates >= BLIND_UPDATES:
        yield Flag(
            13, "blind encoder",
            f"latents of different observations differ by {run.values.max():.4f} at most, over {run.updates:,} updates",
            "nearly all of an observation is the same in every row, and hides the rest",
            "agent.normalize_observations=true, or another model.torso; these latents do not predict rewards",
        )  # fmt: skip


RULES: tuple[Rule, ...] = (
    dominant_term, entropy_collapse, entropy_stuck, unexplained, idle_cmpo, dead_part, spike, saturated, stale_replay,
    evaluation_unlike_training, one_side_waits, limit_as_death, blind, observations_out_of_scale, coarse_support,
    memoryless, drowning_bonus,
)  # fmt: skip
"""All rules; a flag has the number of its rule."""
