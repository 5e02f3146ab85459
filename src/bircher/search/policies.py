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


Range = tuple[Float[Array, " B"], Float[Array, " B"]] | None


def puct_search(
    config: SearchConfig,
    root: Root,
    simulate: Simulate,
    key: Key,
    num_simulations: int,
    explore: bool,
    keep_tree: bool = False,
) -> SearchResult:
    """MuZero's search: each simulation follows the greatest Q + U to an edge not yet visited, and expands it.

    U(s, a) = P(s, a) sqrt(N(s)) / (1 + N(s, a)) (c_1 + log((N(s) + c_2 + 1) / c_2)) and Q normalized by `tree_min_max`
    (MuZero, appendix B); ties go to the lower action.  N(s) counts the evaluation of s itself, the root's too.

    Args:
      config: constants; its `num_simulations` is a default that callers read, the argument counts.
      root: prior, value and latent of B states.
      simulate: the model, called `num_simulations` times.
      key: consumed; read only where `explore`.
      num_simulations: at least 1.
      explore: whether the root's prior gets Dirichlet noise, drawn over its legal actions.
      keep_tree: whether the result holds the tree.

    Raises:
      ValueError: no simulation was asked for.
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
    """Gumbel MuZero's search: sequential halving over actions drawn without replacement, and an improved policy.

    The policy is softmax(logits + sigma(completed Q)), sigma(q) = (c_visit + max_b N(b)) c_scale q with q rescaled to
    [0, 1] among the actions (`config.q_range`: or among all of the tree); its value is the sum of weights times
    completed Q, unscaled.  The tree's own mean at the root is no estimate of it: sequential halving averages over bad
    actions too.

    Arguments and errors are those of `puct_search`; `explore` decides whether there is Gumbel noise, and `noise_scale`
    multiplies it: at 1 an action is drawn as from the prior, toward 0 it is the one that seems best.
    """
    require_simulations(num_simulations)
    legal = searched_actions(root.legal_actions)
    logits = distributions.mask_logits(root.logits, legal)
    # The key is split as in mctx, whose policy finds the same tree by the same key.
    noise = jax.random.gumbel(jax.random.split(key)[1], logits.shape) if explore else jnp.zeros(logits.shape)
    noise = jnp.asarray(noise_scale)[..., None] * noise
    wanted = _wanted_visits(config, legal, num_simulations)

    def winner(edges: Edges, visits: Array, spread: Range) -> Array:
        score = noise + logits + _sigma(config, edges, _completed(edges), spread)
        return _best(jnp.where(legal & (edges.visits == visits), score, -jnp.inf))

    def choices(_: Array, trees: Growth) -> tuple[Choose, Choose]:
        spread = _range(config, trees)

        def at_root(edges: Edges) -> Array:
            done = edges.visits[0].sum()
            return winner(edges, jax.lax.dynamic_index_in_dim(wanted, done, axis=1), spread)

        return at_root, partial(_below, config, spread)

    def step(_: Array, latent: PyTree, action: Array) -> Step:
        return simulate(latent, action)

    trees = grow(logits, root.value, root.latent, step, choices, num_simulations, config.max_depth)
    edges = trees.edges(0)
    completed, spread = _completed(edges), _range(config, trees)
    weights = jax.nn.softmax(logits + _sigma(config, edges, completed, spread))
    return SearchResult(
        action=winner(edges, edges.visits.max(-1, keepdims=True), spread),
        weights=weights,
        value=(weights * completed).sum(-1),
        visits=edges.visits,
        q_values=jnp.where(edges.visits > 0, edges.q_values, 0.0),
        tree=as_mctx(trees, legal, noise) if keep_tree else None,
    )


def _below(config: SearchConfig, spread: Range, edges: Edges) -> Int[Array, " B"]:
    """Gumbel's choice below the root: visits in proportion to the improved policy (section 5)."""
    policy = jax.nn.softmax(edges.logits + _sigma(config, edges, _completed(edges), spread))
    return _best(policy - edges.visits / (1 + edges.visits.sum(-1, keepdims=True)))


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """How often an action must have been visited to be taken next, for each simulation of sequential halving.

    log2(m) phases share the simulations; each visits the actions that are left equally often and drops the worse half.
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    phases = math.ceil(math.log2(num_considered))
    wanted, left = [], num_considered
    visits = [0] * num_considered
    while len(wanted) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * left))):
            wanted += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(2, left // 2)
    return wanted[:num_simulations]


def _wanted_visits(config: SearchConfig, legal: Array, num_simulations: int) -> Int[Array, "B N"]:
    """`considered_visits` of each element's number of legal actions."""
    most = min(config.max_considered_actions, legal.shape[-1])
    table = jnp.array([considered_visits(count, num_simulations) for count in range(most + 1)], jnp.int32)
    return table[jnp.minimum(most, legal.sum(-1))]


def _best(score: Array) -> Int[Array, " B"]:
    return score.argmax(-1).astype(jnp.int32)


def _exploration(config: SearchConfig, edges: Edges) -> Float[Array, "B A"]:
    """PUCT's U."""
    node_visits = edges.node_visits[:, None]
    factor = config.puct_init + jnp.log((node_visits + config.puct_base + 1) / config.puct_base)
    return factor * jax.nn.softmax(edges.logits) * jnp.sqrt(node_visits) / (1 + edges.visits)


def _completed(edges: Edges) -> Float[Array, "B A"]:
    return completed_q_values(edges.q_values, edges.visits, jax.nn.softmax(edges.logits), edges.raw_value)


def _range(config: SearchConfig, trees: Growth) -> Range:
    """Least and greatest Q of the trees, where sigma rescales by those."""
    return trees.q_range() if config.q_range == "tree" else None


def _sigma(config: SearchConfig, edges: Edges, completed: Array, spread: Range) -> Float[Array, "B A"]:
    """(c_visit + max_b N(b)) c_scale times completed Q, rescaled to [0, 1] among the node's actions, or the tree's."""
    low, high = completed.min(-1, keepdims=True), completed.max(-1, keepdims=True)
    scale = (config.visit_offset + edges.visits.max(-1, keepdims=True)) * config.value_scale
    if spread is not None:
        low, high = jnp.minimum(low, spread[0][:, None]), jnp.maximum(high, spread[1][:, None])
    return scale * (completed - low) / jnp.maximum(high - low, 1e-8)


def _with_noise(config: SearchConfig, logits: Array, legal: Array, key: Key) -> Float[Array, "B A"]:
    """Log of the prior mixed with Dirichlet noise over the legal actions."""
    # From logarithms of gamma variates: at a small alpha the variates themselves may all be 0 in float32.
    noise = jax.random.loggamma(key, config.dirichlet_alpha, logits.shape)
    noise = jax.nn.softmax(distributions.mask_logits(noise, legal))
    mixed = (1 - config.dirichlet_share) * jax.nn.softmax(logits) + config.dirichlet_share * noise
    return distributions.mask_logits(jnp.log(jnp.maximum(mixed, jnp.finfo(mixed.dtype).tiny)), legal)
