"""Every loss term, by name: pure functions of what the agent computed once for all of them.

A term returns ``[B, T]``, one number for each root row; `learner` averages over valid rows and weighs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bircher.agents.unrolling import Unrolled, windows
from bircher.models.projection import Projection
from bircher.ops import distributions, losses
from bircher.ops.transforms import Bounded, Support


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


def policy(unrolled: Unrolled) -> Float[Array, "B T"]:
    """KL(target, pi) at the root: Muesli's `cmpo` (equation 9), MuZero's `policy`; as excess for sampled targets."""
    return losses.excess_cross_entropy(unrolled.policy[0], unrolled.prediction.policy_logits[0])


def _over_depths(values: Float[Array, "K B T"], mask: Bool[Array, "K B T"]) -> Float[Array, "B T"]:
    """1/K of the sum over depths; a depth without a target counts 0."""
    return jnp.where(mask, values, 0.0).sum(0) / values.shape[0]


def model_policy(unrolled: Unrolled) -> Float[Array, "B T"]:
    """1/K sum over k of KL(pi_CMPO(.|s_{t+k}), pi^_k), with the real later state's own target (equation 13)."""
    values = losses.excess_cross_entropy(unrolled.policy[1:], unrolled.prediction.policy_logits[1:])
    return _over_depths(values, unrolled.policy_mask[1:])


def value(unrolled: Unrolled, support: Support | Bounded) -> Float[Array, "B T"]:
    """Cross-entropy of the root's value with its multi-step return, as excess; squared error for a bounded one."""
    values = support.loss(unrolled.value[0], unrolled.prediction.value_logits[0])
    return jnp.where(unrolled.value_mask[0], values, 0.0)


def model_value(unrolled: Unrolled, support: Support | Bounded) -> Float[Array, "B T"]:
    """1/K sum over k of the same for the value predicted after k steps and the return of the real state there."""
    values = support.loss(unrolled.value[1:], unrolled.prediction.value_logits[1:])
    return _over_depths(values, unrolled.value_mask[1:])


def model_reward(unrolled: Unrolled, support: Support) -> Float[Array, "B T"]:
    """1/K sum over k of the reward's cross-entropy, as excess."""
    values = support.loss(unrolled.reward, unrolled.reward_logits)
    return _over_depths(values, unrolled.reward_mask)


def entropy(unrolled: Unrolled) -> Float[Array, "B T"]:
    """Minus the entropy of the root's policy: a weight above 0 keeps it from becoming certain too soon."""
    return -distributions.entropy(unrolled.acting_logits[0])


def consistency(
    projection: Projection | None, unrolled: Unrolled, encoded: Float[Array, "B R latent"]
) -> Float[Array, "B T"]:
    """1/K sum over k of 1 - cosine between the latent imagined after k steps and that of the real row there.

    "Mastering Atari Games with Limited Data" by Ye et al. 2021 (https://arxiv.org/abs/2111.00210), section 4.1.

    Without a projection, where latents are observations, the mean squared distance instead.
    """
    depths, _, length = unrolled.reward.shape
    later = windows(encoded, depths + 1, length)[1:]
    if projection is None:
        distance = jnp.square(unrolled.latent - jax.lax.stop_gradient(later)).mean(-1)
        return _over_depths(distance, unrolled.encoded_mask)
    return _over_depths(projection.distance(unrolled.latent, later), unrolled.encoded_mask)
