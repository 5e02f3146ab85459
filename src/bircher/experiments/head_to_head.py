"""Games between saved runs, and of runs against opponents and people."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs.base import Env
from bircher.errors import MoveError, UnknownOpponent, UnsuitableOpponent
from bircher.games import boards, matches, opponents
from bircher.games.matches import MAX_MOVES, Match, MatchReport
from bircher.games.players import Player, states_of
from bircher.runs import build, loaded_agent
from bircher.runs.loaded_agent import LoadedAgent
from bircher.training.evaluator import Mode

OPPONENT = "random"
"""The default opponent of a run in a game of two players."""


class Table(NamedTuple):
    """The results of matches of every player against every other."""

    env: str
    players: list[str]
    episodes: int
    """Number of games of each pair."""
    seed: int
    mode: Mode
    scores: list[list[float | None]]
    """Score of the row's player against the column's; None on the diagonal."""
    elo: list[float]
    """Ratings; the first player's is 0."""
    anchor: str
    drawn_games_added: bool
    """Whether a drawn game was added to every pair, because otherwise no finite ratings fit the scores."""
    matches: list[MatchReport]
    """Reports in which the first player of a pair is the agent."""
    wall_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the table as values that `json.dumps` accepts."""
        return {**self._asdict(), "matches": [report.to_json() for report in self.matches]}


def against(
    agent: LoadedAgent, opponent: str, episodes: int = 100, seed: int = 0, greedy: bool = False, opening_moves: int = 0
) -> MatchReport:
    """Play an agent against an opponent by name, or against the run in a folder, with half of the games in each seat.

    Raises:
      UnknownOpponent: the name is neither an opponent nor a run.
      UnsuitableOpponent: the opponent cannot play the agent's game.
      RunFolderError, CheckpointError: the other run cannot be loaded.
    """
    mode: Mode = "greedy" if greedy else "sample"
    env = _games(agent, seed)(1, 0)
    other = _player(opponent, agent, env, mode)
    return Match(agent.player(mode), other, _games(agent, seed), mode, opening_moves)(episodes, seed)


def cross_table(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = False,
    opening_moves: int = 0,
) -> Table:
    """Play every run or opponent by name against every other; the first must be a run, and its rating is 0.

    Raises:
      UnknownOpponent, UnsuitableOpponent, RunFolderError, CheckpointError: as in `against`.
    """
    start = time.perf_counter()
    if len(names) < 2:
        raise UnknownOpponent("a match needs at least two players: the folder of a run, then others or opponents")
    mode: Mode = "greedy" if greedy else "sample"
    leader = _run(names[0], overrides)
    env = _games(leader, seed)(1, 0)
    opponents.require_two_players(env)
    players = [leader.player(mode, names[0])]
    players += [_player(name, leader, env, mode, overrides) for name in names[1:]]
    size = len(players)
    points, games = np.zeros((size, size)), np.zeros((size, size))
    reports = []
    for i in range(size):
        for j in range(i + 1, size):
            report = Match(players[i], players[j], _games(leader, seed), mode, opening_moves)(episodes, seed)
            reports.append(report)
            points[i, j], points[j, i] = report.score * episodes, (1 - report.score) * episodes
            games[i, j] = games[j, i] = episodes
    elo, added = matches.ratings(points, games)
    scores = [[None if i == j else float(points[i, j] / games[i, j]) for j in range(size)] for i in range(size)]
    return Table(
        env.spec.id, list(names), episodes, seed, mode, scores, [round(float(rating), 1) for rating in elo],
        names[0], added, reports, round(time.perf_counter() - start, 3),
    )  # fmt: skip


def play(
    agent: LoadedAgent,
    person_first: bool,
    ask: Callable[[str], str],
    say: Callable[[str], None],
    seed: int = 0,
    greedy: bool = True,
) -> float:
    """Play one game of a person against an agent.

    `ask` prompts for a move and returns the typed text; `say` shows a text. Returns the person's result: 1, 0 or -1.

    Raises:
      UnsuitableOpponent: the game has no board that can be drawn as text.
    """
    env = _games(agent, seed)(1, 0)
    board = require_board(env)
    player = agent.player("greedy" if greedy else "sample")
    decide, step = jax.jit(player.decide), jax.jit(env.step)
    state, timestep = env.reset()
    carry, key, outcome = player.start(1), jax.random.key(seed), 0.0
    person = 0 if person_first else 1
    say(f"You are {'XO'[person]}. A move is {board.hint}.\n")
    for ply in range(env.spec.max_steps or MAX_MOVES):
        mover = ply % 2
        say(board.draw(np.asarray(timestep.observation[0]), mover))
        if mover == person:
            action = _ask_move(board, np.asarray(timestep.legal_actions[0]), mover, ask, say)
        else:
            chosen, carry = decide(
                player.params, carry, states_of(env, state), timestep, jax.random.fold_in(key, ply)
            )  # fmt: skip
            action = int(chosen[0])
            say(f"{agent.name}: {board.name(action, mover)}")
        state, timestep = step(state, jnp.full(1, action, jnp.int32))
        outcome += float(timestep.reward[0]) * (1 if mover == person else -1)
        if bool(timestep.last[0]):
            say(board.draw(np.asarray(timestep.observation[0]), 1 - mover))
            break
    say({1: "You win.", 0: "A draw.", -1: "You lose."}[int(np.sign(outcome))])
    return outcome


def require_board(env: Env) -> boards.Board:
    """Return the board of a game that a person can play in the terminal.

    Raises:
      UnsuitableOpponent: the game has no such board.
    """
    if env.spec.id not in boards.BOARDS:
        raise UnsuitableOpponent(
            f"{env.spec.id} has no board for the terminal; these games have one: {', '.join(boards.BOARDS)}"
        )
    return boards.board_of(env.spec.id)


def _ask_move(board: boards.Board, legal: np.ndarray, mover: int, ask: Callable[[str], str], say: Any) -> int:
    while True:
        try:
            return boards.read_move(board, ask("your move: "), legal, mover)
        except MoveError as error:
            say(str(error))


def _games(agent: LoadedAgent, seed: int) -> Callable[[int, int], Env]:
    """Return a function that makes new games like those of the agent's run, with seeds different from training's."""
    build.require_source(agent.config, agent.source)
    return lambda size, batch: build.make_env(agent.config, agent.source, size, seed, "match", generation=batch)


def _run(path: str, overrides: Sequence[str] = ()) -> LoadedAgent:
    if not opponents.is_name(path) and not Path(path).exists():
        raise UnknownOpponent(opponents.unknown(path))
    return loaded_agent.load(path, overrides=overrides)


def _player(name: str, agent: LoadedAgent, env: Env, mode: Mode, overrides: Sequence[str] = ()) -> Player:
    """Return an opponent by name, or the run in a folder, that can play the agent's game."""
    opponents.require_two_players(env)
    if opponents.is_name(name):
        return opponents.make(name, env)
    other = _run(name, overrides)
    if (other.spec.id, other.spec.action) != (agent.spec.id, agent.spec.action):
        raise UnsuitableOpponent(f"{name} plays {other.spec.id}, and its opponent {agent.spec.id}")
    if other.spec.observation != agent.spec.observation:
        raise UnsuitableOpponent(
            f"{name} learned {other.spec.id} from observations of shape {other.spec.observation.shape}, and its "
            f"opponent from {agent.spec.observation.shape}: choose two runs with the same observations"
        )
    return other.player(mode, name)
