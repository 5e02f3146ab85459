"""Matches at tables of more than two seats.

A player's score is the mean over its games and the players in the other seats: 1 where its payoff is greater than the
other's, 1/2 where both are equal, and 0 where it is less.  So players of equal strength score 1/2 over all seats, and
the Elo ratings of games of two apply to the pairs.  The mean payoffs are what the players maximize.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bircher.games.matches import MAX_GAMES, Games, interval
from bircher.games.players import Player
from bircher.training.evaluator import MakeEnv, Mode

Seating = tuple[int, ...]
"""The index of the player in each seat."""


class Seat(NamedTuple):
    """The games of the agent in one seat."""

    games: int
    mean_payoff: float
    score: float
    """Against the players in the other seats."""


class SeatsReport(NamedTuple):
    """The results of an agent with one opponent in all other seats; its fields have the names of a `MatchReport`'s."""

    env: str
    agent: str
    opponent: str
    episodes: int
    seed: int
    mode: Mode
    seats: list[Seat]
    """The results of the agent in each seat; the first one moves first."""
    mean_payoff: float
    """The agent's mean over all seats."""
    opponent_payoff: float
    """The mean of the opponent over the seats that it had in these games."""
    score: float
    """Share of the other players whose payoff was less than the agent's; equal ones count half."""
    score_low: float
    """Lower end of the score's 95 % bootstrap interval."""
    score_high: float
    opening_moves: int
    env_steps: int
    wall_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that `json.dumps` accepts."""
        return {**self._asdict(), "seats": [seat._asdict() for seat in self.seats]}


class Results(NamedTuple):
    """The games of some seatings."""

    seatings: list[Seating]
    """[games]"""
    payoffs: Float[np.ndarray, "games seats"]
    env: str
    env_steps: int
    wall_seconds: float


def one_against(opponents: int) -> list[Seating]:
    """Return the seatings of player 0 against so many copies of player 1, in each seat once."""
    return [tuple(0 if seat == own else 1 for seat in range(opponents + 1)) for own in range(opponents + 1)]


def all_seatings(players: int, seats: int) -> list[Seating]:
    """Return every seating of players, who may have several seats, except those with a single player in all seats."""
    return [seating for seating in itertools.product(range(players), repeat=seats) if len(set(seating)) > 1]


def play(
    players: Sequence[Player], seatings: Sequence[Seating], make_env: MakeEnv, episodes: int, seed: int,
    opening_moves: int = 0, stop: Callable[[], bool] = lambda: False,
) -> Results:  # fmt: skip
    """Play `episodes` games, the same number in each seating; the first seatings may have one more.

    Raises:
      EvaluationFailed: a game failed.
      EvaluationStopped: `stop` returned True after a move.
    """
    if episodes < 1:
        raise ValueError(f"a match needs at least 1 game, not {episodes}")
    start = time.perf_counter()
    per_seating = -(-episodes // len(seatings))
    batches = -(-per_seating // MAX_GAMES)
    size = -(-per_seating // batches)
    games = Games(players, opening_moves)
    payoffs: list[list[np.ndarray]] = [[] for _ in seatings]
    lengths: list[list[np.ndarray]] = [[] for _ in seatings]
    env = make_env(size, 0)
    for batch, key in enumerate(jax.random.split(jax.random.key(seed), batches)):
        env = make_env(size, batch) if batch else env
        for number, seating in enumerate(seatings):
            played = games.play(env, seating, number, key, stop)
            payoffs[number].append(np.asarray(played.outcome, np.float64))
            lengths[number].append(np.asarray(played.length))
    whole, more = divmod(episodes, len(seatings))
    counts = [whole + (number < more) for number in range(len(seatings))]
    kept = [np.concatenate(found)[:count] for found, count in zip(payoffs, counts, strict=True)]
    steps = sum(int(np.concatenate(found)[:count].sum()) for found, count in zip(lengths, counts, strict=True))
    names = [seating for seating, count in zip(seatings, counts, strict=True) for _ in range(count)]
    return Results(names, np.concatenate(kept), env.spec.id, steps, round(time.perf_counter() - start, 3))


def comparisons(payoffs: Float[np.ndarray, "games seats"]) -> Float[np.ndarray, "games seats seats"]:
    """Return 1 where the payoff of the first seat is greater than that of the second, 1/2 where they are equal, and 0
    where it is less."""
    return (np.sign(payoffs[:, :, None] - payoffs[:, None, :]) + 1) / 2


def report(results: Results, agent: str, opponent: str, seed: int, mode: Mode, opening_moves: int) -> SeatsReport:
    """Return the report of games in which player 0 had one seat each, and player 1 all others."""
    places = np.array([seating.index(0) for seating in results.seatings])
    rows, count = np.arange(len(places)), results.payoffs.shape[1]
    own = results.payoffs[rows, places]
    others = np.arange(count) != places[:, None]
    scores = comparisons(results.payoffs)[rows, places][others].reshape(len(rows), -1).mean(-1)
    seats = [
        Seat(int(here.sum()), *(float(x[here].mean()) if here.any() else 0.0 for x in (own, scores)))
        for here in (places == seat for seat in range(count))
    ]
    score, low, high = interval(2 * scores - 1, np.random.default_rng(seed))
    return SeatsReport(
        results.env, agent, opponent, len(places), seed, mode, seats, float(own.mean()),
        float(results.payoffs[others].mean()), score, low, high, opening_moves, results.env_steps,
        results.wall_seconds,
    )  # fmt: skip


class Standing(NamedTuple):
    """The results of all players of a table against each other."""

    points: Float[np.ndarray, "players players"]
    """Sum of the row's scores against the column."""
    games: Float[np.ndarray, "players players"]
    """Number of pairs of seats with the two players."""
    payoffs: list[float]
    """Mean payoff of each player over the seats that it had."""


def standing(results: Results, players: int) -> Standing:
    """Compare the players in all pairs of seats of all games."""
    seated, compared = np.array(results.seatings), comparisons(results.payoffs)
    points, games = np.zeros((players, players)), np.zeros((players, players))
    for one in range(players):
        for other in range(players):
            pairs = (seated[:, :, None] == one) & (seated[:, None, :] == other)
            if one != other:
                points[one, other], games[one, other] = compared[pairs].sum(), pairs.sum()
    return Standing(points, games, [float(results.payoffs[seated == one].mean()) for one in range(players)])
