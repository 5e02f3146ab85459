"""Storage of observations in the replay: stacked frames stored once each, and compressed observations.

Stacked observations are stored as single frames and joined again when they are sampled.  Compressed observations are
stored without loss in an arena of bytes:

    arena   [blocks, BLOCK]   a code for each environment's rollout, one after the other, in a circle
    ring    the rows, with the position of the rollout's code and the row's index in it in place of the observation

Each code holds many frames, because successive frames are similar: on Atari the code has a quarter to a half of the
bytes of separate codes, and is made and read in about half the time.  A sequence is read from the two or three
rollouts that contain it.

A rollout overwrites the oldest ones, however many they are; overwritten rows are not sampled any more.  So the capacity
is the number of steps where codes are as short as expected, and fewer steps are stored where they are longer.

Compression is a callback on the host that reads and writes XLA's own buffers, and it is pure: the state is a pytree of
arrays, as that of any other replay.
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
from jaxtyping import Array, Bool, Int, PyTree, UInt8

from bircher.errors import ConfigError
from bircher.replay.base import Draw, Replay
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


BLOCK = 64
"""Bytes; codes begin at multiples of it, so that 32 bits count 128 GiB."""
LEVEL = 1
"""zlib's: on Atari's frames, one by one, the sixth took twice the time for codes a fifth shorter."""


class Code(NamedTuple):
    """Where an observation is in the arena."""

    offset: Int[Array, "*B"]
    """The block where the code of its environment's rollout begins."""
    size: Int[Array, "*B"]
    """Bytes of that code: of the rollout where it is stored as it is, 0 where nothing was stored yet."""
    row: Int[Array, "*B"]
    """Which of the rollout's observations it is."""


class Compressed(NamedTuple):
    """The arena, and the ring of what is not in it."""

    ring: Any
    arena: UInt8[Array, "blocks 64"]
    spans: Int[Array, "length 2"]
    """For each time the first block of its rollout's codes, and the one behind their last; the newest is the last."""
    held: Int[Array, ""]
    """Rows of each environment, the newest, whose codes are intact."""
    position: Int[Array, ""]
    """The block where the next rollout's codes begin."""


def rows_kept_compressed(
    ring: Replay, observation: PyTree, num_envs: int, rollout_length: int, context: int, compressed_bytes: int
) -> Replay:
    """A replay with room for so many bytes of each step's observation, over a ring that can `forget`.

    Args:
      observation: a `jax.ShapeDtypeStruct` for each of its arrays, as one environment gives them

    Raises:
      ConfigError: sequences could not be held where nothing can be compressed.
    """
    codec, forget = _Codec(observation, num_envs, rollout_length), ring.forget
    assert forget is not None
    length, blocks = ring.capacity // num_envs, -(-ring.capacity * compressed_bytes // BLOCK)
    _require_room(codec, blocks, compressed_bytes, ring.capacity, context)

    def init(row: Trajectory) -> Compressed:
        zeros = partial(jnp.zeros, dtype=jnp.int32)
        inner = ring.init(row._replace(observation=Code(zeros(()), zeros(()), zeros(()))))
        return Compressed(inner, jnp.zeros((blocks, BLOCK), jnp.uint8), zeros((length, 2)), zeros(()), zeros(()))

    def add(state: Compressed, rows: Trajectory) -> Compressed:
        codes, code, used = codec.encode(rows.observation)
        begin = jnp.where(state.position + codec.max_blocks > blocks, 0, state.position)
        end = begin + used
        code = code._replace(offset=begin + code.offset)
        span = jnp.broadcast_to(jnp.stack([begin, end]), (rollout_length, 2))
        spans = jnp.concatenate([state.spans[rollout_length:], span])
        newer = jnp.arange(length)[::-1]
        overwritten = (newer >= rollout_length) & (spans[:, 0] < end) & (spans[:, 1] > begin)
        held = jnp.minimum(state.held + rollout_length, jnp.where(overwritten, newer, length).min())
        inner = forget(ring.add(state.ring, rows._replace(observation=code)), held)
        return Compressed(inner, _written(state.arena, codes, begin, used), spans, held, end)

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


def _written(arena: Array, codes: Array, begin: Array, used: Array) -> Array:
    """The arena with the `used` first blocks of `codes`, and as it was behind them."""
    before = jax.lax.dynamic_slice(arena, (begin, 0), codes.shape)
    mine = jnp.arange(len(codes))[:, None] < used
    return jax.lax.dynamic_update_slice(arena, jnp.where(mine, codes, before), (begin, 0))


def _require_room(codec: _Codec, blocks: int, compressed_bytes: int, steps: int, context: int) -> None:
    """A sequence is held, whatever its codes' lengths.

    It reaches back over some rollouts, and needs another's room at the arena's end, where a rollout may find too
    little.
    """
    product = f"replay.compressed_bytes={compressed_bytes:,} times {steps:,} steps held"
    if blocks + codec.max_blocks > np.iinfo(np.int32).max:
        raise ConfigError(f"{product} is more than 128 GiB: lower one of them")
    rollouts = -(-(context + 1) // codec.rollout_length) + 2
    if blocks < rollouts * codec.max_blocks:
        least = -(-rollouts * codec.max_blocks * BLOCK // steps)
        raise ConfigError(
            f"{product} is less than {rollouts} rollouts that cannot be compressed: "
            f"expected replay.compressed_bytes={least} or more, or a larger replay.capacity"
        )


class _Codec:
    """zlib's code of each environment's rollout, or its observations as they are where that is not longer."""

    def __init__(self, observation: PyTree, num_envs: int, rollout_length: int):
        self.num_envs, self.rollout_length = num_envs, rollout_length
        self._leaves, self._structure = jax.tree.flatten(observation)
        sizes = [rollout_length * math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self._leaves]
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self._size = self._bounds[-1]
        self.max_blocks = num_envs * -(-self._size // BLOCK)
        """Of rollouts that cannot be compressed."""

    def encode(self, observation: PyTree) -> tuple[Array, Code, Array]:
        """[E, T] observations -> their codes; where each is, from the first code on; and how many blocks they take."""
        numbers, number = jax.ShapeDtypeStruct((self.num_envs,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        like = jax.ShapeDtypeStruct((self.max_blocks, BLOCK), jnp.uint8), numbers, numbers, number
        codes, offset, size, used = buffer_callback(self._write, like)(*jax.tree.leaves(observation))
        code = Code(offset[:, None], size[:, None], jnp.arange(self.rollout_length))
        return codes, jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_envs, self.rollout_length)), code), used

    def decode(self, arena: Array, code: Code) -> PyTree:
        """[B, R] codes -> observations."""
        like = tuple(jax.ShapeDtypeStruct(code.row.shape + leaf.shape, leaf.dtype) for leaf in self._leaves)
        return jax.tree.unflatten(self._structure, buffer_callback(self._read, like)(arena, code))

    def _write(self, _: Any, out: Any, *leaves: Any) -> None:
        codes, offsets, sizes, used = (np.asarray(x) for x in out)
        arrays, flat, position = [np.asarray(leaf) for leaf in leaves], codes.reshape(-1), 0
        flat[:] = 0
        for env in range(self.num_envs):
            plain = b"".join(x[env].tobytes() for x in arrays)
            # On a tie it stays plain: what has the full length is read as such.
            code = min(plain, zlib.compress(plain, LEVEL), key=len)
            offsets[env], sizes[env] = position, len(code)
            flat[position * BLOCK :][: len(code)] = np.frombuffer(code, np.uint8)
            position += -(-len(code) // BLOCK)
        used[...] = position

    def _read(self, _: Any, out: Any, arena: Any, code: Any) -> None:
        arrays, flat = [np.asarray(x) for x in out], np.asarray(arena).reshape(-1)
        offsets, sizes, rows = (np.asarray(x) for x in code)
        for sequence in range(len(rows)):
            # Where the next rollout's rows begin; a code is read once for all of them.
            seams = np.flatnonzero(np.diff(offsets[sequence]) | np.diff(sizes[sequence])) + 1
            for part in np.split(np.arange(rows.shape[1]), seams):
                begin, size = int(offsets[sequence, part[0]]) * BLOCK, int(sizes[sequence, part[0]])
                plain = self._plain(flat[begin : begin + size].tobytes())
                for x, whole in zip(arrays, plain, strict=True):
                    x[sequence, part] = whole[rows[sequence, part]]

    def _plain(self, code: bytes) -> list[np.ndarray]:
        """A rollout's observations, [T, ...] each; zeros for no code."""
        plain = code if len(code) == self._size else zlib.decompress(code) if code else bytes(self._size)
        parts = [plain[begin:end] for begin, end in zip(self._bounds, self._bounds[1:], strict=False)]
        shapes = [(self.rollout_length, *leaf.shape) for leaf in self._leaves]
        return [
            np.frombuffer(part, leaf.dtype).reshape(shape)
            for part, leaf, shape in zip(parts, self._leaves, shapes, strict=True)
        ]
