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
from bircher.ops.turns import per_player, player_axis
from bircher.search import rollout_search
from bircher.types import Key, TimeStep

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
POWERS = 3 ** np.arange(9)
"""Weights that encode a position as a number of nine ternary digits: 0 is empty, 1 the player to move, 2 the other."""

Cells = tuple[int, ...]


@functools.cache
def value(cells: Cells) -> int:
    """Return the value of a position for the player to move: above 0 for a win, 0 for a draw, below 0 for a loss.

    The size of the value is 10 minus the number of stones on the board at the end. An earlier win and a later loss
    therefore have a greater value.
    """
    if any(all(cells[cell] == 2 for cell in line) for line in LINES):
        return sum(map(bool, cells)) - 10
    if 0 not in cells:
        return 0
    return max(-value(following) for following in _followers(cells).values())


def best_moves(cells: Cells) -> list[int]:
    """Return the moves of greatest value in a position that is not over."""
    values = {move: -value(following) for move, following in _followers(cells).items()}
    return [move for move, move_value in values.items() if move_value == max(values.values())]


def _followers(cells: Cells) -> dict[int, Cells]:
    """Return the position after each legal move, from the side of the player to move there."""
    swapped = tuple((0, 2, 1)[cell] for cell in cells)
    return {move: (*swapped[:move], 2, *swapped[move + 1 :]) for move in range(9) if not cells[move]}


@functools.cache
def table() -> Bool[np.ndarray, "positions 9"]:
    """Return the best moves of every reachable position that is not over; all other entries are False."""
    best = np.zeros((3**9, 9), bool)
    queue, visited = [(0,) * 9], set()
    while queue:
        cells = queue.pop()
        over = 0 not in cells or any(all(cells[cell] == 2 for cell in line) for line in LINES)
        if cells in visited or over:
            continue
        visited.add(cells)
        best[np.dot(cells, POWERS), best_moves(cells)] = True
        queue += _followers(cells).values()
    return best


def lost_lines(moves: Int[np.ndarray, " positions"], seat: int, best_only: bool) -> list[tuple[int, ...]]:
    """Return every line of play that is lost by a player who always plays `moves[position]` in a seat.

    Seat 0 moves first. The opponent tries every legal reply, or with `best_only` every best reply.
    """
    losses: list[tuple[int, ...]] = []
    queue: list[tuple[Cells, tuple[int, ...]]] = [((0,) * 9, ())]
    while queue:
        cells, line = queue.pop()
        followers = _followers(cells)
        own = len(line) % 2 == seat
        if own:
            candidates = [int(moves[np.dot(cells, POWERS)])]
        else:
            candidates = best_moves(cells) if best_only else list(followers)
        for move in candidates:
            following, longer = followers[move], (*line, move)
            is_win = any(all(following[cell] == 2 for cell in three) for three in LINES)
            if is_win and not own:
                losses.append(longer)
            if not is_win and 0 in following:
                queue.append((following, longer))
    return losses


def positions(observation: Bool[Array, "M 3 3 2"]) -> Int[Array, " M"]:
    """Encode the positions in observations as numbers."""
    cells = observation[..., 0] + 2 * observation[..., 1].astype(jnp.int32)
    return (cells.reshape(-1, 9) * jnp.asarray(POWERS)).sum(-1)


def minimax_player() -> Player:
    """Return a player that samples one of the best moves.

    The best moves win soonest; without a winning move they draw, and without a drawing move they lose as late as
    possible.
    """
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
CENTER = COLUMN << 3 * HEIGHT
NEAR_CENTER = COLUMN << 2 * HEIGHT | COLUMN << 4 * HEIGHT
ORDER = (3, 2, 4, 1, 5, 0, 6)
"""Columns from the center outwards: the better ones come first, so that more is cut off."""
WIN = 1000
"""Value of a win, from which the number of stones on the board is subtracted; every estimate is well below it."""
CACHE_SIZE = 1_000_000
"""Number of positions in the cache; when it is exceeded, the cache is cleared."""


class _Bounds(NamedTuple):
    """A lower and an upper bound of a position's value; they are equal if the value is known."""

    low: int
    high: int


def winning_squares(mine: int, mask: int) -> int:
    """Return the empty squares where a stone completes four of `mine`, including those not yet playable.

    `mask` contains all stones.
    """
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
    """Return the lowest empty square of every column that is not full."""
    return (mask + BOTTOM) & BOARD


def estimate(mine: int, theirs: int) -> int:
    """Estimate the value of a position at the end of a search.

    The estimate counts squares that would complete four, and stones in the center.
    """
    mask = mine | theirs
    threats = winning_squares(mine, mask).bit_count() - winning_squares(theirs, mask).bit_count()
    center = (mine & CENTER).bit_count() - (theirs & CENTER).bit_count()
    near = (mine & NEAR_CENTER).bit_count() - (theirs & NEAR_CENTER).bit_count()
    return 8 * threats + 2 * center + near


class Search:
    """Alpha-beta search to one depth, with a cache of positions that later searches use too.

    Its values equal those of plain minimax to the same depth. A position at the end of the search has the value of a
    win if the player to move can win with the next move, and `estimate` otherwise.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self._cache: dict[tuple[int, int, int], _Bounds] = {}

    def moves(self, mine: int, theirs: int) -> dict[int, int]:
        """Return the best columns and their common value in a position that is not over."""
        if len(self._cache) > CACHE_SIZE:
            self._cache.clear()
        mask = mine | theirs
        wins = winning_squares(mine, mask) & playable(mask)
        best: dict[int, int] = {}
        best_value = -WIN
        for column in ORDER:
            move = playable(mask) & COLUMN << HEIGHT * column
            if not move:
                continue
            if move & wins:
                move_value = WIN - mask.bit_count() - 1
            else:
                # The bound is one below the best value, so that equal moves are found and worse ones are cut off.
                move_value = -self.position_value(theirs, mine | move, self.depth - 1, -WIN, 1 - best_value)
            if move_value > best_value:
                best, best_value = {}, move_value
            if move_value == best_value:
                best[column] = move_value
        return best

    def position_value(self, mine: int, theirs: int, depth: int, alpha: int = -WIN, beta: int = WIN) -> int:
        """Return the value of a position without a winner: exact between `alpha` and `beta`, otherwise a bound."""
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
                return stones + 2 - WIN  # two threats, of which only one can be blocked
            moves = threats
        key = (mine, theirs, depth)
        bounds = self._cache.get(key, _Bounds(-WIN, WIN))
        if bounds.low >= beta or bounds.low == bounds.high:
            return bounds.low
        if bounds.high <= alpha:
            return bounds.high
        best, bar = -WIN, alpha
        for column in ORDER:
            move = moves & COLUMN << HEIGHT * column
            if move:
                best = max(best, -self.position_value(theirs, mine | move, depth - 1, -beta, -bar))
                bar = max(bar, best)
                if best >= beta:
                    break
        low, high = (best, bounds.high) if best >= beta else (bounds.low, best) if best <= alpha else (best, best)
        self._cache[key] = _Bounds(low, high)
        return best


def bitboards(observation: np.ndarray) -> tuple[int, int]:
    """Return the bitboards of the player to move and of the other for one observation [6, 7, 2].

    The first row of the observation is the top of the board.
    """
    squares = observation[::-1].transpose(2, 1, 0)
    sides = [[(column, row) for column, row in np.argwhere(side)] for side in squares]
    mine, theirs = (sum(1 << int(HEIGHT * column + row) for column, row in side) for side in sides)
    return mine, theirs


def alphabeta_player(depth: int) -> Player:
    """Return a player that searches `depth` moves deep and samples one of the best columns.

    The same key gives the same moves.
    """
    search = Search(depth)

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params, states
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        numbers = generator.integers(1 << 16, size=len(timestep.last))
        action = np.zeros(len(numbers), np.int32)
        observation = np.asarray(timestep.observation)
        for game in np.flatnonzero(~np.asarray(timestep.last)):
            best = sorted(search.moves(*bitboards(observation[game])))
            action[game] = best[numbers[game] % len(best)]
        return action, carry

    return Player(f"alphabeta:{depth}", (), no_memory, decide, compiled=False)


MAX_MOVES = 1000
"""Number of moves after which an unfinished random game counts as a draw."""


def legal_actions(rules: PureEnv, states: PyTree, num_games: int) -> Bool[Array, "M A"]:
    """Return the legal actions in each of M states."""
    legal = rules.legal_actions(states)
    return jnp.ones((num_games, rules.spec.num_actions), bool) if legal is None else legal


def random_outcome(rules: PureEnv, states: PyTree, key: Key, num_games: int) -> Float[Array, " M *P"]:
    """Play a random game to its end from each of M states; return the outcomes for the players to move there.

    Of more than two players an outcome is a vector that begins with the player to move.
    """

    def unfinished(loop_state):
        count, _, _, _, done, _ = loop_state
        return (count < MAX_MOVES) & ~done.all()

    def step(loop_state):
        count, states, outcome, side, done, key = loop_state
        key, draw_key, chance_key = jax.random.split(key, 3)
        logits = jnp.where(legal_actions(rules, states, num_games), 0.0, -jnp.inf)
        action = jax.random.categorical(draw_key, logits).astype(jnp.int32)
        chances = jax.random.split(chance_key, num_games)
        following, _, reward, terminal, truncated = rules.move(chances, states, action)
        turned = rules.players(following) != rules.players(states)
        gained = side * reward if reward.ndim == 1 else jnp.roll(reward, count, -1)
        outcome = outcome + jnp.where(per_player(done, gained), 0.0, gained)
        return count + 1, following, outcome, jnp.where(turned, -side, side), done | terminal | truncated, key

    ones = jnp.ones(num_games)
    nothing = jnp.zeros((num_games, *player_axis(rules.spec.num_players)))
    loop_state = (jnp.int32(0), states, nothing, ones, jnp.zeros(num_games, bool), key)
    return jax.lax.while_loop(unfinished, step, loop_state)[2]


def mcts_player(rules: PureEnv, num_rollouts: int) -> Player:
    """Return a player that takes the most visited move after `num_rollouts` simulations of UCT.

    Each simulation plays one random game from its leaf.
    """

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params
        num_games = len(timestep.last)
        # These games have no chance, so a move leads to the same position with any key.
        chances = jax.random.split(jax.random.key(0), num_games)

        def simulate(states, action):
            following, _, reward, terminal, truncated = rules.move(chances, states, action)
            turned = rules.players(following) != rules.players(states)
            discount = jnp.where(terminal | truncated, 0.0, jnp.where(turned, -1.0, 1.0))
            return following, reward, discount, legal_actions(rules, following, num_games)

        def rollout(states, key):
            return random_outcome(rules, states, key, num_games)

        action, _ = rollout_search(
            states, timestep.legal_actions, simulate, rollout, key, num_rollouts, num_players=rules.spec.num_players
        )
        return action, carry

    return Player(f"mcts:{num_rollouts}", (), no_memory, decide)
