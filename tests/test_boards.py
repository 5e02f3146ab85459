"""Boards as text and moves as typed, against the games' own states."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.errors import MoveError
from bircher.games import boards
from bircher.games.boards import BOARDS, board_of, read_move
from builders import quick_jit


def played(game: str, typed: str):
    """The text of the board, who is to move, and the legal actions, after typed moves."""
    board, env = board_of(game), environments.make(game, 1, seed=0)
    state, timestep = env.reset()
    step = quick_jit(env.step)
    for ply, move in enumerate(typed.split()):
        action = read_move(board, move, np.asarray(timestep.legal_actions[0]), ply % 2)
        state, timestep = step(state, jnp.full(1, action, jnp.int32))
        assert not timestep.terminal[0] or timestep.reward[0] >= 0
    mover = len(typed.split()) % 2
    return board.draw(np.asarray(timestep.observation[0]), mover), mover, np.asarray(timestep.legal_actions[0]), state


BY_HAND = {
    ("tic_tac_toe", "5 1 9"): "O 2 3\n4 X 6\n7 8 X",
    ("connect_four", "4 4 1"): ". . . . . . .\n" * 4 + ". . . O . . .\nX . . X . . .\n1 2 3 4 5 6 7",
    ("othello", "e6 f6"): """
   a b c d e f g h
 1 . . . . . . . .
 2 . . . . . . . .
 3 . . . . . . . .
 4 . . . O X . . .
 5 . . . X O . . .
 6 . . . . X O . .
 7 . . . . . . . .
 8 . . . . . . . .""".strip("\n"),
    ("gardner_chess", "b2b3 a4b3"): "5 r n b q k\n4 . p p p p\n3 . p . . .\n2 P . P P P\n1 R N B Q K\n  a b c d e",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("game", "typed"), BY_HAND)
def test_boards_by_hand(game: str, typed: str) -> None:
    assert played(game, typed)[0] == BY_HAND[game, typed]


@pytest.mark.slow
def test_hex_is_a_rhombus_and_the_second_may_swap() -> None:
    text, _, legal, _ = played("hex", "c1")
    lines = text.splitlines()
    assert lines[1] == " 1 . . X . . . . . . . ." and lines[3].startswith("   3 ") and "X joins top" in lines[-1]
    assert read_move(board_of("hex"), "swap", legal, 1) == 121
    assert played("hex", "c1 swap")[0].splitlines()[3] == "   3 O . . . . . . . . . .", "mirrored, and the second's"


@pytest.mark.slow
def test_go_takes_stones_and_passes() -> None:
    text = played("go_9x9", "b1 a1 a2 pass")[0].splitlines()
    assert text[1] == " 1 . X . . . . . . ." and text[2].startswith(" 2 X")


@pytest.mark.slow
def test_chess_moves_are_pgx_own() -> None:
    """Every action's squares, from either side, are those of pgx's table; no two have one name."""
    from pgx._src.gardner_chess_utils import TO_MAP

    table = np.asarray(TO_MAP)
    for mover in (0, 1):
        names = set()
        for action in range(25 * 49):
            start, plane = divmod(action, 49)
            end = int(table[start, plane])
            name = boards.board_of("gardner_chess").name(action, mover)
            if plane < 9 and start % 5 != 3 or end < 0 or plane < 9 and end % 5 != 4:
                continue
            places = [(place // 5, place % 5 if mover == 0 else 4 - place % 5) for place in (start, end)]
            expected = "".join("abcde"[column] + str(row + 1) for column, row in places)
            assert name == expected + ("rrrbbbnnn"[plane] if plane < 9 else "")
            names.add(name)
        assert len(names) == (table[:, 9:] >= 0).sum() + 3 * 13


@pytest.mark.slow
@pytest.mark.parametrize("game", BOARDS)
def test_every_legal_action_has_a_name_that_is_read_back(game: str) -> None:
    env = environments.make(game, 1, seed=0)
    legal = np.asarray(env.reset()[1].legal_actions[0])
    for action in np.flatnonzero(legal):
        name = board_of(game).name(int(action), 0)
        assert read_move(board_of(game), f" {name.upper()} ", legal, 0) == action


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "before", "typed", "sentence"),
    [
        ("tic_tac_toe", "5", "5", "'5' is not possible now: expected the number of a free square, such as 1, 2, 3"),
        ("tic_tac_toe", "", "10", "'10' is not a move: expected the number of a free square"),
        ("connect_four", "", "four", "'four' is not a move: expected the number of a column, such as 1, 2"),
        ("connect_four", "1 1 1 1 1 1", "1", "'1' is not possible now: expected the number of a column, such as 2"),
        ("tic_tac_toe", "", "", "'' is not a move"),
        ("othello", "", "pass", "'pass' is not possible now: expected a square by column and row, or pass, such as d3"),
    ],
)
def test_input_that_is_not_a_move_gets_a_sentence(game: str, before: str, typed: str, sentence: str) -> None:
    _, mover, legal, _ = played(game, before)
    with pytest.raises(MoveError) as caught:
        read_move(board_of(game), typed, legal, mover)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)
