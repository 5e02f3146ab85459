"""A bonus for exploring, added to any agent by a wrapper around its functions, so that no agent knows of it.

The bonus of arriving at a row is part of the reward that targets see: values, advantages and the model's rewards.  It
is not part of a rollout's rewards, so that returns, evaluations and the largest return do not contain it.

- `e3b`: "Exploration via Elliptical Episodic Bonuses" by Henaff et al. 2022 (https://arxiv.org/abs/2210.05805).  It
  depends on all earlier rows of the episode, so that it is computed when the agent acts, and stored with the row.
- `disagreement`: "Self-Supervised Exploration via Disagreement" by Pathak et al. 2019
  (https://arxiv.org/abs/1906.04161).  It falls as the ensemble learns, so that it is computed anew with the targets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.agents.base import Agent, Carry, LookAhead, Mode, Schedule
from bircher.agents.metrics import compute_if
from bircher.errors import UnsupportedEnvironment
from bircher.networks.config import ModelConfig
from bircher.networks.exploration import WIDTH, Ensemble, Features, InverseDynamics, elliptical_bonus
from bircher.networks.layers import ObservationStatistics, PartStatistics
from bircher.networks.model import Model
from bircher.ops import losses
from bircher.ops.distributions import distribution_of
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory

KEPT = 0.9
"""The share of the moving mean square of bonuses that stays after a rollout.  An untrained ensemble has bonuses
thousands of times as large as later, which a mean over the whole run would never forget."""
LARGEST = 3.0
"""The discounted sum of bonuses, in units of `exploration.weight`, that values must be able to represent."""


class ExplorationConfig(BaseModel):
    """The bonus for exploring, which any agent can have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none", "e3b", "disagreement"] = "none"
    """The bonus that is added to rewards during training: none, `e3b` for observations unlike the earlier ones of the
    episode, or `disagreement` for actions whose next observation an ensemble of predictors does not agree on."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """The root mean square of discounted sums of bonuses, in the unit of rewards; about the return of an episode that
    solves the task, or less."""
    final_weight: Annotated[float, Field(ge=0)] | None = 0.0
    """The weight at the end of the run, which is reached linearly over its steps; null keeps `weight` throughout."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """The number on the diagonal of E3B's matrix when an episode begins (the paper: 0.1). Differences between features
    whose square is far below it count as nothing new."""
    ensemble_size: Annotated[int, Field(ge=2, le=1000)] = 5
    """The number of heads of the ensemble (the paper: 5)."""

    @model_validator(mode="after")
    def _has_a_weight(self) -> ExplorationConfig:
        if self.kind != "none" and not max(self.weight, self.final_weight or 0.0):
            raise ValueError(f"kind={self.kind} has no effect with weight=0: give it more, or set kind=none")
        return self

    def schedule(self) -> Schedule:
        """Return the weight over the run."""
        return Schedule(self.weight, self.weight if self.final_weight is None else self.final_weight)


def requirements(config: ExplorationConfig, model: ModelConfig) -> None:
    """Check that a model can learn rewards and values that contain a bonus.

    Raises:
      ValueError: it cannot; the message names the setting.
    """
    if config.kind == "none":
        return
    if not model.reward_head:
        raise ValueError(
            f"exploration.kind={config.kind} adds to rewards, which model.reward_head=false does not predict: "
            "set exploration.kind=none, or model.reward_head=true"
        )
    if model.value_head == "tanh":
        raise ValueError(
            f"exploration.kind={config.kind} adds to values, which model.value_head=tanh bounds by 1: "
            "set exploration.kind=none, or model.value_head=categorical"
        )


class ExplorationParams(eqx.Module):
    """The parameters of an agent, and of its bonus."""

    agent: Model
    exploration: InverseDynamics | Ensemble


class ExplorationState(eqx.Module):
    """The state of an agent, and of its bonus."""

    agent: Any
    features: Features | None
    """Features that are never trained, so that what predicts them has a fixed goal."""
    statistics: ObservationStatistics | PartStatistics | None
    square: Float[Array, ""]
    """The moving mean square of the discounted sums of bonuses, without bias correction."""
    seen: Float[Array, ""]
    """The sum of the weights in that mean, which tends to 1."""
    progress: Float[Array, ""]
    """The share of training that is complete."""
    largest_return: Float[Array, ""]
    """The largest discounted return of training so far, without bonuses."""

    @property
    def size(self) -> Float[Array, ""]:
        """Return the root mean square of the discounted sums of bonuses; 0 before the first rollout."""
        return jnp.sqrt(self.square / jnp.maximum(self.seen, 1e-8))


class EpisodeMemory(NamedTuple):
    """The memory of B episodes so far: discounted sums of their bonuses, and what the kind of bonus needs."""

    total: Float[Array, " B"]
    memory: PyTree[Array]


class Elliptical(NamedTuple):
    """E3B: b = f' C^-1 f, with the sum C of f f' over the earlier rows of the episode, plus a ridge.

    The features f are those of inverse dynamics.
    """

    config: ExplorationConfig
    model_config: ModelConfig
    term: str = "inverse_dynamics"

    def init(self, key: Key, spec: EnvSpec) -> tuple[InverseDynamics, None]:
        """Return the trained networks, and the fixed ones."""
        return InverseDynamics(spec, self.model_config, key), None

    def start(self, size: int) -> Float[Array, "B n n"]:
        """Return the memory before the first row of episodes, which sets it."""
        return jnp.zeros((size, WIDTH, WIDTH))

    def observe(
        self, networks: InverseDynamics, fixed: None, inverse: Array, observation: PyTree, action: Array, first: Array
    ) -> tuple[Float[Array, " B"], Array]:
        """Return the bonus of arriving at rows [B], and the memory after them."""
        del fixed, action
        blank = jnp.eye(WIDTH) / self.config.ridge
        return elliptical_bonus(jnp.where(first[:, None, None], blank, inverse), networks.features(observation))

    def renewed(
        self, networks: InverseDynamics, fixed: None, observation: PyTree, action: Array, stored: Array
    ) -> Float[Array, "B R"]:
        """Return the bonus of arriving at rows [B, R], given that of acting."""
        del networks, fixed, observation, action
        return stored

    def loss(self, networks: InverseDynamics, fixed: None, observation: PyTree, action: Array) -> Float[Array, "B T"]:
        """Return the loss of the networks, for rows [B, T + 1] and the actions between them."""
        del fixed
        return networks.loss(observation, action)


class Disagreement(NamedTuple):
    """The variance between the predictions of an ensemble for the next observation, after an action.

    What they predict are features by a random network: "Large-Scale Study of Curiosity-Driven Learning" by Burda et al.
    2018 (https://arxiv.org/abs/1808.04355).
    """

    config: ExplorationConfig
    model_config: ModelConfig
    term: str = "disagreement"

    def init(self, key: Key, spec: EnvSpec) -> tuple[Ensemble, Features]:
        """Return the trained networks, and the fixed ones."""
        heads_key, features_key = jax.random.split(key)
        ensemble = Ensemble(distribution_of(spec.action), self.config.ensemble_size, heads_key)
        return ensemble, Features(spec, self.model_config, features_key)

    def start(self, size: int) -> Float[Array, " B"]:
        """Return the memory before the first row of episodes."""
        return jnp.zeros(size)

    def observe(
        self, networks: Ensemble, fixed: Features, pending: Array, observation: PyTree, action: Array, first: Array
    ) -> tuple[Float[Array, " B"], Array]:
        """Return the bonus of arriving at rows [B], which is that of the action before, and the memory after them."""
        del first
        return pending, networks.disagreement(fixed(observation), action)

    def renewed(
        self, networks: Ensemble, fixed: Features, observation: PyTree, action: Array, stored: Array
    ) -> Float[Array, "B R"]:
        """Return the bonus of arriving at rows [B, R], given that of acting."""
        bonus = networks.disagreement(fixed(observation), action)
        return jnp.concatenate([stored[:, :1], bonus[:, :-1]], axis=1)

    def loss(self, networks: Ensemble, fixed: Features, observation: PyTree, action: Array) -> Float[Array, "B T"]:
        """Return the loss of the networks, for rows [B, T + 1] and the actions between them."""
        return networks.loss(jax.lax.stop_gradient(fixed(observation)), action)


class _Explored(NamedTuple):
    """The functions of an agent with a bonus; each calls the agent's own."""

    agent: Agent
    bonus: Elliptical | Disagreement
    config: ExplorationConfig

    def init(self, key: Key, spec: EnvSpec) -> Policy:
        if spec.num_players > 1:
            raise UnsupportedEnvironment(
                f"exploration.kind={self.config.kind} is for environments of one player, and {spec.id} is a game of "
                f"{spec.num_players}: set exploration.kind=none"
            )
        own = self.agent.init(key, spec)
        # A separate key: the agent's own parameters are those that it has without a bonus.
        networks, fixed = self.bonus.init(jax.random.fold_in(key, 7), spec)
        zeros = [jnp.zeros(()) for _ in range(4)]
        state = ExplorationState(own.state, fixed, ObservationStatistics.of(spec), *zeros)
        return Policy(ExplorationParams(own.params, networks), state)

    def unwrap(self, policy: Policy) -> Policy:
        return self.agent.unwrap(Policy(policy.params.agent, policy.state.agent))

    def start(self, size: int) -> Carry:
        memory = EpisodeMemory(jnp.zeros(size), self.bonus.start(size))
        return self.agent.start(size)._replace(exploration=memory)

    def act(
        self, policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        output, following = self.agent.act(self.unwrap(policy), carry, timestep, key, mode, progress)
        if mode != "explore":
            return output, following._replace(exploration=carry.exploration)
        first, before, state = timestep.first, carry.exploration, policy.state
        assert isinstance(before, EpisodeMemory)
        bonus, memory = self.bonus.observe(
            policy.params.exploration, state.features, before.memory,
            _normalized(state, timestep.observation), output.action, first,
        )  # fmt: skip
        bonus = jnp.where(first, 0.0, bonus)
        total = jnp.where(first, 0.0, self.agent.model_discount * before.total + bonus)
        extras = output.extras
        extras = extras._replace(per_row={**extras.per_row, "bonus": bonus, "bonus_return": total})
        return output._replace(extras=extras), following._replace(exploration=EpisodeMemory(total, memory))

    def begin(self, state: ExplorationState, rollout: Trajectory, progress: Array) -> ExplorationState:
        later = jax.tree.map(lambda x: x[:, 1:], rollout)
        arrived = ~later.first
        square = losses.masked_mean(jnp.square(later.extras.per_row["bonus_return"]), arrived)
        weight = jnp.where(arrived.any(), 1.0 - KEPT, 0.0)
        statistics = state.statistics
        if statistics is not None:
            there = jnp.ones_like(arrived) if later.valid is None else later.valid
            statistics = statistics.update(later.observation, there)
        return ExplorationState(
            state.agent, state.features, statistics,
            (1.0 - weight) * state.square + weight * square, (1.0 - weight) * state.seen + weight,
            progress, state.largest_return,
        )  # fmt: skip

    def targets(
        self, policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1
    ) -> tuple[Targets, ExplorationState]:
        state, rows = policy.state, batch.trajectory
        weight = self.config.schedule().at(state.progress)
        stored = rows.extras.per_row["bonus"]
        bonus = self.bonus.renewed(
            policy.params.exploration, state.features, _normalized(state, rows.observation), rows.action, stored
        )
        bonus = jnp.where(rows.first, 0.0, weight * bonus / jnp.maximum(state.size, 1e-12))
        own = _with_unit(state.agent, state.largest_return + LARGEST * max(self.config.schedule()))
        changed = batch._replace(trajectory=rows._replace(reward=rows.reward + bonus))
        result, own = self.agent.targets(Policy(policy.params.agent, own), changed, key, minibatches=minibatches)
        bonus = jax.lax.stop_gradient(bonus[:, 1:])
        extras = result.extras._replace(
            per_transition={**result.extras.per_transition, "bonus": bonus},
            per_batch={**result.extras.per_batch, "bonus_weight": jnp.asarray(weight)},
        )
        return result._replace(extras=extras), eqx.tree_at(lambda state: state.agent, state, own)

    def loss(
        self, params: PyTree, state: Any, batch: Batch, target: Targets, key: Key, with_metrics: Array | bool = True
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        terms, metrics = self.agent.loss(params.agent, state.agent, batch, target, key, with_metrics)
        rows = batch.trajectory
        observation = _normalized(state, rows.observation)
        term = self.bonus.loss(params.exploration, state.features, observation, rows.action[:, :-1])

        def measure() -> dict[str, Array]:
            extras = target.extras
            bonus = losses.masked_mean(extras.per_transition["bonus"], target.mask)
            reward = losses.masked_mean(jnp.abs(target.reward - extras.per_transition["bonus"]), target.mask)
            return {
                "target/bonus": bonus,
                "target/bonus_share": bonus / jnp.maximum(bonus + reward, 1e-12),
                "target/bonus_weight": extras.per_batch["bonus_weight"],
                "target/largest_return": state.largest_return,
            }

        return {**terms, self.bonus.term: term}, {**metrics, **compute_if(with_metrics, measure)}

    def encode(self, policy: Policy, rows: Trajectory) -> Array:
        return self.agent.encode(self.unwrap(policy), rows)

    def look(self, policy: Policy, latent: Array, legal_actions: Array, key: Key) -> LookAhead:
        assert self.agent.look is not None
        return self.agent.look(self.unwrap(policy), latent, legal_actions, key)

    def plan(self, policy: Policy, latent: Array, legal_actions: Array, key: Key) -> Any:
        assert self.agent.plan is not None
        return self.agent.plan(self.unwrap(policy), latent, legal_actions, key)


def _normalized(state: ExplorationState, observation: PyTree[Array]) -> PyTree[Array]:
    """Return observations with their running mean and deviation taken out."""
    return observation if state.statistics is None else state.statistics.normalize(observation)


def _with_unit(state: Any, largest: Float[Array, ""]) -> Any:
    """Return an agent's state with the largest sum of rewards and bonuses, if the unit of its values follows it."""
    if state.largest_return is None:
        return state
    return eqx.tree_at(lambda state: state.largest_return, state, largest)


def with_exploration(agent: Agent, config: ExplorationConfig, model_config: ModelConfig) -> Agent:
    """Return the agent with a bonus for exploring, or the agent itself where there is none."""
    if config.kind == "none":
        return agent
    bonus = (Elliptical if config.kind == "e3b" else Disagreement)(config, model_config)
    explored = _Explored(agent, bonus, config)
    return agent._replace(
        init=explored.init, start=explored.start, act=explored.act, targets=explored.targets, loss=explored.loss,
        encode=explored.encode, weights={**agent.weights, bonus.term: 1.0},
        look=explored.look if agent.look is not None else None,
        plan=explored.plan if agent.plan is not None else None,
        follows_returns=True, begin=explored.begin, unwrap=explored.unwrap,
    )  # fmt: skip
