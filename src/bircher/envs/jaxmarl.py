"""JaxMARL's particle environments: several agents as pure programs.

JaxMARL's dictionaries by agent become rows, and its own reset at the end of episodes is not used.  An episode ends only
at the limit of steps, so that every end is a truncation.  Of a game of tag the hunters learn, and the prey acts
uniformly at random.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from bircher.envs.agents import to_rows
from bircher.envs.base import Actions, row
from bircher.envs.config import EnvRequest
from bircher.envs.jax_env import PureEnv, PureState, Single
from bircher.errors import UnsupportedEnvironment
from bircher.types import Discrete, EnvSpec, Key, TimeStep

PREFIX = "jaxmarl/"
"""The beginning of the ids; the list is `registry.JAXMARL`."""
PREY = {"MPE_simple_tag_v3": "agent_"}
"""The beginning of the names of the agents that act at random, by environment."""


class _Inside(NamedTuple):
    """An environment of JaxMARL, its agents that learn, and those that act at random."""

    env: Any
    agents: tuple[str, ...]
    others: tuple[str, ...]
    width: int
    """The length of the longest observation; shorter ones are filled up with 0."""


def require_installed(env_id: str) -> None:
    """Raise UnsupportedEnvironment if JaxMARL is not installed."""
    if importlib.util.find_spec("jaxmarl") is None:
        raise UnsupportedEnvironment(f"{env_id} needs JaxMARL, which is not installed: pip install 'bircher[jaxmarl]'")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what JaxMARL prints when it is imported, although one of its modules resets Python's streams meanwhile."""
    own, errors = sys.__stdout__, sys.stderr
    sys.__stdout__ = io.StringIO()  # type: ignore[misc, assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.__stdout__, sys.stderr = own, errors  # type: ignore[misc]


def _make(request: EnvRequest) -> _Inside:
    config, name = request.config, request.config.id.removeprefix(PREFIX)
    require_installed(config.id)
    for setting, given in (("env.action_repeat", config.repeat > 1), ("observation=pixels", request.pixels)):
        if given:
            raise UnsupportedEnvironment(f"{setting} is not for environments of several agents such as {config.id}")
    if "max_steps" in config.options or config.options.get("action_type", "Discrete") != "Discrete":
        raise UnsupportedEnvironment(
            f"{config.id} takes its limit from env.max_steps, and has discrete actions: leave max_steps and "
            "action_type out of env.options"
        )
    with _silent():
        jaxmarl = importlib.import_module("jaxmarl")
    # JaxMARL compares with the count before the step, so that an episode has one step more than its limit.
    limit = {} if config.max_steps is None else {"max_steps": config.max_steps - 1}
    env = jaxmarl.make(name, **config.options, **limit)
    random = PREY.get(name)
    others = tuple(agent for agent in env.agents if random is not None and agent.startswith(random))
    agents = tuple(agent for agent in env.agents if agent not in others)
    return _Inside(env, agents, others, max(env.observation_space(agent).shape[0] for agent in agents))


def _spec_of(request: EnvRequest, inside: _Inside) -> EnvSpec:
    actions = Discrete(max(_num_actions(inside)))
    observation = jax.ShapeDtypeStruct((inside.width,), jnp.float32)
    return EnvSpec(request.config.id, observation, actions, inside.env.max_steps + 1, agents=inside.agents)


def _num_actions(inside: _Inside) -> list[int]:
    return [int(inside.env.action_space(agent).n) for agent in inside.agents]


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of an environment."""
    return _spec_of(request, _make(request))


def _start(inside: _Inside, key: Key, index: Array) -> tuple[Any, Array]:
    del index
    observations, state = inside.env.reset(key)
    return state, _rows_of(inside, observations)


def _move(inside: _Inside, key: Key, state: Any, actions: Array) -> tuple[Any, ...]:
    key, random_key = jax.random.split(key)
    chosen = {agent: actions[place] for place, agent in enumerate(inside.agents)}
    for agent, own in zip(inside.others, jax.random.split(random_key, max(len(inside.others), 1)), strict=False):
        chosen[agent] = jax.random.randint(own, (), 0, inside.env.action_space(agent).n)
    observations, state, rewards, dones, _ = inside.env.step_env(key, state, chosen)
    reward = jnp.stack([rewards[agent] for agent in inside.agents])
    return state, _rows_of(inside, observations), reward, False, dones["__all__"]


def _rows_of(inside: _Inside, observations: dict[str, Array]) -> Array:
    own = [observations[agent] for agent in inside.agents]
    return jnp.stack([jnp.pad(x, (0, inside.width - x.shape[0])) for x in own])


class JaxMarlEnv(PureEnv):
    """B particle environments of JaxMARL as one pure program, with a row for each of their agents."""

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        inside = _make(request)
        legal = jnp.arange(max(_num_actions(inside))) < jnp.asarray(_num_actions(inside))[:, None]
        self._legal = jnp.tile(legal, (len(seeds), 1))
        spec = _spec_of(request, inside)
        super().__init__(Single(spec, partial(_start, inside), partial(_move, inside)), seeds)

    def step(self, state: PureState, action: Actions) -> tuple[PureState, TimeStep]:
        """Step as a pure function of the state; after a ``last`` row, return the first row of a new episode."""
        keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
        actions = action.reshape(self.num_envs, self.spec.num_agents)
        inner, observation, reward, _, truncated = self.move(keys, state.inner, actions)
        inner, observation = jax.lax.cond(
            jnp.any(state.last), self._replace, lambda _, values: values, (keys, state.last), (inner, observation)
        )
        timestep = self._timestep(observation, reward, state.last, truncated)
        return PureState(inner, state.key, state.count + 1, truncated & ~state.last), timestep

    def _start_state(self, seeds: UInt32[Array, " B"]) -> tuple[PureState, TimeStep]:
        keys = jax.vmap(jax.random.key)(seeds)
        count, never = jnp.zeros(self.num_envs, jnp.int32), jnp.zeros(self.num_envs, bool)
        first_keys = jax.vmap(jax.random.fold_in)(keys, count)
        inner, observation = jax.vmap(self._one_start)(first_keys, jnp.arange(self.num_envs))
        timestep = self._timestep(observation, jnp.zeros(observation.shape[:2]), ~never, never)
        return PureState(inner, keys, count + 1, never), timestep

    def _any_action(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.spec.num_agents,), jnp.int32)

    def _timestep(self, observation: Array, reward: Array, first: Array, truncated: Array) -> TimeStep:
        """Return rows [B * A] for the arrays [B, A, …] of agents and [B] of environments."""
        agents = self.spec.num_agents
        first, truncated = to_rows(first, agents), to_rows(truncated, agents)
        return row(
            self.spec, observation.reshape(-1, observation.shape[-1]), reward.reshape(-1), first=first,
            terminal=jnp.zeros_like(first), truncated=truncated, legal_actions=self._legal,
            valid=jnp.ones_like(first) if agents > 1 else None,
        )  # fmt: skip
