"""Small games solved by enumeration: every reachable position, and right play by max^n.

"An Algorithmic Solution of N-Person Games" by Luckhardt and Irani 1986, AAAI-86: the value of a position is that of the
move whose value is best for the player to move.  With two players this is minimax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.envs.jax_env import PureEnv
from bircher.games.players import Player, no_memory
from bircher.ops.turns import PAIR, player_axis, to_mover
from bircher.types import Key, TimeStep

MAX_POSITIONS = 200_000
"""The largest number of positions that are enumerated."""
TOLERANCE = 1e-6
"""The largest difference of two values that count as equal."""


class Solution(NamedTuple):
    """Every reachable position of a game that is not over, and its right play.

    Values and Q are vectors that begin with the player to move in the position; of two players they have the components
    (x, -x), and of one player (x,).
    """

    states: PyTree[np.ndarray]
    """[S, ...], the inner states of the game."""
    observation: PyTree[np.ndarray]
    """[S, ...]"""
    legal_actions: Bool[np.ndarray, "S A"]
    q_values: Float[np.ndarray, "S A P"]
    """The payoffs of right play after each action; those of illegal actions are meaningless."""
    best: Bool[np.ndarray, "S A"]
    """The actions that are best for the player to move."""

    @property
    def value(self) -> Float[np.ndarray, "S P"]:
        """Return the payoffs of right play in each position."""
        return self.q_values[np.arange(len(self.best)), self.best.argmax(-1)]

    @property
    def ambiguous(self) -> Bool[np.ndarray, " S"]:
        """Return where two best actions of the player to move differ in the payoffs of others."""
        distance = np.abs(self.q_values - self.value[:, None]).max(-1)
        return (self.best & (distance > TOLERANCE)).any(-1)

    def regret(self, action: Int[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Return what the player to move loses by an action in each position, against right play after it.

        An illegal action loses infinitely much.
        """
        place = np.arange(len(action))
        lost = self.value[:, 0] - self.q_values[place, action, 0]
        return np.where(self.legal_actions[place, action], lost, np.inf)


class _Layer(NamedTuple):
    """The positions after the same number of moves, and what each action leads to."""

    states: PyTree[np.ndarray]
    observation: PyTree[np.ndarray]
    legal_actions: Bool[np.ndarray, "S A"]
    reward: Float[np.ndarray, "S A P"]
    following: Int[np.ndarray, "S A"]
    """The index of the position in the next layer; -1 where the game is over."""
    turned: Bool[np.ndarray, "S A"]
    """Whether the next player moves there."""


def solve(rules: PureEnv, max_positions: int = MAX_POSITIONS) -> Solution:
    """Enumerate the positions of a game without chance, and compute right play backwards from its ends.

    Raises:
      ValueError: the game has more positions than `max_positions`, or begins in different ones.
    """
    state, timestep = rules.reset()
    start = jax.tree.map(np.asarray, (state.inner, timestep.observation, timestep.legal_actions))
    if rules.num_envs > 1 and any((x != x[:1]).any() for x in jax.tree.leaves(start[0])):
        raise ValueError(f"{rules.spec.id} begins in different positions, so that it cannot be enumerated from one")
    moves = jax.jit(lambda states, legal: _all_moves(rules, states, legal))
    layers: list[_Layer] = []
    states, observation, legal = jax.tree.map(lambda x: x[:1], start)
    count = 0
    while len(legal):
        count += len(legal)
        if count > max_positions:
            raise ValueError(f"{rules.spec.id} has more than {max_positions:,} positions: too many to enumerate")
        layer, (states, observation, legal) = _expand(moves, states, observation, legal)
        layers.append(layer)
    return _solution(layers, rules.spec.num_players)


def _all_moves(rules: PureEnv, states: PyTree[Array], legal: Bool[Array, "S A"]) -> tuple[Any, ...]:
    """Return what every action leads to: states, observations, legal actions, rewards, ends, and turns, [S, A, ...]."""
    size, actions = legal.shape

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, actions, axis=0)

    before = jax.tree.map(repeat, states)
    keys = jax.random.split(jax.random.key(0), size * actions)
    after, observation, reward, terminal, truncated = rules.move(keys, before, jnp.tile(jnp.arange(actions), size))
    allowed = rules.legal_actions(after)
    allowed = jnp.ones((size * actions, actions), bool) if allowed is None else allowed
    turned = jnp.broadcast_to(rules.players(after) != rules.players(before), (size * actions,))
    if rules.spec.num_players > PAIR:
        turned = jnp.ones_like(turned)
    result = after, observation, allowed, reward, terminal | truncated, turned
    return jax.tree.map(lambda x: x.reshape(size, actions, *x.shape[1:]), result)


def _expand(moves: Any, states: PyTree, observation: PyTree, legal: np.ndarray) -> tuple[_Layer, tuple[Any, ...]]:
    """Return a layer, and the different positions that follow it."""
    # Sizes are rounded up to powers of two, so that few programs are compiled.
    size = 1 << (len(legal) - 1).bit_length()
    padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], size - len(x), 0)]), (states, legal))
    found = jax.tree.map(lambda x: np.asarray(x)[: len(legal)], moves(*padded))
    after, seen, allowed, reward, over, turned = found
    opens = legal & ~over
    flat = jax.tree.map(lambda x: x[opens], (after, seen, allowed))
    following = np.full(legal.shape, -1)
    if not opens.any():
        return _Layer(states, observation, legal, reward, following, turned), flat
    numbers = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in jax.tree.leaves(flat[0])]
    _, first, index = np.unique(np.concatenate(numbers, 1), axis=0, return_index=True, return_inverse=True)
    following[opens] = index.ravel()
    return _Layer(states, observation, legal, reward, following, turned), jax.tree.map(lambda x: x[first], flat)


def _solution(layers: list[_Layer], num_players: int) -> Solution:
    """Return right play, from the last layer to the first."""
    solved, later = [], np.zeros((1, num_players))
    for layer in reversed(layers):
        reward = layer.reward.astype(float)
        if not player_axis(num_players):
            reward = np.stack([reward, -reward][:num_players], -1)
        beyond = later[layer.following]
        beyond = np.where(layer.turned[..., None], np.asarray(to_mover(jnp.asarray(beyond))), beyond)
        q_values = reward + np.where(layer.following[..., None] < 0, 0.0, beyond)
        own = np.where(layer.legal_actions, q_values[..., 0], -np.inf)
        best = own >= own.max(-1, keepdims=True) - TOLERANCE
        solved.append(Solution(layer.states, layer.observation, layer.legal_actions, q_values, best))
        later = solved[-1].value
    return jax.tree.map(lambda *xs: np.concatenate(xs), *reversed(solved))


def maxn_player(rules: PureEnv) -> Player:
    """Return a player that draws one of the best moves of right play.

    Raises:
      ValueError: the game has too many positions.
    """
    solution = solve(rules)
    table = {_key(solution.observation, index): solution.best[index] for index in range(len(solution.best))}

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params, states
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        numbers = generator.integers(1 << 16, size=len(timestep.last))
        observation, last = jax.tree.map(np.asarray, (timestep.observation, timestep.last))
        action = np.zeros(len(numbers), np.int32)
        for game in np.flatnonzero(~last):
            best = np.flatnonzero(table[_key(observation, game)])
            action[game] = best[numbers[game] % len(best)]
        return action, carry

    return Player("maxn", (), no_memory, decide, compiled=False)


def _key(observation: PyTree[np.ndarray], index: Any) -> bytes:
    """Return a position as bytes: in these games an observation shows all that matters."""
    return b"".join(np.ascontiguousarray(x[index]).tobytes() for x in jax.tree.leaves(observation))
