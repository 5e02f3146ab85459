"""An agent that has learnt something: acts on NumPy observations, and is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bircher import checkpoint, learner, panels, settings, viz
from bircher.agents.base import Agent
from bircher.config import Config, validated
from bircher.envs import registry
from bircher.envs.base import num_legal
from bircher.envs.registry import EnvSource
from bircher.evaluation import Evaluator, Mode, Report
from bircher.games.player import Player, of_agent
from bircher.panels import Thought
from bircher.run import assembly, folder
from bircher.settings import ConfigError
from bircher.types import Discrete, EnvSpec, Policy, TimeStep

MAX_FRAMES = 10_000
"""Where an environment has no limit of its own, an episode is drawn up to here."""


class LoadedAgent:
    """A policy with all that is needed to act: what `bircher.load` returns, and `run.agent`."""

    def __init__(
        self, config: Config, spec: EnvSpec, agent: Agent, policy: Policy, source: EnvSource | None, env_steps: int
    ):
        self.config, self.spec, self.policy, self.source = config, spec, policy, source
        self.env_steps = env_steps
        """Environment steps that it has learnt from."""
        self._agent = agent
        self._acted = 0
        self._programs = {
            (greedy, thinks): jax.jit(self._program(greedy, thinks))
            for greedy in (False, True) for thinks in (False, True)
        }  # fmt: skip

    @property
    def agent(self) -> Agent:
        """Its pure functions."""
        return self._agent

    @property
    def name(self) -> str:
        """The agent's name, such as `muesli`."""
        return self._agent.name

    def act(self, observation: Any, greedy: bool = False, legal_actions: Any = None) -> Any:
        """The action for one observation, or an array [B] of them for a batch [B, ...].

        Drawn from the policy, or its most probable one. Observations are as the environment gives them, joined where
        `env.stack` is above 1; `legal_actions` (True where allowed) defaults to all.

        Raises:
          ValueError: the observation has another shape than the environment's.
        """
        single, batch, legal = self._batch(observation, legal_actions)
        action = self._programs[greedy, False](self.policy, batch, legal, self._acted)
        return np.asarray(action)[0] if single else np.asarray(action)

    def think(self, observation: Any, greedy: bool = False, legal_actions: Any = None) -> Thought:
        """The action that `act` takes for one observation, and what led to it.

        Raises:
          ValueError: the observation has another shape than the environment's, or the agent has no model.
        """
        if self._agent.look is None:
            raise ValueError(f"agent {self.name} has no model: there is no thought behind its actions")
        single, batch, legal = self._batch(observation, legal_actions)
        if not single and len(batch) != 1:
            raise ValueError(f"one observation is thought about at a time, not {len(batch)}")
        found = self._programs[greedy, True](self.policy, batch, legal, self._acted)
        action, prior, improved, value = (np.asarray(x)[0] for x in found)
        return Thought(prior, improved, float(value), int(action))

    def _batch(self, observation: Any, legal_actions: Any) -> tuple[bool, np.ndarray, np.ndarray]:
        """Whether it was one observation; observations and legal actions with a batch axis."""
        shape = self.spec.observation.shape
        given = np.asarray(observation)
        if given.shape != shape and given.shape[1:] != shape:
            raise ValueError(f"{self.spec.id} has observations {shape}, or [B, …] of them, not {given.shape}")
        single = given.shape == shape
        batch = given[None] if single else given
        legal = np.ones((len(batch), num_legal(self.spec)), bool)
        if legal_actions is not None:
            legal = np.broadcast_to(np.asarray(legal_actions, bool), legal.shape)
        self._acted += 1
        return single, batch.astype(self.spec.observation.dtype), legal

    def _program(self, greedy: bool, thinks: bool):
        agent, mode = self._agent, "greedy" if greedy else "sample"

        def program(policy, observation, legal_actions, count):
            size = len(observation)
            flag, number = jnp.zeros(size, bool), jnp.zeros(size)
            row = TimeStep(observation, number, number + 1, flag, flag, flag, legal_actions, flag)
            key = jax.random.fold_in(jax.random.key(self.config.seed), count)
            output = agent.act(policy, agent.start(size), row, key, mode, 1.0)[0]
            if not thinks or agent.look is None:
                return output.action
            seen = agent.look(policy, observation, legal_actions, key)
            # The very search that acted, where one did; Muesli after training searches only if it is told to.
            improved, value = output.extras.get("search_policy"), output.extras.get("search_value")
            if improved is None and agent.plan is not None:
                improved = agent.plan(policy, observation, legal_actions, key).weights
            return (
                output.action, seen.prior, seen.improved if improved is None else improved,
                seen.value if value is None else value,
            )  # fmt: skip

        return program

    def player(self, mode: Mode, name: str | None = None) -> Player:
        """This agent as one side of a game of two."""
        return of_agent(self._agent, self.policy, mode, name)

    def evaluator(self, seed: int, mode: Mode, role: str = "eval") -> Evaluator:
        """What plays this agent's episodes, in environments seeded by `seed` and apart from those of training."""
        return make_evaluator(self._agent, self.config, self.source, seed, mode, role)


def make_evaluator(
    agent: Agent, config: Config, source: EnvSource | None, seed: int, mode: Mode, role: str
) -> Evaluator:
    """An evaluator on fresh environments of a configuration."""

    def make(num_envs: int, batch: int):
        return assembly.make_env(config, source, num_envs, seed, role, generation=batch)

    return Evaluator(agent, make, mode)


def evaluate(agent: LoadedAgent, episodes: int = 100, seed: int = 0, greedy: bool = False) -> Report:
    """Play fresh episodes in environments never seen in training; seeds are apart from those of every training run.

    Raises:
      EvaluationFailed: an environment raised, or gave a number that is not finite.
    """
    assembly.require_source(agent.config, agent.source)
    evaluator = agent.evaluator(seed, "greedy" if greedy else "sample")
    try:
        return evaluator(agent.policy, episodes, seed)
    finally:
        evaluator.close()


def episode_frames(agent: LoadedAgent, seed: int, greedy: bool = False, thoughts: bool = False) -> list[np.ndarray]:
    """The frames of one episode in an environment never seen in training, [height, width, 3] bytes each.

    With `thoughts`, beside each frame what led to the action there.

    Raises:
      ValueError: nothing can draw this environment.
    """
    assembly.require_source(agent.config, agent.source)
    env, thought = agent.config.env, []

    def act(observation: Any, legal_actions: Any) -> np.ndarray:
        if not thoughts:
            return agent.act(observation, greedy, legal_actions)
        thought.append(agent.think(observation, greedy, legal_actions))
        return np.array([thought[-1].action], np.int32)

    frames = viz.render_episode(
        env.id,
        act,
        registry.seeds(seed, "watch", 1)[0],
        agent.spec.max_steps or MAX_FRAMES,
        lambda: assembly.make_env(agent.config, agent.source, 1, seed, "watch"),
        env.options,
        env.stack,
        agent.config.observation,
    )
    return panels.beside(frames, thought) if thoughts else frames


def load(
    path: str | Path, env: EnvSource | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> LoadedAgent:
    """The agent of a run's last checkpoint; `env` only where the run was given a callable.

    `overrides` are settings of the search, such as `search.num_simulations=200`: how it acts, not what it learnt.

    Raises:
      RunFolderError: the folder holds no run, or no checkpoint yet.
      CheckpointError: the checkpoint is damaged, or of another architecture.
      ConfigError: a setting that is wrong, or none of the search.
    """
    config = overridden(folder.read_config(path), overrides)
    saved = folder.last_checkpoint(path)
    meta = checkpoint.read_meta(saved)
    spec = spec_from(meta["spec"])
    parts = assembly.make_parts(config, spec)
    train = checkpoint.restore(saved, "train", parts.saved)
    return LoadedAgent(
        config, spec, parts.agent, learner.acting_policy(parts.agent, train),
        env, int(meta["counters"]["env_steps"]),
    )  # fmt: skip


def overridden(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """A run's configuration with other settings of its search, `search.KEY=VALUE` each, or dotted or nested.

    Raises:
      ConfigError: a setting that is wrong, or none of the search.
    """
    given = settings.nested(overrides) if isinstance(overrides, Mapping) else settings.parse(overrides)
    if not given:
        return config
    for name in settings.leaves(given):
        if name.split(".")[0] != "search":
            raise ConfigError(f"{name} cannot be changed after training; only search.* can")
    return validated(settings.merge(config.model_dump(by_alias=True), given))


def spec_to(spec: EnvSpec) -> dict[str, Any]:
    """A specification of one observation array and discrete actions, as JSON holds it."""
    observation = {"shape": list(spec.observation.shape), "dtype": str(spec.observation.dtype)}
    return {
        "id": spec.id, "observation": observation, "num_actions": spec.num_actions, "max_steps": spec.max_steps,
        "num_players": spec.num_players, "action_repeat": spec.action_repeat,
    }  # fmt: skip


def spec_from(saved: Mapping[str, Any]) -> EnvSpec:
    """The inverse of `spec_to`."""
    observation = jax.ShapeDtypeStruct(tuple(saved["observation"]["shape"]), np.dtype(saved["observation"]["dtype"]))
    action = Discrete(saved["num_actions"])
    return EnvSpec(
        saved["id"], observation, action, saved["max_steps"], saved.get("num_players", 1),
        action_repeat=saved.get("action_repeat", 1),
    )  # fmt: skip
