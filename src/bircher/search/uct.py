"""UCT on a true simulator: an opponent that needs no learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.ops import distributions
from bircher.ops.turns import per_player, player_axis
from bircher.search.base import Step, require_simulations, searched_actions
from bircher.search.tree import Choose, Edges, Growth, grow
from bircher.types import Key


def rollout_search(
    state: PyTree[Array],
    legal_actions: Bool[Array, "B A"],
    simulate: Callable[[Any, Int[Array, " B"]], tuple[Any, Array, Array, Array]],
    rollout: Callable[[Any, Key], Float[Array, " B *P"]],
    key: Key,
    num_simulations: int,
    exploration: float = math.sqrt(2),
    num_players: int = 2,
) -> tuple[Int[Array, " B"], Int[Array, "B A"]]:
    """Run UCT on a true simulator, and return the most visited action and the visits of each action.

    Each simulation follows the greatest Q(s, a) + c sqrt(ln N(s) / N(s, a)), with unvisited actions first and in random
    order.  It expands one node and evaluates it by one random rollout ("Bandit based Monte-Carlo Planning" by Kocsis
    and Szepesvari 2006, https://doi.org/10.1007/11871842_29).  Outcomes are assumed to lie in [-1, 1].

    Args:
      state: pytree [B, ...] of the simulator.
      legal_actions: the legal actions in that state; those of later states come from `simulate`.
      simulate: (state, action [B]) -> (state, reward [B], discount [B], legal actions [B, A]); reward is that of the
        player who acted, and discount is 0 where the game ended and, of two players, -1 where the turn passed.
      rollout: (state, key) -> [B], the outcome of one random game for the player to move; ignored where the game had
        ended.  Of more than two players, rewards and outcomes are vectors [B, P] (`ops.turns`).
      key: consumed.
      num_simulations: at least 1.
      exploration: c; sqrt(2) is UCB1's.
      num_players: number of players.

    Raises:
      ValueError: `num_simulations` is less than 1.
    """
    require_simulations(num_simulations)

    def evaluate(i: Array, state: Any, action: Array) -> Step:
        state, reward, discount, legal = simulate(state, action)
        value = rollout(state, jax.random.fold_in(key, 2 * i))
        # A node stores its mask of legal actions as its prior.
        value = jnp.where(per_player(discount == 0, value), 0.0, value)
        return Step(reward, discount, _mask_as_logits(legal), value, state)

    def choices(i: Array, trees: Growth) -> tuple[Choose, Choose]:
        order = jax.random.uniform(jax.random.fold_in(key, 2 * i + 1), trees.logits.shape[1:])

        def choose(edges: Edges) -> Array:
            return _uct_action(exploration, order, edges)

        return choose, choose

    value = jnp.zeros((len(legal_actions), *player_axis(num_players)))
    trees = grow(_mask_as_logits(legal_actions), value, state, evaluate, choices, num_simulations, None)
    visits = trees.edges(0).visits
    return visits.argmax(-1).astype(jnp.int32), visits


def _mask_as_logits(legal_actions: Bool[Array, "B A"]) -> Float[Array, "B A"]:
    return distributions.mask_logits(jnp.zeros(legal_actions.shape), searched_actions(legal_actions))


def _uct_action(exploration: float, order: Array, edges: Edges) -> Int[Array, " B"]:
    """Return UCB1's choice among a node's legal actions.

    While some actions are not visited, it is the one of them with the greatest `order`.
    """
    legal = edges.logits > distributions.ILLEGAL / 2
    fresh = legal & (edges.visits == 0)
    some_fresh = fresh.any(-1, keepdims=True)
    total = jnp.maximum(edges.visits.sum(-1, keepdims=True), 1)
    bound = edges.q_values + exploration * jnp.sqrt(jnp.log(total) / jnp.maximum(edges.visits, 1))
    score = jnp.where(some_fresh, order, bound)
    return jnp.where(jnp.where(some_fresh, fresh, legal), score, -jnp.inf).argmax(-1).astype(jnp.int32)
