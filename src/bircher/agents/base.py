"""What an agent is: a NamedTuple of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, Int, PyTree, Shaped
from pydantic import BaseModel, ConfigDict, Field

from bircher.errors import UnsupportedEnvironment
from bircher.networks.model import Model
from bircher.ops.turns import PAIR
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory, Unsupported

Mode = Literal["explore", "sample", "greedy"]
"""`explore` collects training data. `sample` draws from the same policy without the noise of exploration. `greedy`
takes the best action."""


class Schedule(NamedTuple):
    """A weight that changes linearly from `start` to `end` over training."""

    start: float
    end: float

    def at(self, progress: Array | float) -> Array | float:
        """Return the weight at a share of training between 0 and 1."""
        return self.start + (self.end - self.start) * progress


class Term(BaseModel):
    """The weight of one loss term, and whether it is used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight in the sum of the loss terms. 0, without a `final_weight`, leaves the term out as `enabled=false`
    does. For `model_value` and `model_reward` null is derived: 1 if a term looks ahead, and otherwise 0."""
    final_weight: Annotated[float, Field(ge=0)] | None = None
    """The weight at the end of the run, which is reached linearly over its steps; null keeps `weight` throughout."""
    enabled: bool = True

    def schedule(self) -> float | Schedule:
        """Return the weight, as a schedule if it changes."""
        return self.weight if self.final_weight is None else Schedule(self.weight, self.final_weight)


class LossTable(BaseModel):
    """The loss terms of an agent, one field each, in the order of the table of terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def weights(self) -> dict[str, float | Schedule]:
        """Return the weight of each term that is used; a term whose weight is 0 during the whole run is left out."""
        enabled = {name: term.schedule() for name, term in self if term.enabled}
        return {name: weight for name, weight in enabled.items() if weight not in (0.0, Schedule(0.0, 0.0))}


def weights_at(weights: Mapping[str, float | Schedule], progress: Array | float) -> dict[str, Array | float]:
    """Return the weight of every term at a share of training between 0 and 1."""
    return {name: weight.at(progress) if isinstance(weight, Schedule) else weight for name, weight in weights.items()}


class AgentConfig(BaseModel):
    """Settings that every agent has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    gamma: Annotated[float, Field(ge=0, le=1)]
    """The discount gamma of each environment step."""
    target_update_rate: Annotated[float, Field(gt=0, le=1)]
    """The share by which the target network moves toward the online network at each update."""


class Carry(NamedTuple):
    """The state of an agent in B episodes, passed from one row to the next; None stands for a part that is not used."""

    memory: PyTree[Array] | None = None
    """The memory of the network, [B, ...]."""
    moves: Int[Array, " B"] | None = None
    """The number of actions since the episode began."""
    exploration: PyTree[Array] | None = None
    """What the bonus for exploring has seen of the episode, [B, ...]."""


def initial_memory(rows: Trajectory) -> PyTree[Array] | None:
    """Return the network's memory before the first row of each sequence [B, R], as it was during acting.

    It is None for a network without memory.
    """
    return jax.tree.map(lambda x: x[:, 0], rows.memory)


class Act(Protocol):
    """The function by which an agent chooses actions for B environments."""

    def __call__(
        self, policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        """Return the actions and the carry after them.

        `progress` is the share of training that is complete, between 0 and 1.
        """
        ...


class BuildTargets(Protocol):
    """The function that computes the targets of an agent."""

    def __call__(self, policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, Any]:
        """Return targets without gradient, and the agent's new state.

        Args:
          policy: parameters of the target network and the agent's state.
          batch: `minibatches` equal minibatches, one after the other. The last sequences of each are its replayed ones.
          key: random key; it is consumed.
          minibatches: number of minibatches in the batch.
        """
        ...


class Loss(Protocol):
    """The function that computes the loss terms of an agent."""

    def __call__(
        self, params: PyTree, state: Any, batch: Batch, targets: Targets, key: Key, /, with_metrics: Array | bool = True
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        """Return the loss terms by name, and the metrics to log.

        Unless `with_metrics`, the metrics are zeros and are not computed.
        """
        ...


class LookAhead(NamedTuple):
    """The estimates of an agent with a model for B latents, and for A actions of each."""

    value: Float[Array, " B *P"]
    """Of more than two players, a value for each, which begin with the player to move; Q is always that player's."""
    prior: Float[Array, "B A"]
    """The network's policy, before any improvement; 1 / A where the actions are samples of it."""
    q_values: Float[Array, "B A"]
    """The value of each action, by look-ahead or search; actions that a search left out have completed values."""
    improved: Float[Array, "B A"]
    """The improved policy, toward which the agent learns."""
    actions: Shaped[Array, "B A ..."] | None = None
    """The actions; None where they are all discrete actions in their order."""


def model_of(policy: Policy) -> Model:
    """Return the model of a policy, with values and rewards in the environment's own unit."""
    return policy.params.following(policy.state.largest_return)


class Agent(NamedTuple):
    """An agent as a tuple of pure functions and constants; it holds no state."""

    name: str
    init: Callable[[Key, EnvSpec], Policy]
    """(key, spec) -> parameters and state"""
    start: Callable[[int], Carry]
    """(batch size) -> the carry at the start of episodes"""
    act: Act
    targets: BuildTargets
    loss: Loss
    encode: Callable[[Policy, Trajectory], Array]
    """(policy, rows [B, R]) -> their latents, from the memory that is stored in the rows"""
    weights: Mapping[str, float | Schedule]
    """The weight of each loss term that is used; the names must be exactly those of the terms that `loss` returns"""
    acts_with_target: bool
    """Whether the target network acts; otherwise the online network does"""
    model_discount: float = 1.0
    """The factor between consecutive states of the model: gamma, negative where the next state is the other of two
    players'"""
    look: Callable[[Policy, Array, Array, Key], LookAhead] | None = None
    """(policy, latent, legal actions, key) -> the estimates of the model; None for an agent without a model"""
    plan: Callable[[Policy, Array, Array, Key], Any] | None = None
    """(policy, latent, legal actions, key) -> a `SearchResult` with its tree, by the search that the agent uses when it
    does not explore; None for an agent that does not search"""
    follows_returns: bool = False
    """Whether the agent's state contains the largest discounted return so far (`largest_return`)."""
    keeps_behavior: bool = False
    """Whether rows store what the distance to the policy that acted is computed from: `behavior_logits`, or for actions
    that are not few discrete ones `behavior_log_prob`"""
    begin: Callable[[Any, Trajectory, Array], Any] | None = None
    """(state, rollout, share of training that is complete) -> the agent's state before the updates of the rollout; None
    for an agent whose state changes only with its targets"""
    unwrap: Callable[[Policy], Policy] = lambda policy: policy
    """(policy) -> the policy whose parameters are the `Model` that acts, without those of a bonus for exploring"""


def require_supported(name: str, spec: EnvSpec) -> None:
    """Require that observations are arrays, and that actions are of a kind that the agent takes.

    Games of more than two players need an agent whose values are vectors.

    Raises:
      UnsupportedEnvironment: a space or the number of players is not supported; the message names it.
    """
    if spec.num_players > PAIR and name not in ("muzero", "gumbel_muzero"):
        raise UnsupportedEnvironment(
            f"{spec.id} has {spec.num_players} players, and agent {name} supports at most {PAIR}: choose "
            "agent=gumbel_muzero or agent=muzero"
        )
    if isinstance(spec.action, Unsupported):
        raise UnsupportedEnvironment(
            f"agent {name} supports Discrete, MultiDiscrete, MultiBinary and bounded Box actions, and {spec.id} has "
            f"the {spec.action}; give it one of these spaces by gymnasium.wrappers.TransformAction"
        )
    if isinstance(spec.observation, Unsupported):
        advice = f"; {spec.advice}" if spec.advice else ""
        raise UnsupportedEnvironment(
            f"agent {name} supports observations of arrays, and {spec.id} has the {spec.observation}{advice}"
        )
