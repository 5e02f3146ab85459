"""Opponents: exact where they say so, right where the answer is known, legal everywhere, refused by name."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.errors import UnknownOpponent, UnsuitableOpponent
from bircher.games import opponents, solvers
from bircher.games.players import states_of
from bircher.games.solvers import Search, bitboards, winning_squares
from builders import quick_jit


def after(game: str, moves: list[int], count: int = 1):
    """An environment, its state and row after moves in `count` games."""
    env = environments.make(game, count, seed=0)
    state, timestep = env.reset()
    step = quick_jit(env.step)
    for move in moves:
        state, timestep = step(state, jnp.full(count, move, jnp.int32))
    return env, state, timestep


def chosen(player, env, state, timestep, seed: int = 0) -> np.ndarray:
    decide = quick_jit(player.decide) if player.compiled else player.decide
    states = states_of(env, state)
    return np.asarray(decide(player.params, player.start(env.num_envs), states, timestep, jax.random.key(seed))[0])


# Tic-tac-toe: the exact player.


def winner(cells: tuple[int, ...]) -> int:
    rows = [cells[i : i + 3] for i in (0, 3, 6)] + [cells[i::3] for i in range(3)] + [cells[::4], cells[2:7:2]]
    return next((side for side in (1, 2) if (side,) * 3 in rows), 0)


@pytest.mark.parametrize("exact", [1, 2])
def test_minimax_never_loses_whatever_is_replied(exact: int) -> None:
    """Every game of each of its best moves against every reply, in either seat."""
    results, seen = set(), set()

    def go(cells: tuple[int, ...], mover: int) -> None:
        if cells in seen:
            return
        seen.add(cells)
        if winner(cells) or 0 not in cells:
            results.add(winner(cells))
            return
        number = sum(3**i * (0 if not cell else 1 if cell == mover else 2) for i, cell in enumerate(cells))
        best = np.flatnonzero(solvers.table()[number])
        assert len(best)
        for move in best if mover == exact else [move for move in range(9) if not cells[move]]:
            go((*cells[:move], mover, *cells[move + 1 :]), 3 - mover)

    go((0,) * 9, 1)
    assert results == {0, exact}, "it loses nowhere, and wins where it can"


def test_lost_lines_are_those_of_a_loop_over_games() -> None:
    """Of who takes the first free cell, and of the exact player, which loses none."""
    cells = np.arange(3**9)[:, None] // solvers.POWERS % 3
    first_free = (cells == 0).argmax(-1)

    def lost(line: tuple[int, ...], seat: int) -> list[tuple[int, ...]]:
        board = [0] * 9
        for ply, move in enumerate(line):
            board[move] = 1 + ply % 2
        if winner(tuple(board)):
            return [line] if winner(tuple(board)) != 1 + seat else []
        free = [move for move in range(9) if not board[move]]
        moves = free[:1] if len(line) % 2 == seat else free
        return [one for move in moves for one in lost((*line, move), seat)]

    for seat in (0, 1):
        assert sorted(solvers.lost_lines(first_free, seat, best_only=False)) == sorted(lost((), seat)) != []
        assert not solvers.lost_lines(solvers.table().argmax(-1), seat, best_only=False)
    # Against the first free cell, minimax takes its chances: fewer lines, all among those of every reply.
    some = solvers.lost_lines(first_free, 1, best_only=True)
    assert set(some) < set(solvers.lost_lines(first_free, 1, best_only=False)) and some


def test_minimax_knows_every_position_that_is_not_over() -> None:
    assert solvers.table().any(-1).sum() == 4520, "of 5,478 positions 958 are over"
    assert solvers.value((0,) * 9) == 0
    assert solvers.table()[0].all(), "from the empty board every first move draws"


@pytest.mark.parametrize(
    ("moves", "best"),
    [
        ([0, 3, 1, 4], {2}),  # wins, though it could also block
        ([0, 4, 1], {2}),  # blocks
        ([4, 1], {0, 2, 3, 5, 6, 8}),  # an edge in reply to the center loses to many moves
        ([0], {4}),  # the corner is met in the center alone
    ],
)
def test_minimax_plays_known_positions(moves: list[int], best: set[int]) -> None:
    env, state, timestep = after("tic_tac_toe", moves, 64)
    drawn = set(chosen(opponents.make("minimax", env), env, state, timestep).tolist())
    assert drawn <= best and (len(drawn) > 1 or len(best) == 1)


# Connect Four: alpha-beta against plain minimax on lists.

LINES = [
    [(row + i * up, column + i * right) for i in range(4)]
    for row, column in itertools.product(range(6), range(7))
    for up, right in ((0, 1), (1, 0), (1, 1), (1, -1))
    if row + 3 * up < 6 and 0 <= column + 3 * right < 7
]


def bits(board: np.ndarray, side: int) -> int:
    return sum(1 << (7 * int(column) + int(row)) for row, column in np.argwhere(board == side))


def random_board(generator: np.random.Generator, stones: int) -> np.ndarray:
    """[6, 7] from below: 0 empty, 1 of who is to move, 2 of the other; nobody has four."""
    while True:
        board, side = np.zeros((6, 7), int), 1 + stones % 2
        for _ in range(stones):
            column = generator.choice(np.flatnonzero(board[5] == 0))
            board[np.count_nonzero(board[:, column]), column] = side
            side = 3 - side
        if not any(len({board[place] for place in line}) == 1 and board[line[0]] for line in LINES):
            return board


def dropped(board: np.ndarray, column: int) -> np.ndarray:
    """The board after the mover's stone, from the other's side."""
    board = board.copy()
    board[np.count_nonzero(board[:, column]), column] = 1
    return np.array([0, 2, 1])[board]


def plain_worth(board: np.ndarray, depth: int) -> int:
    """Minimax without cutting anything off."""
    stones, columns = np.count_nonzero(board), np.flatnonzero(board[5] == 0)
    if any(all(board[place] == 2 for place in line) for line in LINES):
        return stones - solvers.WIN
    if not len(columns):
        return 0
    if depth <= 0:
        wins = any(any(all(dropped(board, c)[p] == 2 for p in line) for line in LINES) for c in columns)
        return solvers.WIN - stones - 1 if wins else solvers.estimate(bits(board, 1), bits(board, 2))
    return max(-plain_worth(dropped(board, column), depth - 1) for column in columns)


@pytest.mark.parametrize("depth", [1, 2])
def test_alphabeta_is_minimax_that_cuts_off(depth: int) -> None:
    """Worth, and all the best columns, at positions of every stage; one search for all of them, so that what it keeps
    is right too."""
    generator, search = np.random.default_rng(depth), Search(depth)
    for stones in range(4, 42, 4 * depth):
        board = random_board(generator, stones)
        values = {c: -plain_worth(dropped(board, c), depth - 1) for c in map(int, np.flatnonzero(board[5] == 0))}
        worth = max(values.values())
        best = search.moves(bits(board, 1), bits(board, 2))
        assert best == {c: worth for c, value in values.items() if value == worth}, board[::-1]
        again = Search(depth).position_value(bits(board, 1), bits(board, 2), depth)
        assert again == worth or worth == solvers.WIN - stones - 1 == again


def test_squares_that_complete_four() -> None:
    generator = np.random.default_rng(0)
    for stones in range(5, 42, 3):
        board = random_board(generator, stones)
        expected = 0
        for line in LINES:
            empty = [place for place in line if not board[place]]
            if len(empty) == 1 and all(board[place] == 1 for place in line if place != empty[0]):
                expected |= 1 << (7 * empty[0][1] + empty[0][0])
        assert winning_squares(bits(board, 1), bits(board, 1) | bits(board, 2)) == expected


@pytest.mark.parametrize(
    ("moves", "depth", "best"),
    [
        ([3, 0, 3, 0, 3, 1], 1, {3}),  # completes the column
        ([3, 0, 3, 0, 3], 1, {3}),  # and blocks it
        ([2, 0, 3, 0], 3, {1, 4}),  # three in the lowest row with both ends free: won, whatever is replied
        ([2, 6, 3], 4, {1, 4}),  # which must be met at once, on either side
    ],
)
def test_alphabeta_finds_forced_wins(moves: list[int], depth: int, best: set[int]) -> None:
    env, state, timestep = after("connect_four", moves)
    player = opponents.make(f"alphabeta:{depth}", env)
    drawn = {int(chosen(player, env, state, timestep, seed)[0]) for seed in range(8)}
    assert drawn <= best
    assert drawn == {int(chosen(player, env, state, timestep, seed)[0]) for seed in range(8)}, "the same keys, the same"


def test_alphabeta_draws_among_equal_moves_and_skips_finished_games() -> None:
    env, state, timestep = after("connect_four", [3, 3, 3, 3, 3, 3], 16)
    timestep = timestep._replace(last=jnp.arange(16) >= 12)
    player = opponents.make("alphabeta:1", env)
    action = chosen(player, env, state, timestep)
    assert set(action[:12].tolist()) == {2, 4} and (action[12:] == 0).all()


def test_bitboards_of_an_observation() -> None:
    _, _, timestep = after("connect_four", [0, 6, 0])
    mine, theirs = bitboards(np.asarray(timestep.observation[0]))
    assert mine == 1 << 42 and theirs == 0b11, "the second is to move and has the last column's lowest square"


# Searching on the true rules, and chance.


@functools.cache
def nim(heap: int):
    env = environments.make("toy/nim", 8, seed=0, options={"heap": heap})
    return env, *env.reset()


@pytest.mark.parametrize("heap", [2, 4, 5, 7])
def test_monte_carlo_search_finds_the_winning_move_of_nim(heap: int) -> None:
    """Left to the other must be a multiple of 3."""
    env, state, timestep = nim(heap)
    action = chosen(opponents.make("mcts:60", env), env, state, timestep)
    np.testing.assert_array_equal(action, heap % 3 - 1)


def test_monte_carlo_search_wins_and_blocks() -> None:
    for moves, best in (([0, 3, 1, 4], 2), ([0, 4, 1], 2)):
        env, state, timestep = after("tic_tac_toe", moves, 4)
        np.testing.assert_array_equal(chosen(opponents.make("mcts:80", env), env, state, timestep), best)


def test_random_is_every_legal_action_alike() -> None:
    env, state, timestep = after("tic_tac_toe", [4, 0], 2000)
    action = chosen(opponents.make("random", env), env, state, timestep)
    counts = np.bincount(action, minlength=9)
    assert counts[[4, 0]].sum() == 0 and counts[[1, 2, 3, 5, 6, 7, 8]].min() > 200


@pytest.mark.parametrize(
    ("name", "game", "sentence"),
    [
        ("minmax", "tic_tac_toe", "unknown opponent 'minmax'; did you mean minimax?; known: random, minimax, maxn"),
        ("alphabet", "tic_tac_toe", "did you mean alphabeta:6?"),
        ("stockfish", "gardner_chess", "unknown opponent 'stockfish'; known: random"),
        ("minimax", "connect_four", "minimax plays tic_tac_toe only, with single observations, not connect_four"),
        ("alphabeta:6", "othello", "alphabeta plays connect_four only"),
        ("mcts:0", "tic_tac_toe", "mcts:0 is not possible: expected mcts with a whole number from 1 to 100,000"),
        ("mcts", "tic_tac_toe", "such as mcts:1000"),
        ("mcts:-3", "tic_tac_toe", "mcts:-3 is not possible"),
        ("alphabeta:x", "connect_four", "alphabeta:x is not possible: expected alphabeta with a whole number from 1"),
        ("random:3", "tic_tac_toe", "random takes no number: write random instead of random:3"),
        ("random", "2048", "2048 has one player, and an opponent needs a game of two"),
        ("mcts:10", "toy/chain", "toy/chain has one player"),
    ],
)
def test_who_cannot_play_is_refused(name: str, game: str, sentence: str) -> None:
    with pytest.raises((UnknownOpponent, UnsuitableOpponent)) as caught:
        opponents.make(name, environments.make(game, 1, 0))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_an_exact_opponent_needs_single_observations() -> None:
    with pytest.raises(UnsuitableOpponent, match="with single observations"):
        opponents.make("minimax", environments.make("tic_tac_toe", 1, 0, stack=2))
