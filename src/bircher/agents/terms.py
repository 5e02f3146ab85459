"""Every loss term, by name: pure functions of what the agent computed once for all of them.

A term returns ``[B, T]``, one number for each root row; `learner` averages over valid rows and weighs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bircher.agents.unrolling import Unrolled
from bircher.ops import distributions, losses
from bircher.ops.transforms import Support


def policy_gradient(
    logits: Float[Array, "B T A"],
    action: Int[Array, "B T"],
    behaviour_logits: Float[Array, "B T A"],
    advantage: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """-sg(min(1, pi(a|s) / pi_b(a|s))) adv log pi(a|s), a sample of -E_pi[adv] (Muesli, equation 10).

    The clipped ratio is held constant: clipped inside the differentiated ratio, no gradient is left wherever
    pi exceeds pi_b.
    """
    log_probability = distributions.log_probability(logits, action)
    ratio = jnp.exp(log_probability - distributions.log_probability(behaviour_logits, action))
    return -jax.lax.stop_gradient(jnp.minimum(ratio, 1.0)) * advantage * log_probability


def cmpo(unrolled: Unrolled) -> Float[Array, "B T"]:
    """KL(pi_CMPO, pi) at the root (Muesli, equation 9), as excess for sampled targets."""
    return losses.excess_cross_entropy(unrolled.policy[0], unrolled.prediction.policy_logits[0])


def _over_depths(values: Float[Array, "K B T"], mask: Bool[Array, "K B T"]) -> Float[Array, "B T"]:
    """1/K of the sum over depths; a depth without a target counts 0."""
    return jnp.where(mask, values, 0.0).sum(0) / values.shape[0]


def model_policy(unrolled: Unrolled) -> Float[Array, "B T"]:
    """1/K sum over k of KL(pi_CMPO(.|s_{t+k}), pi^_k), with the real later state's own target (equation 13)."""
    values = losses.excess_cross_entropy(unrolled.policy[1:], unrolled.prediction.policy_logits[1:])
    return _over_depths(values, unrolled.policy_mask[1:])


def value(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """Cross-entropy of the root's value with its multi-step return, as excess."""
    return losses.excess_cross_entropy(support.two_hot(unrolled.value[0]), unrolled.prediction.value_logits[0])


def model_value(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """1/K sum over k of the value's cross-entropy with the return of the real state there, as excess."""
    values = losses.excess_cross_entropy(support.two_hot(unrolled.value[1:]), unrolled.prediction.value_logits[1:])
    return _over_depths(values, unrolled.value_mask[1:])


def model_reward(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """1/K sum over k of the reward's cross-entropy, as excess."""
    values = losses.excess_cross_entropy(support.two_hot(unrolled.reward), unrolled.reward_logits)
    return _over_depths(values, unrolled.reward_mask)
