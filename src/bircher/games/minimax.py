"""The exact game of tic-tac-toe: every position, and its best moves."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from bircher.games.player import Player, no_memory
from bircher.types import Key, TimeStep

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
POWERS = 3 ** np.arange(9)
"""A position is a number of nine digits: 0 empty, 1 of the player to move, 2 of the other."""

Cells = tuple[int, ...]


@functools.cache
def value(cells: Cells) -> int:
    """What a position is worth to the player to move: 0 a draw, else a win, above 0, or a loss.

    It is the greater, the sooner a win comes and the later a loss: 10 less the stones on the board at the end.
    """
    if any(all(cells[cell] == 2 for cell in line) for line in LINES):
        return sum(map(bool, cells)) - 10
    if 0 not in cells:
        return 0
    return max(-value(following) for following in _followers(cells).values())


def best_moves(cells: Cells) -> list[int]:
    """The moves of the greatest value in a position that is not over."""
    values = {move: -value(following) for move, following in _followers(cells).items()}
    return [move for move, worth in values.items() if worth == max(values.values())]


def _followers(cells: Cells) -> dict[int, Cells]:
    """By move, the position after it, from the side of who is to move there."""
    swapped = tuple((0, 2, 1)[cell] for cell in cells)
    return {move: (*swapped[:move], 2, *swapped[move + 1 :]) for move in range(9) if not cells[move]}


@functools.cache
def table() -> Bool[np.ndarray, "positions 9"]:
    """The best moves of every position that can be reached and is not over; False everywhere else."""
    best = np.zeros((3**9, 9), bool)
    waiting, seen = [(0,) * 9], set()
    while waiting:
        cells = waiting.pop()
        over = 0 not in cells or any(all(cells[cell] == 2 for cell in line) for line in LINES)
        if cells in seen or over:
            continue
        seen.add(cells)
        best[np.dot(cells, POWERS), best_moves(cells)] = True
        waiting += _followers(cells).values()
    return best


def lost_lines(moves: Int[np.ndarray, " positions"], seat: int, best_only: bool) -> list[tuple[int, ...]]:
    """Every line of play in which a player loses who always plays `moves[position]`, in a seat: 0 moves first.

    Its opponent tries every legal reply, or with `best_only` every one of the best.
    """
    lost: list[tuple[int, ...]] = []
    waiting: list[tuple[Cells, tuple[int, ...]]] = [((0,) * 9, ())]
    while waiting:
        cells, line = waiting.pop()
        followers = _followers(cells)
        own = len(line) % 2 == seat
        if own:
            tried = [int(moves[np.dot(cells, POWERS)])]
        else:
            tried = best_moves(cells) if best_only else list(followers)
        for move in tried:
            following, played = followers[move], (*line, move)
            won = any(all(following[cell] == 2 for cell in three) for three in LINES)
            if won and not own:
                lost.append(played)
            if not won and 0 in following:
                waiting.append((following, played))
    return lost


def positions(observation: Bool[Array, "M 3 3 2"]) -> Int[Array, " M"]:
    """The numbers of the positions in observations."""
    cells = observation[..., 0] + 2 * observation[..., 1].astype(jnp.int32)
    return (cells.reshape(-1, 9) * jnp.asarray(POWERS)).sum(-1)


def player() -> Player:
    """Draws one of the best moves: those that win soonest, else draw, else lose last."""
    best = table()

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del states
        logits = jnp.where(params[positions(timestep.observation)], 0.0, -jnp.inf)
        # A game that is over has no best move.
        logits = jnp.where(timestep.last[:, None], 0.0, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32), carry

    return Player("minimax", jnp.asarray(best), no_memory, decide)
