"""Plain Monte-Carlo tree search on the true rules: no network, every leaf is judged by one game played at random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from bircher.envs.pure import PureEnv
from bircher.games.player import Player, no_memory
from bircher.search import rollout_search
from bircher.types import Key, TimeStep

MAX_MOVES = 1000
"""A game at random that is not over by then counts as a draw."""


def legal_actions(rules: PureEnv, states: PyTree, num_games: int) -> Bool[Array, "M A"]:
    """The legal actions in each of M states."""
    legal = rules.legal_actions(states)
    return jnp.ones((num_games, rules.spec.num_actions), bool) if legal is None else legal


def random_outcome(rules: PureEnv, states: PyTree, key: Key, num_games: int) -> Float[Array, " M"]:
    """What the player to move in each of M states gets from a game played at random to its end."""

    def going(now):
        count, _, _, _, done, _ = now
        return (count < MAX_MOVES) & ~done.all()

    def step(now):
        count, states, outcome, side, done, key = now
        key, draw_key, chance_key = jax.random.split(key, 3)
        logits = jnp.where(legal_actions(rules, states, num_games), 0.0, -jnp.inf)
        action = jax.random.categorical(draw_key, logits).astype(jnp.int32)
        chances = jax.random.split(chance_key, num_games)
        following, _, reward, terminal, truncated = rules.moved(chances, states, action)
        turned = rules.players(following) != rules.players(states)
        outcome = outcome + jnp.where(done, 0.0, side * reward)
        return count + 1, following, outcome, jnp.where(turned, -side, side), done | terminal | truncated, key

    ones = jnp.ones(num_games)
    now = (jnp.int32(0), states, 0.0 * ones, ones, jnp.zeros(num_games, bool), key)
    return jax.lax.while_loop(going, step, now)[2]


def player(rules: PureEnv, num_rollouts: int) -> Player:
    """The most visited move after `num_rollouts` simulations of UCT, each with one game at random from its leaf."""

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params
        num_games = len(timestep.last)
        # The games here have no chance: whatever key goes with a move, it leads to the same position.
        chances = jax.random.split(jax.random.key(0), num_games)

        def simulate(states, action):
            following, _, reward, terminal, truncated = rules.moved(chances, states, action)
            turned = rules.players(following) != rules.players(states)
            discount = jnp.where(terminal | truncated, 0.0, jnp.where(turned, -1.0, 1.0))
            return following, reward, discount, legal_actions(rules, following, num_games)

        def rollout(states, key):
            return random_outcome(rules, states, key, num_games)

        action, _ = rollout_search(states, timestep.legal_actions, simulate, rollout, key, num_rollouts)
        return action, carry

    return Player(f"mcts:{num_rollouts}", (), no_memory, decide)
