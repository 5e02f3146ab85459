"""Opponents by name: random, exact and searching players.  One that cannot play a game is refused."""

from __future__ import annotations

import difflib

from bircher.envs.base import Env
from bircher.errors import UnknownOpponent, UnsuitableOpponent
from bircher.games import players
from bircher.games.players import Player

NAMES = ("random", "minimax", "maxn", "alphabeta:DEPTH", "mcts:ROLLOUTS")
GAMES = {
    "minimax": ("tic_tac_toe",), "alphabeta": ("connect_four",), "maxn": ("toy/nim", "toy/three-nim", "toy/auction"),
}  # fmt: skip
"""The games of each opponent that cannot play all."""
EXAMPLES = {"alphabeta": "alphabeta:6", "mcts": "mcts:1000"}
LIMITS = {"alphabeta": 42, "mcts": 100_000}
"""The greatest number after the colon.  For alphabeta it is the number of moves of a whole game; for mcts it is limited
by the memory of the tree."""


def is_name(text: str) -> bool:
    """Return whether a text names an opponent and not a run; its number may still be invalid."""
    return text.partition(":")[0] in _heads()


def make(name: str, env: Env) -> Player:
    """Return the opponent called `name` for the game of an environment.

    Raises:
      UnknownOpponent: no opponent has this name.
      UnsuitableOpponent: the opponent cannot play this game, or its number is out of range.
    """
    head, colon, number = name.partition(":")
    if head not in _heads():
        raise UnknownOpponent(unknown(name))
    require_game(env)
    game, stacked = env.spec.id, players.rules_of(env).spec.observation != env.spec.observation
    if head in GAMES and (game not in GAMES[head] or stacked):
        known = " and ".join(GAMES[head])
        raise UnsuitableOpponent(f"{head} plays {known} only, with single observations, not {game}")
    if head not in EXAMPLES:
        if colon:
            raise UnsuitableOpponent(f"{head} takes no number: write {head} instead of {name}")
        return players.at_random(env.spec) if head == "random" else _exact(head, env)
    value = int(number) if number.isascii() and number.isdigit() else 0
    if not 1 <= value <= LIMITS[head]:
        raise UnsuitableOpponent(
            f"{name} is not possible: expected {head} with a whole number from 1 to {LIMITS[head]:,}, such as "
            f"{EXAMPLES[head]}"
        )
    return _searching(head, value, env)


def require_game(env: Env) -> None:
    """Require a game of two or more players.

    Raises:
      UnsuitableOpponent: the environment has one player.
    """
    if env.spec.num_players == 1:
        raise UnsuitableOpponent(f"{env.spec.id} has one player, and an opponent needs a game of two")


def unknown(name: str) -> str:
    """Return the error sentence for a name that is neither an opponent nor a run."""
    near = difflib.get_close_matches(name.partition(":")[0].lower(), _heads(), n=1, cutoff=0.5)
    examples = {head: EXAMPLES.get(head, head) for head in _heads()}
    close = f"; did you mean {examples[near[0]]}?" if near else ""
    return f"unknown opponent {name!r}{close}; known: {', '.join(NAMES)}, or the folder of a run"


def _heads() -> list[str]:
    return [name.partition(":")[0] for name in NAMES]


def _exact(head: str, env: Env) -> Player:
    from bircher.games import enumeration, solvers

    return solvers.minimax_player() if head == "minimax" else enumeration.maxn_player(players.rules_of(env))


def _searching(head: str, number: int, env: Env) -> Player:
    if head == "alphabeta":
        from bircher.games import solvers

        return solvers.alphabeta_player(number)
    from bircher.games import solvers

    return solvers.mcts_player(players.rules_of(env), number)
