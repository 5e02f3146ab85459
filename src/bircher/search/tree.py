"""A tree that grows by one node in each simulation, for B elements at a time.

The loop replaces mctx's because it is faster.  Its results are equal, number by number.  Statistics are stored by node
and not by edge, because the visits and the value of an edge are those of its child.  In memory, nodes come before
elements.  So the node that a simulation adds has the same position in all B trees and is written by one copy, and a
return changes one number per level.  mctx's loop selects between whole trees at every level where elements differ in
depth.

With more than two players, values, Q and rewards have a last axis P of players (`ops.turns`).  A return is backed up as
a vector, and each node's player chooses by its own component: max^n, "An Algorithmic Solution of N-Person Games" by
Luckhardt and Irani 1986, AAAI-86.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.ops.turns import own, per_player, to_mover
from bircher.search.base import Step

NONE = -1
"""The index of a node that does not exist, as in mctx."""


class Edges(NamedTuple):
    """The statistics of one node of each element, and of its edges."""

    child: Int[Array, "B A"]
    visits: Int[Array, "B A"]
    q_values: Float[Array, "B A"]
    """Q of visited edges, for the player to move; other entries are meaningless."""
    logits: Float[Array, "B A"]
    raw_value: Float[Array, " B"]
    """Value of the node by the model, for the player to move."""
    node_visits: Int[Array, " B"]


class Growth(NamedTuple):
    """B trees of N nodes.  Node 0 is the root, and simulation i adds node i."""

    children: Int[Array, "N B A"]
    logits: Float[Array, "N B A"]
    raw_value: Float[Array, "N B *P"]
    """Value of the node by the model."""
    value: Float[Array, "N B *P"]
    """Mean of the model's value and of every return through the node."""
    visits: Int[Array, "N B"]
    q_value: Float[Array, "N B *P"]
    """reward + discount value of the edge to this node, for the player who moved there."""
    reward: Float[Array, "N B *P"]
    discount: Float[Array, "N B"]
    parent: Int[Array, "N B"]
    action: Int[Array, "N B"]
    """The action from the parent to this node."""
    latent: PyTree[Array]
    """[N, B, ...]"""

    def edges(self, node: Int[Array, " B"] | int) -> Edges:
        """Return the edges of one node in each element, or of the same node in all elements."""
        elements = jnp.arange(self.visits.shape[1])
        where = node if isinstance(node, int) else (node, elements)
        child = self.children[where]
        below = (child, elements[:, None])
        return Edges(
            child=child,
            visits=jnp.where(child == NONE, 0, self.visits[below]),
            q_values=own(self.q_value, 2)[below],
            logits=self.logits[where],
            raw_value=own(self.raw_value, 2)[where],
            node_visits=self.visits[where],
        )

    def q_range(self) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Return the least and greatest Q of all visited edges, which are inf and -inf before the first visit.

        Each Q is that of the player who takes the edge.
        """
        visited, q_value = self.visits[1:] > 0, own(self.q_value, 2)[1:]
        low = jnp.where(visited, q_value, jnp.inf).min(0)
        return low, jnp.where(visited, q_value, -jnp.inf).max(0)

    def root_q_vectors(self) -> Float[Array, "B A P"]:
        """Return Q of the root's edges for each player; entries of edges that were not visited are meaningless."""
        return self.q_value[self.children[0], jnp.arange(self.visits.shape[1])[:, None]]


Choose = Callable[[Edges], Int[Array, " B"]]
"""A function that chooses an action for each element, given the edges of its node."""


def grow(
    logits: Float[Array, "B A"],
    value: Float[Array, " B *P"],
    latent: PyTree[Array],
    evaluate: Callable[[Array, Any, Array], Step],
    choices: Callable[[Array, Growth], tuple[Choose, Choose]],
    num_simulations: int,
    max_depth: int | None,
) -> Growth:
    """Return the trees after `num_simulations` simulations, each with one call of `evaluate`.

    Args:
      logits: logits of the root's prior, after masking and noise.
      value: value of the root.
      latent: latent of the root.
      evaluate: (number of the simulation, latent [B, ...], action [B]) -> the model's `Step`.
      choices: (number of the simulation, trees) -> how to choose at the root, and how below it; called once per
        simulation.
      num_simulations: at least 1.
      max_depth: largest number of edges below the root.  A leaf at this depth is evaluated each time it is reached.
    """
    trees = _root_only(logits, value, latent, num_simulations)

    def simulation(i: Array, trees: Growth) -> Growth:
        node, action, leaf = _descend(trees, *choices(i, trees), max_depth)
        leaf = jnp.where(leaf == NONE, i + 1, leaf)
        step = evaluate(i, jax.tree.map(lambda x: x[node, jnp.arange(len(node))], trees.latent), action)
        trees = _expand(trees, step, node, action, leaf, i + 1, max_depth)
        return _back_up(trees, leaf)

    return jax.lax.fori_loop(0, num_simulations, simulation, trees)


def _root_only(logits: Array, value: Array, latent: Any, num_simulations: int) -> Growth:
    """Return trees that contain only their roots, with memory for `num_simulations` further nodes."""
    batch_size, num_actions = logits.shape
    shape = (num_simulations + 1, batch_size)

    def with_root(x: Array) -> Array:
        return jnp.zeros((shape[0], *x.shape), x.dtype).at[0].set(x)

    zeros, numbers = jnp.zeros(shape, value.dtype), jnp.zeros((shape[0], *value.shape), value.dtype)
    return Growth(
        children=jnp.full((*shape, num_actions), NONE, jnp.int32),
        logits=with_root(logits),
        raw_value=with_root(value),
        value=with_root(value),
        visits=with_root(jnp.ones(batch_size, jnp.int32)),
        q_value=numbers,
        reward=numbers,
        discount=zeros,
        parent=jnp.full(shape, NONE, jnp.int32),
        action=jnp.full(shape, NONE, jnp.int32),
        # The other latents are copies of the root's and not zeros, because a simulator's state may contain a random
        # key, for which there is no zero.
        latent=jax.tree.map(lambda x: jnp.broadcast_to(x, (shape[0], *x.shape)), latent),
    )


def _child_at(edges: Edges, action: Array) -> Array:
    return jnp.where(action[:, None] == jnp.arange(edges.child.shape[1]), edges.child, NONE).max(-1)


def _descend(
    trees: Growth, choose_at_root: Choose, choose: Choose, max_depth: int | None
) -> tuple[Array, Array, Array]:
    """Follow the choices from the root to an edge without a child, or to the greatest depth.

    Returns:
      The last node of each element, the action there, and the child of that edge, or `NONE`.
    """

    def unfinished(carry: tuple) -> Array:
        _, _, child, depth = carry
        return ((child != NONE).any()) & (True if max_depth is None else depth < max_depth)

    def level(carry: tuple) -> tuple:
        node, action, child, depth = carry
        # An element that has reached its last node stays unchanged.
        inside = child != NONE
        node = jnp.where(inside, child, node)
        edges = trees.edges(node)
        action = jnp.where(inside, choose(edges), action)
        return node, action, jnp.where(inside, _child_at(edges, action), NONE), depth + 1

    edges = trees.edges(0)
    action = choose_at_root(edges)
    child = _child_at(edges, action)
    carry = (jnp.zeros_like(action), action, child, jnp.ones((), jnp.int32))
    return jax.lax.while_loop(unfinished, level, carry)[:3]


def _expand(
    trees: Growth, step: Step, node: Array, action: Array, leaf: Array, place: Array, max_depth: int | None
) -> Growth:
    """Write the model's prediction to the new node, or count a visit of the existing one at the greatest depth.

    Args:
      trees: the trees before.
      step: the model's prediction.
      node: the parent of the leaf.
      action: the action from the parent to the leaf.
      leaf: the new node or, at the greatest depth, an existing one.
      place: the index of the new node.
      max_depth: largest number of edges below the root.
    """
    fresh = leaf == place

    def write(x: Array, new: Array) -> Array:
        if max_depth is not None:
            new = jnp.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, x[place])
        return jax.lax.dynamic_update_index_in_dim(x, new, place, 0)

    visits = write(trees.visits, jnp.ones_like(node))
    if max_depth is not None:
        visits = visits + ((jnp.arange(len(visits))[:, None] == leaf) & ~fresh)
    edge = (jnp.arange(len(visits))[:, None] == node)[..., None] & (jnp.arange(step.logits.shape[1]) == action[:, None])
    return Growth(
        children=jnp.where(edge, leaf[:, None], trees.children),
        logits=write(trees.logits, step.logits),
        raw_value=write(trees.raw_value, step.value),
        value=write(trees.value, step.value),
        visits=visits,
        q_value=write(trees.q_value, _edge_value(step.reward, step.discount, step.value)),
        reward=write(trees.reward, step.reward),
        discount=write(trees.discount, step.discount),
        parent=write(trees.parent, node),
        action=write(trees.action, action),
        latent=jax.tree.map(write, trees.latent, step.latent),
    )


def _edge_value(reward: Array, discount: Array, value: Array) -> Array:
    """Return reward + discount value for the player whose move was rewarded, [B] or [B, P]; discounts are [B]."""
    if value.ndim == discount.ndim:
        return reward + discount * value
    return reward + discount[:, None] * to_mover(value)


def _back_up(trees: Growth, leaf: Array) -> Growth:
    """Include the return from each node above the leaf in the mean of that node."""
    elements, nodes = jnp.arange(len(leaf)), jnp.arange(len(trees.visits))[:, None]
    parents, reward, discount = trees.parent, trees.reward, trees.discount

    def level(carry: tuple) -> tuple:
        node, target, value, visits, q_value = carry
        edge = (node, elements)
        parent = jnp.where(node == 0, NONE, parents[edge])
        target = _edge_value(reward[edge], discount[edge], target)
        above = (jnp.maximum(parent, 0), elements)
        count = per_player(visits[above], target)
        mean = (value[above] * count + target) / (count + 1.0)
        here = nodes == parent
        where = per_player(here, value)
        value = jnp.where(where, mean, value)
        q_value = jnp.where(where, _edge_value(reward[above], discount[above], mean), q_value)
        return above[0], target, value, visits + here, q_value

    carry = (leaf, trees.value[leaf, elements], trees.value, trees.visits, trees.q_value)
    carry = jax.lax.while_loop(lambda carry: (carry[0] != 0).any(), level, carry)
    return trees._replace(value=carry[2], visits=carry[3], q_value=carry[4])


def as_mctx(trees: Growth, legal_actions: Bool[Array, "B A"], gumbel: Float[Array, "B A"] | None = None) -> Any:
    """Return the trees in the layout of mctx, with elements before nodes and with statistics by edge.

    With more than two players the numbers of a node are those of the player to move there, and the numbers of an edge
    those of the player who takes it.
    """
    # Type checkers do not recognize the fields of a chex dataclass.
    make_tree: Any = mctx.Tree
    make_extra: Any = mctx.GumbelMuZeroExtraData
    below = (trees.children, jnp.arange(trees.visits.shape[1])[:, None])
    exists = trees.children != NONE

    def elements_first(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1)

    def by_edge(x: Array) -> Array:
        return elements_first(jnp.where(exists, x[below], jnp.zeros((), x.dtype)))

    return make_tree(
        node_visits=elements_first(trees.visits),
        raw_values=elements_first(own(trees.raw_value, 2)),
        node_values=elements_first(own(trees.value, 2)),
        parents=elements_first(trees.parent),
        action_from_parent=elements_first(trees.action),
        children_index=elements_first(trees.children),
        children_prior_logits=elements_first(trees.logits),
        children_visits=by_edge(trees.visits),
        children_rewards=by_edge(own(trees.reward, 2)),
        children_discounts=by_edge(trees.discount),
        children_values=by_edge(trees.value if trees.value.ndim == 2 else own(to_mover(trees.value), 2)),
        embeddings=jax.tree.map(elements_first, trees.latent),
        root_invalid_actions=~legal_actions,
        extra_data=None if gumbel is None else make_extra(root_gumbel=gumbel),
    )
