"""Observations of which an environment joins the last few: kept once each, and joined again when they are drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from bircher.replay import Draw, Replay
from bircher.types import Key, Trajectory


def newest(observation: Array, stack: int) -> Array:
    """The last of `stack` observations that are joined along the last axis."""
    return observation[..., -(observation.shape[-1] // stack) :]


def newest_of(observation: PyTree, stack: int) -> PyTree:
    """The same of each of its arrays."""
    return jax.tree.map(lambda x: newest(x, stack), observation)


def joined(frames: Array, first: Bool[Array, "B R"], stack: int) -> Array:
    """Each row's last `stack` frames along the last axis, oldest first, of the rows behind the first `stack` - 1.

    Before an episode's first row stand copies of its first frame, as `envs.base.stack_observations` has them: nothing
    is seen of the episode before.

    Args:
      frames: [B, R, ..., channels]
    """
    place = jnp.arange(first.shape[1])
    begun = jax.lax.cummax(jnp.where(first, place, -first.shape[1]), axis=1)
    rows, since = place[stack - 1 :], (place - begun)[:, stack - 1 :]
    pick = jax.vmap(lambda x, index: x[index])
    parts = [pick(frames, rows - jnp.minimum(back, since)) for back in range(stack - 1, -1, -1)]
    return jnp.concatenate(parts, axis=-1)


def kept_once(ring: Replay, stack: int) -> Replay:
    """A replay of rows whose observations are `stack` joined ones, in a ring that holds each of them once.

    `ring` draws sequences that begin `stack` - 1 rows earlier than those that are wanted.
    """

    def stripped(rows: Trajectory) -> Trajectory:
        return rows._replace(observation=newest_of(rows.observation, stack))

    def init(row: Trajectory) -> Any:
        return ring.init(stripped(row))

    def add(state: Any, rows: Trajectory) -> Any:
        return ring.add(state, stripped(rows))

    def sample(state: Any, key: Key, batch_size: int) -> Draw:
        drawn = ring.sample(state, key, batch_size)
        rows = jax.tree.map(lambda x: x[:, stack - 1 :], drawn.rows)
        whole = jax.tree.map(lambda x: joined(x, drawn.rows.first, stack), drawn.rows.observation)
        return drawn._replace(rows=rows._replace(observation=whole))

    return ring._replace(init=init, add=add, sample=sample)
