"""Q-values of a tree: MuZero's scale of them, and Gumbel MuZero's completion."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def tree_min_max(tree: Any, node: Array) -> Float[Array, " A"]:
    """Q of a node's edges, scaled to [0, 1] between the least and greatest Q of the whole tree's visited edges.

    MuZero's normalisation (appendix B, equation 5), as a transform for mctx, whose own looks at parent and siblings
    only.  0 for edges not visited, and for all while no two Q differ.

    Args:
      tree: an `mctx.Tree` without its batch axis.
      node: index of the node.
    """
    q_values = tree.children_rewards + tree.children_discounts * tree.children_values
    visited = tree.children_visits > 0
    low = jnp.where(visited, q_values, jnp.inf).min()
    high = jnp.where(visited, q_values, -jnp.inf).max()
    scaled = (tree.qvalues(node) - low) / jnp.maximum(high - low, jnp.finfo(q_values.dtype).tiny)
    return jnp.where(visited[node] & (high > low), scaled, 0.0)


def completed_q_values(
    q_values: Float[Array, "*B A"], visits: Int[Array, "*B A"], prior: Float[Array, "*B A"], value: Float[Array, "*B"]
) -> Float[Array, "*B A"]:
    """Q of each action, with the mixed value for actions not visited.

    v_mix = (v + N sum_b P(b) Q(b) / sum_b P(b)) / (1 + N) over the visited b, N their visits (Gumbel MuZero, appendix D,
    equation 33).

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


def root_q_values(tree: Any) -> Float[Array, "B A"]:
    """Q of the root's actions; 0 where not visited."""
    q_values = tree.children_rewards + tree.children_discounts * tree.children_values
    return jnp.where(tree.children_visits > 0, q_values, 0.0)[:, tree.ROOT_INDEX]
