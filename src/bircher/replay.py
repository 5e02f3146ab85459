"""Replay of sequences on the device: a bounded ring for each environment, over flashbax.

Rows are kept as they came, T for each rollout of T + 1 (the last row is the next rollout's first).
Sampled sequences never cross the ring's seam; where a row inside one is ``first``, the agents cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flashbax.buffers import trajectory_buffer
from jaxtyping import Array, PyTree
from pydantic import BaseModel, ConfigDict, Field

from bircher.types import Key


class ReplayConfig(BaseModel):
    """How much is kept and how much of each batch comes from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity: int = Field(100_000, gt=0)
    """Steps kept, over all environments."""
    fraction: float = Field(0.75, ge=0.0, le=1.0)
    """Share of each batch drawn from replay; the rest is fresh (Muesli: 0.75, large runs 0.95)."""


class Replay(NamedTuple):
    """`init, add, sample` of one ring; the state is a pytree of arrays."""

    init: Callable[[PyTree], Any]
    """(one row without its batch axis) -> state"""
    add: Callable[[Any, PyTree], Any]
    """(state, rows [E, T, ...]) -> state"""
    sample: Callable[[Any, Key, int], PyTree]
    """(state, key, B) -> rows [B, T + 1, ...], uniform over all whole sequences that are held"""
    ready: Callable[[Any], Array]
    """(state) -> whether a whole sequence can be drawn; asked too early, flashbax gives rows of zeros"""
    capacity: int
    """Steps it really holds: the same number for every environment."""


def make(num_envs: int, rollout_length: int, capacity: int) -> Replay:
    """A ring of `capacity` steps shared evenly by `num_envs` environments, for sequences of T + 1 rows.

    Raises:
      ValueError: the capacity does not hold one sequence for each environment.
    """
    sequence_length = rollout_length + 1
    if capacity < num_envs * sequence_length:
        raise ValueError(
            f"replay.capacity={capacity:,} is too small: {num_envs} environments times sequences of "
            f"{sequence_length} rows need at least {num_envs * sequence_length:,} steps"
        )
    length = capacity // num_envs
    buffer = trajectory_buffer.make_trajectory_buffer(
        add_batch_size=num_envs,
        sample_batch_size=1,
        sample_sequence_length=sequence_length,
        period=1,
        min_length_time_axis=sequence_length,
        max_length_time_axis=length,
    )

    def sample(state, key, batch_size):
        return trajectory_buffer.sample(state, key, batch_size, sequence_length, 1).experience

    return Replay(buffer.init, buffer.add, sample, buffer.can_sample, num_envs * length)


def num_bytes(row: PyTree, capacity: int) -> int:
    """Bytes of `capacity` rows, known before anything is allocated."""
    return capacity * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
