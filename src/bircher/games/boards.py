"""Boards as text, and moves as a person types them."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bircher.errors import MoveError
from bircher.ops.turns import PAIR

PIECES = "PNBRQK"
CHESS_SIZE, CHESS_PLANES = 5, 49
PROMOTIONS = "rbn"
"""Pieces other than a queen that a pawn may become, in pgx's order."""


class Board(NamedTuple):
    """The functions that draw one game as text and name its moves.  Player 0 is the one who moved first."""

    hint: str
    """Description of how to type a move."""
    draw: Callable[[np.ndarray, int], str]
    """(observation of the player to move, index of that player) -> the board as text"""
    name: Callable[[int, int], str]
    """(action, index of the player) -> the move as a person types it"""


def board_of(env_id: str) -> Board:
    """Return the board of a game.

    Raises:
      KeyError: the game cannot be drawn as text.
    """
    return BOARDS[env_id]


def read_move(board: Board, text: str, legal_actions: np.ndarray, mover: int) -> int:
    """Return the action for a move that a person typed.

    Raises:
      MoveError: the text is not a move, or the move is not legal in this position.
    """
    names = {board.name(int(action), mover): int(action) for action in np.flatnonzero(legal_actions)}
    typed = text.strip().lower()
    if typed in names:
        return names[typed]
    known = {board.name(action, mover) for action in range(len(legal_actions))}
    problem = f"{typed!r} is not possible now" if typed in known else f"{typed!r} is not a move"
    examples = list(names)[:8]
    raise MoveError(f"{problem}: expected {board.hint}, such as {', '.join(examples)}")


def _stones(observation: np.ndarray, mover: int) -> np.ndarray:
    """Return X, O or a dot for every square, [rows, columns]."""
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
    """Return a function that names squares by letter and number, row by row from the top.

    The action after the last square is named `extra`.
    """

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
    """Draw the board from the first mover's side.

    The first planes of an observation are the pieces of the player to move, whose side is at the bottom.
    """
    squares = np.full((CHESS_SIZE, CHESS_SIZE), ".")
    for plane in range(2 * len(PIECES)):
        owner = mover if plane < len(PIECES) else 1 - mover
        letter = PIECES[plane % len(PIECES)]
        squares[observation[..., plane] > 0] = letter if owner == 0 else letter.lower()
    squares = squares if mover == 0 else squares[::-1]
    lines = [f"{CHESS_SIZE - row} " + " ".join(squares[row]) for row in range(CHESS_SIZE)]
    return "\n".join([*lines, "  " + " ".join(string.ascii_lowercase[:CHESS_SIZE])])


def _chess_name(action: int, mover: int) -> str:
    """Return the name of a move, such as b2b3, with the piece's letter if a pawn becomes a piece other than a queen.

    pgx counts squares column by column from the mover's side. A move is a square and one of 49 combinations of
    direction and length: first nine promotions, then straight, diagonal and knight's moves.
    """
    start, plane = divmod(action, CHESS_PLANES)
    column, row = divmod(start, CHESS_SIZE)
    if plane < 9:
        along, across, piece = 1, (0, 1, -1)[plane % 3], PROMOTIONS[plane // 3]
    else:
        (along, across), piece = _CHESS_STEPS[plane - 9], ""
    end = (column + across, row + along)
    if not all(0 <= coordinate < CHESS_SIZE for coordinate in end):
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
"""Rows and columns of the moves in each of pgx's directions."""


def player_name(player: int, num_players: int) -> str:
    """Return a player's name in a game's text: X or O in games of two, else its number; player 0 moved first."""
    return "XO"[player] if num_players == PAIR else f"player {player + 1}"


def _heap(observation: np.ndarray, mover: int) -> str:
    stones = int(observation.argmax())
    return f"{player_name(mover, 3)} to move, {stones} stones: " + "o" * stones


def _bids(observation: np.ndarray, mover: int) -> str:
    count = 3
    bids, inside = observation[:-count].reshape(count, -1).argmax(-1), observation[-count:]
    lines = []
    for player in range(count):
        place = (player - mover) % count
        state = "in" if inside[place] else "out"
        turn = ", to move" if place == 0 else ""
        lines.append(f"{player_name(player, count)}: bid {bids[place]}, {state}{turn}")
    return "\n".join(lines)


def _bid_name(action: int, mover: int) -> str:
    del mover
    return f"+{action}" if action else "pass"


BOARDS = {
    "tic_tac_toe": Board("the number of a free square", _numbered_squares, _number_name),
    "connect_four": Board("the number of a column", _columns, _number_name),
    "othello": Board("a square by column and row, or pass", _grid, _square_name(8, "pass")),
    "hex": Board("a square by column and row, or at the second move swap", _rhombus, _square_name(11, "swap")),
    "go_9x9": Board("a square by column and row, or pass", _grid, _square_name(9, "pass")),
    "toy/three-nim": Board("the number of stones to take", _heap, _number_name),
    "toy/auction": Board("pass, or by how much to raise the highest bid", _bids, _bid_name),
    "gardner_chess": Board("the squares from and to, then r, b or n if not a queen", _chess, _chess_name),
}
"""Boards by the game's id."""
