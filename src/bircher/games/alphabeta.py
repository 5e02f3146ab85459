"""Alpha-beta search for Connect Four, to a given depth, on bitboards.

A bit of a whole number is a square: column c and row r, counted from below, is bit 7 c + r; the seventh bit of each
column stays empty, so that no line runs from one column's top to the next one's foot (Pascal Pons, "Solving Connect
4", http://blog.gamesolver.org).  All numbers are those of the player to move.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bircher.games.player import Player, no_memory
from bircher.types import Key, TimeStep

COLUMNS, ROWS, HEIGHT = 7, 6, 7
BOTTOM = sum(1 << HEIGHT * column for column in range(COLUMNS))
BOARD = BOTTOM * ((1 << ROWS) - 1)
COLUMN = (1 << ROWS) - 1
CENTRE = COLUMN << 3 * HEIGHT
NEAR_CENTRE = COLUMN << 2 * HEIGHT | COLUMN << 4 * HEIGHT
ORDER = (3, 2, 4, 1, 5, 0, 6)
"""Columns from the centre outwards: the better ones come first, so that more is cut off."""
WIN = 1000
"""Worth of a win, less the stones on the board when it comes; every estimate is well below it."""
MAX_DEPTH = 42
MAX_KEPT = 1_000_000
"""Positions kept; then all are forgotten."""


class _Kept(NamedTuple):
    """What a search found of a position: its worth, or a bound of it."""

    low: int
    high: int


def winning_squares(mine: int, mask: int) -> int:
    """The empty squares, within reach or not, where a stone completes four of `mine`; `mask` holds all stones."""
    squares = (mine << 1) & (mine << 2) & (mine << 3)
    for shift in (HEIGHT, HEIGHT - 1, HEIGHT + 1):
        pair = (mine << shift) & (mine << 2 * shift)
        squares |= pair & (mine << 3 * shift)
        squares |= pair & (mine >> shift)
        pair = (mine >> shift) & (mine >> 2 * shift)
        squares |= pair & (mine << shift)
        squares |= pair & (mine >> 3 * shift)
    return squares & (BOARD ^ mask)


def playable(mask: int) -> int:
    """The lowest empty square of every column that is not full."""
    return (mask + BOTTOM) & BOARD


def estimate(mine: int, theirs: int) -> int:
    """Worth of a position that is searched no further: squares that would complete four, and stones in the centre."""
    mask = mine | theirs
    threats = winning_squares(mine, mask).bit_count() - winning_squares(theirs, mask).bit_count()
    centre = (mine & CENTRE).bit_count() - (theirs & CENTRE).bit_count()
    near = (mine & NEAR_CENTRE).bit_count() - (theirs & NEAR_CENTRE).bit_count()
    return 8 * threats + 2 * centre + near


class Search:
    """Alpha-beta to one depth; what it found of positions is kept for the next search.

    Its worths are those of plain minimax to the same depth, where a position at the end of the search is worth a win
    if the player to move wins at once, and `estimate` otherwise.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self._kept: dict[tuple[int, int, int], _Kept] = {}

    def moves(self, mine: int, theirs: int) -> dict[int, int]:
        """The best columns, and the worth that they share, in a position that is not over."""
        if len(self._kept) > MAX_KEPT:
            self._kept.clear()
        mask = mine | theirs
        wins = winning_squares(mine, mask) & playable(mask)
        best: dict[int, int] = {}
        worth = -WIN
        for column in ORDER:
            move = playable(mask) & COLUMN << HEIGHT * column
            if not move:
                continue
            if move & wins:
                found = WIN - mask.bit_count() - 1
            else:
                # One below the best so far: as good a move is found too, and one that is worse is cut off.
                found = -self.worth(theirs, mine | move, self.depth - 1, -WIN, 1 - worth)
            if found > worth:
                best, worth = {}, found
            if found == worth:
                best[column] = found
        return best

    def worth(self, mine: int, theirs: int, depth: int, alpha: int = -WIN, beta: int = WIN) -> int:
        """What a position that is not won yet is worth, exact between `alpha` and `beta`, else a bound of it."""
        mask = mine | theirs
        moves, stones = playable(mask), mask.bit_count()
        if not moves:
            return 0
        if winning_squares(mine, mask) & moves:
            return WIN - stones - 1
        if depth <= 0:
            return estimate(mine, theirs)
        threats = winning_squares(theirs, mask) & moves
        if threats:
            if threats & (threats - 1):
                return stones + 2 - WIN  # two at once: only one can be met
            moves = threats
        key = (mine, theirs, depth)
        kept = self._kept.get(key, _Kept(-WIN, WIN))
        if kept.low >= beta or kept.low == kept.high:
            return kept.low
        if kept.high <= alpha:
            return kept.high
        best, bar = -WIN, alpha
        for column in ORDER:
            move = moves & COLUMN << HEIGHT * column
            if move:
                best = max(best, -self.worth(theirs, mine | move, depth - 1, -beta, -bar))
                bar = max(bar, best)
                if best >= beta:
                    break
        low, high = (best, kept.high) if best >= beta else (kept.low, best) if best <= alpha else (best, best)
        self._kept[key] = _Kept(low, high)
        return best


def bitboards(observation: np.ndarray) -> tuple[int, int]:
    """The stones of the player to move and of the other in one observation [6, 7, 2], whose first row is the top."""
    squares = observation[::-1].transpose(2, 1, 0)
    sides = [[(column, row) for column, row in np.argwhere(side)] for side in squares]
    mine, theirs = (sum(1 << int(HEIGHT * column + row) for column, row in side) for side in sides)
    return mine, theirs


def player(depth: int) -> Player:
    """Plays a best column to a depth of `depth` moves, drawn among equals; the same key gives the same moves."""
    search = Search(depth)

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params, states
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        drawn = generator.integers(1 << 16, size=len(timestep.last))
        action = np.zeros(len(drawn), np.int32)
        observation = np.asarray(timestep.observation)
        for game in np.flatnonzero(~np.asarray(timestep.last)):
            best = sorted(search.moves(*bitboards(observation[game])))
            action[game] = best[drawn[game] % len(best)]
        return action, carry

    return Player(f"alphabeta:{depth}", (), no_memory, decide, compiled=False)
