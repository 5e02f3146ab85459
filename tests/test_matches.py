"""Matches: seats, counts, intervals and ratings against what is known."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.envs.jax_env import PureEnv, Single
from bircher.errors import EvaluationFailed, EvaluationStopped
from bircher.games import matches, opponents
from bircher.games.matches import Match, Tally, interval
from bircher.games.players import Player, no_memory, of_agent
from bircher.types import Discrete, EnvSpec, Policy
from builders import muesli_agent, random_model


def maker(game: str, **options):
    return lambda size, batch: environments.make(game, size, 0, "match", generation=batch, **options)


def by_rule(rule: Callable) -> Player:
    """Plays by a function of the row."""
    decide = lambda params, carry, states, timestep, key: (rule(timestep).astype(jnp.int32), carry)  # noqa: E731
    return Player("rule", (), no_memory, decide)


PERFECT = by_rule(lambda row: jnp.maximum(row.observation.argmax(-1) % 3, 1) - 1)
"""Nim as it is to be played: leave a multiple of 3, or take one."""
ONE = by_rule(lambda row: jnp.zeros(row.first.shape))
LOWEST = by_rule(lambda row: row.legal_actions.argmax(-1))
HIGHEST = by_rule(lambda row: row.legal_actions.shape[-1] - 1 - row.legal_actions[:, ::-1].argmax(-1))


def nim(agent: Player, opponent: Player, heap: int, episodes: int, **settings):
    return Match(agent, opponent, maker("toy/nim", options={"heap": heap}), "greedy", **settings)(episodes, 0)


def test_each_seat_is_counted_by_itself() -> None:
    """A heap of 7 is won by who moves first and plays it right; taking one at a time it is won by the first too."""
    report = nim(PERFECT, PERFECT, 7, 10)
    assert (report.first, report.second) == (Tally(5, 0, 0), Tally(0, 0, 5))
    assert (report.score, report.env_steps) == (0.5, 10 * 5)
    # The perfect player, second, lets its opponent take one, then leaves 6, 3 and nothing.
    report = nim(PERFECT, ONE, 7, 7)
    assert (report.first, report.second) == (Tally(4, 0, 0), Tally(3, 0, 0)), "an odd game is one more as the first"
    assert (report.score, report.score_low, report.score_high) == (1, 1, 1)
    report = nim(ONE, PERFECT, 6, 4)
    assert (report.first, report.second) == (Tally(0, 0, 2), Tally(0, 0, 2))
    assert report.score == 0 and (report.env, report.opponent, report.mode) == ("toy/nim", "rule", "greedy")
    assert nim(ONE, ONE, 4, 1)[6:8] == (Tally(0, 0, 1), Tally(0, 0, 0))


def test_many_games_are_played_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    env = environments.make("toy/nim", 1, 0)
    monkeypatch.setattr(matches, "MAX_GAMES", 4)
    report = nim(opponents.make("random", env), PERFECT, 7, 19)
    assert sum(report.first) == 10 and sum(report.second) == 9
    assert report.second.win == 0, "the perfect player moves first and wins"


@pytest.mark.slow
def test_an_exact_player_against_chance_and_against_itself() -> None:
    make = maker("tic_tac_toe")
    exact, chance = (opponents.make(name, make(1, 0)) for name in ("minimax", "random"))
    play = Match(exact, chance, make, "sample")
    report, again, other = play(40, 0), play(40, 0), play(40, 1)
    assert report.first.loss == report.second.loss == 0 and report.score > 0.8
    assert report[:-1] == again[:-1] and report[5:] != other[5:]
    assert 0.8 < report.score_low <= report.score <= report.score_high <= 1
    drawn = Match(exact, exact, make, "sample")(20, 0)
    assert drawn.first == drawn.second == Tally(0, 10, 0) and drawn.env_steps == 20 * 9
    assert (drawn.score, drawn.score_low, drawn.score_high) == (0.5, 0.5, 0.5)


def test_a_player_in_python_plays_too() -> None:
    make = maker("connect_four")
    searching, chance = (opponents.make(name, make(1, 0)) for name in ("alphabeta:2", "random"))
    report = Match(chance, searching, make, "sample")(12, 3)
    assert report.first.win + report.second.win <= 1 and report.agent == "random" and report.opponent == "alphabeta:2"
    assert report == Match(chance, searching, make, "sample")(12, 3)._replace(wall_seconds=report.wall_seconds)


def test_an_agent_sees_legal_actions_and_its_mode() -> None:
    """Of a heap of 2 it draws whether to take one or both; where its opponent leaves one, only one can be taken."""
    agent, spec = muesli_agent(), environments.spec("toy/nim", options={"heap": 2})
    policy = Policy(random_model(1, spec=spec), agent.init(jax.random.key(0), spec).state)
    drawn = nim(of_agent(agent, policy, "explore"), ONE, 2, 64)
    assert 0 < drawn.first.win < 32 and drawn.second == Tally(32, 0, 0)
    greedy = nim(of_agent(agent, policy, "greedy", "mine"), ONE, 2, 8)
    assert greedy.first.win in (0, 4) and greedy.second == Tally(4, 0, 0) and greedy.agent == "mine"


def test_openings_make_games_differ_and_are_the_same_in_both_seats() -> None:
    """Deterministic players repeat one game; with an opening they do not, and what one wins the other loses."""
    make = maker("connect_four")
    alike = Match(LOWEST, HIGHEST, make, "greedy")(16, 0)
    assert sum(count > 0 for count in alike.first) == 1 and alike.opening_moves == 0
    mirrored = Match(LOWEST, LOWEST, make, "greedy", opening_moves=4)(64, 0)
    assert sum(count > 0 for count in mirrored.first) > 1
    assert mirrored.first == Tally(*mirrored.second[::-1])


def test_games_without_an_end_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Match(ONE, ONE, maker("toy/nim", max_steps=3), "greedy")(4, 0)
    assert report.first == report.second == Tally(0, 2, 0) and report.env_steps == 12
    monkeypatch.setattr(matches, "MAX_MOVES", 2)
    assert nim(ONE, ONE, 7, 4).env_steps == 8


def test_it_stops_when_asked_and_refuses_no_games() -> None:
    match = Match(ONE, ONE, maker("toy/nim"), "greedy")
    with pytest.raises(EvaluationStopped):
        match(4, 0, lambda: True)
    with pytest.raises(ValueError, match="at least 1 game"):
        match(0, 0)


def test_turns_that_do_not_alternate_are_refused() -> None:
    spec = EnvSpec("test/twice", jnp.zeros(1), Discrete(2), None, num_players=2)

    def move(key, time, action):
        return time + 1, jnp.zeros(1), 0.0, time == 5, False

    def make(size, batch):
        start = lambda key, index: (0, jnp.zeros(1))  # noqa: E731
        return PureEnv(Single(spec, start, move, None, lambda time: time // 2 % 2), range(size))

    with pytest.raises(EvaluationFailed, match="test/twice is not a game of alternating turns"):
        Match(ONE, ONE, make, "greedy")(2, 0)


@pytest.mark.parametrize(
    ("legal", "reward", "reason"),
    [
        (lambda state: jnp.full(2, state[0] < 3 * (1 + state[1])), 0.0, "gave a mask that allows no action in the mid"),
        (lambda state: jnp.ones(2, bool), jnp.nan, "gave a reward or observation that is not finite"),
    ],
)
def test_a_game_that_breaks_its_contract_ends_the_match(legal, reward, reason) -> None:
    """Game 1 of two is over before its mask allows nothing; game 0 is not, and has a bad reward at its third move."""
    spec = EnvSpec("test/stuck", jnp.zeros(1), Discrete(2), None, num_players=2)

    def move(key, state, action):
        time, index = state
        bad = (time == 2) & (index == 0)
        return (time + 1, index), jnp.zeros(1), jnp.where(bad, reward, 0.0), time == 4, False

    def make(size, batch):
        start = lambda key, index: ((0, index), jnp.zeros(1))  # noqa: E731
        return PureEnv(Single(spec, start, move, legal, lambda state: state[0] % 2), range(size))

    with pytest.raises(EvaluationFailed, match=f"test/stuck failed in a match: environment 0 {reason}"):
        Match(ONE, ONE, make, "greedy")(4, 0)


def test_the_interval_of_a_score() -> None:
    results = np.repeat([1.0, 0.0, -1.0], [60, 20, 20])
    score, low, high = interval(results, np.random.default_rng(0))
    assert score == 0.7
    deviation = np.std((results + 1) / 2) / np.sqrt(100)
    assert low == pytest.approx(0.7 - 1.96 * deviation, abs=0.02)
    assert high == pytest.approx(0.7 + 1.96 * deviation, abs=0.02)


def table(*scores: tuple[int, int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Points and games from (one, other, the one's points, games)."""
    size = max(max(one, other) for one, other, *_ in scores) + 1
    points, games = np.zeros((size, size)), np.zeros((size, size))
    for one, other, got, count in scores:
        points[one, other], points[other, one] = got, count - got
        games[one, other] = games[other, one] = count
    return points, games


def test_ratings_of_two_players_by_hand() -> None:
    """Three points of four are odds of 3: 400 log10 3 = 190.85 points."""
    ratings, added = matches.ratings(*table((0, 1, 25, 100)))
    np.testing.assert_allclose(ratings, [0, 190.848501887], atol=1e-6)
    assert not added
    np.testing.assert_allclose(matches.ratings(*table((0, 1, 50, 100)))[0], 0, atol=1e-9)


def test_ratings_of_three_players() -> None:
    """Scores that ratings of 0, 100 and -200 lead to give those back; where scores disagree, sums still agree."""
    truth = np.array([0.0, 100.0, -200.0])
    expected = 1 / (1 + 10 ** ((truth[None] - truth[:, None]) / 400))
    pairs = [(i, j, 80 * expected[i, j], 80) for i in range(3) for j in range(i)]
    np.testing.assert_allclose(matches.ratings(*table(*pairs))[0], truth, atol=1e-6)
    points, games = table((0, 1, 30, 40), (1, 2, 30, 40), (2, 0, 25, 40))
    ratings, _ = matches.ratings(points, games)
    fitted = games / (1 + 10 ** ((ratings[None] - ratings[:, None]) / 400))
    np.testing.assert_allclose(fitted.sum(1), points.sum(1), atol=1e-6)


def test_where_somebody_never_lost_a_drawn_game_is_added_to_every_pair() -> None:
    """Ten of ten become 10.5 of 11: 400 log10 21."""
    ratings, added = matches.ratings(*table((0, 1, 0, 10)))
    assert added
    np.testing.assert_allclose(ratings, [0, 400 * np.log10(21)], atol=1e-6)


def test_players_that_do_not_hang_together_have_no_ratings() -> None:
    with pytest.raises(ValueError, match="do not connect all players"):
        matches.ratings(*table((0, 1, 5, 10), (2, 3, 5, 10)))
