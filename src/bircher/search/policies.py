"""MuZero's and Gumbel MuZero's search over a learned model, and the Q-values that they use.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
(https://arxiv.org/abs/1911.08265); "Policy improvement by planning with Gumbel" by Danihelka et al. 2022
(https://openreview.net/forum?id=bERaNdoegnO).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bircher.ops import distributions
from bircher.search.base import (
    Root,
    SearchConfig,
    SearchResult,
    Simulate,
    Step,
    require_simulations,
    searched_actions,  # fmt: skip
)
from bircher.search.tree import Choose, Edges, Growth, as_mctx, grow
from bircher.types import Key


def tree_min_max(
    q_values: Float[Array, "B A"], visits: Int[Array, "B A"], low: Float[Array, " B"], high: Float[Array, " B"]
) -> Float[Array, "B A"]:
    """Scale Q to [0, 1] between the least and greatest Q of all visited edges of the tree (MuZero, appendix B).

    The result is 0 for edges not visited, and for all edges while no two Q differ.  mctx's own transforms use only a
    node and its edges.

    Args:
      q_values: Q of one node's edges, read where visited.
      visits: visits of those edges.
      low: least current Q of the tree, and not the least at any time before.
      high: greatest current Q of the tree.
    """
    spread = (high - low)[:, None]
    scaled = (q_values - low[:, None]) / jnp.maximum(spread, jnp.finfo(q_values.dtype).tiny)
    return jnp.where((visits > 0) & (spread > 0), scaled, 0.0)


def completed_q_values(
    q_values: Float[Array, "*B A"], visits: Int[Array, "*B A"], prior: Float[Array, "*B A"], value: Float[Array, "*B"]
) -> Float[Array, "*B A"]:
    """Return Q of each visited action, and the mixed value for the others.

    v_mix = (v + N sum_b P(b) Q(b) / sum_b P(b)) / (1 + N), where the sums are over the visited actions b and N is the
    number of their visits (Gumbel MuZero, appendix D).

    Args:
      q_values: Q(b), read where visited.
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


Range = tuple[Float[Array, " B"], Float[Array, " B"]] | None
"""Least and greatest Q of each tree, or None where sigma rescales by a node's own actions."""


def puct_search(
    config: SearchConfig,
    root: Root,
    simulate: Simulate,
    key: Key,
    num_simulations: int,
    explore: bool,
    keep_tree: bool = False,
) -> SearchResult:
    """Run MuZero's search.  Each simulation follows the greatest Q + U to an edge not yet visited, and expands it.

    U(s, a) = P(s, a) sqrt(N(s)) / (1 + N(s, a)) (c_1 + log((N(s) + c_2 + 1) / c_2)), and Q is normalized by
    `tree_min_max` (MuZero, appendix B).  Of several actions with equal scores the lowest is taken.  N(s) includes the
    evaluation of s itself, also at the root.

    Args:
      config: constants.  Its `num_simulations` is a default for callers; the argument is used here.
      root: prior, value and latent of B states.
      simulate: the model, called `num_simulations` times.
      key: consumed; read only where `explore` is True.
      num_simulations: at least 1.
      explore: whether Dirichlet noise over the legal actions is mixed into the root's prior.
      keep_tree: whether the result contains the tree.

    Raises:
      ValueError: `num_simulations` is less than 1.
    """
    require_simulations(num_simulations)
    legal = searched_actions(root.legal_actions)
    logits = distributions.mask_logits(root.logits, legal)
    if explore:
        logits = _with_noise(config, logits, legal, key)

    def choices(_: Array, trees: Growth) -> tuple[Choose, Choose]:
        low, high = trees.q_range()

        def score(edges: Edges) -> Array:
            return tree_min_max(edges.q_values, edges.visits, low, high) + _exploration(config, edges)

        return (
            lambda edges: _best(jnp.where(legal, score(edges), -jnp.inf)),
            lambda edges: _best(score(edges)),
        )

    def step(_: Array, latent: PyTree, action: Array) -> Step:
        return simulate(latent, action)

    trees = grow(logits, root.value, root.latent, step, choices, num_simulations, config.max_depth)
    edges = trees.edges(0)
    return SearchResult(
        action=_best(edges.visits),
        weights=edges.visits / edges.visits.sum(-1, keepdims=True),
        value=trees.value[0],
        visits=edges.visits,
        q_values=jnp.where(edges.visits > 0, edges.q_values, 0.0),
        tree=as_mctx(trees, legal) if keep_tree else None,
    )


def gumbel_search(
    config: SearchConfig,
    root: Root,
    simulate: Simulate,
    key: Key,
    num_simulations: int,
    explore: bool,
    keep_tree: bool = False,
    noise_scale: Float[Array, "*#B"] | float = 1.0,
) -> SearchResult:
    """Run Gumbel MuZero's search, which is sequential halving over actions sampled without replacement.

    The improved policy is softmax(logits + sigma(completed Q)) with sigma(q) = (c_visit + max_b N(b)) c_scale q,
    where q is first rescaled to [0, 1] among the node's actions or in the whole tree, or divided by the largest return
    (`config.q_range`).  The value is the sum of weights times completed Q without rescaling.  The tree's mean at the
    root does not estimate it, because sequential halving averages over bad actions too.

    Arguments and errors are those of `puct_search`, except for:

    Args:
      explore: whether there is Gumbel noise at the root.
      noise_scale: factor of the noise.  At 1 an action is sampled as from the prior, and toward 0 it is the one with
        the highest score.
    """
    require_simulations(num_simulations)
    legal = searched_actions(root.legal_actions)
    logits = distributions.mask_logits(root.logits, legal)
    # The key is split as in mctx, so that mctx's policy gives the same tree for the same key.
    noise = jax.random.gumbel(jax.random.split(key)[1], logits.shape) if explore else jnp.zeros(logits.shape)
    noise = jnp.asarray(noise_scale)[..., None] * noise
    required = _required_visits(config, legal, num_simulations)

    def winner(edges: Edges, visits: Array, spread: Range) -> Array:
        score = noise + logits + _sigma(config, edges, _completed(edges), spread)
        return _best(jnp.where(legal & (edges.visits == visits), score, -jnp.inf))

    def choices(_: Array, trees: Growth) -> tuple[Choose, Choose]:
        spread = _range(config, root, trees)

        def at_root(edges: Edges) -> Array:
            completed = edges.visits[0].sum()
            return winner(edges, jax.lax.dynamic_index_in_dim(required, completed, axis=1), spread)

        return at_root, partial(_below, config, spread)

    def step(_: Array, latent: PyTree, action: Array) -> Step:
        return simulate(latent, action)

    trees = grow(logits, root.value, root.latent, step, choices, num_simulations, config.max_depth)
    edges = trees.edges(0)
    completed, spread = _completed(edges), _range(config, root, trees)
    weights = jax.nn.softmax(logits + _sigma(config, edges, completed, spread))
    return SearchResult(
        action=winner(edges, edges.visits.max(-1, keepdims=True), spread),
        weights=weights,
        value=(weights * completed).sum(-1) if root.value.ndim == 1 else _value_vector(trees, edges, weights),
        visits=edges.visits,
        q_values=jnp.where(edges.visits > 0, edges.q_values, 0.0),
        tree=as_mctx(trees, legal, noise) if keep_tree else None,
    )


def _below(config: SearchConfig, spread: Range, edges: Edges) -> Int[Array, " B"]:
    """Return Gumbel MuZero's choice below the root, which visits in proportion to the improved policy (section 5)."""
    policy = jax.nn.softmax(edges.logits + _sigma(config, edges, _completed(edges), spread))
    return _best(policy - edges.visits / (1 + edges.visits.sum(-1, keepdims=True)))


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """Return the number of visits that the next action of each simulation of sequential halving must have.

    The simulations are divided between log2(m) phases for m considered actions.  Each phase visits the remaining
    actions equally often and then drops the worse half.
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    phases = math.ceil(math.log2(num_considered))
    required, remaining = [], num_considered
    visits = [0] * num_considered
    while len(required) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * remaining))):
            required += visits[:remaining]
            visits[:remaining] = [count + 1 for count in visits[:remaining]]
        remaining = max(2, remaining // 2)
    return required[:num_simulations]


def _required_visits(config: SearchConfig, legal: Array, num_simulations: int) -> Int[Array, "B N"]:
    """Return `considered_visits` for the number of legal actions of each element."""
    most = min(config.max_considered_actions, legal.shape[-1])
    table = jnp.array([considered_visits(count, num_simulations) for count in range(most + 1)], jnp.int32)
    return table[jnp.minimum(most, legal.sum(-1))]


def _best(score: Array) -> Int[Array, " B"]:
    return score.argmax(-1).astype(jnp.int32)


def _exploration(config: SearchConfig, edges: Edges) -> Float[Array, "B A"]:
    """Return PUCT's exploration term U for each edge."""
    node_visits = edges.node_visits[:, None]
    factor = config.puct_init + jnp.log((node_visits + config.puct_base + 1) / config.puct_base)
    return factor * jax.nn.softmax(edges.logits) * jnp.sqrt(node_visits) / (1 + edges.visits)


def _completed(edges: Edges) -> Float[Array, "B A"]:
    return completed_q_values(edges.q_values, edges.visits, jax.nn.softmax(edges.logits), edges.raw_value)


def _value_vector(trees: Growth, edges: Edges, weights: Float[Array, "B A"]) -> Float[Array, "B P"]:
    """Return the sum of weights times completed Q at the root, for each player."""
    prior = jax.nn.softmax(edges.logits)

    def of_player(q_values: Float[Array, "B A"], raw_value: Float[Array, " B"]) -> Float[Array, " B"]:
        return (weights * completed_q_values(q_values, edges.visits, prior, raw_value)).sum(-1)

    return jax.vmap(of_player, (-1, -1), -1)(trees.root_q_vectors(), trees.raw_value[0])


def _range(config: SearchConfig, root: Root, trees: Growth) -> Range:
    """Return the range by which sigma rescales in all nodes, or None where each node has its own."""
    if config.q_range == "returns":
        if root.largest_return is None:
            raise ValueError("search.q_range=returns needs the root's largest_return, which is None")
        return jnp.zeros(len(root.logits)), jnp.broadcast_to(root.largest_return, len(root.logits))
    return trees.q_range() if config.q_range == "tree" else None


def _sigma(config: SearchConfig, edges: Edges, completed: Array, spread: Range) -> Float[Array, "B A"]:
    """Return (c_visit + max_b N(b)) c_scale q for completed Q-values q, rescaled by the range that is set."""
    low, high = completed.min(-1, keepdims=True), completed.max(-1, keepdims=True)
    scale = (config.visit_offset + edges.visits.max(-1, keepdims=True)) * config.value_scale
    if spread is not None and config.q_range == "returns":
        low, high = spread[0][:, None], spread[1][:, None]
    elif spread is not None:
        low, high = jnp.minimum(low, spread[0][:, None]), jnp.maximum(high, spread[1][:, None])
    return scale * (completed - low) / jnp.maximum(high - low, 1e-8)


def _with_noise(config: SearchConfig, logits: Array, legal: Array, key: Key) -> Float[Array, "B A"]:
    """Return the logarithm of the prior mixed with Dirichlet noise over the legal actions."""
    # The noise comes from logarithms of gamma variates, because at a small alpha the variates may all be 0 in float32.
    noise = jax.random.loggamma(key, config.dirichlet_alpha, logits.shape)
    noise = jax.nn.softmax(distributions.mask_logits(noise, legal))
    mixed = (1 - config.dirichlet_share) * jax.nn.softmax(logits) + config.dirichlet_share * noise
    return distributions.mask_logits(jnp.log(jnp.maximum(mixed, jnp.finfo(mixed.dtype).tiny)), legal)
