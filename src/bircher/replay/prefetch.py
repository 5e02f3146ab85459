"""A replay in the host's memory: the batches of the next rollout's updates are sampled in advance.

    turn i, on the host:     priorities of rollout i  ->  rollout i is stored  ->  draws for rollout i + 1
    meanwhile, elsewhere:    rollout i + 1 is made, and rollout i learned from where draws are uniform

So draws know nothing of the rollout that they are learned from beside, and with priorities all draws of one rollout
are by those of the rollouts before.  What was drawn is part of the state: a run can be had again, and resumed, bit
for bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bircher.replay.base import Draw, Replay, View
from bircher.replay.batching import BatchSpec, ReplaySample, sample_replay
from bircher.types import Key, Trajectory


class NextBatches(NamedTuple):
    """What the next rollout's updates are given."""

    drawn: ReplaySample | None
    """[groups, ...]; None where nothing is replayed"""
    age: Float[Array, ""]
    """Mean age of the steps that were drawn from, in steps of all environments."""


class PriorityUpdate(NamedTuple):
    """What the replay is told of a rollout's updates."""

    indices: Array
    """[groups, B]"""
    priorities: Array
    """[groups, B]"""


class HostReplayState(NamedTuple):
    """The ring, the key of its draws, and what was drawn."""

    ring: Any
    key: Key
    ahead: NextBatches


def init(ring: Replay, shares: BatchSpec, groups: int, key: Key, row: PyTree) -> HostReplayState:
    """Nothing held, and draws that say so."""
    return _draws(ring, shares, groups, ring.init(row), key)


def advance_host_replay(
    ring: Replay, shares: BatchSpec, groups: int, held: Any, key: Key, rows: Trajectory, marks: PriorityUpdate | None
) -> HostReplayState:
    """Priorities first, for their indices mean what was held before; then T rows of a rollout; then new draws."""
    if marks is not None:
        held = ring.update_priority(held, marks.indices.reshape(-1), marks.priorities.reshape(-1))
    return _draws(ring, shares, groups, ring.add(held, rows), key)


def view(ring: Replay) -> View:
    """The ring, seen through the state that it is part of."""

    def sample(state: HostReplayState, key: Key, batch_size: int) -> Draw:
        return ring.sample(state.ring, key, batch_size)

    return View(sample, lambda state: ring.ready(state.ring), ring.capacity)


def _draws(ring: Replay, shares: BatchSpec, groups: int, held: Any, key: Key) -> HostReplayState:
    key, draw_key = jax.random.split(key)
    draw = partial(sample_replay, shares, ring, held)
    # One after the other, and not a group for each number of an axis: what a loop reads of the ring stays in place.
    found = jax.lax.map(draw, jax.random.split(draw_key, groups)) if shares.num_replayed else None
    return HostReplayState(held, key, NextBatches(found, jnp.asarray(ring.age(held), jnp.float32)))
