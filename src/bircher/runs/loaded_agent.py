"""A saved agent: it acts on an environment's own observations and masks, and is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bircher.agents.base import Agent, Carry, model_of
from bircher.config.config import Config
from bircher.envs import registry
from bircher.envs.base import Env
from bircher.envs.config import EnvSource
from bircher.games.players import Player, of_agent
from bircher.networks.model import Model
from bircher.ops.distributions import ClippedNormal, distribution_of
from bircher.ops.turns import own
from bircher.runs import build, costs, directory
from bircher.runs.inputs import Inputs, inputs_of, is_by_agent, mask_of, team_inputs
from bircher.search import SearchResult
from bircher.training import checkpoint, learner
from bircher.training.evaluator import Evaluator, Mode, Report
from bircher.types import ActOutput, Continuous, EnvSpec, Policy, TimeStep, Trajectory
from bircher.viz import panels, plots
from bircher.viz.panels import Density, Thought

MAX_FRAMES = 10_000
"""The number of frames after which drawing an episode ends, if its environment has no limit."""


class LoadedAgent:
    """A trained agent that can act, the result of `bircher.load` and of `run.agent`."""

    def __init__(
        self, config: Config, spec: EnvSpec, agent: Agent, policy: Policy, source: EnvSource | None, env_steps: int
    ):
        self.config, self.spec, self.policy, self.source = config, spec, policy, source
        self.env_steps = env_steps
        """The number of environment steps from which it has learned."""
        self._agent = agent
        self._act_count = 0
        self._has_memory = bool(jax.tree.leaves(jax.eval_shape(lambda: agent.start(1).memory)))
        self._carry: Carry | None = None
        self._first: np.ndarray | None = None
        self._programs = {
            (greedy, explains): jax.jit(self._program(greedy, explains))
            for greedy in (False, True) for explains in (False, True)
        }  # fmt: skip

    @property
    def agent(self) -> Agent:
        """The agent's pure functions."""
        return self._agent

    @property
    def name(self) -> str:
        """The name of the agent, such as `muesli`."""
        return self._agent.name

    def act(self, observation: Any, greedy: bool = False, legal_actions: Any = None) -> Any:
        """Return the environment's action for one observation, or an array [B] of actions for a batch [B, ...].

        The action is drawn from the policy, or is the best one if `greedy`. Observations are those of the environment;
        if `env.stack` is n > 1, the caller joins the last n of them along the last axis. `legal_actions` is the
        environment's mask, such as `info.get("action_mask")`; None allows all actions. An agent with memory takes
        successive observations as the rows of an episode until `reset` is called.

        Where the environment has several agents, a dictionary of observations by agent gives one of actions by agent,
        as PettingZoo has them.  `legal_actions` is then a dictionary of masks, or None.  Agents may be left out; the
        memory of one that comes back begins anew.

        Raises:
          ValueError: the observation or the mask has another shape than the environment's, or contains a number that
            does not fit, or the batch has another size than the batch in memory.
        """
        if is_by_agent(self.spec, observation):
            return self._act_by_agent(observation, greedy, legal_actions)
        inputs = inputs_of(self.spec, observation, legal_actions)
        action = self.own_action(self.choose(inputs, greedy))
        return action[0] if inputs.single else action

    def _act_by_agent(self, observations: Any, greedy: bool, legal_actions: Any) -> dict[Any, Any]:
        team = team_inputs(self.spec, observations, legal_actions)
        actions = self.own_action(self.choose(team.inputs, greedy))
        if self._has_memory:
            self._first = ~np.isin(np.arange(self.spec.num_agents), team.places)
        return {name: actions[place] for name, place in zip(team.names, team.places, strict=True)}

    def choose(self, inputs: Inputs, greedy: bool = False) -> np.ndarray:
        """Return the actions for encoded observations, [B] or [B, D], as bircher's environments take them.

        Discrete ones count from 0, and the bounds of continuous ones are -1 and 1.
        """
        (action,) = self._run(greedy, False, inputs)
        return np.asarray(action)

    def own_action(self, action: Any) -> np.ndarray:
        """Return the environment's actions for actions as `choose` returns them."""
        return np.asarray(self.spec.own_action(np.asarray(action)))

    def action_name(self, action: Any) -> str:
        """Return the environment's action as text, with two digits after the point."""
        return np.array2string(self.own_action(action), precision=2, suppress_small=True, floatmode="fixed")

    def _policy_params(self, policy: Policy, latent: Array) -> Array:
        """Return the parameters of the network's policy."""
        return model_of(self._agent.unwrap(policy)).predict(latent).policy_logits

    @property
    def _lists_actions(self) -> bool:
        """Return whether candidates, where actions have them, are all actions in their order."""
        count = distribution_of(self.spec.action).num_choices
        return count is not None and count <= getattr(self.config.agent, "enumerate_actions", 0)

    @property
    def model(self) -> Model:
        """Return the network, whose values and rewards have the environment's own unit."""
        return model_of(self._agent.unwrap(self.policy))

    def reset(self, where: Any = None) -> None:
        """Clear the memory, because new episodes begin: all of them, or those of a batch for which `where` is True.

        Raises:
          ValueError: `where` has another size than the batch in memory.
        """
        if where is None:
            self._carry = self._first = None
        elif self._first is not None:
            where = np.asarray(where, bool)
            if where.shape != self._first.shape:
                raise ValueError(
                    f"`where` has the shape {where.shape}: expected one True or False for each of the "
                    f"{len(self._first)} episodes that this agent is playing"
                )
            self._first = self._first | where

    def search(self, observation: Any, legal_actions: Any, seed: int) -> SearchResult:
        """Return the search for a decision, with its tree; the agent's memory is not changed.

        Observation and mask are as in `act`. Actions in the tree are counted from 0.

        Raises:
          ValueError: the observation has another shape than the environment's, or the agent does not search.
        """
        return self.search_of(inputs_of(self.spec, observation, legal_actions), seed)

    def search_of(self, inputs: Inputs, seed: int) -> SearchResult:
        """Return the search for encoded observations; see `search`."""
        plan = self._agent.plan
        if plan is None:
            raise ValueError(
                f"{self.name} acts without a search, which would give the tree: load the run with "
                "search.num_simulations=16, or another number of simulations above 0"
            )
        batch, legal, size = inputs.observation, inputs.legal_actions, inputs.size

        def program(policy, carry, first, observation, legal_actions):
            key = jax.random.key(seed)
            row = self._row(observation, legal_actions, first)
            output, _ = self._agent.act(policy, carry, row, key, "greedy", 1.0)
            return plan(policy, self._latent(policy, row, output), legal_actions, key)

        return jax.jit(program)(self.policy, *self._memory(size), batch, legal)

    def _memory(self, size: int) -> tuple[Carry, np.ndarray]:
        """Return the carry of a batch's episodes, and which of them begin."""
        if not self._has_memory or self._carry is None or self._first is None:
            return self._agent.start(size), np.full(size, self._has_memory)
        if len(self._first) != size:
            raise ValueError(
                f"{len(self._first)} episodes are in memory, but {size} observations were given: call reset() first"
            )
        return self._carry, self._first

    def _run(self, greedy: bool, explains: bool, inputs: Inputs) -> tuple:
        """Run the program on inputs, store the agent's carry, and return the outputs."""
        self._act_count += 1
        batch, legal, size = inputs.observation, inputs.legal_actions, inputs.size
        carry, first = self._memory(size)
        carry, outputs = self._programs[greedy, explains](self.policy, carry, first, batch, legal, self._act_count)
        if self._has_memory:
            self._carry, self._first = carry, np.zeros(size, bool)
        return outputs

    def think(self, observation: Any, greedy: bool = False, legal_actions: Any = None) -> Thought:
        """Return the action that `act` takes for one observation, counted from 0, with the estimates that led to it.

        Raises:
          ValueError: as in `act`, or the agent has no model.
        """
        return self.think_of(inputs_of(self.spec, observation, legal_actions), greedy)

    def think_of(self, inputs: Inputs, greedy: bool = False) -> Thought:
        """Return the action and the estimates for an encoded observation; see `think`."""
        if self._agent.look is None:
            raise ValueError(f"agent {self.name} has no model, so that its actions cannot be explained")
        if inputs.size != 1:
            raise ValueError(f"expected one observation, not {inputs.size}")
        outputs = self._run(greedy, True, inputs)
        action, prior, improved, value, *rest = (np.asarray(x)[0] for x in outputs)
        if not rest:
            return Thought(prior, improved, float(value), int(action))
        actions, params = rest[:1], rest[1]
        # The action that was taken is shown with the samples: 0 in both policies, unless it is one of them.
        places = np.flatnonzero((actions[0] == action).reshape(len(prior), -1).all(-1))
        if not len(places):
            prior, improved = np.append(prior, 0.0), np.append(improved, 0.0)
            actions, places = [np.concatenate([actions[0], action[None]])], [len(prior) - 1]
        names = tuple(map(self.action_name, actions[0]))
        density = self.density(params, actions[0])
        return Thought(prior, improved, float(value), int(places[0]), names, action, density)

    def density(self, params: np.ndarray, samples: np.ndarray) -> Density | None:
        """Return a policy by its parameters and samples [N, D] of it in the environment's units.

        It is None where actions are not continuous.
        """
        kind, space = distribution_of(self.spec.action), self.spec.action
        if not isinstance(kind, ClippedNormal) or not isinstance(space, Continuous):
            return None
        mean, log_deviation = (np.asarray(x, float) for x in kind.moments(jnp.asarray(params)))
        low, high = np.asarray(space.low), np.asarray(space.high)
        half = (high - low) / 2
        own = self.own_action(samples).reshape(len(samples), -1).astype(float)
        return Density(low + (mean + 1) * half, np.exp(log_deviation) * half, low, high, own)

    def _program(self, greedy: bool, explains: bool):
        agent, mode = self._agent, "greedy" if greedy else "sample"

        def program(policy, carry, first, observation, legal_actions, count):
            row = self._row(observation, legal_actions, first)
            key = jax.random.fold_in(jax.random.key(self.config.seed), count)
            output, carry = agent.act(policy, carry, row, key, mode, 1.0)
            if not explains or agent.look is None:
                return carry, (output.action,)
            latent = self._latent(policy, row, output)
            estimates = agent.look(policy, latent, legal_actions, key)
            # The result of the search that acted, if any; Muesli searches only with search.num_simulations above 0.
            improved = output.extras.per_action.get("search_policy")
            value = output.extras.per_row.get("search_value")
            if improved is None and agent.plan is not None and estimates.actions is None:
                improved = agent.plan(policy, latent, legal_actions, key).weights
            prior, actions = estimates.prior, output.extras.per_action.get("search_actions", estimates.actions)
            if improved is None:
                improved = estimates.improved
            elif actions is not None and not self._lists_actions:
                prior = jnp.full_like(improved, 1 / improved.shape[-1])  # that search drew its own candidates
            return carry, (
                output.action, prior, improved, own(estimates.value if value is None else value, 1),
                *([] if actions is None else [actions, self._policy_params(policy, latent)]),
            )  # fmt: skip

        return program

    @staticmethod
    def _row(observation: PyTree[Array], legal_actions: Array, first: Array) -> TimeStep:
        """Return rows with these observations; their other fields are constants."""
        flag, number = jnp.zeros(len(legal_actions), bool), jnp.zeros(len(legal_actions))
        return TimeStep(observation, number, number + 1, first, flag, flag, legal_actions, flag)

    def _latent(self, policy: Policy, row: TimeStep, output: ActOutput) -> Array:
        """Return the latents of rows, with the memory with which the agent acted there."""
        rows = Trajectory.of(row, output)
        return self._agent.encode(policy, jax.tree.map(lambda x: x[:, None], rows))[:, 0]

    def player(self, mode: Mode, name: str | None = None) -> Player:
        """Return this agent as a player of a game of two."""
        return of_agent(self._agent, self.policy, mode, name)

    def evaluator(self, seed: int, mode: Mode, role: str = "eval", max_steps: int | None = None) -> Evaluator:
        """Return an evaluator of this agent, in environments with seeds that training does not use."""
        limit = max_steps or costs.scoring_limit(self.config, self.spec)
        return Evaluator(self._agent, lambda count, batch: self.make_env(count, seed, role, batch), mode, limit)

    def make_env(self, num_envs: int, seed: int, role: str, generation: int = 0) -> Env:
        """Make new environments of the run; raises what `build.make_env_again` raises."""
        return build.make_env_again(self.spec, self.config, self.source, num_envs, seed, role, generation)


def make_evaluator(
    agent: Agent, config: Config, source: EnvSource | None, seed: int, mode: Mode, role: str,
    max_steps: int | None = None,
) -> Evaluator:  # fmt: skip
    """Return an evaluator in new environments of a configuration."""

    def make(num_envs: int, batch: int):
        return build.make_env(config, source, num_envs, seed, role, generation=batch)

    return Evaluator(agent, make, mode, max_steps)


def evaluate(
    agent: LoadedAgent, episodes: int = 100, seed: int = 0, greedy: bool = False, max_steps: int | None = None
) -> Report:
    """Play episodes in new environments, with seeds that no training run uses, and return their statistics.

    An episode is cut short after `max_steps` actions, and counts with its return so far. If `max_steps` is None and the
    environment has no limit, the limit is that of evaluations during training.

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
    """Return the frames of one episode in a new environment, [height, width, 3] bytes each.

    With `thoughts`, each frame has a panel with the estimates that led to the action, unless there are several agents.
    The episode has at most `max_steps` actions.

    Raises:
      ValueError: the environment cannot be drawn.
    """
    thought, whole = [], agent.spec.max_steps or MAX_FRAMES
    agent.reset()

    thoughts = thoughts and agent.spec.num_agents == 1
    request = build.env_request(agent.config, agent.source)

    def choose(observation: Any, legal_actions: Any, first: Any = None) -> np.ndarray:
        inputs = Inputs(
            jax.tree.map(np.asarray, observation), mask_of(agent.spec, legal_actions, agent.spec.num_agents)
        )
        if first is not None:  # agents may arrive in the middle of an episode
            agent.reset(first)
        if not thoughts:
            return agent.choose(inputs, greedy)
        thought.append(agent.think_of(inputs, greedy))
        taken = thought[-1].taken
        return np.array([thought[-1].action], np.int32) if taken is None else taken[None]

    def make() -> Env:
        config = agent.config
        if agent.spec.agents and registry.resolve(request) in ("gymnasium", "pettingzoo"):
            # PettingZoo draws only what was made for it.  A callable is not known to be its yet.
            options = {"render_mode": "rgb_array", **config.env.options}
            config = config.model_copy(update={"env": config.env.model_copy(update={"options": options})})
        return build.make_env_again(agent.spec, config, agent.source, 1, seed, "watch")

    frames = plots.render_episode(
        request, choose, registry.seeds(seed, "watch", 1)[0], min(whole, max_steps or whole), make, agent.spec
    )
    return panels.with_panels(frames, thought, agent.action_name) if thoughts else frames


def load(
    path: str | Path, env: EnvSource | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> LoadedAgent:
    """Return the agent of a run's last checkpoint; `env` is needed only if the run's environment was a callable.

    `overrides` are settings of the search, such as `search.num_simulations=200`. They change how the agent acts, not
    what it has learned.

    Raises:
      RunFolderError: the folder has no run, or the run has no checkpoint yet.
      CheckpointError: the checkpoint is damaged, or of another architecture.
      ConfigError: a setting is wrong, or is not one of the search.
    """
    config = build.with_overrides(directory.read_config(path), overrides)
    saved = directory.last_checkpoint(path)
    meta = checkpoint.read_meta(saved)
    config, spec = build.with_encoding(config, env, meta["spec"])
    parts = build.make_parts(config, spec)
    train = checkpoint.restore(saved, "train", parts.saved)
    policy = learner.acting_policy(parts.agent, train)
    return LoadedAgent(config, spec, parts.agent, policy, env, int(meta["counters"]["env_steps"]))
