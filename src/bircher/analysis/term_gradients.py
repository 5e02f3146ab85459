"""Gradients of each loss term in each part of the network: norms, shares, and which terms disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bircher.agents.base import Agent, weights_at
from bircher.analysis.network_summary import ENCODER, part_of
from bircher.ops import losses
from bircher.types import Batch, Key, Targets


class TermGradients(NamedTuple):
    """Gradients of the weighted loss terms on one batch."""

    norms: Mapping[str, Float[Array, " terms"]]
    """The norms by part of the network, of every term in the order of the agent's weights."""
    shared: Float[Array, " terms"]
    """The norms in the encoder, or in the reader of latents if there is no encoder."""
    cosines: Float[Array, "terms terms"]
    """The cosines between the gradients of two terms in that part; 0 if one of them has no gradient."""


def measure(
    agent: Agent, params: PyTree, state: Any, batch: Batch, targets: Targets, key: Key, progress: Array | float
) -> TermGradients:
    """Compute the gradient of every term, with one forward pass and one batched backward pass for all of them."""
    names = tuple(agent.weights)

    def weighted(params: PyTree) -> Float[Array, " terms"]:
        terms, _ = agent.loss(params, state, batch, targets, key, with_metrics=False)
        weights = weights_at(agent.weights, progress)
        importance = batch.importance[:, None]
        means = (losses.masked_mean(terms[name] * importance, targets.mask) * weights[name] for name in names)
        return jnp.stack(list(means))

    _, pullback = jax.vjp(weighted, params)
    (gradients,) = jax.vmap(pullback)(jnp.eye(len(names)))
    by_part = _by_part(gradients)
    norms = {part: jnp.linalg.norm(values, axis=-1) for part, values in by_part.items()}
    part = ENCODER if ENCODER in by_part else "reader"
    shared = by_part.get(part, jnp.zeros((len(names), 1)))
    lengths = jnp.linalg.norm(shared, axis=-1)
    unit = shared / jnp.maximum(lengths[:, None], 1e-30)
    return TermGradients(norms, lengths, unit @ unit.T)


def _by_part(gradients: PyTree) -> dict[str, Float[Array, "terms numbers"]]:
    """Return the gradients of each part as one matrix; a part without parameters is left out."""
    found: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        found.setdefault(part_of(path), []).append(leaf.reshape(len(leaf), -1))
    return {part: jnp.concatenate(values, axis=1) for part, values in found.items()}


def as_metrics(found: TermGradients, names: Sequence[str]) -> dict[str, float]:
    """Return norms by term and part, shares of the encoder's norm, and cosines of every pair of terms that reach it."""
    metrics, encoder = {}, found.shared
    total = float(encoder.sum())
    for index, name in enumerate(names):
        for part, norms in found.norms.items():
            metrics[f"gradient/{name}_{part}"] = float(norms[index])
        metrics[f"gradient/{name}_share"] = float(encoder[index]) / total if total else 0.0
    for (i, first), (j, second) in combinations(enumerate(names), 2):
        if float(encoder[i]) and float(encoder[j]):
            metrics[f"gradient/cosine_{first}_{second}"] = float(found.cosines[i, j])
    return metrics
