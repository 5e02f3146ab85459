"""Evaluation: whole episodes in environments that training never saw, and their statistics.

Statistics as in rliable: "Deep Reinforcement Learning at the Edge of the Statistical Precipice" by Agarwal et al. 2021
(https://arxiv.org/abs/2108.13264).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import BaseModel, ConfigDict, Field

from bircher.agents.base import Agent
from bircher.envs import atari
from bircher.envs.agents import by_agent, moment_of, to_rows
from bircher.envs.base import Env, failure, num_rows
from bircher.errors import EnvironmentFailure, EvaluationFailed, EvaluationStopped
from bircher.training.rollout import Side, counted_reward, describe_failure, failure_code, first_side, next_side
from bircher.types import EnvSpec, Key, Policy, TimeStep

Mode = Literal["sample", "greedy"]
MakeEnv = Callable[[int, int], Env]
"""(number of environments, index of the batch) -> new environments, whose seeds differ from those of other batches."""

MAX_ENVS = 128
"""The number of episodes that are played in parallel; more are played in batches."""
MAX_EPISODE_STEPS = 108_000
"""The number of actions after which an episode is cut short, if its environment has no limit."""
CHUNK = 256
"""The largest number of steps in one call of the compiled program; an evaluation can be stopped between calls."""
RESAMPLES = 2000
"""The number of bootstrap resamples for the 95 % interval."""


class EvaluationConfig(BaseModel):
    """Evaluations during training, in separate environments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(10, ge=0, le=100_000)
    """The number of evaluations, spread evenly over the run's steps, with the last one at the end; 0 turns them off."""
    episodes: int = Field(16, ge=1)
    """The number of episodes of each evaluation."""
    max_steps: int | None = Field(None, ge=1)
    """The number of actions after which an episode is cut short and counts with its return so far. Null takes the
    environment's limit. If it has none, all evaluations together take at most as many steps as the training, or 1,000
    an episode where that is more."""
    mode: Mode = "sample"
    """`sample` draws actions from the policy, `greedy` takes the best ones."""
    diagnose: bool = True
    """Whether each evaluation also compares the predictions of the agent's model with sequences of the replay."""
    gradients: bool = True
    """Whether each evaluation also measures the gradient of every loss term in every part of the network."""


class AgentReport(NamedTuple):
    """The returns of one of several agents."""

    mean: float
    median: float
    iqm: float
    iqm_low: float
    """The lower end of the 95 % bootstrap interval of the IQM."""
    iqm_high: float
    """The upper end of the interval."""
    returns: list[float]

    @classmethod
    def of(cls, returns: np.ndarray, seed: int) -> AgentReport:
        """Return the statistics of the returns of an agent in some episodes."""
        interval = bootstrap_interval(returns, np.random.default_rng(seed))
        middle = float(np.mean(returns)), float(np.median(returns)), float(interquartile_mean(returns))
        return cls(*middle, *interval, [float(value) for value in returns])


class Report(NamedTuple):
    """The result of an evaluation; returns are undiscounted sums of rewards, and lengths are numbers of actions.

    Several agents are one team: its return is the sum of theirs, and `agents` has the returns of each.  In games the
    agent plays all sides, and returns are those of the player who moves first.  `bircher.games`
    measures the agent against opponents.
    """

    env: str
    agent: str
    episodes: int
    seed: int
    mode: Mode
    mean: float
    median: float
    iqm: float
    """The interquartile mean (IQM), which is the mean of the middle half of the returns."""
    iqm_low: float
    """The lower end of the 95 % bootstrap interval of the IQM."""
    iqm_high: float
    """The upper end of the interval."""
    returns: list[float]
    lengths: list[int]
    env_steps: int
    """The number of actions in all episodes."""
    cut_short: int
    """The number of episodes that were not over at the limit of the evaluation, and count with their return so far."""
    wall_seconds: float
    human_normalized: dict[str, float] | None = None
    """The mean, median and IQM on a scale where a random player has 0 and a human 1; None if no human score is
    known."""
    agents: dict[str, AgentReport] | None = None
    """The returns of each agent by its name; None where every environment has one agent."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON, without `human_normalized` and `agents` if they are None."""
        fields = self._asdict()
        if self.human_normalized is None:
            del fields["human_normalized"]
        if self.agents is None:
            del fields["agents"]
        else:
            fields["agents"] = {name: agent._asdict() for name, agent in self.agents.items()}
        return fields


class _Episodes(NamedTuple):
    """The state of B running episodes; steps after an environment's first episode are not counted."""

    env_state: Any
    timestep: TimeStep
    carry: PyTree
    key: Key
    episode_return: Float[Array, " R"]
    """The rewards of each agent so far."""
    length: Int[Array, " B"]
    done: Bool[Array, " B"]
    cut_short: Bool[Array, " B"]
    """Whether an episode was ended by the limit of the evaluation, not by its environment."""
    failed: Int[Array, ""]
    """The code of the first environment that failed (see `rollout.failure_code`); -1 if none did."""
    side: Side
    """Which player is to move, in games (see `rollout.first_side`)."""


class Played(NamedTuple):
    """Episodes that were played, in NumPy."""

    returns: np.ndarray
    """[episodes, agents]"""
    lengths: np.ndarray
    cut_short: np.ndarray


def batches(episodes: int, seed: int, least: int = 1) -> tuple[int, Array]:
    """Return the number of episodes of a batch, and a random key for each batch.

    There are about `least` batches and never more, unless the episodes need more of them.  Together they may have a few
    episodes more.
    """
    if episodes < 1:
        raise ValueError(f"an evaluation needs at least 1 episode, not {episodes}")
    count = max(-(-episodes // MAX_ENVS), min(least, episodes))
    size = -(-episodes // count)
    return size, jax.random.split(jax.random.key(seed), -(-episodes // size))


class Evaluator:
    """Evaluations of one agent; the program is compiled once and reused by calls with the same number of episodes."""

    def __init__(self, agent: Agent, make_env: MakeEnv, mode: Mode = "sample", max_steps: int | None = None):
        self._agent, self._make_env, self._max_steps = agent, make_env, max_steps
        self.mode: Mode = mode
        self._programs: dict[int, tuple[Env, Callable[[Policy, _Episodes], _Episodes], int]] = {}
        """By the number of environments: those of a batch, their program, and which batch it is."""

    def __call__(self, policy: Policy, episodes: int, seed: int, stop: Callable[[], bool] = lambda: False) -> Report:
        """Play `episodes` episodes and return their statistics; `seed` seeds the actions and the interval.

        One environment plays exactly one episode, so that short episodes are not counted more often than long ones.

        Raises:
          EvaluationFailed: an environment failed; the message says which.
          EvaluationStopped: `stop` returned True.
        """
        start = time.perf_counter()
        size, keys = batches(episodes, seed)
        played, spec = [], None
        for batch, key in enumerate(keys):
            some, spec = self.play(policy, size, batch, key, stop)
            played.append(some)
        assert spec is not None
        return report(spec, self._agent.name, self.mode, played, episodes, seed, time.perf_counter() - start)

    def play(
        self, policy: Policy, size: int, batch: int, key: Key, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Played, EnvSpec]:
        """Play one batch of episodes, and return them with the specification of the environment.

        Raises:
          EvaluationFailed, EvaluationStopped: as for the whole evaluation.
        """
        end, spec = self._play(policy, size, batch, key, stop)
        returns = np.asarray(by_agent(end.episode_return, len(end.episode_return) // size), np.float64)
        return Played(returns, np.asarray(end.length), np.asarray(end.cut_short)), spec

    def close(self) -> None:
        """Close the environments that were left open for the next call."""
        for env, *_ in self._programs.values():
            env.close()
        self._programs = {}

    def _play(self, policy, size, batch, key, stop) -> tuple[_Episodes, EnvSpec]:
        """Play one batch of episodes; return their final state and the specification of the environment."""
        if size not in self._programs:
            made = self._make_env(size, batch)
            self._programs[size] = made, self._compiled(made), batch
        env, program, own_batch = self._programs[size]
        fresh = env if batch == own_batch else self._make_env(size, batch)
        if fresh is not env and not env.pure:
            env, program = fresh, self._compiled(fresh)
        try:
            return self._play_in(policy, fresh, program, size, key, stop), env.spec
        finally:
            if fresh is not self._programs[size][0]:
                fresh.close()

    def _play_in(self, policy, env, program, size, key, stop) -> _Episodes:
        """Play one episode in each of the given environments and return the final state."""
        try:
            state, timestep = env.reset()
        except EnvironmentFailure as error:
            raise EvaluationFailed(f"{env.spec.id} failed in an evaluation: {error}") from error
        none, rows = jnp.zeros(size, bool), num_rows(env)
        episodes = _Episodes(
            state, timestep, self._agent.start(rows), key, jnp.zeros(rows), jnp.zeros(size, jnp.int32), none, none,
            jnp.full((), -1, jnp.int32), first_side(env),
        )  # fmt: skip
        while True:
            episodes = program(policy, episodes)
            if int(episodes.failed) >= 0:
                reason = failure(env) or describe_failure(int(episodes.failed), size)
                raise EvaluationFailed(f"{env.spec.id} failed in an evaluation: {reason}")
            if bool(episodes.done.all()):
                return episodes
            if stop():
                raise EvaluationStopped

    def _compiled(self, env: Env) -> Callable[[Policy, _Episodes], _Episodes]:
        # The environment's limit should end its episodes, so that the limit of the evaluation is higher.
        env_limit = env.spec.max_steps
        limit = self._max_steps or (env_limit + CHUNK if env_limit else MAX_EPISODE_STEPS)
        return _program(self._agent, env, self.mode, limit)


def _program(agent: Agent, env: Env, mode: Mode, limit: int) -> Callable[[Policy, _Episodes], _Episodes]:
    """Return a compiled program that continues episodes for at most `CHUNK` steps.

    An episode ends when its environment ends it, or after `limit` steps.
    """

    agents = env.spec.num_agents

    def step(policy: Policy, episodes: _Episodes) -> _Episodes:
        key, act_key = jax.random.split(episodes.key)
        output, carry = agent.act(policy, episodes.carry, episodes.timestep, act_key, mode, 1.0)
        state, row = env.step(episodes.env_state, output.action)
        counts = ~episodes.done
        # After its episode an environment is ignored, even if it fails.
        failed = failure_code((episodes.timestep, row), counts, agents)
        length = episodes.length + counts
        last = moment_of(row, agents).last
        cut_short = counts & ~last & (length >= limit)
        return _Episodes(
            state, row, carry, key,
            episodes.episode_return + jnp.where(to_rows(counts, agents), counted_reward(episodes.side, row), 0.0),
            length,
            episodes.done | last | cut_short,
            episodes.cut_short | cut_short,
            jnp.where(episodes.failed < 0, failed, episodes.failed),
            next_side(episodes.side, row),
        )  # fmt: skip

    def play(policy: Policy, episodes: _Episodes) -> _Episodes:
        def unfinished(carry):
            count, episodes = carry
            return (count < CHUNK) & ~episodes.done.all() & (episodes.failed < 0)

        return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, step(policy, carry[1])), (0, episodes))[1]

    return jax.jit(play)


def report(
    spec: EnvSpec, agent: str, mode: Mode, played: Sequence[Played], episodes: int, seed: int, wall_seconds: float
) -> Report:
    """Return the statistics of the first `episodes` episodes of some batches."""
    returns, lengths, cut_short = (np.concatenate(column)[:episodes] for column in zip(*played, strict=True))
    whole = summarize(spec.id, agent, seed, mode, returns.sum(-1), lengths, cut_short, wall_seconds)
    if spec.num_agents == 1:
        return whole
    own = {name: AgentReport.of(returns[:, index], seed) for index, name in enumerate(spec.agents)}
    return whole._replace(agents=own)


def summarize(
    env: str, agent: str, seed: int, mode: Mode,
    returns: np.ndarray, lengths: np.ndarray, cut_short: np.ndarray, wall_seconds: float,
) -> Report:  # fmt: skip
    """Return the report of episodes with these returns, lengths and flags of having been cut short, [episodes] each."""
    low, high = bootstrap_interval(returns, np.random.default_rng(seed))
    middle: dict[str, Any] = {
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
    """Return the mean without the lowest and the highest quarter, as `scipy.stats.trim_mean(x, 0.25)`.

    The number of returns in a quarter is rounded down.
    """
    cut = returns.shape[-1] // 4
    return np.asarray(np.sort(returns, axis=-1)[..., cut : returns.shape[-1] - cut].mean(-1))


def bootstrap_interval(
    returns: Float[np.ndarray, " episodes"], generator: np.random.Generator, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the IQM, with one environment as the only stratum."""
    resampled = generator.integers(len(returns), size=(RESAMPLES, len(returns)))
    outside = (1 - confidence) / 2
    low, high = np.quantile(interquartile_mean(returns[resampled]), [outside, 1 - outside])
    return float(low), float(high)
