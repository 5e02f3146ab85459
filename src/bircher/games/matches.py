"""Matches of many games in both seats, and ratings.

A player rated 400 points higher scores 10 points for each of the other's: the expected score is
1 / (1 + 10^(-difference / 400)) (Elo 1978; as a model of paired comparisons, Bradley and Terry 1952,
https://doi.org/10.1093/biomet/39.3-4.324).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.envs.base import Env, failure
from bircher.errors import EvaluationFailed, EvaluationStopped
from bircher.games.players import Player, at_random, states_of
from bircher.ops.turns import player_axis
from bircher.training.evaluator import RESAMPLES, MakeEnv, Mode
from bircher.training.rollout import describe_failure, failure_code
from bircher.types import Key, TimeStep

SCALE = 400 / np.log(10)
"""Rating points per unit of log odds."""


def ratings(
    scores: Float[np.ndarray, "players players"], games: Float[np.ndarray, "players players"]
) -> tuple[Float[np.ndarray, " players"], bool]:
    """Return the ratings under which the scores are most likely, and whether games were added.

    The first player's rating is 0. `scores[i, j]` is the sum of the points of i in `games[i, j]` games against j: 1 for
    a win, 1/2 for a draw. If some players never lost a point to the others, no finite ratings maximize the likelihood.
    One drawn game is then added to every pair that met.

    Raises:
      ValueError: the games do not connect every player with every other, directly or through other players.
    """
    if not _connected((games + games.T) > 0):
        raise ValueError("the games do not connect all players: some never met the others, so they cannot be rated")
    added = not _connected(scores > 0)
    if added:
        met = (games > 0).astype(float)
        scores, games = scores + met / 2, games + met
    strength = np.zeros(len(scores))
    for _ in range(1000):
        expected = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = (scores - games * expected).sum(1)
        curvature = games * expected * (1 - expected)
        hessian = np.diag(curvature.sum(1)) - curvature
        # The first player's rating is fixed; the others take a Newton step, limited so that it does not overshoot.
        step = np.linalg.solve(hessian[1:, 1:], gradient[1:])
        strength[1:] += np.clip(step, -1, 1)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return SCALE * strength, added


def _connected(edges: Bool[np.ndarray, "players players"]) -> bool:
    """Return whether there is a path along the edges from every player to every other."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges)):
        reach = reach @ reach
    return bool(reach.all())


MAX_GAMES = 128
"""Number of games played in parallel in each seat; more are played in batches."""
MAX_MOVES = 10_000
"""Number of moves after which an unfinished game counts as a draw."""


class Tally(NamedTuple):
    """The number of games that one player won, drew and lost in one seat."""

    win: int
    draw: int
    loss: int


class MatchReport(NamedTuple):
    """The results of a match from the agent's side; the first fields have the names of an evaluation's fields."""

    env: str
    agent: str
    opponent: str
    episodes: int
    seed: int
    mode: Mode
    first: Tally
    """Games in which the agent moved first."""
    second: Tally
    score: float
    """Mean over all games: 1 for a win, 1/2 for a draw, 0 for a loss."""
    score_low: float
    """Lower end of the score's 95 % bootstrap interval."""
    score_high: float
    opening_moves: int
    """Number of random moves at the start of every game."""
    env_steps: int
    """Number of moves of both sides in all games."""
    wall_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that `json.dumps` accepts."""
        return {**self._asdict(), "first": self.first._asdict(), "second": self.second._asdict()}


class _Games(NamedTuple):
    """M games in progress; a finished game does not change."""

    env_state: Any
    timestep: TimeStep
    outcome: Float[Array, " M *P"]
    """Sum of the rewards of the player who moved first; of more than two players, that of each seat."""
    length: Int[Array, " M"]
    wrong_turn: Bool[Array, " M"]
    """True if a player of two moved twice in a row."""
    failed: Int[Array, ""]
    """The first game that failed, and its cause, as a code of `rollout.failure_code`; -1 if none failed."""


class Match:
    """A match of two players; its programs are compiled once and serve later calls with the same number of games."""

    def __init__(self, agent: Player, opponent: Player, make_env: MakeEnv, mode: Mode, opening_moves: int = 0):
        self._players, self._make_env = (agent, opponent), make_env
        self.mode: Mode = mode
        self.opening_moves = opening_moves
        self._games = Games(self._players, opening_moves)

    def __call__(self, episodes: int, seed: int, stop: Callable[[], bool] = lambda: False) -> MatchReport:
        """Play `episodes` games, half of them in each seat; of an odd number, one more in the first seat.

        The same openings are played in both seats. `seed` seeds moves, openings and the interval.

        Raises:
          EvaluationFailed: a game failed, or its players do not alternate.
          EvaluationStopped: `stop` returned True after a move.
        """
        if episodes < 1:
            raise ValueError(f"a match needs at least 1 game, not {episodes}")
        start = time.perf_counter()
        per_seat = -(-episodes // 2)
        batches = -(-per_seat // MAX_GAMES)
        size = -(-per_seat // batches)
        outcomes: tuple[list, list] = ([], [])
        lengths: tuple[list, list] = ([], [])
        env = self._make_env(size, 0)
        for batch, key in enumerate(jax.random.split(jax.random.key(seed), batches)):
            env = self._make_env(size, batch) if batch else env
            for seat in (0, 1):
                games = self._games.play(env, (seat, 1 - seat), seat, key, stop)
                # In the second seat the first mover is the opponent, so the sign changes.
                outcomes[seat].append(np.asarray(games.outcome, np.float64) * (1 - 2 * seat))
                lengths[seat].append(np.asarray(games.length))
        counts = (per_seat, episodes - per_seat)
        results = [np.sign(np.concatenate(outcomes[seat]))[: counts[seat]] for seat in (0, 1)]
        steps = sum(int(np.concatenate(lengths[seat])[: counts[seat]].sum()) for seat in (0, 1))
        score, low, high = interval(np.concatenate(results), np.random.default_rng(seed))
        return MatchReport(
            env.spec.id, self._players[0].name, self._players[1].name, episodes, seed, self.mode,
            tally(results[0]), tally(results[1]), score, low, high,
            self.opening_moves, steps, round(time.perf_counter() - start, 3),
        )  # fmt: skip


class Games:
    """Games of several players, whose programs are compiled once for each number of games."""

    def __init__(self, players: Sequence[Player], opening_moves: int = 0):
        self.players, self.opening_moves = players, opening_moves
        self._programs: dict[tuple[str, int], Callable[..., Any]] = {}

    def play(self, env: Env, seating: Sequence[int], number: int, key: Key, stop: Callable[[], bool]) -> _Games:
        """Play one game in each of the environment's copies.

        Args:
          env: new games.
          seating: the index of the player in each seat; the first seat moves first.
          number: the index of the seating, for which there are different random numbers.
          key: consumed.
          stop: returns whether to stop after a move.

        Raises:
          EvaluationFailed: a game failed, or its players do not alternate.
          EvaluationStopped: `stop` returned True after a move.
        """
        size = env.num_envs
        state, timestep = env.reset()
        games = _Games(
            state, timestep, jnp.zeros((size, *player_axis(env.spec.num_players))), jnp.zeros(size, jnp.int32),
            jnp.zeros(size, bool), jnp.full((), -1, jnp.int32),
        )  # fmt: skip
        # A player in several seats has a memory in each.
        carries = [self.players[index].start(size) for index in seating]
        opening_key, key = jax.random.split(key)
        for ply in range(min(env.spec.max_steps or MAX_MOVES, MAX_MOVES)):
            if ply < self.opening_moves:
                opening = at_random(env.spec)
                turn = self._turn("opening", opening, env)
                _, games = turn((), (), games, jax.random.fold_in(opening_key, ply), ply)
            else:
                seat = ply % len(seating)
                mover = self.players[seating[seat]]
                turn = self._turn(str(seating[seat]), mover, env)
                # Each seating has a different key, so that a player against itself does not play the same game twice.
                move_key = jax.random.fold_in(jax.random.fold_in(key, ply), number)
                carries[seat], games = turn(mover.params, carries[seat], games, move_key, ply)
            if int(games.failed) >= 0:
                reason = failure(env) or describe_failure(int(games.failed), size)
                raise EvaluationFailed(f"{env.spec.id} failed in a match: {reason}")
            if bool(games.timestep.last.all()):
                break
            if stop():
                raise EvaluationStopped
        if bool(games.wrong_turn.any()):
            raise EvaluationFailed(f"{env.spec.id} is not a game of alternating turns: a player moved twice in a row")
        return games

    def _turn(self, name: str, player: Player, env: Env) -> Callable[..., Any]:
        """Return a function that makes one move in every game: (params, carry, games, key, ply) -> (carry, games)."""
        key = (name, env.num_envs)
        if key not in self._programs:
            self._programs[key] = _compiled_turn(player, env) if player.compiled else _python_turn(player, env)
        return self._programs[key]


def _compiled_turn(player: Player, env: Env) -> Callable[..., Any]:
    def turn(params: PyTree, carry: PyTree, games: _Games, key: Key, ply: Int[Array, ""] | int) -> tuple[Any, _Games]:
        states = states_of(env, games.env_state)
        action, carry = player.decide(params, carry, states, games.timestep, key)
        return carry, _advance(env, games, action, ply)

    return jax.jit(turn)


def _python_turn(player: Player, env: Env) -> Callable[..., Any]:
    """Return the function for one move of a player in Python; only the step of the environment is compiled."""
    move = jax.jit(lambda games, action, ply: _advance(env, games, action, ply))

    def turn(params: PyTree, carry: PyTree, games: _Games, key: Key, ply: int) -> tuple[Any, _Games]:
        states = states_of(env, games.env_state)
        action, carry = player.decide(params, carry, states, games.timestep, key)
        return carry, move(games, jnp.asarray(action), ply)

    return turn


def _advance(env: Env, games: _Games, action: Int[Array, " M"], ply: Int[Array, ""] | int) -> _Games:
    """Advance the games that are not over by one move; even moves are the first mover's."""
    over = games.timestep.last
    state, timestep = env.step(games.env_state, action)
    failed = failure_code((games.timestep, timestep), ~over)
    if games.outcome.ndim > 1:
        reward = jnp.roll(timestep.reward, ply, -1)  # from the view of the first seat
        wrong_turn = games.wrong_turn
    else:
        reward = jnp.where(jnp.asarray(ply) % 2 == 0, 1.0, -1.0) * timestep.reward
        wrong_turn = games.wrong_turn | ~(timestep.last | (timestep.discount == -1))
    advanced = _Games(
        state, timestep, games.outcome + reward, games.length + 1, wrong_turn, games.failed,
    )  # fmt: skip

    def pick(old: Array, new: Array) -> Array:
        return jnp.where(over.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    result = jax.tree.map(pick, games._replace(failed=()), advanced._replace(failed=()))
    return result._replace(failed=jnp.where(games.failed < 0, failed, games.failed))


def tally(results: Float[np.ndarray, " games"]) -> Tally:
    """Count the wins, draws and losses among results of 1, 0 and -1."""
    return Tally(*(int((results == result).sum()) for result in (1, 0, -1)))


def interval(
    results: Float[np.ndarray, " games"], generator: np.random.Generator, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the score of results of 1, 0 and -1, and its percentile bootstrap interval.

    If all games have the same result, the interval is a point, because all resamples are equal.
    """
    scores = (results + 1) / 2
    indices = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    outside = (1 - confidence) / 2
    low, high = np.quantile(scores[indices].mean(-1), [outside, 1 - outside])
    return float(scores.mean()), float(low), float(high)
