"""MuZero's and Gumbel MuZero's search over a learned model.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
(https://arxiv.org/abs/1911.08265); "Policy improvement by planning with Gumbel" by Danihelka et al. 2022
(https://openreview.net/forum?id=bERaNdoegnO).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mctx
from jaxtyping import Array, Float, Int

from bircher.ops import distributions
from bircher.search.base import Root, SearchConfig, SearchResult, Simulate, require_simulations, searched_actions
from bircher.search.q_values import completed_q_values, root_q_values, tree_min_max
from bircher.types import Key


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

    U(s, a) = P(s, a) sqrt(N(s)) / (1 + N(s, a)) (c_1 + log((N(s) + c_2 + 1) / c_2)) and Q normalised by `tree_min_max`
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

    def select(rng_key, tree, node, depth):
        del rng_key
        return _puct_action(config, tree, node, depth)

    tree = mctx.search(
        params=(),
        rng_key=key,
        root=mctx.RootFnOutput(prior_logits=logits, value=root.value, embedding=root.latent),
        recurrent_fn=_recurrent(simulate),
        root_action_selection_fn=functools.partial(select, depth=0),
        interior_action_selection_fn=select,
        num_simulations=num_simulations,
        max_depth=config.max_depth,
        invalid_actions=~legal,
    )
    visits = tree.children_visits[:, tree.ROOT_INDEX]
    return SearchResult(
        action=visits.argmax(-1).astype(jnp.int32),
        weights=visits / visits.sum(-1, keepdims=True),
        value=tree.node_values[:, tree.ROOT_INDEX],
        visits=visits,
        q_values=root_q_values(tree),
        tree=tree if keep_tree else None,
    )


def gumbel_search(
    config: SearchConfig,
    root: Root,
    simulate: Simulate,
    key: Key,
    num_simulations: int,
    explore: bool,
    keep_tree: bool = False,
) -> SearchResult:
    """Gumbel MuZero's search: sequential halving over actions drawn without replacement, and an improved policy.

    The policy is softmax(logits + sigma(completed Q)), sigma(q) = (c_visit + max_b N(b)) c_scale q with q rescaled to
    [0, 1] (equation 8); its value is the sum of weights times completed Q, unscaled.  The tree's own mean at the root
    is no estimate of it: sequential halving averages over bad actions too.

    Args:
      config: constants; its `num_simulations` is a default that callers read, the argument counts.
      root: prior, value and latent of B states.
      simulate: the model, called `num_simulations` times.
      key: consumed; read only where `explore`.
      num_simulations: at least 1.
      explore: whether Gumbel noise decides which actions are considered; without, the prior and Q alone do.
      keep_tree: whether the result holds the tree.

    Raises:
      ValueError: no simulation was asked for.
    """
    require_simulations(num_simulations)
    legal = searched_actions(root.legal_actions)
    output = mctx.gumbel_muzero_policy(
        params=(),
        rng_key=key,
        root=mctx.RootFnOutput(prior_logits=root.logits, value=root.value, embedding=root.latent),
        recurrent_fn=_recurrent(simulate),
        num_simulations=num_simulations,
        invalid_actions=~legal,
        max_depth=config.max_depth,
        qtransform=functools.partial(
            mctx.qtransform_completed_by_mix_value, value_scale=config.value_scale, maxvisit_init=config.visit_offset
        ),
        max_num_considered_actions=config.max_considered_actions,
        gumbel_scale=1.0 if explore else 0.0,
    )
    tree = output.search_tree
    visits, q_values = tree.children_visits[:, tree.ROOT_INDEX], root_q_values(tree)
    prior = jax.nn.softmax(distributions.mask_logits(root.logits, legal))
    completed = completed_q_values(q_values, visits, prior, root.value)
    return SearchResult(
        action=output.action,
        weights=output.action_weights,
        value=(output.action_weights * completed).sum(-1),
        visits=visits,
        q_values=q_values,
        tree=tree if keep_tree else None,
    )


def _with_noise(config: SearchConfig, logits: Array, legal: Array, key: Key) -> Float[Array, "B A"]:
    """Log of the prior mixed with Dirichlet noise over the legal actions."""
    # From logarithms of gamma variates: at a small alpha the variates themselves may all be 0 in float32.
    noise = jax.random.loggamma(key, config.dirichlet_alpha, logits.shape)
    noise = jax.nn.softmax(distributions.mask_logits(noise, legal))
    mixed = (1 - config.dirichlet_share) * jax.nn.softmax(logits) + config.dirichlet_share * noise
    return distributions.mask_logits(jnp.log(jnp.maximum(mixed, jnp.finfo(mixed.dtype).tiny)), legal)


def _recurrent(simulate: Simulate) -> Callable:
    """`simulate` as mctx calls it."""

    def recurrent(params, rng_key, action, latent):
        del params, rng_key
        step = simulate(latent, action)
        output = mctx.RecurrentFnOutput(
            reward=step.reward, discount=step.discount, prior_logits=step.logits, value=step.value
        )
        return output, step.latent

    return recurrent


def _puct_action(config: SearchConfig, tree: Any, node: Array, depth: Array | int) -> Int[Array, ""]:
    """The greatest Q + U of a node's actions; an illegal one never, at the root."""
    node_visits, visits = tree.node_visits[node], tree.children_visits[node]
    factor = config.puct_init + jnp.log((node_visits + config.puct_base + 1) / config.puct_base)
    prior = jax.nn.softmax(tree.children_prior_logits[node])
    score = tree_min_max(tree, node) + factor * prior * jnp.sqrt(node_visits) / (1 + visits)
    score = jnp.where(tree.root_invalid_actions & (jnp.asarray(depth) == 0), -jnp.inf, score)
    return score.argmax().astype(jnp.int32)
