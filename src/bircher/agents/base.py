"""What an agent is: a NamedTuple of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from jaxtyping import Array, Float, PyTree
from pydantic import BaseModel, ConfigDict, Field

from bircher.errors import UnsupportedEnvironment
from bircher.types import ActOutput, Batch, Discrete, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory

Mode = Literal["explore", "sample", "greedy"]
"""`explore` makes training data; `sample` draws from the same policy without what only exploration adds."""


class Schedule(NamedTuple):
    """A weight that goes from `start` to `end` in a straight line over training."""

    start: float
    end: float

    def at(self, progress: Array | float) -> Array | float:
        """The weight at this share of training, 0 to 1."""
        return self.start + (self.end - self.start) * progress


class Term(BaseModel):
    """Weight and switch of one loss term."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Annotated[float, Field(ge=0)] = 1.0
    """0, without a `final_weight`, leaves the term out as `enabled=false` does."""
    final_weight: Annotated[float, Field(ge=0)] | None = None
    """Where it is set, the weight goes there in a straight line over the run's steps."""
    enabled: bool = True

    def schedule(self) -> float | Schedule:
        """The weight, or how it changes."""
        return self.weight if self.final_weight is None else Schedule(self.weight, self.final_weight)


class LossTable(BaseModel):
    """An agent's loss terms in their order, each a field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def weights(self) -> dict[str, float | Schedule]:
        """The weight of each term that takes part; one that is 0 all through a run is not computed."""
        enabled = {name: term.schedule() for name, term in self if term.enabled}
        return {name: weight for name, weight in enabled.items() if weight not in (0.0, Schedule(0.0, 0.0))}


def weights_at(weights: Mapping[str, float | Schedule], progress: Array | float) -> dict[str, Array | float]:
    """Every term's weight at this share of training."""
    return {name: weight.at(progress) if isinstance(weight, Schedule) else weight for name, weight in weights.items()}


class AgentConfig(BaseModel):
    """What every agent's own settings have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    gamma: Annotated[float, Field(ge=0, le=1)]
    """gamma for each environment step."""
    target_update_rate: Annotated[float, Field(gt=0, le=1)]
    """How far the target network moves toward the online one at each update."""


class Carry(NamedTuple):
    """What an agent keeps of B episodes from one row to the next; () in a place where it keeps nothing."""

    memory: PyTree[Array] = ()
    """The network's memory, [B, ...]."""
    moves: PyTree[Array] = ()
    """Actions since the episode began, [B]."""


MEMORY = "memory"
"""What a row's extras call the memory before it."""


def initial_memory(rows: Trajectory) -> PyTree[Array]:
    """The network's memory before the first row of each sequence [B, R], as it was when the rows were made."""
    return rows.extras[MEMORY][:, 0] if MEMORY in rows.extras else ()


def memory_extras(memory: PyTree[Array]) -> dict[str, Array]:
    """The same as a row's extras."""
    return {} if isinstance(memory, tuple) else {MEMORY: memory}


class Act(Protocol):
    """How an agent chooses actions for B environments."""

    def __call__(
        self, policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        """Actions and the memory after them; `progress` is the share of training done, 0 to 1."""
        ...


class BuildTargets(Protocol):
    """Computes the targets that an agent learns toward."""

    def __call__(self, policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, Any]:
        """Targets without gradient, and the agent's new state.

        Args:
          policy: of the target network.
          batch: `minibatches` equal minibatches, one after the other. The last sequences of each are its replayed ones.
          key: consumed.
          minibatches: how many there are.
        """
        ...


class Loss(Protocol):
    """What an agent minimizes."""

    def __call__(
        self, params: PyTree, state: Any, batch: Batch, targets: Targets, key: Key, /, measured: Array | bool = True
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        """Terms by name, and what to log of them; where not `measured` that is 0, and costs nothing."""
        ...


class LookAhead(NamedTuple):
    """What an agent with a model sees in B latents."""

    value: Float[Array, " B"]
    prior: Float[Array, "B A"]
    """The network's own policy."""
    q_values: Float[Array, "B A"]
    """Of each action, by look-ahead or search; actions that a search left out have its completed values."""
    improved: Float[Array, "B A"]
    """The policy that the agent learns toward."""


class Agent(NamedTuple):
    """Everything a loop needs to know of an agent; nothing here holds state."""

    name: str
    init: Callable[[Key, EnvSpec], Policy]
    """(key, spec) -> parameters and state"""
    start: Callable[[int], Carry]
    """(batch size) -> what is kept, at the start of episodes"""
    act: Act
    targets: BuildTargets
    loss: Loss
    encode: Callable[[Policy, Trajectory], Array]
    """(policy, rows [B, R]) -> their latents, with the memory that stands in the rows"""
    weights: Mapping[str, float | Schedule]
    """The weight of each term that takes part; must name exactly the terms that `loss` returns"""
    acts_with_target: bool
    """Whether the target network acts"""
    model_discount: float = 1.0
    """The factor between consecutive states of the model: gamma, negative where the next state is the opponent's"""
    look: Callable[[Policy, Array, Array, Key], LookAhead] | None = None
    """(policy, latent, legal actions, key) -> what its model says; None for an agent without a model"""
    plan: Callable[[Policy, Array, Array, Key], Any] | None = None
    """the same -> a `SearchResult` with its tree, as the agent searches when it does not explore; None without one"""
    keeps_behavior: bool = False
    """Whether rows hold `behavior_logits`, from which the distance to the policy that acted is measured"""


def require_discrete(name: str, spec: EnvSpec) -> None:
    """Refuse what is not one observation array and discrete actions.

    Raises:
      UnsupportedEnvironment: says which space is not supported.
    """
    if not isinstance(spec.action, Discrete):
        space = f"the action space {spec.action_space}" if spec.action_space else f"actions: {spec.action}"
        raise UnsupportedEnvironment(
            f"agent {name} supports Discrete actions only, and {spec.id} has {space}; give it a Discrete space of "
            "chosen actions by gymnasium.wrappers.TransformAction, and where not all of them are legal a mask in "
            'info["action_mask"]'
        )
    if not hasattr(spec.observation, "shape"):
        own = spec.observation_space
        space = f"the observation space {own}" if own else f"the observations {spec.observation}"
        advice = f"; {spec.advice}" if spec.advice else ""
        raise UnsupportedEnvironment(
            f"agent {name} supports one array as observation, and {spec.id} has {space}{advice}"
        )
