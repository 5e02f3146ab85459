"""EnvPool: C++ environments, called from inside a compiled program through EnvPool's XLA handle.

What the installed EnvPool does, on which this adapter rests (its tests hold each line):

- A step after an end returns the reset row: elapsed step 0, reward 0, the action ignored.
- With the batch as large as the pool, rows come in the order of the environments.
- A death on the very last allowed step is reported as truncation only: the flag that is set is the time limit's, and
  nothing else in the row tells. Such a row bootstraps. It concerns one row in ``max_steps`` at most.
- Environment i of a pool with seed s has seed s + i, so a list of hashed seeds is passed instead.
- Values of 64 bits corrupt memory through its own wrapper of the handle, so `float64` has another one.
- A pool that returns N rows at a time takes actions for any N of its environments, and returns those N when all are
  done, in any order. Repeated actions rest on this: see `EnvPoolEnv`.
- A limit of 0 in an environment's configuration, as BabyAI's have, leaves the limit to the environment: it truncates
  episodes by itself, after a number of steps that depends on the mission.
- Atari's frames come as [channels, height, width], and are turned here; its drawing is the whole screen in color.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import envpool
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from bircher.envs import atari, float64, minigrid
from bircher.envs.base import Actions, EnvState, row
from bircher.envs.specs import action_spec, encoded_shape, observation_spec, quiet_bounds, with_spaces
from bircher.errors import UnsupportedEnvironment
from bircher.spaces import encode_observation
from bircher.types import EnvSpec, TimeStep


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of an EnvPool environment without starting one.

    Raises UnsupportedEnvironment if its values cannot pass through the XLA handle.
    """
    env_id = request.config.id
    game = atari.canonical(env_id)
    native = envpool.make_spec(game or env_id, **_pool_settings(request))
    _refuse_untransferable(env_id, native)
    with quiet_bounds():
        observation_space, action_space = native.observation_space, native.action_space
    shapes, encoding = observation_spec(observation_space, request.config.layout)
    action = action_spec(action_space, request.config.action_bound)
    limit = int(native.config.max_episode_steps)
    if game is None:
        repeat = request.config.repeat
        max_steps = -(-limit // repeat) if limit > 0 else None
        spec = EnvSpec(env_id, shapes, action, max_steps, action_repeat=repeat, encoding=encoding)
        return with_spaces(spec, observation_space, action_space)
    encoding = dataclasses.replace(encoding, layout="channels_first")
    repeat = int(native.config.frame_skip)
    return EnvSpec(game, encoded_shape(encoding), action, limit, action_repeat=repeat, encoding=encoding)


def _pool_settings(request: EnvRequest) -> dict[str, Any]:
    config = request.config
    settings = dict(config.options) if atari.canonical(config.id) is None else atari.pool_settings(request)
    if config.max_frames is not None:
        settings["max_episode_steps"] = config.max_frames
    return settings


def _refuse_untransferable(env_id: str, native: Any) -> None:
    """Raise UnsupportedEnvironment for what the handle cannot transfer: 64-bit integers, and several players."""
    wide = float64.other_wide_types(native)
    if wide:
        raise UnsupportedEnvironment(
            f"{env_id} cannot run in EnvPool inside a compiled program, because it has values of the type "
            f"{' and '.join(wide)}; use backend=gymnasium"
        )
    if native.config.max_num_players != 1:
        raise UnsupportedEnvironment(f"{env_id} has several players, which the EnvPool adapter does not support")


# A compiled program refers to a pool by its address only and may outlive the Python object that made the pool.
_open_pools: dict[int, Any] = {}


class EnvPoolEnv:
    """A pool of B environments; its state is the handle of the pool, which does not contain the episodes.

    The pool exists until ``close``, even if nothing refers to this object any more. After ``close`` no program that
    steps it may run.

    A pool steps all of its environments together. If actions are repeated, an environment that ended must wait for the
    others. So the pool has a second environment for each of the B, and steps it in place of the one that waits. Its
    rows are dropped.
    """

    pure = False

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        env_id, num_threads = request.config.id, request.config.num_threads
        self._game = atari.canonical(env_id)
        self._draws = self._game is not None or env_id.startswith(minigrid.PREFIXES)
        self.spec = env_spec(request)
        self.num_envs, self._repeat = len(seeds), self.spec.action_repeat if self._game is None else 1
        pool_seeds = [int(seed) for seed in seeds] * (1 if self._repeat == 1 else 2)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = envpool.make_gymnasium(
            self._game or env_id,
            num_envs=len(pool_seeds),
            batch_size=self.num_envs,
            num_threads=min(cores, self.num_envs) if num_threads is None else num_threads,
            seed=pool_seeds,
            **_pool_settings(request),
            **({"render_mode": "rgb_array"} if self._draws else {}),
        )
        with quiet_bounds():  # the pool reads its observation space at every row
            self._handle, self._recv, self._send, self._step = float64.open_handle(self._pool)
            _ = self._pool.observation_space
        _open_pools[id(self._pool)] = self._pool

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Restart every environment and return the first rows; a second reset continues the random numbers.

        No program that steps the pool may still be running, so wait for its results first.
        """
        pool, recv, *_ = self._open()
        pool.async_reset()
        handle, received = recv(jnp.array(self._handle))
        if self._repeat > 1:
            handle, others = recv(handle)
            every = jax.tree.map(lambda *parts: jnp.concatenate(parts), received, others)
            order = jnp.argsort(every[-1]["env_id"])[: self.num_envs]
            received = jax.tree.map(lambda x: x[order], every)
        return handle, self._row(received)

    def step(self, state: UInt8[Array, " H"], action: Actions) -> tuple[EnvState, TimeStep]:
        """Step every environment and return the next rows.

        This method may be traced; the program must then run the steps in the order of the episodes.
        """
        *_, step = self._open()
        native_action = self.spec.own_action(jnp.asarray(action))
        if self._repeat > 1:
            return self._step_repeatedly(state, native_action)
        handle, received = step(state, native_action)
        return handle, self._row(received)

    def _step_repeatedly(self, handle: Array, action: Array) -> tuple[Array, TimeStep]:
        """Take an action several times in every environment, or until its episode ends or begins."""

        def step(handle: Array, waiting: Array) -> tuple[Array, TimeStep]:
            _, recv, send, _ = self._open()
            own = jnp.arange(self.num_envs, dtype=jnp.int32)
            handle = send(handle, action, jnp.where(waiting, own + self.num_envs, own))
            handle, received = recv(handle)
            order = jnp.argsort(received[-1]["env_id"] % self.num_envs)
            return handle, self._row(jax.tree.map(lambda x: x[order], received))

        def again(carry: tuple[Array, TimeStep], _: None) -> tuple[tuple[Array, TimeStep], None]:
            handle, row = carry
            waiting = row.last | row.first
            handle, following = step(handle, waiting)
            following = following._replace(reward=row.reward + following.reward)

            def pick(old: Array, new: Array) -> Array:
                return jnp.where(waiting.reshape(-1, *[1] * (new.ndim - 1)), old, new)

            return (handle, jax.tree.map(pick, row, following)), None

        first = step(handle, jnp.zeros(self.num_envs, bool))
        return jax.lax.scan(again, first, None, length=self._repeat - 1)[0]

    def pictures(self) -> UInt8[np.ndarray, "B _ _ 3"] | None:
        """Return the current screens of an Atari game or a grid world, whole and in color; None for others.

        No program that steps the pool may still be running.
        """
        pool, *_ = self._open()
        return pool.render(env_ids=np.arange(self.num_envs, dtype=np.int32)) if self._draws else None

    def close(self) -> None:
        """Close the pool and its threads; no program made from this environment may run afterward."""
        _open_pools.pop(id(self._pool), None)
        self._pool = self._recv = self._send = self._step = None

    def _open(self) -> tuple[Any, Any, Any, Any]:
        if self._pool is None or self._recv is None or self._send is None or self._step is None:
            raise RuntimeError(f"the {self.spec.id} pool is closed")
        return self._pool, self._recv, self._send, self._step

    def _row(self, received: tuple[Any, ...]) -> TimeStep:
        observation, reward, terminal, truncated, info = received
        first = info["elapsed_step"] == 0
        observation = encode_observation(self.spec.encoding, jax.tree.map(jnp.asarray, observation))
        return row(self.spec, observation, reward, first=first, terminal=terminal, truncated=truncated)
