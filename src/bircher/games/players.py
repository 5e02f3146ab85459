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
    """How a player chooses its moves in M games."""

    def __call__(
        self, params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key
    ) -> tuple[Any, PyTree]:
        """Actions [M] and the memory after them; `states` are the games' true states [M, ...], for who knows rules.

        Where `timestep.last` is set the game is over, and any action will do.
        """
        ...


class Player(NamedTuple):
    """One side of a game."""

    name: str
    params: PyTree
    """Handed to `decide`: what a compiled program is to take as an argument."""
    start: Callable[[int], PyTree]
    """(number of games) -> memory at their start"""
    decide: Decide
    compiled: bool = True
    """Whether `decide` may be traced; else it is called with arrays, as Python."""


def of_agent(agent: Agent, policy: Policy, mode: Mode, name: str | None = None) -> Player:
    """An agent as a player, after its training; it sees the rows alone."""

    def decide(params: Policy, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del states
        output, carry = agent.act(params, carry, timestep, key, mode, 1.0)
        return output.action, carry

    return Player(name or agent.name, policy, agent.start, decide)


def at_random(spec: EnvSpec) -> Player:
    """Every legal action is as probable as any other."""

    def decide(params: PyTree, carry: PyTree, states: PyTree, timestep: TimeStep, key: Key) -> tuple[Any, PyTree]:
        del params, states
        return random_actions(spec, key, timestep).astype(jnp.int32), carry

    return Player("random", (), no_memory, decide)


def no_memory(num_games: int) -> tuple:
    """The memory of a player that has none."""
    del num_games
    return ()


def rules_of(env: Env) -> PureEnv:
    """The game itself, without what stands around it.

    Raises:
      TypeError: the environment is no pure one, so that its states cannot be looked at.
    """
    while isinstance(env, StackedEnv):
        env = env.env
    if not isinstance(env, PureEnv):
        raise TypeError(f"{env.spec.id} is no game whose states can be looked at")
    return env


def states_of(env: Env, env_state: Any) -> PyTree:
    """The true states of the games in an environment's state."""
    while isinstance(env, StackedEnv):
        env, env_state = env.env, env_state.inner
    return env_state.inner
