"""A saved agent: it acts on an environment's own observations and masks, and is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bircher.agents.base import Agent, Carry
from bircher.config.config import Config
from bircher.envs import registry
from bircher.envs.base import Env, num_legal
from bircher.envs.registry import EnvSource
from bircher.games.players import Player, of_agent
from bircher.runs import build, costs, directory
from bircher.search import SearchResult
from bircher.spaces import Encoding, decode_action, encode_observation, misfit
from bircher.training import checkpoint, learner
from bircher.training.evaluator import Evaluator, Mode, Report
from bircher.types import EnvSpec, Policy, TimeStep, Trajectory
from bircher.viz import panels, plots
from bircher.viz.panels import Thought


class Inputs(NamedTuple):
    """Observations as the network is given them, and their legal actions, with a batch axis."""

    observation: np.ndarray
    """[B, ...]"""
    legal_actions: np.ndarray
    """[B, A], True where an action is legal"""
    single: bool = False
    """Whether one observation was given, without a batch axis."""


def inputs_of(spec: EnvSpec, observation: Any, legal_actions: Any = None) -> Inputs:
    """One observation or a batch of them, as the environment gives them, with the mask of its `info`, or None for all.

    Observations that are encoded already, as the rows of bircher's environments are, are taken as they are.

    Raises:
      ValueError: observation or mask has another shape than the environment's, or holds a number that does not fit.
    """
    given, encoding = np.asarray(observation), spec.encoding
    encoded = spec.observation.shape
    own = encoding.own_shape if isinstance(encoding, Encoding) else encoded
    indices = isinstance(encoding, Encoding) and encoding.kind != "array"
    if _is_batch_of(given, own) and not (indices and given.dtype.kind == "f"):
        single = given.shape == own
        batch = given[None] if single else given
        if isinstance(encoding, Encoding):
            unfit = misfit(encoding, batch)
            if unfit is not None:
                raise ValueError(f"an observation of {spec.id} holds {unfit}")
            batch = encode_observation(encoding, batch)
    elif _is_batch_of(given, encoded):
        single = given.shape == encoded
        batch = given[None] if single else given
    else:
        raise ValueError(f"{spec.id} has observations {own}, or [B, …] of them, not {given.shape}")
    return Inputs(batch.astype(spec.observation.dtype), mask_of(spec, legal_actions, len(batch)), single)


def _is_batch_of(given: np.ndarray, shape: tuple[int, ...]) -> bool:
    return given.shape == shape or (given.ndim > len(shape) and given.shape[1:] == shape)


def mask_of(spec: EnvSpec, legal_actions: Any, size: int) -> np.ndarray:
    """The legal actions of a batch as booleans [B, A], from one mask, a mask for each, or None for all.

    Raises:
      ValueError: they have another shape.
    """
    count = num_legal(spec)
    if legal_actions is None:
        return np.ones((size, count), bool)
    mask = np.asarray(legal_actions, bool)
    if mask.shape not in ((count,), (1, count), (size, count)):
        raise ValueError(
            f"legal_actions has the shape {mask.shape}, and {spec.id} has {count} actions: expected ({count},), "
            f"or ({size}, {count}) for each observation"
        )
    return np.broadcast_to(mask, (size, count))


MAX_FRAMES = 10_000
"""Where an environment has no limit of its own, an episode is drawn up to here."""


class LoadedAgent:
    """A policy with all that is needed to act: what `bircher.load` returns, and `run.agent`."""

    def __init__(
        self, config: Config, spec: EnvSpec, agent: Agent, policy: Policy, source: EnvSource | None, env_steps: int
    ):
        self.config, self.spec, self.policy, self.source = config, spec, policy, source
        self.env_steps = env_steps
        """Environment steps that it has learned from."""
        self._agent = agent
        self._acted = 0
        self._remembers = bool(jax.tree.leaves(jax.eval_shape(lambda: agent.start(1).memory)))
        self._carry: Carry | None = None
        self._first: np.ndarray | None = None
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
        """The action for one observation, or an array [B] of them for a batch [B, ...], as the environment takes it.

        It is drawn from the policy, or its most probable one. Observations are as the environment gives them; where
        `env.stack` is above 1, the last ones joined along the last axis. `legal_actions` is the environment's mask,
        such as `info.get("action_mask")`; None allows all. An agent with memory takes the observations for the rows of
        an episode, one after the other, until `reset`.

        Raises:
          ValueError: the observation or the mask has another shape than the environment's, or holds a number that does
            not fit, or the batch has another size than what is remembered.
        """
        inputs = inputs_of(self.spec, observation, legal_actions)
        action = self.own_action(self.choose(inputs, greedy))
        return action[0] if inputs.single else action

    def choose(self, inputs: Inputs, greedy: bool = False) -> Int[np.ndarray, " B"]:
        """The actions for encoded observations, counted from 0, as bircher's environments take them."""
        (action_index,) = self._run(greedy, False, inputs)
        return np.asarray(action_index)

    def own_action(self, action_index: Any) -> np.ndarray:
        """The environment's own actions of those that are counted from 0."""
        return decode_action(self.spec.action_start, action_index)

    def action_name(self, action_index: int) -> str:
        """The environment's own action as text."""
        return str(self.own_action(action_index))

    def reset(self, where: Any = None) -> None:
        """Episodes begin anew, all of them or, of a batch, those `where` says so: what was seen before is forgotten.

        Raises:
          ValueError: `where` has another size than the batch that is remembered.
        """
        if where is None:
            self._carry = self._first = None
        elif self._first is not None:
            where = np.asarray(where, bool)
            if where.shape != self._first.shape:
                raise ValueError(f"{len(self._first)} episodes are remembered, and where has the shape {where.shape}")
            self._first = self._first | where

    def search(self, observation: Any, legal_actions: Any, seed: int) -> SearchResult:
        """The search behind a decision, with its tree; the agent's memory stays as it is.

        Observation and mask are as in `act`; actions in the tree are counted from 0.

        Raises:
          ValueError: the observation has another shape than the environment's, or the agent does not search.
        """
        return self.search_of(inputs_of(self.spec, observation, legal_actions), seed)

    def search_of(self, inputs: Inputs, seed: int) -> SearchResult:
        """The same for encoded observations."""
        plan = self._agent.plan
        if plan is None:
            raise ValueError(f"{self.name} acts without a search")
        batch, legal, _ = inputs

        def program(policy, carry, first, observation, legal_actions):
            key = jax.random.key(seed)
            row = self._row(observation, legal_actions, first)
            extras = self._agent.act(policy, carry, row, key, "greedy", 1.0)[0].extras
            return plan(policy, self._latent(policy, row, extras), legal_actions, key)

        return jax.jit(program)(self.policy, *self._memory(len(batch)), batch, legal)

    def _memory(self, size: int) -> tuple[Carry, np.ndarray]:
        """What is kept of a batch's episodes, and which of them begin."""
        if not self._remembers or self._carry is None or self._first is None:
            return self._agent.start(size), np.full(size, self._remembers)
        if len(self._first) != size:
            raise ValueError(
                f"{len(self._first)} episodes are remembered, and {size} observations were given: call reset() first"
            )
        return self._carry, self._first

    def _run(self, greedy: bool, thinks: bool, inputs: Inputs) -> tuple:
        """What the program finds; what the agent keeps is kept."""
        self._acted += 1
        batch, legal, _ = inputs
        carry, first = self._memory(len(batch))
        carry, found = self._programs[greedy, thinks](self.policy, carry, first, batch, legal, self._acted)
        if self._remembers:
            self._carry, self._first = carry, np.zeros(len(batch), bool)
        return found

    def think(self, observation: Any, greedy: bool = False, legal_actions: Any = None) -> Thought:
        """The action that `act` takes for one observation, counted from 0, and what led to it.

        Raises:
          ValueError: as in `act`, or the agent has no model.
        """
        return self.think_of(inputs_of(self.spec, observation, legal_actions), greedy)

    def think_of(self, inputs: Inputs, greedy: bool = False) -> Thought:
        """The same for an encoded observation."""
        if self._agent.look is None:
            raise ValueError(f"agent {self.name} has no model: there is no thought behind its actions")
        if len(inputs.observation) != 1:
            raise ValueError(f"one observation is thought about at a time, not {len(inputs.observation)}")
        found = self._run(greedy, True, inputs)
        action, prior, improved, value = (np.asarray(x)[0] for x in found)
        return Thought(prior, improved, float(value), int(action))

    def _program(self, greedy: bool, thinks: bool):
        agent, mode = self._agent, "greedy" if greedy else "sample"

        def program(policy, carry, first, observation, legal_actions, count):
            row = self._row(observation, legal_actions, first)
            key = jax.random.fold_in(jax.random.key(self.config.seed), count)
            output, carry = agent.act(policy, carry, row, key, mode, 1.0)
            if not thinks or agent.look is None:
                return carry, (output.action,)
            latent = self._latent(policy, row, output.extras)
            seen = agent.look(policy, latent, legal_actions, key)
            # The very search that acted, where one did; Muesli after training searches only if it is told to.
            improved, value = output.extras.get("search_policy"), output.extras.get("search_value")
            if improved is None and agent.plan is not None:
                improved = agent.plan(policy, latent, legal_actions, key).weights
            return carry, (
                output.action, seen.prior, seen.improved if improved is None else improved,
                seen.value if value is None else value,
            )  # fmt: skip

        return program

    @staticmethod
    def _row(observation: Array, legal_actions: Array, first: Array) -> TimeStep:
        """Rows of which nothing else is known."""
        flag, number = jnp.zeros(len(observation), bool), jnp.zeros(len(observation))
        return TimeStep(observation, number, number + 1, first, flag, flag, legal_actions, flag)

    def _latent(self, policy: Policy, row: TimeStep, extras: Mapping[str, Array]) -> Array:
        """The latents of rows that were acted on."""
        rows = Trajectory.of(row, jnp.zeros(len(row.reward), jnp.int32), extras)
        return self._agent.encode(policy, jax.tree.map(lambda x: x[:, None], rows))[:, 0]

    def player(self, mode: Mode, name: str | None = None) -> Player:
        """This agent as one side of a game of two."""
        return of_agent(self._agent, self.policy, mode, name)

    def evaluator(self, seed: int, mode: Mode, role: str = "eval", max_steps: int | None = None) -> Evaluator:
        """What plays this agent's episodes, in environments seeded by `seed` and apart from those of training."""
        limit = max_steps or costs.scoring_limit(self.config, self.spec)
        return Evaluator(self._agent, lambda count, batch: self.make_env(count, seed, role, batch), mode, limit)

    def make_env(self, num_envs: int, seed: int, role: str, generation: int = 0) -> Env:
        """Make fresh environments of the run, or raise what `assembly.make_env_again` does."""
        return build.make_env_again(self.spec, self.config, self.source, num_envs, seed, role, generation)


def make_evaluator(
    agent: Agent, config: Config, source: EnvSource | None, seed: int, mode: Mode, role: str,
    max_steps: int | None = None,
) -> Evaluator:  # fmt: skip
    """An evaluator on fresh environments of a configuration."""

    def make(num_envs: int, batch: int):
        return build.make_env(config, source, num_envs, seed, role, generation=batch)

    return Evaluator(agent, make, mode, max_steps)


def evaluate(
    agent: LoadedAgent, episodes: int = 100, seed: int = 0, greedy: bool = False, max_steps: int | None = None
) -> Report:
    """Play fresh episodes in environments never seen in training; seeds are apart from those of every training run.

    Episodes are whole, or count as they stand after `max_steps` actions; without it and a limit of the environment,
    after as many as in evaluations during training.

    Raises:
      EvaluationFailed: an environment raised, or gave a number that is not finite.
    """
    evaluator = agent.evaluator(seed, "greedy" if greedy else "sample", max_steps=max_steps)
    try:
        return evaluator(agent.policy, episodes, seed)
    finally:
        evaluator.close()


def episode_frames(
    agent: LoadedAgent, seed: int, greedy: bool = False, thoughts: bool = False, max_steps: int | None = None
) -> list[np.ndarray]:
    """The frames of one episode in an environment never seen in training, [height, width, 3] bytes each.

    With `thoughts`, beside each frame what led to the action there; at most `max_steps` actions of it.

    Raises:
      ValueError: nothing can draw this environment.
    """
    env, thought, whole = agent.config.env, [], agent.spec.max_steps or MAX_FRAMES
    agent.reset()

    def choose(observation: Any, legal_actions: Any) -> np.ndarray:
        inputs = Inputs(np.asarray(observation), mask_of(agent.spec, legal_actions, len(observation)))
        if not thoughts:
            return agent.choose(inputs, greedy)
        thought.append(agent.think_of(inputs, greedy))
        return np.array([thought[-1].action], np.int32)

    frames = plots.render_episode(
        env.id if agent.source is None else agent.source,
        choose,
        registry.seeds(seed, "watch", 1)[0],
        min(whole, max_steps or whole),
        lambda: agent.make_env(1, seed, "watch"),
        env.options,
        env.stack,
        agent.config.observation,
        env.action_repeat or 1,
        agent.spec,
    )
    return panels.with_panels(frames, thought, agent.action_name) if thoughts else frames


def load(
    path: str | Path, env: EnvSource | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> LoadedAgent:
    """The agent of a run's last checkpoint; `env` only where the run was given a callable.

    `overrides` are settings of the search, such as `search.num_simulations=200`: how it acts, not what it learned.

    Raises:
      RunFolderError: the folder holds no run, or no checkpoint yet.
      CheckpointError: the checkpoint is damaged, or of another architecture.
      ConfigError: a setting that is wrong, or none of the search.
    """
    config = build.overridden(directory.read_config(path), overrides)
    saved = directory.last_checkpoint(path)
    meta = checkpoint.read_meta(saved)
    config, spec = build.recognized(config, env, meta["spec"])
    parts = build.make_parts(config, spec)
    train = checkpoint.restore(saved, "train", parts.saved)
    policy = learner.acting_policy(parts.agent, train)
    return LoadedAgent(config, spec, parts.agent, policy, env, int(meta["counters"]["env_steps"]))
