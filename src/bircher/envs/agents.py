"""Environments of several agents: a row for each agent, and what the rows of one environment say together.

The rows of B environments with A agents are [B * A], and those of one environment are together.  A row of an agent that
is not there is not `valid`.  It is also `first` and `last`, which no other row is, so that nothing crosses it: an
episode of the environment begins where all its rows are first, and ends where all are last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from bircher.envs.base import Actions, Env, EnvState, failure
from bircher.errors import UnsupportedEnvironment
from bircher.types import SINGLE, EnvSpec, TimeStep, Unsupported

AGENT = "agent"
"""The name of the part of an observation that contains an agent's identity."""


class Moment(NamedTuple):
    """What the rows of each of B environments say of its episode."""

    first: Bool[Array, " B"]
    last: Bool[Array, " B"]
    terminal: Bool[Array, " B"]
    """Whether the episode ended here, and no agent was cut short here by a limit."""
    reward: Float[Array, " B *P"]
    """The sum over the agents; one for each player of a game of more than two."""


def moment_of(timestep: TimeStep, num_agents: int) -> Moment:
    """Return what rows [B * A] say of B episodes; of one agent they are its own fields."""
    if timestep.valid is None:
        return Moment(timestep.first, timestep.last, timestep.terminal, timestep.reward)

    def every(flags: Array) -> Array:
        return flags.reshape(-1, num_agents).all(-1)

    last = every(timestep.last)
    terminal = last & every(timestep.terminal | ~timestep.valid)
    return Moment(every(timestep.first), last, terminal, timestep.reward.reshape(-1, num_agents).sum(-1))


def to_rows(values: Array, num_agents: int) -> Array:
    """Return a number of each of B environments for each of its agents' rows, [B * A]."""
    return values if num_agents == 1 else jnp.repeat(values, num_agents)


def by_agent(rows: Array, num_agents: int) -> Array:
    """Return numbers of rows [B * A] as [B, A]."""
    return rows.reshape(-1, num_agents)


def team(rows: Array, num_agents: int) -> Array:
    """Return the sum over the agents of each of B environments, [B]."""
    return rows if num_agents == 1 else by_agent(rows, num_agents).sum(-1)


class _Wrapped:
    """An environment whose rows are changed; everything else is that of the environment."""

    def __init__(self, env: Env):
        self.env, self.spec, self.num_envs, self.pure = env, env.spec, env.num_envs, env.pure

    def change(self, timestep: TimeStep) -> TimeStep:
        """Return the changed rows."""
        raise NotImplementedError

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Reset the environment and return the first rows."""
        state, timestep = self.env.reset()
        return state, self.change(timestep)

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """Step the environment and return the changed rows."""
        state, timestep = self.env.step(state, action)
        return state, self.change(timestep)

    def failure(self) -> str | None:
        """Return the error of the wrapped environment; None if there is none, or if it cannot fail."""
        return failure(self.env)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()


class SharedRewards(_Wrapped):
    """An environment whose agents each receive the mean of the rewards of all that are there.

    The sum over the agents, which is the team's return, stays what it was.
    """

    def change(self, timestep: TimeStep) -> TimeStep:
        """Return rows with the mean reward of each environment."""
        count = self.spec.num_agents
        if count == 1:
            return timestep
        # An agent that arrives on this row has no reward yet, because it had no part in what led here.
        receives = by_agent(~timestep.first, count)
        mean = by_agent(timestep.reward, count).sum(-1) / jnp.maximum(receives.sum(-1), 1)
        return timestep._replace(reward=jnp.where(receives, mean[:, None], 0.0).reshape(-1))


class IdentifiedAgents(_Wrapped):
    """An environment whose observations contain which agent observes, as a one-hot."""

    def __init__(self, env: Env):
        super().__init__(env)
        self.spec = with_identity(env.spec)

    def change(self, timestep: TimeStep) -> TimeStep:
        """Return rows with each agent's identity."""
        count = self.spec.num_agents
        identity = jnp.tile(jnp.eye(count, dtype=jnp.float32), (self.num_envs, 1))
        return timestep._replace(observation=add_identity(self.env.spec, timestep.observation, identity, jnp))


def _is_vector(spec: EnvSpec) -> bool:
    """Return whether an observation is one vector of float32, to whose end an identity can be appended."""
    observation = spec.observation
    return isinstance(observation, jax.ShapeDtypeStruct) and (len(observation.shape), observation.dtype) == (
        1,
        jnp.float32,
    )


def with_identity(spec: EnvSpec) -> EnvSpec:
    """Return the specification of observations with an agent's identity.

    A vector becomes longer.  Any other observation becomes, or is, a dictionary with the part `agent`.

    Raises:
      UnsupportedEnvironment: the observation is not supported, or has a part of this name.
    """
    count, observation = spec.num_agents, spec.observation
    if isinstance(observation, Unsupported):
        raise UnsupportedEnvironment(f"env.agent_identity=true cannot extend the {observation} of {spec.id}")
    if _is_vector(spec):
        longer = jax.ShapeDtypeStruct((observation.shape[0] + count,), observation.dtype)
        return spec._replace(observation=longer, encoding=None, anonymous=spec)
    if isinstance(observation, Mapping) and AGENT in observation:
        raise UnsupportedEnvironment(
            f"env.agent_identity=true adds the part {AGENT} to observations, but those of {spec.id} have one: set "
            "env.agent_identity=false"
        )
    identity = jax.ShapeDtypeStruct((count,), np.dtype(np.float32))
    return spec._replace(observation=_joined(spec, observation, identity), encoding=None, anonymous=spec)


def _joined(spec: EnvSpec, observation: Any, identity: Any) -> dict[str, Any]:
    parts = observation if isinstance(spec.observation, Mapping) else {SINGLE: observation}
    return {**parts, AGENT: identity}


def add_identity(spec: EnvSpec, observation: PyTree, identity: Any, numpy: Any = np) -> PyTree:
    """Return observations [R, ...] with identities [R, A]; `spec` is that of the observations without them."""
    if _is_vector(spec):
        return numpy.concatenate([observation, identity], axis=-1)
    return _joined(spec, observation, identity)
