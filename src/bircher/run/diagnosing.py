"""A run's model held against fresh episodes: numbers and a picture; and what its observations leave open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from bircher import actor, ambiguity, diagnosis, viz
from bircher.agents.base import Agent
from bircher.config import Config
from bircher.envs.base import failure
from bircher.evaluation import EvaluationFailed
from bircher.learner import Learner
from bircher.run import assembly
from bircher.run.assembly import Parts
from bircher.run.loaded import LoadedAgent
from bircher.run.replayed import Replayed
from bircher.types import Key, Policy, Trajectory

NUM_ENVS = 32
"""Episodes followed side by side."""
MOST_SEQUENCES, MOST_BYTES = 256, 2**22
"""Limits of the sample in which equal observations are searched for."""


def diagnose(agent: LoadedAgent, steps: int = 8192, seed: int = 0) -> dict[str, Any]:
    """Errors of the model at depth 1 … 2K over fresh episodes, and what looking ahead is worth, as plain numbers.

    Raises:
      EvaluationFailed: an environment failed.
      ValueError: the agent has no model.
    """
    depths = 2 * agent.config.model.unroll_steps
    length = max(steps // NUM_ENVS, 2 * depths)
    env = agent.make_env(NUM_ENVS, seed, "diagnose")
    try:
        act_key, look_key = jax.random.split(jax.random.key(seed))
        start = actor.start(agent.agent, env, act_key)

        def play(policy, state):
            return actor.rollout(agent.agent, env, policy, state, length, 1.0, "sample")[1:]

        rows, tally = jax.jit(play)(agent.policy, start)
        if int(tally.failed) >= 0:
            told = failure(env) or actor.describe_failure(int(tally.failed), NUM_ENVS)
            raise EvaluationFailed(f"{env.spec.id} failed while its episodes were followed: {told}")
    finally:
        env.close()
    measure = jax.jit(lambda policy, rows, key: diagnosis.diagnose(agent.agent, policy, rows, depths, key))
    found = diagnosis.as_dictionary(measure(agent.policy, rows, look_key))
    return {
        "env": agent.spec.id, "agent": agent.name, "seed": seed, "env_steps": int(tally.env_steps),
        "unroll_steps": depths // 2, "depths": list(range(1, depths + 1)), **found,
    }  # fmt: skip


class Monitor:
    """The same numbers while a run learns, over sequences of its replay; compiled when first asked."""

    def __init__(self, agent: Agent, learn: Learner, config: Config):
        depths = min(2 * config.model.unroll_steps, config.loop.rollout_length)

        def measure(policy: Policy, rows: Trajectory, key: Key) -> diagnosis.Diagnosis:
            return diagnosis.diagnose(agent, policy, rows, depths, key)

        self._program = jax.jit(measure)
        self._replayed = Replayed(learn, NUM_ENVS)
        self._key = jax.random.key(config.seed)

    def __call__(self, policy: Policy, state: Any) -> dict[str, float]:
        """Metrics by name; none before the replay holds a sequence."""
        self._key, sample_key, look_key = jax.random.split(self._key, 3)
        rows = self._replayed(state, sample_key)
        return {} if rows is None else diagnosis.as_metrics(self._program(policy, rows, look_key))


class AmbiguityMonitor:
    """Measures, over sequences of the replay, whether rewards differ after equal observations and actions."""

    def __init__(self, parts: Parts, config: Config):
        shapes = Replayed(parts.learner, 1).shapes(parts.template.replay)
        count = MOST_BYTES // max(assembly.num_bytes(shapes.observation), 1)
        self._replayed = Replayed(parts.learner, min(max(count, NUM_ENVS), MOST_SEQUENCES))
        self._key = jax.random.key(config.seed)

    def __call__(self, state: Any) -> dict[str, float]:
        """Metrics by name; none before the replay holds a sequence."""
        self._key, sample_key = jax.random.split(self._key)
        rows = self._replayed(state, sample_key)
        return {} if rows is None else ambiguity.measure(jax.device_get(rows._replace(extras={})))


class Monitors:
    """The measurements that an evaluation makes on the replay, as far as the run has a use for them."""

    def __init__(self, parts: Parts, config: Config):
        model = parts.agent.look is not None and config.evaluation.diagnose
        self._model = Monitor(parts.agent, parts.learner, config) if model else None
        remembers = config.model.memory != "none"
        self._ambiguity = None if remembers else AmbiguityMonitor(parts, config)

    def __call__(self, policy: Policy, state: Any) -> dict[str, float]:
        """Metrics by name."""
        metrics = self._model(policy, state) if self._model else {}
        return metrics | (self._ambiguity(state) if self._ambiguity else {})


def draw(found: dict[str, Any], path: Path) -> Path:
    """A picture of what `diagnose` found; returns its path."""
    panels: dict[str, Any] = {
        "reward, root mean square error": ([("error", found["reward_error"])], found["reward_deviation"]),
        "value, root mean square error": (
            [("against the real row's value", found["value_error"]), ("against the return", found["return_error"])],
            found["return_deviation"],
        ),
        "policy, KL in nats": ([("from the real row's policy", found["policy_kl"])], None),
    }
    if not any(error is not None for error in found["reward_error"]):
        del panels["reward, root mean square error"]
    title = f"{found['env']}, {found['agent']}: the model below real states"
    return viz.curves_by_depth(panels, found["depths"], found["unroll_steps"], title, path)
