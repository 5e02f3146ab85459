"""Q-values of a tree: MuZero's scale of them, and Gumbel MuZero's completion."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def tree_min_max(
    q_values: Float[Array, "B A"], visits: Int[Array, "B A"], low: Float[Array, " B"], high: Float[Array, " B"]
) -> Float[Array, "B A"]:
    """Q scaled to [0, 1] between the least and greatest Q of the whole tree's visited edges (MuZero, appendix B).

    0 for edges not visited, and for all while no two Q differ.  mctx's own transforms look at a node and its edges.

    Args:
      q_values: of one node's edges, read where visited.
      visits: of those edges.
      low: least Q of the tree, now: not the least that was ever seen.
      high: greatest Q of the tree.
    """
    spread = (high - low)[:, None]
    scaled = (q_values - low[:, None]) / jnp.maximum(spread, jnp.finfo(q_values.dtype).tiny)
    return jnp.where((visits > 0) & (spread > 0), scaled, 0.0)


def completed_q_values(
    q_values: Float[Array, "*B A"], visits: Int[Array, "*B A"], prior: Float[Array, "*B A"], value: Float[Array, "*B"]
) -> Float[Array, "*B A"]:
    """Q of each action, with the mixed value for actions not visited.

    v_mix = (v + N sum_b P(b) Q(b) / sum_b P(b)) / (1 + N) over the visited b, N their visits (Gumbel MuZero,
    appendix D).

    Args:
      q_values: read where visited.
      visits: N(b).
      prior: probabilities P.
      value: the network's v of the state itself.
    """
    visited = visits > 0
    total = visits.sum(-1)
    prior = jnp.where(visited, jnp.maximum(prior, jnp.finfo(prior.dtype).tiny), 0.0)
    weighted = jnp.where(visited, prior * q_values, 0.0).sum(-1) / jnp.where(total > 0, prior.sum(-1), 1.0)
    mixed = (value + total * weighted) / (total + 1)
    return jnp.where(visited, q_values, mixed[..., None])
