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
from bircher.games import boards, matches, opponents, seats
from bircher.games.matches import MAX_MOVES, Match, MatchReport
from bircher.games.players import Player, states_of
from bircher.games.seats import SeatsReport
from bircher.ops.turns import PAIR
from bircher.runs import build, loaded_agent
from bircher.runs.loaded_agent import LoadedAgent
from bircher.training.evaluator import Mode

OPPONENT = "random"
"""The default opponent of a run in a game."""


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
    payoffs: list[float] | None
    """Mean payoff of each player, in games of more than two; None in games of two, where scores say the same."""
    elo: list[float]
    """Ratings; the first player's is 0."""
    anchor: str
    drawn_games_added: bool
    """Whether a drawn game was added to every pair, because otherwise no finite ratings fit the scores."""
    matches: list[MatchReport]
    """Reports in which the first player of a pair is the agent; none of more than two players."""
    wall_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the table as values that `json.dumps` accepts, without `payoffs` if that is None."""
        fields = {**self._asdict(), "matches": [report.to_json() for report in self.matches]}
        if self.payoffs is None:
            del fields["payoffs"]
        return fields


def against(
    agent: LoadedAgent, opponent: str, episodes: int = 100, seed: int = 0, greedy: bool = False, opening_moves: int = 0
) -> MatchReport | SeatsReport:
    """Play an agent against an opponent by name, or against the run in a folder, with as many games in each seat.

    In games of more than two players the opponent has all other seats.

    Raises:
      UnknownOpponent: the name is neither an opponent nor a run.
      UnsuitableOpponent: the opponent cannot play the agent's game.
      RunFolderError, CheckpointError: the other run cannot be loaded.
    """
    mode: Mode = "greedy" if greedy else "sample"
    env = _games(agent, seed)(1, 0)
    other = _player(opponent, agent, env, mode)
    if env.spec.num_players > PAIR:
        sides = [agent.player(mode), other]
        seatings = seats.one_against(env.spec.num_players - 1)
        results = seats.play(sides, seatings, _games(agent, seed), episodes, seed, opening_moves)
        return seats.report(results, sides[0].name, other.name, seed, mode, opening_moves)
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

    In games of more than two players there are games in every seating of the players, except those with one player in
    all seats. `episodes` games are played for each pair of players in all.

    Raises:
      UnknownOpponent, UnsuitableOpponent, RunFolderError, CheckpointError: as in `against`.
    """
    start = time.perf_counter()
    if len(names) < 2:
        raise UnknownOpponent("a match needs at least two players: the folder of a run, then others or opponents")
    mode: Mode = "greedy" if greedy else "sample"
    leader = _run(names[0], overrides)
    env = _games(leader, seed)(1, 0)
    opponents.require_game(env)
    players = [leader.player(mode, names[0])]
    players += [_player(name, leader, env, mode, overrides) for name in names[1:]]
    size = len(players)
    points, games = np.zeros((size, size)), np.zeros((size, size))
    reports, payoffs = [], None
    if env.spec.num_players > PAIR:
        seatings = seats.all_seatings(size, env.spec.num_players)
        count = max(episodes * size * (size - 1) // 2, len(seatings))
        results = seats.play(players, seatings, _games(leader, seed), count, seed, opening_moves)
        points, games, payoffs = seats.standing(results, size)
        return _table(env, names, episodes, seed, mode, points, games, payoffs, [], start)
    for i in range(size):
        for j in range(i + 1, size):
            report = Match(players[i], players[j], _games(leader, seed), mode, opening_moves)(episodes, seed)
            reports.append(report)
            points[i, j], points[j, i] = report.score * episodes, (1 - report.score) * episodes
            games[i, j] = games[j, i] = episodes
    return _table(env, names, episodes, seed, mode, points, games, payoffs, reports, start)


def _table(env, names, episodes, seed, mode, points, games, payoffs, reports, start) -> Table:
    """Return the table of points in games between pairs of players, with ratings."""
    elo, added = matches.ratings(points, games)
    size = len(names)
    scores = [[None if i == j else float(points[i, j] / games[i, j]) for j in range(size)] for i in range(size)]
    return Table(
        env.spec.id, list(names), episodes, seed, mode, scores, payoffs, [round(float(rating), 1) for rating in elo],
        names[0], added, reports, round(time.perf_counter() - start, 3),
    )  # fmt: skip


def play(
    agent: LoadedAgent,
    seat: int,
    ask: Callable[[str], str],
    say: Callable[[str], None],
    seed: int = 0,
    greedy: bool = True,
) -> float:
    """Play one game of a person against an agent, which has all other seats.

    `seat` is the person's; seat 0 moves first. `ask` prompts for a move and returns the typed text; `say` shows a text.
    Returns the person's result: 1, 0 or -1 in games of two, else the payoff.

    Raises:
      UnsuitableOpponent: the game has no board that can be drawn as text, or has not so many seats.
    """
    env = _games(agent, seed)(1, 0)
    count = env.spec.num_players
    board = require_board(env)
    player = agent.player("greedy" if greedy else "sample")
    decide, step = jax.jit(player.decide), jax.jit(env.step)
    state, timestep = env.reset()
    if not 0 <= seat < count:
        raise UnsuitableOpponent(f"{env.spec.id} has {count} seats: expected --seat from 1 to {count}, not {seat + 1}")
    carries, key, outcome = [player.start(1) for _ in range(count)], jax.random.key(seed), np.zeros(count)
    say(f"You are {boards.player_name(seat, count)}. A move is {board.hint}.\n")
    for ply in range(env.spec.max_steps or MAX_MOVES):
        mover = ply % count
        say(board.draw(np.asarray(timestep.observation[0]), mover))
        if mover == seat:
            action = _ask_move(board, np.asarray(timestep.legal_actions[0]), mover, ask, say)
        else:
            chosen, carries[mover] = decide(
                player.params, carries[mover], states_of(env, state), timestep, jax.random.fold_in(key, ply)
            )  # fmt: skip
            action = int(chosen[0])
            name = agent.name if count == PAIR else f"{agent.name} ({boards.player_name(mover, count)})"
            say(f"{name}: {board.name(action, mover)}")
        state, timestep = step(state, jnp.full(1, action, jnp.int32))
        reward = np.asarray(timestep.reward[0], float)
        outcome += np.roll([reward, -reward] if count == PAIR else reward, mover)
        if bool(timestep.last[0]):
            say(board.draw(np.asarray(timestep.observation[0]), (mover + 1) % count))
            break
    if count == PAIR:
        say({1: "You win.", 0: "A draw.", -1: "You lose."}[int(np.sign(outcome[seat]))])
    else:
        say("Payoffs: " + ", ".join(f"{boards.player_name(i, count)} {x:g}" for i, x in enumerate(outcome.round(4))))
    return float(outcome[seat])


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
    opponents.require_game(env)
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
