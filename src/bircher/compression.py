"""Observations kept compressed, without loss, in an arena of bytes: as many of the newest as find room in it.

    arena   [units, UNIT]   each rollout's codes one behind the other, one rollout behind the other, round and round
    ring    its rows, and in each observation's place where its code begins and how long it is

A rollout takes the place of the oldest, however many that are: what was overwritten is drawn no more.  So the ring's
capacity is how many steps are held where the codes are as short as was hoped, and fewer are where they are longer.

Compressing is a callback on the host, which reads and writes XLA's own buffers, and so pure: a state is a pytree of
arrays as that of any other replay.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Int, PyTree, UInt8

from bircher.replay import Draw, Replay
from bircher.types import Key, Trajectory

UNIT = 64
"""Codes begin at multiples of so many bytes: 32 bits then count 128 GiB."""
LEVEL = 1
"""zlib's: on Atari's frames the sixth took twice the time for codes a fifth shorter."""


class Code(NamedTuple):
    """Where an observation's code is in the arena."""

    unit: Int[Array, "*B"]
    size: Int[Array, "*B"]
    """Bytes; as many as the observation has where that is how it is kept, and 0 where there is none."""


class Compressed(NamedTuple):
    """The arena, and the ring of what is not in it."""

    ring: Any
    arena: UInt8[Array, "units 64"]
    spans: Int[Array, "length 2"]
    """First unit of each time's codes, and the one behind their last; the newest time is the last."""
    held: Int[Array, ""]
    """Rows of each environment, the newest, whose codes are whole."""
    position: Int[Array, ""]
    """Where the next rollout's codes begin."""


def rows_kept_compressed(
    ring: Replay, observation: PyTree, num_envs: int, rollout_length: int, sequence_length: int, room: int
) -> Replay:
    """A replay in `room` bytes for each step's observation, over a ring that can `forget`.

    Args:
      observation: a `jax.ShapeDtypeStruct` for each of its arrays, as one environment gives them

    Raises:
      ValueError: sequences could not be held where nothing can be compressed.
    """
    codec, forget = _Codec(observation, num_envs, rollout_length), ring.forget
    assert forget is not None
    length, units = ring.capacity // num_envs, -(-ring.capacity * room // UNIT)
    _require_room(codec, units, room, ring.capacity, -(-(sequence_length - 1) // rollout_length) + 2)

    def init(row: Trajectory) -> Compressed:
        zeros = partial(jnp.zeros, dtype=jnp.int32)
        inner = ring.init(row._replace(observation=Code(zeros(()), zeros(()))))
        return Compressed(inner, jnp.zeros((units, UNIT), jnp.uint8), zeros((length, 2)), zeros(()), zeros(()))

    def add(state: Compressed, rows: Trajectory) -> Compressed:
        codes, code, used = codec.encode(rows.observation)
        begin = jnp.where(state.position + codec.most > units, 0, state.position)
        code = code._replace(unit=begin + code.unit)
        # Of one time the first environment's code is the first.
        bounds = jnp.append(code.unit[0], begin + used)
        spans = jnp.concatenate([state.spans[rollout_length:], jnp.stack([bounds[:-1], bounds[1:]], axis=1)])
        newer = jnp.arange(length)[::-1]
        # All that the rollout could have needed is overwritten, with zeros where it needed less.
        overwritten = (newer >= rollout_length) & (spans[:, 0] < begin + codec.most) & (spans[:, 1] > begin)
        held = jnp.minimum(state.held + rollout_length, jnp.where(overwritten, newer, length).min())
        return Compressed(
            forget(ring.add(state.ring, rows._replace(observation=code)), held),
            jax.lax.dynamic_update_slice(state.arena, codes, (begin, 0)),
            spans, held, begin + used,
        )  # fmt: skip

    def sample(state: Compressed, key: Key, batch_size: int) -> Draw:
        drawn = ring.sample(state.ring, key, batch_size)
        return drawn._replace(rows=drawn.rows._replace(observation=codec.decode(state.arena, drawn.rows.observation)))

    def update_priority(state: Compressed, indices: Array, priorities: Array) -> Compressed:
        return state._replace(ring=ring.update_priority(state.ring, indices, priorities))

    def age(state: Compressed) -> Array:
        return num_envs * jnp.maximum(state.held - 1, 0) / 2

    def ready(state: Compressed) -> Array:
        return ring.ready(state.ring)

    return ring._replace(
        init=init, add=add, sample=sample, update_priority=update_priority, age=age, ready=ready, forget=None
    )


def _require_room(codec: _Codec, units: int, room: int, capacity: int, rollouts: int) -> None:
    """Whatever its codes' lengths, a sequence and the gap before the arena's end are within so many rollouts."""
    if units > np.iinfo(np.int32).max:
        raise ValueError(f"replay.observation_bytes={room:,} times {capacity:,} steps is more than 128 GiB")
    if units < rollouts * codec.most:
        least = -(-rollouts * codec.most * UNIT // capacity)
        raise ValueError(
            f"replay.observation_bytes={room:,} times replay.capacity={capacity:,} steps does not hold {rollouts} "
            f"rollouts that cannot be compressed: at least {least:,} bytes, or a larger capacity"
        )


class _Codec:
    """zlib's code of each observation, or the observation as it is where that is not longer."""

    def __init__(self, observation: PyTree, num_envs: int, rollout_length: int):
        self._leaves, self._structure = jax.tree.flatten(observation)
        self._sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self._leaves]
        self._shape = num_envs, rollout_length
        self.most = num_envs * rollout_length * -(-sum(self._sizes) // UNIT)
        """Units of a rollout that cannot be compressed."""

    def encode(self, observation: PyTree) -> tuple[Array, Code, Array]:
        """[E, T] observations -> their codes, all of one time side by side; where each begins; and how many units."""
        place, number = jax.ShapeDtypeStruct(self._shape, jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        like = jax.ShapeDtypeStruct((self.most, UNIT), jnp.uint8), place, place, number
        codes, unit, size, used = buffer_callback(self._write, like)(*jax.tree.leaves(observation))
        return codes, Code(unit, size), used

    def decode(self, arena: Array, code: Code) -> PyTree:
        """Observations of the codes' shape."""
        like = tuple(jax.ShapeDtypeStruct(code.unit.shape + leaf.shape, leaf.dtype) for leaf in self._leaves)
        return jax.tree.unflatten(self._structure, buffer_callback(self._read, like)(arena, code))

    def _write(self, _: Any, out: Any, *leaves: Any) -> None:
        codes, units, sizes, used = (np.asarray(x) for x in out)
        arrays = [np.asarray(leaf) for leaf in leaves]
        codes[...], position = 0, 0
        for time in range(units.shape[1]):
            for env in range(units.shape[0]):
                plain = b"".join(x[env, time].tobytes() for x in arrays)
                # Of two as long the plain one: by its length it is told from a code.
                code = min(plain, zlib.compress(plain, LEVEL), key=len)
                units[env, time], sizes[env, time] = position, len(code)
                codes.reshape(-1)[position * UNIT :][: len(code)] = np.frombuffer(code, np.uint8)
                position += -(-len(code) // UNIT)
        used[...] = position

    def _read(self, _: Any, out: Any, arena: Any, code: Any) -> None:
        arrays, data = [np.asarray(x) for x in out], np.asarray(arena).reshape(-1)
        units, sizes, whole = np.asarray(code.unit), np.asarray(code.size), sum(self._sizes)
        for index in np.ndindex(units.shape):
            begin, size = int(units[index]) * UNIT, int(sizes[index])
            kept = data[begin : begin + size].tobytes()
            plain, offset = kept if size == whole else zlib.decompress(kept) if size else bytes(whole), 0
            for x, leaf, bytes_of in zip(arrays, self._leaves, self._sizes, strict=True):
                x[index] = np.frombuffer(plain[offset : offset + bytes_of], leaf.dtype).reshape(leaf.shape)
                offset += bytes_of
