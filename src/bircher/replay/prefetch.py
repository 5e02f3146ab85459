"""A replay in the host's memory: the batches of the next rollout's updates are sampled in advance.

    step i, on the host:     update priorities of rollout i  ->  store rollout i  ->  sample for rollout i + 1
    meanwhile, elsewhere:    make rollout i + 1, and learn from rollout i where samples are uniform

So the samples do not contain the rollout with which they share an update.  With priorities, all samples of one rollout
use the priorities of the rollouts before it.  The samples are part of the state, so that a run can be repeated and
resumed bit for bit.
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
    """The replayed sequences of the next rollout's updates."""

    samples: ReplaySample | None
    """[groups, ...]; None where nothing is replayed"""
    age: Float[Array, ""]
    """Mean age of the steps that were stored when they were sampled, in steps of all environments."""


class PriorityUpdate(NamedTuple):
    """The new priorities from a rollout's updates."""

    indices: Array
    """[groups, B]"""
    priorities: Array
    """[groups, B]"""


class HostReplayState(NamedTuple):
    """The state of the replay, the random key of its samples, and the samples of the next updates."""

    replay_state: Any
    key: Key
    next_batches: NextBatches


def init(replay: Replay, spec: BatchSpec, groups: int, key: Key, row: PyTree) -> HostReplayState:
    """Return the state of an empty replay.  Its samples are marked as not ready."""
    return _with_samples(replay, spec, groups, replay.init(row), key)


def advance_host_replay(
    replay: Replay,
    spec: BatchSpec,
    groups: int,
    replay_state: Any,
    key: Key,
    rows: Trajectory,
    priorities: PriorityUpdate | None,
) -> HostReplayState:
    """Update the priorities, add T rows of a rollout, and sample the next batches.

    The order matters: the indices of the priorities refer to the state before the rows are added.
    """
    if priorities is not None:
        replay_state = replay.update_priority(
            replay_state, priorities.indices.reshape(-1), priorities.priorities.reshape(-1)
        )
    return _with_samples(replay, spec, groups, replay.add(replay_state, rows), key)


def view(replay: Replay) -> View:
    """Return read-only functions of the replay that take a `HostReplayState`."""

    def sample(state: HostReplayState, key: Key, batch_size: int) -> Draw:
        return replay.sample(state.replay_state, key, batch_size)

    return View(sample, lambda state: replay.ready(state.replay_state), replay.capacity)


def _with_samples(replay: Replay, spec: BatchSpec, groups: int, replay_state: Any, key: Key) -> HostReplayState:
    key, sample_key = jax.random.split(key)
    sample = partial(sample_replay, spec, replay, replay_state)
    # A loop over groups, and not a `vmap`, reads the replay without copying it.
    samples = jax.lax.map(sample, jax.random.split(sample_key, groups)) if spec.num_replayed else None
    return HostReplayState(replay_state, key, NextBatches(samples, jnp.asarray(replay.age(replay_state), jnp.float32)))
