"""Evaluation: whole episodes, one of each environment, and their statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import environments
from bircher.agents.base import Agent
from bircher.envs import registry
from bircher.envs.config import EnvRequest
from bircher.envs.toys import make_toy
from bircher.errors import EvaluationFailed, EvaluationStopped
from bircher.training import evaluator
from bircher.training.evaluator import Evaluator, bootstrap_interval, interquartile_mean
from bircher.types import ActOutput, Policy
from tiny import BadReward, Countdown, Raises

POLICY = Policy((), ())


def dice(num_actions: int) -> Agent:
    """Draws actions evenly; greedy, it takes action 1."""

    def act(policy, carry, timestep, key, mode, progress):
        size = timestep.first.shape
        drawn = jax.random.randint(key, size, 0, num_actions)
        return ActOutput(jnp.ones(size, jnp.int32) if mode == "greedy" else drawn, {}), carry

    nothing = lambda *_: None  # noqa: E731, what evaluation never calls
    return Agent("dice", nothing, lambda batch_size: (), act, nothing, nothing, nothing, {}, False)


def maker(source, seed: int = 0, **options):
    def make(num_envs: int, batch: int):
        return environments.make(source, num_envs, seed, "eval", generation=batch, **options)

    return make


def lengths_of(seeds: list[int]) -> list[int]:
    env = Countdown()
    return [int(env.reset(seed=seed)[0][0]) for seed in seeds]


def test_every_environment_plays_one_episode_however_short() -> None:
    """Countdown's lengths are those of the seeds: counting what ends first would give shorter ones."""
    report = Evaluator(dice(2), maker(Countdown, 3))(POLICY, 40, 3)
    expected = lengths_of(registry.seeds(3, "eval", 40))
    assert report.lengths == expected and len(set(expected)) > 10
    assert report.returns == [float(length) for length in expected]
    assert report.env_steps == sum(expected) and report.episodes == 40
    assert report.mean == pytest.approx(np.mean(expected)) and report.median == np.median(expected)
    assert (report.env, report.agent, report.seed, report.mode) == ("Countdown", "dice", 3, "sample")


@pytest.mark.slow
@pytest.mark.parametrize("source", [Countdown, "toy/cliff"])
def test_many_episodes_are_played_in_batches_with_other_starts(source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "MAX_ENVS", 8)
    report = Evaluator(dice(2), maker(source))(POLICY, 20, 0)
    assert report.episodes == 20 == len(report.returns) == len(report.lengths)
    if source is Countdown:
        seeds = [seed for batch in range(3) for seed in registry.seeds(0, "eval", 7, batch)]
        assert report.lengths == lengths_of(seeds[:20]) and len(set(seeds)) == 21


def test_a_batch_is_the_same_whichever_was_played_before() -> None:
    play = Evaluator(dice(2), maker(Countdown)).play
    found = [play(POLICY, 3, batch, jax.random.key(0))[0].lengths.tolist() for batch in (1, 0, 1)]
    assert found == [lengths_of(registry.seeds(0, "eval", 3, batch)) for batch in (1, 0, 1)] and found[0] != found[1]


def test_long_episodes_go_on_beyond_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", 4)
    report = Evaluator(dice(2), maker("toy/counter", options={"length": 11}))(POLICY, 3, 0)
    assert report.lengths == [11, 11, 11]


def test_an_endless_episode_is_counted_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "MAX_EPISODE_STEPS", 8)
    monkeypatch.setattr(evaluator, "CHUNK", 4)

    class Endless(Countdown):
        def step(self, action):
            observation, reward, _, *rest = super().step(action)
            return observation, reward, False, *rest

    report = Evaluator(dice(2), maker(Endless))(POLICY, 2, 0)
    assert report.lengths == [8, 8] and report.returns == [8.0, 8.0] and report.cut_short == 2


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [4, 256])
def test_an_evaluation_s_own_limit_cuts_only_longer_episodes(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", chunk)
    whole = Evaluator(dice(2), maker(Countdown))(POLICY, 20, 0)
    limit = sorted(whole.lengths)[10]
    report = Evaluator(dice(2), maker(Countdown), max_steps=limit)(POLICY, 20, 0)
    assert report.lengths == [min(length, limit) for length in whole.lengths]
    assert report.cut_short == sum(length > limit for length in whole.lengths) > 0 == whole.cut_short


def test_greedy_takes_the_best_action_and_samples_differ_by_seed() -> None:
    """On the cliff, action 1 jumps: reward 2 and death at once."""
    assert Evaluator(dice(2), maker("toy/cliff"), "greedy")(POLICY, 4, 0).returns == [2.0] * 4
    play = Evaluator(dice(2), maker("toy/cliff"))
    first, again, other = (play(POLICY, 32, seed) for seed in (0, 0, 1))
    assert first.returns == again.returns != other.returns
    assert (first.iqm_low, first.iqm_high) == (again.iqm_low, again.iqm_high)


def test_in_games_of_two_the_returns_are_the_first_movers() -> None:
    """Nim: who takes the last wins, so that games of an odd number of moves are won by who moved first."""
    report = Evaluator(dice(2), maker("toy/nim"))(POLICY, 16, 0)
    assert {1.0, -1.0} == set(report.returns)
    taker = Evaluator(dice(2), maker("toy/nim", options={"heap": 8}), "greedy")(POLICY, 2, 0)
    assert taker.lengths == [4, 4] and taker.returns == [-1.0, -1.0]
    taker = Evaluator(dice(2), maker("toy/nim", options={"heap": 6}), "greedy")(POLICY, 2, 0)
    assert taker.lengths == [3, 3] and taker.returns == [1.0, 1.0]


@pytest.mark.parametrize(("source", "sentence"), [(BadReward, "the reward is nan"), (Raises, "the wheel came off")])
def test_a_failure_within_an_episode_is_reported(source, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Early(source):
        steps = 39

    with pytest.raises(EvaluationFailed, match=f"Early failed in an evaluation: environment 0.*{sentence}"):
        Evaluator(dice(2), maker(Early))(POLICY, 2, 0)


def test_a_failure_after_the_episode_is_ignored() -> None:
    """The 40th step comes after the first episode, which has at most 30."""
    lengths = lengths_of(registry.seeds(0, "eval", 8))
    assert Evaluator(dice(2), maker(BadReward))(POLICY, 8, 0).lengths == lengths


def test_it_stops_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", 2)
    with pytest.raises(EvaluationStopped):
        Evaluator(dice(2), maker("toy/counter"))(POLICY, 2, 0, lambda: True)
    with pytest.raises(ValueError, match="at least 1 episode"):
        Evaluator(dice(2), maker("toy/counter"))(POLICY, 0, 0)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_the_interquartile_mean_is_scipys_trimmed_mean(returns: np.ndarray) -> None:
    assert interquartile_mean(returns) == pytest.approx(scipy.stats.trim_mean(returns, 0.25), rel=1e-9, abs=1e-6)
    low, high = bootstrap_interval(returns, np.random.default_rng(0))
    assert returns.min() - 1e-6 <= low <= high <= returns.max() + 1e-6


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 200 samples of 50 normal returns, 95 % of the intervals hold the true IQM, 0, up to the bootstrap's bias."""
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(200, 50))
    intervals = [bootstrap_interval(sample, generator) for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.985


class Stuck:
    """The counter, whose mask allows nothing in environment 1 at row `at`."""

    pure = True

    def __init__(self, at: int):
        self.env, self.at = make_toy(EnvRequest.of("toy/counter"), [0, 1]), at
        self.spec, self.num_envs = self.env.spec, 2

    def masked(self, state, timestep):
        none = (jnp.arange(2) == 1) & (state.count - 1 == self.at)
        return state, timestep._replace(legal_actions=timestep.legal_actions & ~none[:, None])

    def reset(self):
        """The first rows."""
        return self.masked(*self.env.reset())

    def step(self, state, action):
        """The rows after."""
        return self.masked(*self.env.step(state, action))

    def close(self):
        """Nothing is held."""


@pytest.mark.parametrize("at", [0, 3])
def test_a_mask_without_a_legal_action_is_reported(at: int) -> None:
    sentence = "toy/counter failed in an evaluation: environment 1 gave a mask that allows no action in the middle"
    with pytest.raises(EvaluationFailed, match=sentence):
        Evaluator(dice(2), lambda size, batch: Stuck(at))(POLICY, 2, 0)


def test_a_mask_of_a_last_row_may_allow_nothing() -> None:
    assert Evaluator(dice(2), lambda size, batch: Stuck(5))(POLICY, 2, 0).lengths == [5, 5]
