"""The environment protocol: pure functions of a state, for B environments at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.errors import EnvContractError, UnsupportedEnvironment
from bircher.ops.turns import PAIR, per_player, player_axis
from bircher.types import Discrete, EnvSpec, MultiDiscrete, TimeStep, Unsupported

EnvState = Any
"""Arrays that a program passes through ``step``: the state of a pure environment, or a handle to another one."""


Actions = Int[Array, " B"] | Int[Array, "B D"] | Float[Array, "B n"]
"""The agent's actions of B environments: indices of discrete actions, vectors of indices of multi-discrete ones, or
vectors of continuous ones whose bounds are -1 and 1.  An adapter converts them by `EnvSpec.own_action`."""


@runtime_checkable
class Env(Protocol):
    """B environments that are stepped together.

    After a ``last`` row the next ``step`` ignores its action and returns the ``first`` row of a new episode, with
    reward 0 and discount 1. An episode of n actions therefore has n + 1 rows everywhere.

    Where ``spec.num_agents`` is A > 1, there are B * A rows, and those of one environment are together. A row whose
    agent is not in the environment has ``valid`` False, zeros, and is ``first`` and ``last``. A new episode begins
    after the row on which all agents of an environment are ``last``.
    """

    spec: EnvSpec
    num_envs: int
    pure: bool
    """True if the state contains only plain arrays. It may then be saved, copied and scanned over."""

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Restart every environment with the seeds from its construction, and return the first rows.

        This method must not be traced. A pure environment returns the same rows at every call. Others must not be
        stepped by a running program during the call. EnvPool's continue their random numbers instead of restarting
        them.
        """
        ...

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """Step every environment and return the next state and rows; this method may be traced."""
        ...

    def close(self) -> None:
        """Free the resources that the environment has outside the program."""
        ...


def num_legal(spec: EnvSpec) -> int:
    """Return the width of ``legal_actions``: the number of discrete actions, or 0 for every other action space."""
    return spec.action.num_actions if isinstance(spec.action, Discrete) else 0


def num_rows(env: Env) -> int:
    """Return the number of rows of B environments, which is one for each of their agents."""
    return env.num_envs * env.spec.num_agents


def blank_rows(spec: EnvSpec, num_envs: int) -> TimeStep:
    """Return a row of zeros for each agent of B environments, with the shapes and types of real ones."""
    count = num_envs * spec.num_agents
    number, flag = jnp.zeros(count), jnp.zeros(count, bool)
    reward = jnp.zeros((count, *player_axis(spec.num_players)))
    legal = jnp.zeros((count, num_legal(spec)), bool)
    observation = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), spec.observation)
    valid = flag if spec.num_agents > 1 else None
    return TimeStep(observation, reward, number, flag, flag, flag, legal, flag, valid)


def row(
    spec: EnvSpec,
    observation: PyTree[Array],
    reward: Float[Array, " B *P"],
    *,
    first: Bool[Array, " B"],
    terminal: Bool[Array, " B"],
    truncated: Bool[Array, " B"],
    turned: Bool[Array, "*B"] | None = None,
    legal_actions: Bool[Array, "B A"] | None = None,
    failed: Bool[Array, " B"] | None = None,
    valid: Bool[Array, " B"] | None = None,
) -> TimeStep:
    """Return the row of an adapter, with the types and the conventions for first rows applied.

    ``terminal`` takes precedence over ``truncated`` when an episode terminates on its last allowed step. A first row
    has reward 0 and discount 1 and is not last, whatever the environment returned. ``turned`` marks environments in
    which the player to move has changed; the discount is -1 there. ``legal_actions`` defaults to all actions.
    ``valid`` marks the rows whose agent is there, where environments have several; the others become blank.
    """
    terminal = terminal & ~first
    last = (terminal | truncated) & ~first
    if legal_actions is None:
        legal_actions = jnp.ones((*first.shape, num_legal(spec)), bool)
    sign = 1.0 if turned is None else jnp.where(turned & ~first, -1.0, 1.0)
    timestep = TimeStep(
        observation=jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), observation, spec.observation),
        reward=jnp.where(per_player(first, reward), 0.0, reward).astype(jnp.float32),
        discount=jnp.where(terminal, 0.0, sign).astype(jnp.float32),
        first=first,
        last=last,
        terminal=terminal,
        legal_actions=legal_actions,
        failed=jnp.zeros_like(first) if failed is None else failed,
        valid=valid,
    )
    return timestep if valid is None else blank_where_absent(timestep)


def blank_where_absent(timestep: TimeStep) -> TimeStep:
    """Return rows in which those of agents that are not there follow the convention: zeros, first and last."""
    valid = timestep.valid
    assert valid is not None

    def kept(x: Array) -> Array:
        return jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

    return timestep._replace(
        observation=jax.tree.map(kept, timestep.observation),
        reward=kept(timestep.reward),
        discount=jnp.where(valid, timestep.discount, 1.0),
        first=timestep.first | ~valid,
        last=timestep.last | ~valid,
        terminal=timestep.terminal & valid,
        legal_actions=timestep.legal_actions | ~valid[:, None],
    )


class StackState(NamedTuple):
    """The state of the wrapped environment, and the last n observations as one array."""

    inner: EnvState
    observation: PyTree[Array]


class StackedEnv:
    """An environment whose rows contain its last n observations; see ``stack_observations``."""

    def __init__(self, env: Env, n: int):
        if isinstance(env.spec.observation, Unsupported):
            raise UnsupportedEnvironment(f"{env.spec.id} cannot be stacked: {env.spec.observation} is not supported")
        if n < 1:
            raise UnsupportedEnvironment(f"{env.spec.id} cannot be stacked {n} times along the last axis")
        self.env, self.n = env, n
        self.num_envs, self.pure = env.num_envs, env.pure
        self.spec = env.spec._replace(
            observation=jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], n * (leaf.shape or (1,))[-1]), leaf.dtype),
                env.spec.observation,
            ),
            encoding=jax.tree.map(lambda leaf: dataclasses.replace(leaf, stack=n), env.spec.encoding),
        )

    def reset(self) -> tuple[StackState, TimeStep]:
        """Reset the environment and return first rows with n copies of each first observation."""
        state, timestep = self.env.reset()
        observation = jax.tree.map(self._copies, _with_axis(timestep.observation))
        # The copy has separate memory: a program that donates state and row cannot take one array twice.
        return StackState(state, jax.tree.map(jnp.copy, observation)), timestep._replace(observation=observation)

    def step(self, state: StackState, action: Actions) -> tuple[StackState, TimeStep]:
        """Step, drop the oldest observation and append the new one; a first row gets n copies of the new one."""
        inner, timestep = self.env.step(state.inner, action)

        def join(old: Array, new: Array) -> Array:
            first = timestep.first.reshape(-1, *[1] * (new.ndim - 1))
            shifted = jnp.concatenate([old[..., new.shape[-1] :], new], axis=-1)
            return jnp.where(first, self._copies(new), shifted)

        observation = jax.tree.map(join, state.observation, _with_axis(timestep.observation))
        return StackState(inner, observation), timestep._replace(observation=observation)

    def failure(self) -> str | None:
        """Return the error of the wrapped environment; None if there is none, or if it cannot fail."""
        return failure(self.env)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def _copies(self, observation: Array) -> Array:
        return jnp.concatenate([observation] * self.n, axis=-1)


def _with_axis(observation: PyTree[Array]) -> PyTree[Array]:
    """Return observations [B, ...] with an axis to stack along, also those that are one number each."""
    return jax.tree.map(lambda x: x[:, None] if x.ndim == 1 else x, observation)


def stack_observations(env: Env, n: int) -> Env:
    """Return the environment with its last n observations concatenated along the last axis, oldest first.

    Vectors become longer, images get more channels. A first row contains n copies of its observation, so that the
    agent sees nothing of the previous episode. Single numbers become vectors.
    """
    return StackedEnv(env, n)


def failure(env: Env) -> str | None:
    """Return the error of an environment in which an exception occurred, or None."""
    method = getattr(env, "failure", None)
    return method() if method is not None else None


def check_env(env: Env, steps: int = 50, seed: int = 0) -> None:
    """Step an environment with random legal actions and compare every row with its specification and the protocol.

    Raises EnvContractError at the first breach. Unsupported spaces are checked only in part. With an unsupported
    observation space no row is checked; with an unsupported action space only the rows of the reset are.
    """
    if env.spec.num_players < 1:
        raise EnvContractError(f"{env.spec.id}: num_players is {env.spec.num_players}, expected at least 1")
    if env.num_envs < 1:
        raise EnvContractError(f"{env.spec.id}: num_envs is {env.num_envs}, expected at least 1")
    for part in (env.spec.observation, env.spec.action):
        if isinstance(part, Unsupported) and not part.description:
            raise EnvContractError(f"{env.spec.id}: an unsupported space needs a description")
    if isinstance(env.spec.observation, Unsupported):
        return
    state, timestep = env.reset()
    before = _check_row(env, timestep, None, 0)
    if not before.first.all():
        raise EnvContractError(f"{env.spec.id}: reset returns rows that are not first")
    if isinstance(env.spec.action, Unsupported):
        return
    step = jax.jit(lambda key, state, timestep: env.step(state, random_actions(env.spec, key, timestep)))
    shapes = jax.tree.map(jnp.shape, state)
    for index, key in enumerate(jax.random.split(jax.random.key(seed), steps), start=1):
        state, timestep = step(key, state, timestep)
        if jax.tree.map(jnp.shape, state) != shapes:
            raise EnvContractError(
                f"{env.spec.id}: the state changes its shape at row {index}, so jax.lax.scan cannot carry it"
            )
        before = _check_row(env, timestep, before, index)


def random_actions(spec: EnvSpec, key: jax.Array, timestep: TimeStep) -> jax.Array:
    """Sample the agent's actions uniformly for each of B rows; discrete actions are legal ones."""
    if isinstance(spec.action, Discrete):
        # A last row needs no action and may have no legal one, so every action is allowed there.
        allowed = timestep.legal_actions | ~timestep.legal_actions.any(-1, keepdims=True)
        return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))
    if isinstance(spec.action, Unsupported):
        raise TypeError(f"actions of {spec.id} cannot be sampled: {spec.action}")
    shape = (*timestep.first.shape, math.prod(spec.action.shape))
    if isinstance(spec.action, MultiDiscrete):
        return jax.random.randint(key, shape, 0, jnp.asarray(spec.action.sizes))
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _check_row(env: Env, timestep: TimeStep, before: TimeStep | None, index: int) -> TimeStep:
    """Check one row of B environments against the specification, the protocol and the previous row.

    Returns the row as NumPy arrays. Raises EnvContractError.
    """
    rows = jax.tree.map(np.asarray, timestep)
    whose = "environments" if env.spec.num_agents == 1 else "rows"

    def demand(condition: Any, sentence: str) -> None:
        if not np.all(condition):
            indices = np.flatnonzero(~np.atleast_1d(condition)).tolist()
            where = f" in {whose} {indices}" if np.ndim(condition) else ""
            raise EnvContractError(f"{env.spec.id}, row {index}: {sentence}{where}")

    _check_shapes(env, rows, demand)
    demand(~rows.failed, f"failed is set ({failure(env) or 'no reason given'})")
    valid = np.ones_like(rows.first) if rows.valid is None else rows.valid
    demand(~(rows.first & rows.last & valid), "first and last are both set")
    demand(valid | (rows.first & rows.last), "an agent is absent, and its row is not first and last")
    demand(~rows.terminal | rows.last, "terminal is set on a row that is not last")
    demand(~rows.first | (rows.reward.reshape(len(rows.first), -1) == 0).all(-1), "a first row has a reward")
    other_player = rows.discount == -1
    discount_fits = np.where(rows.terminal, rows.discount == 0, other_player | (rows.discount == 1))
    demand(discount_fits, "discount does not fit terminal")
    reason = "players take turns in a fixed order" if env.spec.num_players > PAIR else "there is no second player"
    demand(~other_player | (env.spec.num_players == PAIR), f"discount is -1, and {reason}")
    demand(~rows.first | (rows.discount == 1), "a first row has a discount other than 1")
    demand(rows.last | (not num_legal(env.spec)) | rows.legal_actions.any(-1), "no action is legal")
    if before is not None:
        demand(before.last == rows.first, "first does not equal last of the previous row")
    return rows


def _check_shapes(env: Env, rows: TimeStep, demand: Any) -> None:
    count = num_rows(env)
    expected = jax.tree.structure(env.spec.observation)
    actual = jax.tree.structure(rows.observation)
    demand(expected == actual, f"the observation has the structure {actual}, the specification {expected}")
    for leaf, like in zip(jax.tree.leaves(rows.observation), jax.tree.leaves(env.spec.observation), strict=True):
        same = leaf.shape == (count, *like.shape) and leaf.dtype == like.dtype
        demand(same, f"an observation is {leaf.dtype} {leaf.shape}, expected {like.dtype} {(count, *like.shape)}")
    has_valid = rows.valid is not None
    demand(has_valid == (env.spec.num_agents > 1), "valid is given exactly where there are several agents")
    for name in ("reward", "discount", "first", "last", "terminal", "failed", *(["valid"] if has_valid else [])):
        field, dtype = getattr(rows, name), np.float32 if name in ("reward", "discount") else np.bool_
        shape = (count, *(player_axis(env.spec.num_players) if name == "reward" else ()))
        same = field.shape == shape and field.dtype == dtype
        demand(same, f"{name} is {field.dtype} {field.shape}, expected {np.dtype(dtype)} {shape}")
    legal = rows.legal_actions
    same = legal.shape == (count, num_legal(env.spec)) and legal.dtype == np.bool_
    demand(same, f"legal_actions is {legal.dtype} {legal.shape}, expected bool {(count, num_legal(env.spec))}")
