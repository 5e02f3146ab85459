"""Categorical policies: mixtures, entropies and divergences, for any leading axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ILLEGAL = -1e9
"""Logit of an action that must not be taken; finite, so that its gradient is 0 and not NaN."""


def mask_logits(logits: Float[Array, "*B A"], legal_actions: Bool[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Return the logits with `ILLEGAL` in place of those of illegal actions."""
    return jnp.where(legal_actions, logits, ILLEGAL)


def log_probability(logits: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Return log pi(action) of the policy softmax(logits)."""
    return select(jax.nn.log_softmax(logits), action)


def select(values: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Return the entry of each action in `values`.

    It is a masked sum, which is faster than a gather for a small number of actions.
    """
    # `where` and not a product, because an illegal action's infinity must not reach the others.
    chosen = action[..., None] == jnp.arange(values.shape[-1])
    return jnp.where(chosen, values, 0.0).sum(-1)


def entropy(logits: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Return the entropy of softmax(logits) in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probabilities) * log_probabilities).sum(-1)


def kl_divergence(p: Float[Array, "*B A"], q: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Return KL(p, q) in nats.

    Args:
      p: probabilities, where 0 log 0 is taken as 0.
      q: probabilities.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    return (p * (jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny)))).sum(-1)


def mixture_prior(
    target_logits: Float[Array, "*B A"],
    behavior_logits: Float[Array, "*B A"],
    legal_actions: Bool[Array, "*B A"],
    behavior_share: float,
    uniform_share: float,
) -> Float[Array, "*B A"]:
    """Return the probabilities of a mixture of the target network's, the behavior and the uniform policy.

    The target network's policy has the share that is left, 1 - behavior_share - uniform_share.  The mixture bounds the
    importance ratio and gives every legal action some probability (Muesli, appendix, as re-implementers cite it).
    """
    target = jax.nn.softmax(mask_logits(target_logits, legal_actions))
    behavior = jax.nn.softmax(mask_logits(behavior_logits, legal_actions))
    legal = legal_actions.astype(target.dtype)
    uniform = legal / jnp.maximum(legal.sum(-1, keepdims=True), 1.0)
    return (1 - behavior_share - uniform_share) * target + behavior_share * behavior + uniform_share * uniform
