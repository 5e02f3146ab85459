"""What every agent with a model logs of its targets."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from bircher.agents.unrolling import Unrolled
from bircher.models.model import Model
from bircher.ops import distributions, losses
from bircher.types import Targets


def common(model: Model, unrolled: Unrolled, target: Targets) -> dict[str, Array]:
    """Entropy at the roots, and how values compare with their targets; each a mean over valid rows."""
    valued = target.mask & unrolled.value_mask[0]

    def mean(values: Array) -> Array:
        return losses.masked_mean(values, valued)

    value = model.value_support.mean(unrolled.prediction.value_logits[0])
    error = mean(jnp.square(target.value - value)) - jnp.square(mean(target.value - value))
    spread = mean(jnp.square(target.value)) - jnp.square(mean(target.value))
    overflow = model.value_support.overflow(target.value) | model.reward_support.overflow(target.reward)
    entropy = distributions.entropy(unrolled.prediction.policy_logits[0])
    return {
        "act/entropy": losses.masked_mean(entropy, target.mask),
        "target/value_mean": mean(target.value),
        "target/support_overflow": losses.masked_mean(overflow.astype(jnp.float32), target.mask),
        "target/explained_variance": jnp.maximum(1.0 - error / jnp.maximum(spread, 1e-8), -1.0),
        "target/valid_share": target.mask.mean(),
    }
