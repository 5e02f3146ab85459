"""Losses over rows: categorical cross-entropies as excess, masked means, and how terms are combined."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def excess_cross_entropy(target: Float[Array, "*B n"], logits: Float[Array, "*B n"]) -> Float[Array, "*B"]:
    """Return the cross-entropy minus the target's own entropy, which is a KL where the target sums to 1.

    It has the same gradient as the cross-entropy, and its minimum is 0 instead of the target's entropy.  A target of
    mass m (sampled actions) gives m KL(target / m, softmax(logits)).
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    mass = target.sum(-1, keepdims=True)
    normalized = target / jnp.maximum(mass, 1e-12)
    log_target = jnp.log(jnp.maximum(normalized, jnp.finfo(jnp.float32).tiny))
    return (target * (jax.lax.stop_gradient(log_target) - log_probabilities)).sum(-1)


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """Return the mean over the rows in `mask`, or 0 where `mask` has no row.

    A NaN on a row outside the mask has no effect on the result.
    """
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def combine(
    terms: Mapping[str, Float[Array, "B T"]],
    weights: Mapping[str, Array | float],
    mask: Bool[Array, "B T"],
    importance: Float[Array, " B"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Combine loss terms to the weighted sum of their means over valid rows.

    Args:
      terms: each term for every row.
      weights: the weight of each term.
      mask: the valid rows.
      importance: importance weight of each sequence.

    Returns:
      The sum, and the metrics `loss/…` (each mean without its weight) and `weighted/…` (with it).

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
