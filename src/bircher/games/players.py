"""Players of a two-player game: an agent, or an opponent that knows the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import PyTree

from bircher.agents.base import Agent, Mode
from bircher.envs.base import Env, StackedEnv, random_actions
from bircher.envs.jax_env import PureEnv
from bircher.types import EnvSpec, Key, Policy, TimeStep


class Decide(Protocol):
    """The function with which a player chooses its moves in M games."""

    def __call__(
        self, params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key
    ) -> tuple[Any, PyTree]:
        """Return actions [M] and the memory after them.

        `states` are the true states [M, ...] of the games, for players that know the rules. If `timestep.last` is set,
        the game is over and any action is accepted.
        """
        ...


class Player(NamedTuple):
    """One side of a game."""

    name: str
    params: PyTree
    """First argument of `decide`, so that a compiled program takes them as an argument."""
    start: Callable[[int], PyTree]
    """(number of games) -> memory at their start"""
    decide: Decide
    compiled: bool = True
    """Whether `decide` may be traced; otherwise it is called as Python with concrete arrays."""


def of_agent(agent: Agent, policy: Policy, mode: Mode, name: str | None = None) -> Player:
    """Return a trained agent as a player, which sees only the rows of the environment."""

    def decide(params: Policy, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del states
        output, carry = agent.act(params, carry, timestep, key, mode, 1.0)
        return output.action, carry

    return Player(name or agent.name, policy, agent.start, decide)


def at_random(spec: EnvSpec) -> Player:
    """Return a player that chooses uniformly among the legal actions."""

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params, states
        return random_actions(spec, key, timestep).astype(jnp.int32), carry

    return Player("random", (), no_memory, decide)


def no_memory(num_games: int) -> tuple:
    """Return the empty memory of a player without memory."""
    del num_games
    return ()


def rules_of(env: Env) -> PureEnv:
    """Return the game without the wrappers around it.

    Raises:
      TypeError: the environment is not a PureEnv, so its states cannot be read.
    """
    while isinstance(env, StackedEnv):
        env = env.env
    if not isinstance(env, PureEnv):
        raise TypeError(f"{env.spec.id} is not a PureEnv, so the states of its games cannot be read")
    return env


def states_of(env: Env, env_state: Any) -> PyTree:
    """Return the true states of the games from an environment's state."""
    while isinstance(env, StackedEnv):
        env, env_state = env.env, env_state.inner
    return env_state.inner
