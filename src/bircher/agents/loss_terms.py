"""Every loss term by name: a function of the inputs that the agent computes once for all of them.

A term returns ``[B, T]``, one number for each root row; `learner` averages over valid rows and weighs.  `TABLE` is the
one list: an agent is a choice of weights over it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from bircher.agents.unroll import Unrolled, windows
from bircher.networks.dynamics import Projection
from bircher.networks.model import Model
from bircher.ops import distributions, improvement, losses
from bircher.ops.distributions import Distribution
from bircher.ops.transforms import Support
from bircher.types import PolicyTarget, Targets, Trajectory

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
    def logits(self) -> Float[Array, "B T P"]:
        """The parameters of the network's policy at the roots, with illegal actions masked."""
        return self.unrolled.acting_params(self.model.distribution)[0]

    @property
    def action(self) -> Shaped[Array, "B T ..."]:
        """The actions that were taken at the roots."""
        return self.rows.action[:, : self.logits.shape[1]]

    @property
    def behavior_logits(self) -> Float[Array, "B T A"] | None:
        """The logits of the policy that took these actions, where actions are few discrete ones, else None."""
        logits = self.rows.extras.per_action.get("behavior_logits")
        return None if logits is None else logits[:, : self.logits.shape[1]]

    @property
    def log_probability(self) -> Float[Array, "B T"]:
        """The logarithm of the probability or density of the actions that were taken, by the network's policy."""
        return self.model.distribution.log_prob(self.logits, self.action)

    @property
    def behavior_log_probability(self) -> Float[Array, "B T"]:
        """The same, by the policy that took the actions."""
        if self.behavior_logits is None:
            return self.rows.extras.per_row["behavior_log_prob"][:, : self.logits.shape[1]]
        return distributions.log_probability(self.behavior_logits, self.action)


class Rule(NamedTuple):
    """The function of a loss term, and its requirements."""

    build: Callable[[LossInputs], Float[Array, "B T"]]
    needs: frozenset[Need] = frozenset()


def policy_gradient(
    log_probability: Float[Array, "B T"],
    behavior_log_probability: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """Compute -sg(min(1, pi(a|s) / pi_b(a|s))) adv log pi(a|s), a sample of -E_pi[adv] (Muesli, equation 10).

    The arguments are log pi(a|s) and log pi_b(a|s); of continuous actions they are logarithms of densities.  No
    gradient flows through the clipped ratio.  If the ratio were differentiated, there would be no gradient wherever pi
    exceeds pi_b.
    """
    ratio = jnp.exp(log_probability - behavior_log_probability)
    return -jax.lax.stop_gradient(jnp.minimum(ratio, 1.0)) * advantage * log_probability


def ppo_clip(
    log_probability: Float[Array, "B T"],
    behavior_log_probability: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    clip: float,
) -> Float[Array, "B T"]:
    """Compute -min(r adv, clip(r, 1 - e, 1 + e) adv) with r = pi(a|s) / pi_b(a|s).

    "Proximal Policy Optimization Algorithms" by Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7.
    """
    ratio = jnp.exp(log_probability - behavior_log_probability)
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


def policy_distillation(
    policy: PolicyTarget, params: Float[Array, "*B P"], distribution: Distribution
) -> Float[Array, "*B"]:
    """Compute KL(target, pi), as excess cross-entropy for sampled targets.

    Of candidates it is sum_i w_i (log target(a_i|s) - log pi(a_i|s)), whose first part has no gradient.

    Three terms are of this form.  Muesli's `cmpo` has the CMPO policy as its target (equation 9).  MuZero's `policy`
    has the policy of a search.  `mpo` has pi_prior exp(adv / eta) / z, from "Maximum a Posteriori Policy Optimization"
    by Abdolmaleki et al. 2018 (https://arxiv.org/abs/1806.06920).
    """
    if policy.actions is None or policy.log_density is None:
        return losses.excess_cross_entropy(policy.weights, params)
    log_probabilities = distribution.log_prob_many(params, policy.actions)
    return (policy.weights * (jax.lax.stop_gradient(policy.log_density) - log_probabilities)).sum(-1)


def kl_to_behavior(logits: Float[Array, "B T A"], behavior_logits: Float[Array, "B T A"]) -> Float[Array, "B T"]:
    """Compute KL(pi_b, pi), a penalty in place of a trust region.

    It is that of TRPO (https://arxiv.org/abs/1502.05477, section 4).
    """
    return losses.excess_cross_entropy(jax.nn.softmax(behavior_logits), logits)


def _over_depths(values: Float[Array, "K B T"], mask: Bool[Array, "K B T"]) -> Float[Array, "B T"]:
    """Return 1/K of the sum over K depths, where a depth without a target counts as 0."""
    return jnp.where(mask, values, 0.0).sum(0) / values.shape[0]


def model_policy(unrolled: Unrolled, distribution: Distribution, horizon: int | None = None) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of KL(pi_CMPO(.|s_{t+k}), pi^_k) (equation 13).

    The target at depth k is that of the real state at t + k.  A `horizon` replaces K: only that many depths count.
    """
    last = 1 + (len(unrolled.policy_mask) - 1 if horizon is None else horizon)
    policy = jax.tree.map(lambda x: x[1:last], unrolled.policy)
    values = policy_distillation(policy, unrolled.prediction.policy_logits[1:last], distribution)
    return _over_depths(values, unrolled.policy_mask[1:last])


def _over_players(values: Float[Array, ...], mask: Bool[Array, ...]) -> Float[Array, ...]:
    """Return the mean over the players, if there is an axis of them."""
    return values if values.ndim == mask.ndim else values.mean(-1)


def value(model: Model, unrolled: Unrolled) -> Float[Array, "B T"]:
    """Compute the excess cross-entropy of the root's value with its multi-step return.

    For a scalar value it is the squared error.  With more than two players it is the mean over them.
    """
    values = model.value_support.loss(unrolled.value[0], unrolled.prediction.value_logits[0])
    values = _over_players(values, unrolled.value_mask[0])
    return jnp.where(unrolled.value_mask[0], values, 0.0)


def model_value(model: Model, unrolled: Unrolled) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of the loss of `value`, between the value predicted after k steps and the return there."""
    values = model.value_support.loss(unrolled.value[1:], unrolled.prediction.value_logits[1:])
    return _over_depths(_over_players(values, unrolled.value_mask[1:]), unrolled.value_mask[1:])


def model_reward(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of the excess cross-entropy of the reward predicted for step k."""
    values = support.loss(unrolled.reward, unrolled.reward_logits)
    return _over_depths(_over_players(values, unrolled.reward_mask), unrolled.reward_mask)


def entropy(params: Float[Array, "B T P"], distribution: Distribution) -> Float[Array, "B T"]:
    """Return minus the entropy of the root's policy; a weight above 0 slows down its becoming deterministic."""
    return -distribution.entropy(params)


def consistency(
    projection: Projection | None, unrolled: Unrolled, encoded: Float[Array, "B R latent"]
) -> Float[Array, "B T"]:
    """Compute 1/K sum over k of 1 - cosine between the latent after k steps of the model and that of the real row.

    "Mastering Atari Games with Limited Data" by Ye et al. 2021 (https://arxiv.org/abs/2111.00210), section 4.1.

    Without a projection, where latents are observations, it is the mean squared distance instead.
    """
    depths, _, length = unrolled.reward.shape[:3]
    later = windows(encoded, depths + 1, length)[1:]
    if projection is None:
        distance = jnp.square(unrolled.latent - jax.lax.stop_gradient(later)).mean(-1)
        return _over_depths(distance, unrolled.encoded_mask)
    return _over_depths(projection.distance(unrolled.latent, later), unrolled.encoded_mask)


def _ppo_clip(p: LossInputs) -> Array:
    assert p.clips is not None
    return ppo_clip(p.log_probability, p.behavior_log_probability, p.target.advantage, p.clips.ratio)


def _distilled(p: LossInputs, params: Array) -> Array:
    policy = jax.tree.map(lambda x: x[0], p.unrolled.policy)
    return policy_distillation(policy, params, p.model.distribution)


def _mpo(p: LossInputs) -> Array:
    weights, candidates = p.target.extras.per_transition["mpo_policy"], p.target.policy
    if candidates.actions is None or candidates.log_density is None:
        return policy_distillation(PolicyTarget(None, weights), p.logits, p.model.distribution)
    roots = jax.tree.map(lambda x: x[:, : weights.shape[1]], candidates)
    return policy_distillation(improvement.reweighted(roots, weights), p.logits, p.model.distribution)


def _kl_to_behavior(p: LossInputs) -> Array:
    if p.behavior_logits is None:
        # A sample of the divergence, whose gradient is that of -log pi(a|s) at an action of the behavior policy.
        return p.behavior_log_probability - p.log_probability
    return kl_to_behavior(p.logits, p.behavior_logits)


def _ppo_value(p: LossInputs) -> Array:
    assert p.clips is not None
    predicted = p.model.value_support.mean(p.unrolled.prediction.value_logits[0])
    return ppo_value(predicted, p.target.extras.per_transition["old_value"], p.target.value, p.clips.value)


_UNROLL: frozenset[Need] = frozenset({"unroll"})
_LOOK: frozenset[Need] = frozenset({"look_ahead"})
_PROJECTION: frozenset[Need] = frozenset({"projection"})

TABLE: dict[str, Rule] = {
    "policy_gradient": Rule(
        lambda p: policy_gradient(p.log_probability, p.behavior_log_probability, p.target.advantage)
    ),
    "ppo_clip": Rule(_ppo_clip),
    "policy": Rule(lambda p: _distilled(p, p.unrolled.prediction.policy_logits[0])),
    "cmpo": Rule(lambda p: _distilled(p, p.logits), _LOOK),
    "mpo": Rule(_mpo, _LOOK),
    "kl_to_behavior": Rule(_kl_to_behavior),
    "entropy": Rule(lambda p: entropy(p.logits, p.model.distribution)),
    "value": Rule(lambda p: value(p.model, p.unrolled)),
    "ppo_value": Rule(_ppo_value),
    "model_policy": Rule(lambda p: model_policy(p.unrolled, p.model.distribution, p.policy_horizon), _UNROLL),
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
