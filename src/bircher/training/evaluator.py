"""Evaluation: whole episodes in environments that training never saw, and their statistics.

Statistics as in rliable: "Deep Reinforcement Learning at the Edge of the Statistical Precipice" by Agarwal et al. 2021
(https://arxiv.org/abs/2108.13264).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import BaseModel, ConfigDict, Field

from bircher.agents.base import Agent
from bircher.envs import atari
from bircher.envs.base import Env, failure
from bircher.errors import EnvironmentFailure, EvaluationFailed, EvaluationStopped
from bircher.training.rollout import counted_reward, describe_failure, failure_code, first_side, next_side
from bircher.types import Key, Policy, TimeStep

Mode = Literal["sample", "greedy"]
MakeEnv = Callable[[int, int], Env]
"""(number of environments, which batch of them) -> fresh environments, seeded apart from every other batch."""

MAX_ENVS = 128
"""Episodes played side by side; more are played in batches."""
MAX_EPISODE_STEPS = 108_000
"""Where an environment has no limit of its own, an episode is counted as it stands after this many actions."""
CHUNK = 256
"""Steps that one call of the program plays at most; between calls Python can stop it."""
RESAMPLES = 2000
"""Bootstrap resamples of the 95 % interval."""


class EvaluationConfig(BaseModel):
    """Evaluations during training, apart from the training returns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(10, ge=0, le=100_000)
    """Evaluations, spread evenly over the steps, the last at the end; 0 makes none."""
    episodes: int = Field(16, ge=1)
    """Episodes of each."""
    max_steps: int | None = Field(None, ge=1)
    """An episode counts as it stands after so many actions; null leaves it to the environment, and where that has no
    limit, evaluations together take as many as the training, or 1,000 an episode where that is more."""
    mode: Mode = "sample"
    """Whether actions are drawn from the policy or are its most probable ones."""
    diagnose: bool = True
    """Whether each also holds the agent's model against sequences of the replay."""
    gradients: bool = True
    """Whether each also measures what every loss term asks of every part of the network."""


class Report(NamedTuple):
    """What an evaluation found; returns are undiscounted sums of rewards, lengths count actions.

    In games of two the agent plays both sides, and returns are those of who moves first: `bircher.games` measures it
    against others.
    """

    env: str
    agent: str
    episodes: int
    seed: int
    mode: Mode
    mean: float
    median: float
    iqm: float
    """Mean of the middle half of the returns."""
    iqm_low: float
    """Lower end of the IQM's 95 % bootstrap interval."""
    iqm_high: float
    returns: list[float]
    lengths: list[int]
    env_steps: int
    """Actions taken, over all episodes."""
    cut_short: int
    """Episodes that were not over at the evaluation's own limit, and count as they stood there."""
    wall_seconds: float
    human_normalized: dict[str, float] | None = None
    """Mean, median and IQM with a random player's score as 0 and a human's as 1; None where no human's is known."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; without `human_normalized` where there is none."""
        known = self._asdict()
        if self.human_normalized is None:
            del known["human_normalized"]
        return known


class _Episodes(NamedTuple):
    """B episodes under way; what comes after an environment's first episode is not counted."""

    env_state: Any
    timestep: TimeStep
    carry: PyTree
    key: Key
    episode_return: Float[Array, " B"]
    length: Int[Array, " B"]
    done: Bool[Array, " B"]
    cut_short: Bool[Array, " B"]
    """Done by the evaluation's limit, not by the environment."""
    failed: Int[Array, ""]
    """The first environment that failed, and its cause, as `actor.failure_code` has it; -1 where none did."""
    side: Float[Array, " B"] | None
    """Whose turn it is, in games of two."""


class Evaluator:
    """Plays episodes of an agent; its program is compiled once, for every later call of as many episodes."""

    def __init__(self, agent: Agent, make_env: MakeEnv, mode: Mode = "sample", max_steps: int | None = None):
        self._agent, self._make_env, self._max_steps = agent, make_env, max_steps
        self.mode: Mode = mode
        self._programs: dict[int, tuple[Env, Callable[[Policy, _Episodes], _Episodes]]] = {}

    def __call__(self, policy: Policy, episodes: int, seed: int, stop: Callable[[], bool] = lambda: False) -> Report:
        """Play `episodes` episodes; `seed` seeds the actions and the interval.

        One environment plays exactly one episode, so that short episodes are not counted more often than long ones.

        Raises:
          EvaluationFailed: an environment failed; the message says which.
          EvaluationStopped: `stop` said so.
        """
        if episodes < 1:
            raise ValueError(f"an evaluation needs at least 1 episode, not {episodes}")
        began = time.perf_counter()
        batches = -(-episodes // MAX_ENVS)
        size = -(-episodes // batches)
        returns, lengths, cut_short = [], [], []
        for batch, key in enumerate(jax.random.split(jax.random.key(seed), batches)):
            played, env_id = self._play(policy, size, batch, key, stop)
            returns.append(np.asarray(played.episode_return, np.float64))
            lengths.append(np.asarray(played.length))
            cut_short.append(np.asarray(played.cut_short))
        all_returns, all_lengths, all_cut_short = (
            np.concatenate(column)[:episodes] for column in (returns, lengths, cut_short)
        )
        wall = time.perf_counter() - began
        return summarize(env_id, self._agent.name, seed, self.mode, all_returns, all_lengths, all_cut_short, wall)

    def close(self) -> None:
        """Close the environments that are kept for the next call."""
        for env, _ in self._programs.values():
            env.close()
        self._programs = {}

    def _play(self, policy, size, batch, key, stop) -> tuple[_Episodes, str]:
        env, program = self._program(size)
        fresh = self._make_env(size, batch) if batch else env
        if fresh is not env and not env.pure:
            env, program = fresh, self._compiled(fresh)
        try:
            return self._played(policy, fresh, program, size, key, stop), env.spec.id
        finally:
            if fresh is not self._programs[size][0]:
                fresh.close()

    def _played(self, policy, env, program, size, key, stop) -> _Episodes:
        try:
            state, timestep = env.reset()
        except EnvironmentFailure as error:
            raise EvaluationFailed(f"{env.spec.id} failed in an evaluation: {error}") from error
        zeros, none = jnp.zeros(size), jnp.zeros(size, bool)
        episodes = _Episodes(
            state, timestep, self._agent.start(size), key, zeros, zeros.astype(jnp.int32), none, none,
            jnp.full((), -1, jnp.int32), first_side(env),
        )  # fmt: skip
        while True:
            episodes = program(policy, episodes)
            if int(episodes.failed) >= 0:
                told = failure(env) or describe_failure(int(episodes.failed), size)
                raise EvaluationFailed(f"{env.spec.id} failed in an evaluation: {told}")
            if bool(episodes.done.all()):
                return episodes
            if stop():
                raise EvaluationStopped

    def _program(self, size: int) -> tuple[Env, Callable[[Policy, _Episodes], _Episodes]]:
        if size not in self._programs:
            env = self._make_env(size, 0)
            self._programs[size] = env, self._compiled(env)
        return self._programs[size]

    def _compiled(self, env: Env) -> Callable[[Policy, _Episodes], _Episodes]:
        # An environment's own limit should end its episodes: ours lies behind it.
        own = env.spec.max_steps
        limit = self._max_steps or (own + CHUNK if own else MAX_EPISODE_STEPS)
        return _program(self._agent, env, self.mode, limit)


def _program(agent: Agent, env: Env, mode: Mode, limit: int) -> Callable[[Policy, _Episodes], _Episodes]:
    """A compiled program that plays on until every episode is over or `limit` long, for at most `CHUNK` steps."""

    def step(policy: Policy, now: _Episodes) -> _Episodes:
        key, act_key = jax.random.split(now.key)
        output, carry = agent.act(policy, now.carry, now.timestep, act_key, mode, 1.0)
        state, row = env.step(now.env_state, output.action)
        counts = ~now.done
        # What an environment does after its episode, also going wrong, is no part of the evaluation.
        failed = failure_code((now.timestep, row), counts)
        length = now.length + counts
        cut_short = counts & ~row.last & (length >= limit)
        return _Episodes(
            state, row, carry, key,
            now.episode_return + jnp.where(counts, counted_reward(now.side, row), 0.0),
            length,
            now.done | row.last | cut_short,
            now.cut_short | cut_short,
            jnp.where(now.failed < 0, failed, now.failed),
            next_side(now.side, row),
        )  # fmt: skip

    def play(policy: Policy, now: _Episodes) -> _Episodes:
        def going(carry):
            count, now = carry
            return (count < CHUNK) & ~now.done.all() & (now.failed < 0)

        return jax.lax.while_loop(going, lambda carry: (carry[0] + 1, step(policy, carry[1])), (0, now))[1]

    return jax.jit(play)


def summarize(
    env: str, agent: str, seed: int, mode: Mode,
    returns: np.ndarray, lengths: np.ndarray, cut_short: np.ndarray, wall_seconds: float,
) -> Report:  # fmt: skip
    """The report of episodes with these returns and lengths, and of which were cut short, [episodes] each."""
    low, high = bootstrap_interval(returns, np.random.default_rng(seed))
    middle = {
        "mean": float(np.mean(returns)), "median": float(np.median(returns)), "iqm": float(interquartile_mean(returns)),
    }  # fmt: skip
    normalized = {name: atari.human_normalized(env, value) for name, value in middle.items()}
    return Report(
        env=env,
        agent=agent,
        episodes=len(returns),
        seed=seed,
        mode=mode,
        **middle,
        iqm_low=low,
        iqm_high=high,
        returns=[float(value) for value in returns],
        lengths=[int(length) for length in lengths],
        env_steps=int(np.sum(lengths)),
        cut_short=int(np.sum(cut_short)),
        wall_seconds=round(wall_seconds, 3),
        human_normalized={name: value for name, value in normalized.items() if value is not None} or None,
    )


def interquartile_mean(returns: Float[np.ndarray, "*batch episodes"]) -> Float[np.ndarray, "*batch"]:
    """Mean without the lowest and the highest quarter, each rounded down (`scipy.stats.trim_mean(x, 0.25)`)."""
    cut = returns.shape[-1] // 4
    return np.asarray(np.sort(returns, axis=-1)[..., cut : returns.shape[-1] - cut].mean(-1))


def bootstrap_interval(
    returns: Float[np.ndarray, " episodes"], generator: np.random.Generator, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of the IQM; one environment is the only stratum."""
    drawn = generator.integers(len(returns), size=(RESAMPLES, len(returns)))
    outside = (1 - confidence) / 2
    low, high = np.quantile(interquartile_mean(returns[drawn]), [outside, 1 - outside])
    return float(low), float(high)
