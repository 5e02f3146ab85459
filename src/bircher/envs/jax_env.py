"""Environments written as JAX functions of one episode, vectorized to B of them inside a compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, UInt32

from bircher.envs.base import Actions, row
from bircher.errors import UnsupportedEnvironment
from bircher.ops.turns import player_axis
from bircher.types import Continuous, Discrete, EnvSpec, Key, TimeStep, Unsupported

Start = Callable[[Key, Array], tuple[Any, Any]]
"""(key, index of the environment) -> (inner state, observation) of a new episode; Python numbers are allowed."""
Move = Callable[[Key, Any, Array], tuple[Any, Any, Any, Any, Any]]
"""(key, inner state, action) -> (inner state, observation, reward, terminal, truncated)."""
Legal = Callable[[Any], Array]
"""Inner state -> legal_actions [A]."""
Player = Callable[[Any], Array]
"""Inner state -> index of the player to move, of two."""


class PureState(NamedTuple):
    """The complete state of B episodes; it may be saved, copied and scanned over."""

    inner: PyTree[Array]
    """The states of the episodes, [B, ...]."""
    key: Key
    """[B]; it never changes.  The key of a row is folded from it and ``count``."""
    count: Int[Array, " B"]
    """Number of rows of each environment since the reset of all."""
    last: Bool[Array, " B"]


class Single(NamedTuple):
    """One environment as the functions of one episode."""

    spec: EnvSpec
    start: Start
    move: Move
    legal_actions: Legal | None = None
    player: Player | None = None


def repeat_actions(single: Single, times: int) -> Single:
    """Return an environment that takes each action several times, or until the episode ends, and sums the rewards.

    Raises:
      UnsupportedEnvironment: players take turns, or an action may be illegal the second time.
    """
    if times == 1:
        return single
    if single.spec.num_players > 1 or single.legal_actions is not None:
        raise UnsupportedEnvironment(
            f"env.action_repeat={times} cannot repeat the actions of {single.spec.id}, because the next one is another "
            "player's or may be illegal: set it to null"
        )

    def move(key: Key, inner: Any, action: Array) -> tuple[Any, Any, Any, Any, Any]:
        def again(values: tuple[Any, ...], key: Key) -> tuple[tuple[Any, ...], None]:
            inner, _, total, terminal, truncated = values
            following = single.move(key, inner, action)
            following = (*following[:2], total + following[2], *following[3:])
            ended = terminal | truncated
            return jax.tree.map(lambda old, new: jnp.where(ended, old, new), values, _cast(following, values)), None

        keys = jax.random.split(key, times)
        first = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), single.move(keys[0], inner, action))
        return jax.lax.scan(again, first, keys[1:])[0]

    limit = single.spec.max_steps
    spec = single.spec._replace(max_steps=None if limit is None else -(-limit // times), action_repeat=times)
    return single._replace(spec=spec, move=move)


class PureEnv:
    """B environments made from two functions of one: ``start`` begins an episode and ``move`` takes a step.

    ``legal_actions`` returns the legal actions in an inner state, if not all are. In a game of two, ``player`` returns
    the player to move. Rewards are then those of the player who moved, observations those of the player to move. With
    more players the turn always passes to the next one, and rewards are vectors that begin with the one who moved.
    """

    pure = True

    def __init__(self, single: Single, seeds: Sequence[int]):
        self.spec, self._start, self._move, self._legal_actions, self._player = single
        self.num_envs = len(seeds)
        self._seeds = jnp.asarray(seeds, jnp.uint32)
        # A start may return Python numbers where a move returns arrays; a scan needs one type for both.
        key, index = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
        inner, _ = jax.eval_shape(self._start, key, index)
        self._like = jax.eval_shape(self._move, key, inner, self._any_action())[0]
        self._start_all = jax.jit(self._start_state)

    def reset(self) -> tuple[PureState, TimeStep]:
        """Restart every environment from its seed; every call returns the same rows."""
        return self._start_all(self._seeds)

    def step(self, state: PureState, action: Actions) -> tuple[PureState, TimeStep]:
        """Step as a pure function of the state; after a ``last`` row, return the first row of a new episode."""
        keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
        inner, observation, reward, terminal, truncated = self.move(keys, state.inner, action)
        turned = self.players(inner) != self.players(state.inner)
        # Often no episode begins, and computing a start may cost more than the step.
        inner, observation = jax.lax.cond(
            jnp.any(state.last), self._replace, lambda _, values: values, (keys, state.last), (inner, observation)
        )
        timestep = row(
            self.spec, observation, reward, first=state.last, terminal=terminal, truncated=truncated, turned=turned,
            legal_actions=self.legal_actions(inner),
        )  # fmt: skip
        return PureState(inner, state.key, state.count + 1, timestep.last), timestep

    def move(self, keys: Key, inner: PyTree[Array], action: Actions) -> tuple[Any, ...]:
        """Apply an action to each of B inner states, for any number B, without starting new episodes.

        Returns (inner states, observations, rewards of the players who moved or vectors for all, terminal,
        truncated).
        """
        return jax.vmap(self._one_move)(keys, inner, self.spec.own_action(action))

    def legal_actions(self, inner: PyTree[Array]) -> Bool[Array, "B A"] | None:
        """Return the legal actions in each of B inner states; None if all actions are always legal."""
        return None if self._legal_actions is None else jax.vmap(self._legal_actions)(inner)

    def players(self, inner: PyTree[Array]) -> Int[Array, "*B"]:
        """Return which of two players is to move in each of B inner states; the scalar 0 for any other number."""
        return jnp.int32(0) if self._player is None else jax.vmap(self._player)(inner)

    def close(self) -> None:
        """Do nothing, since the environment has no resources outside the program."""

    def _any_action(self) -> jax.ShapeDtypeStruct:
        action = self.spec.action
        if isinstance(action, Discrete | Unsupported):
            return jax.ShapeDtypeStruct((), jnp.int32)
        return jax.ShapeDtypeStruct(action.shape, jnp.float32 if isinstance(action, Continuous) else jnp.int32)

    def _one_start(self, key: Key, index: Array) -> tuple[PyTree[Array], PyTree[Array]]:
        inner, observation = self._start(key, index)
        return _cast(inner, self._like), _cast(observation, self.spec.observation)

    def _one_move(self, key: Key, inner: PyTree[Array], action: Array) -> tuple[Any, ...]:
        inner, observation, reward, terminal, truncated = self._move(key, inner, action)
        flags = (jnp.asarray(terminal, bool), jnp.asarray(truncated, bool))
        observation = _cast(observation, self.spec.observation)
        return _cast(inner, self._like), observation, jnp.asarray(reward, jnp.float32), *flags

    def _replace(self, restart: tuple[Key, Array], values: PyTree[Array]) -> PyTree[Array]:
        """Replace states and observations by those of new episodes; ``restart`` has the keys, and where to do so."""
        keys, where = restart
        starts = jax.vmap(self._one_start)(keys, jnp.arange(self.num_envs))

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return jax.tree.map(pick, starts, values)

    def _start_state(self, seeds: UInt32[Array, " B"]) -> tuple[PureState, TimeStep]:
        keys = jax.vmap(jax.random.key)(seeds)
        count = jnp.zeros(self.num_envs, jnp.int32)
        first_keys = jax.vmap(jax.random.fold_in)(keys, count)
        inner, observation = jax.vmap(self._one_start)(first_keys, jnp.arange(self.num_envs))
        never = jnp.zeros(self.num_envs, bool)
        reward = jnp.zeros((self.num_envs, *player_axis(self.spec.num_players)))
        timestep = row(
            self.spec, observation, reward, first=~never, terminal=never, truncated=never,
            legal_actions=self.legal_actions(inner),
        )  # fmt: skip
        return PureState(inner, keys, count + 1, never), timestep


def _cast(tree: PyTree, like: PyTree) -> PyTree[Array]:
    return jax.tree.map(lambda leaf, kind: jnp.asarray(leaf, kind.dtype), tree, like)
