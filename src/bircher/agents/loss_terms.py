"""Every loss term by name: a function of the inputs that the agent computes once for all of them.

A term returns ``[B, T]``, one number for each root row; `learner` averages over valid rows and weighs.  `TABLE` is the
one list: an agent is a choice of weights over it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bircher.agents.unroll import Unrolled, windows
from bircher.networks.dynamics import Projection
from bircher.networks.model import Model
from bircher.ops import distributions, losses
from bircher.ops.transforms import Support
from bircher.types import Targets, Trajectory

Need = Literal["unroll", "look_ahead", "projection"]
"""A requirement of a term: the unrolled model, a model that learns rewards and values, or a projection."""


class Clips(NamedTuple):
    """The clip bounds of PPO's probability ratio and value."""

    ratio: float
    value: float | None


class LossInputs(NamedTuple):
    """The quantities that an agent computes once for all of its loss terms."""

    model: Model
    rows: Trajectory
    target: Targets
    unrolled: Unrolled
    latent: Float[Array, "B R latent"]
    """Latents of the rows; the last row is included only for the consistency term."""
    policy_horizon: int | None = None
    clips: Clips | None = None

    @property
    def logits(self) -> Float[Array, "B T A"]:
        """The logits of the network's policy at the roots, with illegal actions masked."""
        return self.unrolled.acting_logits[0]

    @property
    def action(self) -> Int[Array, "B T"]:
        """The actions that were taken at the roots."""
        return self.rows.action[:, : self.logits.shape[1]]

    @property
    def behavior_logits(self) -> Float[Array, "B T A"]:
        """The logits of the policy that took these actions."""
        return self.rows.extras.per_action["behavior_logits"][:, : self.logits.shape[1]]


class Rule(NamedTuple):
    """The function of a loss term, and its requirements."""

    build: Callable[[LossInputs], Float[Array, "B T"]]
    needs: frozenset[Need] = frozenset()


def policy_gradient(
    logits: Float[Array, "B T A"],
    action: Int[Array, "B T"],
    behavior_logits: Float[Array, "B T A"],
    advantage: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """Compute -sg(min(1, pi(a|s) / pi_b(a|s))) adv log pi(a|s), a sample of -E_pi[adv] (Muesli, equation 10).

    No gradient flows through the clipped ratio.  If the ratio were differentiated, there would be no gradient wherever
    pi exceeds pi_b.
    """
    log_probability = distributions.log_probability(logits, action)
    ratio = jnp.exp(log_probability - distributions.log_probability(behavior_logits, action))
    return -jax.lax.stop_gradient(jnp.minimum(ratio, 1.0)) * advantage * log_probability


def ppo_clip(
    logits: Float[Array, "B T A"],
    action: Int[Array, "B T"],
    behavior_logits: Float[Array, "B T A"],
    advantage: Float[Array, "B T"],
    clip: float,
) -> Float[Array, "B T"]:
    """Compute -min(r adv, clip(r, 1 - e, 1 + e) adv) with r = pi(a|s) / pi_b(a|s).

    "Proximal Policy Optimization Algorithms" by Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7.
    """
    log_probability = distributions.log_probability(logits, action)
    ratio = jnp.exp(log_probability - distributions.log_probability(behavior_logits, action))
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def ppo_value(
    value: Float[Array, "B T"], old_value: Float[Array, "B T"], target: Float[Array, "B T"], clip: float | None
) -> Float[Array, "B T"]:
    """Compute 1/2 max((v - G)^2, (v_old + clip(v - v_old, -e, e) - G)^2); without e, only 1/2 (v - G)^2.

    This is the value loss of PPO's first implementation (baselines, ppo2).
    """
    error = jnp.square(value - target)
    if clip is not None:
        error = jnp.maximum(error, jnp.square(old_value + jnp.clip(value - old_value, -clip, clip) - target))
    return 0.5 * error


def policy_distillation(policy: Float[Array, "B T A"], logits: Float[Array, "B T A"]) -> Float[Array, "B T"]:
    """Compute KL(target, pi) at the root, as excess cross-entropy for sampled targets.

    Three terms are of this form.  Muesli's `cmpo` has the CMPO policy as its target (equation 9).  MuZero's `policy`
    has the policy of a search.  `mpo` has pi_prior exp(adv / eta) / z, from "Maximum a Posteriori Policy Optimization"
    by Abdolmaleki et al. 2018 (https://arxiv.org/abs/1806.06920).
    """
    return losses.excess_cross_entropy(policy, logits)


def kl_to_behavior(logits: Float[Array, "B T A"], behavior_logits: Float[Array, "B T A"]) -> Float[Array, "B T"]:
    """Compute KL(pi_b, pi), a penalty in place of a trust region.

    It is that of TRPO (https://arxiv.org/abs/1502.05477, section 4).
    """
    return losses.excess_cross_entropy(jax.nn.softmax(behavior_logits), logits)


def _over_depths(values: Float[Array, "K B T"], mask: Bool[Array, "K B T"]) -> Float[Array, "B T"]:
    """Return 1/K of the sum over K depths, where a depth without a target counts as 0."""
    return jnp.where(mask, values, 0.0).sum(0) / values.shape[0]


def model_policy(unrolled: Unrolled, horizon: int | None = None) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of KL(pi_CMPO(.|s_{t+k}), pi^_k) (equation 13).

    The target at depth k is that of the real state at t + k.  A `horizon` replaces K: only that many depths count.
    """
    last = 1 + (len(unrolled.policy) - 1 if horizon is None else horizon)
    values = losses.excess_cross_entropy(unrolled.policy[1:last], unrolled.prediction.policy_logits[1:last])
    return _over_depths(values, unrolled.policy_mask[1:last])


def value(model: Model, unrolled: Unrolled) -> Float[Array, "B T"]:
    """Compute the excess cross-entropy of the root's value with its multi-step return.

    For a scalar value it is the squared error.
    """
    values = model.value_support.loss(unrolled.value[0], unrolled.prediction.value_logits[0])
    return jnp.where(unrolled.value_mask[0], values, 0.0)


def model_value(model: Model, unrolled: Unrolled) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of the loss of `value`, between the value predicted after k steps and the return there."""
    values = model.value_support.loss(unrolled.value[1:], unrolled.prediction.value_logits[1:])
    return _over_depths(values, unrolled.value_mask[1:])


def model_reward(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of the excess cross-entropy of the reward predicted for step k."""
    values = support.loss(unrolled.reward, unrolled.reward_logits)
    return _over_depths(values, unrolled.reward_mask)


def entropy(logits: Float[Array, "B T A"]) -> Float[Array, "B T"]:
    """Return minus the entropy of the root's policy; a weight above 0 slows down its becoming deterministic."""
    return -distributions.entropy(logits)


def consistency(
    projection: Projection | None, unrolled: Unrolled, encoded: Float[Array, "B R latent"]
) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of 1 - cosine between the latent after k steps of the model and that of the real row.

    "Mastering Atari Games with Limited Data" by Ye et al. 2021 (https://arxiv.org/abs/2111.00210), section 4.1.

    Without a projection, where latents are observations, it is the mean squared distance instead.
    """
    depths, _, length = unrolled.reward.shape
    later = windows(encoded, depths + 1, length)[1:]
    if projection is None:
        distance = jnp.square(unrolled.latent - jax.lax.stop_gradient(later)).mean(-1)
        return _over_depths(distance, unrolled.encoded_mask)
    return _over_depths(projection.distance(unrolled.latent, later), unrolled.encoded_mask)


def _ppo_clip(p: LossInputs) -> Array:
    assert p.clips is not None
    return ppo_clip(p.logits, p.action, p.behavior_logits, p.target.advantage, p.clips.ratio)


def _ppo_value(p: LossInputs) -> Array:
    assert p.clips is not None
    predicted = p.model.value_support.mean(p.unrolled.prediction.value_logits[0])
    return ppo_value(predicted, p.target.extras.per_transition["old_value"], p.target.value, p.clips.value)


_UNROLL: frozenset[Need] = frozenset({"unroll"})
_LOOK: frozenset[Need] = frozenset({"look_ahead"})
_PROJECTION: frozenset[Need] = frozenset({"projection"})

TABLE: dict[str, Rule] = {
    "policy_gradient": Rule(
        lambda p: policy_gradient(p.logits, p.action, p.behavior_logits, p.target.advantage)
    ),
    "ppo_clip": Rule(_ppo_clip),
    "policy": Rule(lambda p: policy_distillation(p.unrolled.policy[0], p.unrolled.prediction.policy_logits[0])),
    "cmpo": Rule(lambda p: policy_distillation(p.unrolled.policy[0], p.logits), _LOOK),
    "mpo": Rule(lambda p: policy_distillation(p.target.extras.per_transition["mpo_policy"], p.logits), _LOOK),
    "kl_to_behavior": Rule(lambda p: kl_to_behavior(p.logits, p.behavior_logits)),
    "entropy": Rule(lambda p: entropy(p.logits)),
    "value": Rule(lambda p: value(p.model, p.unrolled)),
    "ppo_value": Rule(_ppo_value),
    "model_policy": Rule(lambda p: model_policy(p.unrolled, p.policy_horizon), _UNROLL),
    "model_value": Rule(lambda p: model_value(p.model, p.unrolled), _UNROLL),
    "model_reward": Rule(lambda p: model_reward(p.unrolled, p.model.reward_support), _UNROLL),
    "consistency": Rule(
        lambda p: consistency(p.model.projection, p.unrolled, p.latent), _UNROLL | _PROJECTION
    ),
}  # fmt: skip
"""Every loss term with its requirements, in the order in which terms are logged."""


def any_needs(names: Collection[str], what: Need) -> bool:
    """Return whether one of these terms has this requirement."""
    return any(what in TABLE[name].needs for name in names)


def terms_that_need(what: Need) -> tuple[str, ...]:
    """Return the names of all terms with this requirement."""
    return tuple(name for name, rule in TABLE.items() if what in rule.needs)


def missing_for_look_ahead(names: Collection[str], reward_head: bool) -> str:
    """Return the settings of the terms that are missing for a look-ahead, q^ = r^ + gamma v^ of the model's states.

    A look-ahead needs a model whose values are trained, and its rewards too where it predicts them.
    """
    required = ("model_value", "model_reward") if reward_head else ("model_value",)
    return ", ".join(f"losses.{name}" for name in required if name not in names)


def build(names: Collection[str], inputs: LossInputs) -> dict[str, Float[Array, "B T"]]:
    """Compute the terms of these names, in the order of the table."""
    return {name: rule.build(inputs) for name, rule in TABLE.items() if name in names}
