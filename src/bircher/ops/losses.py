"""Losses over rows: categorical cross-entropies as excess, masked means, and how terms are combined."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def excess_cross_entropy(target: Float[Array, "*B n"], logits: Float[Array, "*B n"]) -> Float[Array, "*B"]:
    """Cross-entropy less the target's own entropy: KL where the target sums to 1, and 0 at its best.

    Same gradient as the cross-entropy, and nobody mistakes log n for a loss.  A target of mass m (sampled
    actions) gives m KL(target / m, softmax(logits)).
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    mass = target.sum(-1, keepdims=True)
    normalized = target / jnp.maximum(mass, 1e-12)
    log_target = jnp.log(jnp.maximum(normalized, jnp.finfo(jnp.float32).tiny))
    return (target * (jax.lax.stop_gradient(log_target) - log_probabilities)).sum(-1)


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """Mean over the rows in `mask`; 0 where there is none.  A NaN on a masked row does no harm."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def combine(
    terms: Mapping[str, Float[Array, "B T"]],
    weights: Mapping[str, Array | float],
    mask: Bool[Array, "B T"],
    importance: Float[Array, " B"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted sum of the terms' means over valid rows, and each term unweighted and weighted.

    Raises:
      ValueError: the names of `terms` and `weights` differ.
    """
    if set(terms) != set(weights):
        missing, unknown = sorted(set(terms) - set(weights)), sorted(set(weights) - set(terms))
        raise ValueError(f"loss terms and weights differ: without a weight {missing}, without a term {unknown}")
    means = jax.vmap(masked_mean, (0, None))(jnp.stack(list(terms.values())) * importance[:, None], mask)
    weighted = jnp.stack([jnp.asarray(weights[name], means.dtype) for name in terms]) * means
    metrics = {f"loss/{name}": means[index] for index, name in enumerate(terms)}
    return weighted.sum(), metrics | {f"weighted/{name}": weighted[index] for index, name in enumerate(terms)}
