"""Boards as text, and moves as a person types them."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bircher.errors import MoveError

PIECES = "PNBRQK"
CHESS_SIZE, CHESS_PLANES = 5, 49
PROMOTIONS = "rbn"
"""Pieces other than a queen that a pawn may become, in pgx's order."""


class Board(NamedTuple):
    """How one game is drawn and its moves are written."""

    hint: str
    """How a move is typed."""
    draw: Callable[[np.ndarray, int], str]
    """(observation of the player to move, who that is: 0 moved first) -> the board"""
    name: Callable[[int, int], str]
    """(action, who moves) -> the move as it is typed"""


def board_of(env_id: str) -> Board:
    """The board of a game.

    Raises:
      KeyError: it cannot be drawn as text.
    """
    return BOARDS[env_id]


def read_move(board: Board, text: str, legal_actions: np.ndarray, mover: int) -> int:
    """The action that was typed.

    Raises:
      MoveError: it names no move, or one that is not legal now.
    """
    names = {board.name(int(action), mover): int(action) for action in np.flatnonzero(legal_actions)}
    typed = text.strip().lower()
    if typed in names:
        return names[typed]
    known = {board.name(action, mover) for action in range(len(legal_actions))}
    said = f"{typed!r} is not possible now" if typed in known else f"{typed!r} is no move"
    shown = list(names)[:8]
    raise MoveError(f"{said}: expected {board.hint}, such as {', '.join(shown)}")


def _stones(observation: np.ndarray, mover: int) -> np.ndarray:
    """X, O or a dot for every square, [rows, columns]."""
    mine, theirs = observation[..., 0] > 0, observation[..., 1] > 0
    return np.where(mine, "XO"[mover], np.where(theirs, "XO"[1 - mover], "."))


def _grid(observation: np.ndarray, mover: int, indent: int = 0) -> str:
    squares = _stones(observation, mover)
    letters = string.ascii_lowercase[: squares.shape[1]]
    lines = ["   " + " ".join(letters)]
    for number, row in enumerate(squares, start=1):
        lines.append(" " * (indent * (number - 1)) + f"{number:>2} " + " ".join(row))
    return "\n".join(lines)


def _rhombus(observation: np.ndarray, mover: int) -> str:
    return _grid(observation, mover, indent=1) + "\nX joins top and bottom, O left and right"


def _square_name(columns: int, extra: str = "") -> Callable[[int, int], str]:
    """Squares as letter and number, row by row from the top; the action after them has a name of its own."""

    def name(action: int, mover: int) -> str:
        del mover
        if extra and action == columns * columns:
            return extra
        return f"{string.ascii_lowercase[action % columns]}{action // columns + 1}"

    return name


def _number_name(action: int, mover: int) -> str:
    del mover
    return str(action + 1)


def _numbered_squares(observation: np.ndarray, mover: int) -> str:
    squares = _stones(observation, mover)
    numbers = np.arange(1, 10).reshape(3, 3).astype(str)
    return "\n".join(" ".join(row) for row in np.where(squares == ".", numbers, squares))


def _columns(observation: np.ndarray, mover: int) -> str:
    lines = [" ".join(row) for row in _stones(observation, mover)]
    return "\n".join([*lines, " ".join(str(column) for column in range(1, 8))])


def _chess(observation: np.ndarray, mover: int) -> str:
    """From the first mover's side; an observation shows its mover's pieces first, and its mover below."""
    squares = np.full((CHESS_SIZE, CHESS_SIZE), ".")
    for plane in range(2 * len(PIECES)):
        whose = mover if plane < len(PIECES) else 1 - mover
        letter = PIECES[plane % len(PIECES)]
        squares[observation[..., plane] > 0] = letter if whose == 0 else letter.lower()
    squares = squares if mover == 0 else squares[::-1]
    lines = [f"{CHESS_SIZE - row} " + " ".join(squares[row]) for row in range(CHESS_SIZE)]
    return "\n".join([*lines, "  " + " ".join(string.ascii_lowercase[:CHESS_SIZE])])


def _chess_name(action: int, mover: int) -> str:
    """Such as b2b3; with the piece's letter where a pawn becomes another than a queen.

    pgx counts squares column by column from the mover's side; a move is a square and one of 49 directions and lengths:
    nine that promote, then straight, diagonal and knight's ones.
    """
    start, plane = divmod(action, CHESS_PLANES)
    column, row = divmod(start, CHESS_SIZE)
    if plane < 9:
        along, across, piece = 1, (0, 1, -1)[plane % 3], PROMOTIONS[plane // 3]
    else:
        (along, across), piece = _CHESS_STEPS[plane - 9], ""
    end = (column + across, row + along)
    if not all(0 <= place < CHESS_SIZE for place in end):
        return f"no move {action}"

    def square(column: int, row: int) -> str:
        return f"{string.ascii_lowercase[column]}{row + 1 if mover == 0 else CHESS_SIZE - row}"

    return square(column, row) + square(*end) + piece


_AWAY = (-4, -3, -2, -1, 1, 2, 3, 4)
_CHESS_STEPS = (
    *((step, 0) for step in _AWAY),
    *((0, step) for step in _AWAY),
    *((step, step) for step in _AWAY),
    *((-step, step) for step in _AWAY),
    (-1, -2), (1, -2), (-2, -1), (2, -1), (-1, 2), (1, 2), (-2, 1), (2, 1),
)  # fmt: skip
"""Rows and columns that a direction of pgx's goes."""

BOARDS = {
    "tic_tac_toe": Board("the number of a free square", _numbered_squares, _number_name),
    "connect_four": Board("the number of a column", _columns, _number_name),
    "othello": Board("a square by column and row, or pass", _grid, _square_name(8, "pass")),
    "hex": Board("a square by column and row, or at the second move swap", _rhombus, _square_name(11, "swap")),
    "go_9x9": Board("a square by column and row, or pass", _grid, _square_name(9, "pass")),
    "gardner_chess": Board("the squares from and to, then r, b or n for no queen", _chess, _chess_name),
}
"""Boards by the game's id."""
