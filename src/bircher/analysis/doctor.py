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
    evaluation_apart,
    is_coarse,
    limit_as_death,
    memoryless,
    observations_out_of_scale,
    saturated,
    waiting,
)
from bircher.metrics import Line, Series, held, last_run, series, unfaded


def examine(lines: Sequence[Line], facts: Facts) -> list[Flag]:
    """All flags that these lines raise, by number, without those that are another's consequence."""
    flags = [flag for rule in RULES for flag in rule(lines, facts)]
    explained = {number for flag in flags for number in CONSEQUENCES.get(flag.number, ())}
    return [flag for flag in flags if flag.number not in explained]


CONSEQUENCES = {2: (1, 6), 13: (3, 4, 5, 6), 14: (1, 3, 4, 5, 6, 13), 15: (3, 4, 5), 16: (3, 4, 5)}
"""A policy that is certain has no gradient left: the other terms have all of it.  To a network that sees nothing all
actions are alike, whatever was done; it sees nothing where observations are out of scale.  Where returns cannot be
resolved or foretold, values explain nothing and no action seems better than another."""


HOLDING_BACK = ("entropy", "kl_to_behavior")
"""Terms that have nothing to learn themselves."""
DOMINANT, DOMINANT_MEASURES, DOMINANT_UPDATES, FADED = 0.95, 3, 500, 0.1
"""A share is measured on few sequences and seldom.  PPO's value had 0.80 to 0.93 in a sound run of LunarLander-v3."""
HEAVY, HEAVY_SHARE = 10.0, 0.7
"""How many times 1, and the greatest weight of all other terms, a weight is, for which a smaller share counts."""


def dominant_term(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """One term has nearly all of the encoder's gradient, or most of it because its weight is far above the others'."""
    if len(facts.terms) < 2:
        return
    weights = dict(zip(facts.terms, facts.weights, strict=False))
    for term in facts.terms:
        # Terms that have been learned ask for nothing, and are not drowned: PPO's value, once CartPole is solved.
        others = [f"gradient/{other}_encoder" for other in facts.terms if other not in (term, *HOLDING_BACK)]
        shares = series(unfaded(lines, others, FADED), f"gradient/{term}_share")
        weight, greatest = weights.get(term), max((weights[name] for name in weights if name != term), default=0.0)
        run, change = held(shares, DOMINANT), ""
        if weight is not None and weight >= HEAVY * max(greatest, 1.0) and not _dominates(run):
            run = shares
            share = float(np.median(run.values)) if len(run) else 0.0
            # What the term would have at the weight of the others.
            if share < HEAVY_SHARE or share * greatest / weight > (1 - share):
                continue
            change = f"from {weight:g} toward {greatest:g}, the greatest of the others"
        if _dominates(run):
            share = float(np.median(run.values))
            yield Flag(
                1, "dominant term",
                f"{term} has {share:.0%} of the encoder's gradient norm, the median of {len(run)} measurements over "
                f"{run.updates:,} updates",
                "its weight drowns what the other terms ask of the encoder",
                f"lower losses.{term}.weight {change or _factor(share)}",
            )  # fmt: skip


def _dominates(run: Series) -> bool:
    """Whether there are enough measurements, over enough updates."""
    return len(run) >= DOMINANT_MEASURES and run.updates >= DOMINANT_UPDATES


def _factor(share: float) -> str:
    """How much less would leave a term half of the norm."""
    return f"by {share / max(1 - share, 1e-6):,.0f} times at least"


COLLAPSED, COLLAPSE_BEFORE = 0.02, 0.1


def _entropy(lines: Sequence[Line]) -> Series:
    """Return the entropy of the decisions with more than one legal action."""
    return series([line for line in lines if line.get("act/choice_share") != 0.0], "act/entropy_share")


def entropy_collapse(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """The policy became certain long before it had seen much."""
    entropy = _entropy(lines)
    early = entropy.values[entropy.env_steps <= COLLAPSE_BEFORE * facts.steps]
    if len(early) and early[-1] < COLLAPSED:
        yield Flag(
            2, "entropy collapse",
            f"entropy fell to {early[-1]:.1%} of log A within the first {COLLAPSE_BEFORE:.0%} of the steps",
            "the policy became certain before values could tell actions apart",
            "give losses.entropy.weight a value such as 0.01, or lower optimizer.learning_rate",
        )  # fmt: skip


UNIFORM, UNIFORM_AFTER = 0.95, 0.5


def entropy_stuck(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """The policy is still as good as uniform when half of the steps are gone."""
    share = _entropy(lines).since(UNIFORM_AFTER * facts.steps).values
    if len(share) and share.min() > UNIFORM:
        yield Flag(
            3, "entropy stuck",
            f"entropy never fell below {share.min():.0%} of log A in the second half of the steps",
            "nothing that the policy is taught tells one action from another, or an entropy term holds it back",
            "lower losses.entropy.weight, raise optimizer.learning_rate, and see whether rewards are ever met",
        )  # fmt: skip


UNEXPLAINED, UNEXPLAINED_UPDATES, Learned = -0.05, 1000, 0.01
"""A constant explains 0, and so does a value where nothing can be foretold.  Within a hundredth of a nat of its targets
a value is right: where all returns are alike, as on a solved CartPole, its last digits explain less than nothing."""


def unexplained(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Values predict returns worse than a constant would."""
    coarse = is_coarse(lines, facts)  # then the loss is small whatever the value says
    wrong = [line for line in lines if coarse or line.get("loss/value", math.inf) > Learned]
    explained = series(wrong, "target/explained_variance")
    late = explained.since(explained.env_steps.max(initial=0.0) / 2)
    if late.updates >= UNEXPLAINED_UPDATES and float(np.median(late.values)) < UNEXPLAINED:
        yield Flag(
            4, "values explain nothing",
            f"explained variance is {np.median(late.values):.2f}, the median over the last {late.updates:,} updates",
            "the value learns too slowly, its targets move faster than it can follow, or it fits what was chance",
            "raise losses.value.weight; lower agent.target_update_rate, agent.returns.lambda or optimizer.epochs",
        )  # fmt: skip


IDLE_KL, IDLE_UPDATES = 1e-5, 300


def idle_cmpo(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """CMPO's target is the prior itself."""
    kl = series(lines, "target/cmpo_kl")
    run = last_run(kl, kl.values < IDLE_KL)
    if "cmpo" in facts.terms and run.updates >= IDLE_UPDATES:
        yield Flag(
            5, "idle CMPO",
            f"CMPO's policy is within {run.values.max():.0e} nats of its prior over the last {run.updates:,} updates",
            "normalized advantages of the model are all near 0: q^ is the same for every action",
            "see gradient/model_reward_share and gradient/model_value_share; raise losses.model_value.weight",
        )  # fmt: skip


def dead_part(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """A part of the network that no term moves."""
    measured = [line for line in lines if any(name.startswith("gradient/") for name in line)]
    parts: dict[str, float] = {}
    for line in measured[1:]:  # last layers begin at zero: at first nothing passes them
        for name, value in line.items():
            for part in metrics.PARTS:
                if name.startswith("gradient/") and name.endswith(f"_{part}"):
                    parts[part] = max(parts.get(part, 0.0), 0.0 if math.isnan(value) else value)
    for part, greatest in parts.items():
        if greatest == 0.0:
            yield Flag(
                6, "part without gradient",
                f"no term has had a gradient for the {part.replace('_', ' ')} in {len(measured) - 1} measurements",
                "its terms are switched off, or something before it is constant",
                "give a term that reaches it a weight above 0 (losses.TERM.weight)",
            )  # fmt: skip


SPIKE, SPIKE_BEFORE = 20.0, 20


def spike(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """The gradient's norm left all that it was before."""
    norm = series(lines, "model/gradient_norm")
    for at in range(SPIKE_BEFORE, len(norm)):
        usual = float(np.median(norm.values[at - SPIKE_BEFORE : at]))
        if usual > 0 and norm.values[at] > SPIKE * usual:
            yield Flag(
                7, "loss spike",
                f"the gradient's norm was {norm.values[at]:.3g} at learner step {norm.learner_steps[at]:,.0f}, "
                f"{norm.values[at] / usual:.0f} times its median before",
                "a step that was too large, or a reward far beyond those before it",
                "lower optimizer.learning_rate or optimizer.update_clip, and see target/support_overflow",
            )  # fmt: skip
            return


STALE = 1.0


def stale_replay(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """What is replayed was done by another policy than the one that learns from it."""
    distance = series(lines, "act/kl_to_behavior").since(0.5 * facts.steps)
    age = series(lines, "target/replay_age").since(0.5 * facts.steps)
    if facts.replay_fraction and len(distance) and len(age) and distance.values.mean() > STALE:
        yield Flag(
            9, "stale replay",
            f"the policy is {distance.values.mean():.2f} nats from the one that acted in its batches, which are "
            f"{age.values.mean():,.0f} environment steps old on average",
            "the replay holds more than the agent can still learn from",
            f"lower replay.capacity (now {facts.replay_capacity:,}) or replay.fraction (now {facts.replay_fraction:g})",
        )  # fmt: skip


BLIND, BLIND_UPDATES = 0.01, 1000
"""Latents lie in [-1, 1].  A network that saw nothing of LunarLander's pictures had 0.002, those that see have 0.1."""


def blind(lines: Sequence[Line], facts: Facts) -> Iterator[Flag]:
    """Whatever is observed, the latent is the same."""
    deviation = series(lines, "model/latent_deviation")
    run = last_run(deviation, deviation.values < BLIND)
    if run.updates >= BLIND_UPDATES:
        yield Flag(
            13, "blind encoder",
            f"latents of different observations differ by {run.values.max():.4f} at most, over {run.updates:,} updates",
            "nearly all of an observation is the same in every row, and drowns what is not",
            "agent.normalize_observations=true, or another model.torso; rewards and values cannot be told from this",
        )  # fmt: skip


RULES: tuple[Rule, ...] = (
    dominant_term, entropy_collapse, entropy_stuck, unexplained, idle_cmpo, dead_part, spike, saturated, stale_replay,
    evaluation_apart, waiting, limit_as_death, blind, observations_out_of_scale, coarse_support, memoryless,
)  # fmt: skip
"""By number, from 1."""
