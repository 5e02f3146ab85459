"""Players that compute on the true rules: minimax, alpha-beta search, and Monte-Carlo tree search.

Minimax solves tic-tac-toe.  Monte-Carlo tree search has no network: it judges each leaf by one random game.
Alpha-beta search plays Connect Four to a given depth, on bitboards.  A bit of a whole number is a square: column c and
row r, counted from below, is bit 7 c + r; the seventh bit of each column stays empty, so that no line runs from the top
of one column to the foot of the next (Pascal Pons, "Solving Connect 4", http://blog.gamesolver.org).  All numbers are
those of the player to move.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.envs.jax_env import PureEnv
from bircher.games.players import Player, no_memory
from bircher.search import rollout_search
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


def minimax_player() -> Player:
    """Draws one of the best moves: those that win soonest, else draw, else lose last."""
    best = table()

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del states
        logits = jnp.where(params[positions(timestep.observation)], 0.0, -jnp.inf)
        # A game that is over has no best move.
        logits = jnp.where(timestep.last[:, None], 0.0, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32), carry

    return Player("minimax", jnp.asarray(best), no_memory, decide)


COLUMNS, ROWS, HEIGHT = 7, 6, 7
BOTTOM = sum(1 << HEIGHT * column for column in range(COLUMNS))
BOARD = BOTTOM * ((1 << ROWS) - 1)
COLUMN = (1 << ROWS) - 1
Center = COLUMN << 3 * HEIGHT
NEAR_Center = COLUMN << 2 * HEIGHT | COLUMN << 4 * HEIGHT
ORDER = (3, 2, 4, 1, 5, 0, 6)
"""Columns from the center outwards: the better ones come first, so that more is cut off."""
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
    """Worth of a position that is searched no further: squares that would complete four, and stones in the center."""
    mask = mine | theirs
    threats = winning_squares(mine, mask).bit_count() - winning_squares(theirs, mask).bit_count()
    center = (mine & Center).bit_count() - (theirs & Center).bit_count()
    near = (mine & NEAR_Center).bit_count() - (theirs & NEAR_Center).bit_count()
    return 8 * threats + 2 * center + near


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


def alphabeta_player(depth: int) -> Player:
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


def mcts_player(rules: PureEnv, num_rollouts: int) -> Player:
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
