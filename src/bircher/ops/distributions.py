"""Categorical policies: mixtures, entropies and divergences, for any leading axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ILLEGAL = -1e9
"""Logit of an action that must not be taken; finite, so that its gradient is 0 and not NaN."""


def mask_logits(logits: Float[Array, "*B A"], legal_actions: Bool[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Logits with illegal actions out of reach."""
    return jnp.where(legal_actions, logits, ILLEGAL)


def log_probability(logits: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log pi(action)."""
    return select(jax.nn.log_softmax(logits), action)


def select(values: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The entry of each action; a masked sum, which is quicker than a gather for the few actions there are."""
    # where, not a product: an illegal action's infinity must not reach the others.
    chosen = action[..., None] == jnp.arange(values.shape[-1])
    return jnp.where(chosen, values, 0.0).sum(-1)


def entropy(logits: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Entropy in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probabilities) * log_probabilities).sum(-1)


def kl_divergence(p: Float[Array, "*B A"], q: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """KL(p, q) in nats, of probabilities; 0 log 0 is 0."""
    tiny = jnp.finfo(jnp.float32).tiny
    return (p * (jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny)))).sum(-1)


def mixture_prior(
    target_logits: Float[Array, "*B A"],
    behavior_logits: Float[Array, "*B A"],
    legal_actions: Bool[Array, "*B A"],
    behavior_share: float,
    uniform_share: float,
) -> Float[Array, "*B A"]:
    """Prior policy as a mixture of the target network's, the behavior's and the uniform policy.

    Probabilities.  The rest, 1 - behavior_share - uniform_share, is the target network's.  It bounds the
    importance ratio and keeps every legal action in reach (Muesli, appendix, as re-implementers cite it).
    """
    target = jax.nn.softmax(mask_logits(target_logits, legal_actions))
    behavior = jax.nn.softmax(mask_logits(behavior_logits, legal_actions))
    legal = legal_actions.astype(target.dtype)
    uniform = legal / jnp.maximum(legal.sum(-1, keepdims=True), 1.0)
    return (1 - behavior_share - uniform_share) * target + behavior_share * behavior + uniform_share * uniform
