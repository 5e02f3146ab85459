"""Plain UCT on a true simulator: an opponent that needs no learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mctx
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.ops import distributions
from bircher.search.base import require_simulations, searched_actions
from bircher.types import Key


def rollout_search(
    state: PyTree[Array],
    legal_actions: Bool[Array, "B A"],
    simulate: Callable[[Any, Int[Array, " B"]], tuple[Any, Array, Array, Array]],
    rollout: Callable[[Any, Key], Float[Array, " B"]],
    key: Key,
    num_simulations: int,
    exploration: float = math.sqrt(2),
) -> tuple[Int[Array, " B"], Int[Array, "B A"]]:
    """UCT on a true simulator: the most visited action, and the visits of each.

    Each simulation follows the greatest Q(s, a) + c sqrt(ln N(s) / N(s, a)), unvisited actions first and in random
    order, expands one node and evaluates it by one random rollout ("Bandit based Monte-Carlo Planning" by Kocsis and
    Szepesvari 2006, https://doi.org/10.1007/11871842_29).  Outcomes are taken to lie in [-1, 1].

    Args:
      state: pytree [B, ...] of the simulator.
      legal_actions: in that state; later ones come from `simulate`.
      simulate: (state, action [B]) -> (state, reward [B], discount [B], legal actions [B, A]); reward is that of the
        player who acted, discount -1 where the turn changed hands and 0 where the game ended.
      rollout: (state, key) -> [B], the outcome of one random game for the player to move; ignored where it had ended.
      key: consumed.
      num_simulations: at least 1.
      exploration: c; sqrt(2) is UCB1's.

    Raises:
      ValueError: no simulation was asked for.
    """
    require_simulations(num_simulations)
    legal = searched_actions(legal_actions)

    def recurrent(params, rng_key, action, state):
        del params
        state, reward, discount, legal = simulate(state, action)
        value = jnp.where(discount == 0, 0.0, rollout(state, rng_key))
        output = mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=_mask_as_logits(searched_actions(legal)), value=value
        )
        return output, state

    def select(rng_key, tree, node, depth=0):
        del depth
        return _uct_action(exploration, rng_key, tree, node)

    tree = mctx.search(
        params=(),
        rng_key=key,
        root=mctx.RootFnOutput(
            prior_logits=_mask_as_logits(legal), value=jnp.zeros(len(legal)), embedding=state
        ),
        recurrent_fn=recurrent,
        root_action_selection_fn=select,
        interior_action_selection_fn=select,
        num_simulations=num_simulations,
    )
    visits = tree.children_visits[:, tree.ROOT_INDEX]
    return visits.argmax(-1).astype(jnp.int32), visits


def _mask_as_logits(legal: Bool[Array, "B A"]) -> Float[Array, "B A"]:
    return distributions.mask_logits(jnp.zeros(legal.shape), legal)


def _uct_action(exploration: float, key: Key, tree: Any, node: Array) -> Int[Array, ""]:
    """UCB1's choice among a node's legal actions; while some are not visited, any one of those."""
    visits = tree.children_visits[node]
    # The mask is kept as the node's prior.
    legal = tree.children_prior_logits[node] > distributions.ILLEGAL / 2
    fresh = legal & (visits == 0)
    bonus = exploration * jnp.sqrt(jnp.log(jnp.maximum(visits.sum(), 1)) / jnp.maximum(visits, 1))
    score = jnp.where(fresh.any(), jax.random.uniform(key, visits.shape), tree.qvalues(node) + bonus)
    return jnp.where(jnp.where(fresh.any(), fresh, legal), score, -jnp.inf).argmax().astype(jnp.int32)
