"""Storage of observations in the replay: stacked frames stored once each, and compressed observations.

Stacked observations are stored as single frames and joined again when they are sampled.  Compressed observations are
stored without loss in an arena of bytes:

    arena   [blocks, BLOCK]   a code for each environment's rollout, one after the other, in a circle
    replay  the rows, with the position of the rollout's code and the row's index in it in place of the observation

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
    """Return the last of `stack` observations that are joined along the last axis."""
    return observation[..., -(observation.shape[-1] // stack) :]


def newest_of(observation: PyTree, stack: int) -> PyTree:
    """Return the last of `stack` joined observations, for each array of a pytree."""
    return jax.tree.map(lambda x: newest(x, stack), observation)


def stack_frames(frames: Array, first: Bool[Array, "B R"], stack: int) -> Array:
    """Join the last `stack` frames of each row along the last axis, with the oldest frame first.

    Copies of an episode's first frame stand for the frames before it, as in `envs.base.stack_observations`.  So no row
    contains a frame of the previous episode.

    Args:
      frames: [B, R, ..., channels]
      first: the first rows of episodes.
      stack: number of frames to join.

    Returns:
      [B, R - stack + 1, ..., stack * channels], without the first `stack` - 1 rows.
    """
    position = jnp.arange(first.shape[1])
    begin = jax.lax.cummax(jnp.where(first, position, -first.shape[1]), axis=1)
    rows, since = position[stack - 1 :], (position - begin)[:, stack - 1 :]
    pick = jax.vmap(lambda x, index: x[index])
    parts = [pick(frames, rows - jnp.minimum(back, since)) for back in range(stack - 1, -1, -1)]
    return jnp.concatenate(parts, axis=-1)


def store_frames_once(replay: Replay, stack: int) -> Replay:
    """Return a replay of rows with `stack` joined observations that stores each observation only once.

    Args:
      replay: stores the rows with single observations.  Its sequences begin `stack` - 1 rows earlier than those of the
        result.
      stack: number of observations that are joined.
    """

    def unstacked(rows: Trajectory) -> Trajectory:
        return rows._replace(observation=newest_of(rows.observation, stack))

    def init(row: Trajectory) -> Any:
        return replay.init(unstacked(row))

    def add(state: Any, rows: Trajectory) -> Any:
        return replay.add(state, unstacked(rows))

    def sample(state: Any, key: Key, batch_size: int) -> Draw:
        draw = replay.sample(state, key, batch_size)
        rows = jax.tree.map(lambda x: x[:, stack - 1 :], draw.rows)
        observation = jax.tree.map(lambda x: stack_frames(x, draw.rows.first, stack), draw.rows.observation)
        return draw._replace(rows=rows._replace(observation=observation))

    return replay._replace(init=init, add=add, sample=sample)


BLOCK = 64
"""Bytes of a block.  Codes begin at multiples of it, so that a number of 32 bits can address 128 GiB."""
LEVEL = 1
"""Level of zlib.  On single frames of Atari, level 6 took twice the time, and its codes were a fifth shorter."""


class Code(NamedTuple):
    """The position of an observation in the arena."""

    offset: Int[Array, "*B"]
    """The block where the code of its environment's rollout begins."""
    size: Int[Array, "*B"]
    """Bytes of that code.  They are those of the rollout itself where it is stored without compression, and 0 where
    nothing is stored yet."""
    row: Int[Array, "*B"]
    """The index of the observation in the rollout."""


class Compressed(NamedTuple):
    """The arena, and the state of the replay of everything that is not in it."""

    replay_state: Any
    arena: UInt8[Array, "blocks 64"]
    spans: Int[Array, "length 2"]
    """For each time, the first block of its rollout's codes and the block after their last one.  The newest time is the
    last."""
    num_intact: Int[Array, ""]
    """Number of newest rows of each environment whose codes are not overwritten."""
    position: Int[Array, ""]
    """The block where the next rollout's codes begin."""


def compress_observations(
    replay: Replay, observation: PyTree, num_envs: int, rollout_length: int, context: int, compressed_bytes: int
) -> Replay:
    """Return a replay that stores compressed observations.

    Args:
      replay: stores everything else; it must be able to `forget`.
      observation: a `jax.ShapeDtypeStruct` for each array of one environment's observation.
      num_envs: number of environments.
      rollout_length: T, the rows that are added together.
      context: number of rows by which each sequence begins earlier.
      compressed_bytes: size of the arena in bytes, divided by the number of steps.

    Raises:
      ConfigError: a sequence would not fit into the arena if nothing could be compressed, or the arena is larger than
        128 GiB.
    """
    codec, forget = _Codec(observation, num_envs, rollout_length), replay.forget
    assert forget is not None
    length, blocks = replay.capacity // num_envs, -(-replay.capacity * compressed_bytes // BLOCK)
    _require_room(codec, blocks, compressed_bytes, replay.capacity, context)

    def init(row: Trajectory) -> Compressed:
        zeros = partial(jnp.zeros, dtype=jnp.int32)
        inner = replay.init(row._replace(observation=Code(zeros(()), zeros(()), zeros(()))))
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
        intact = jnp.minimum(state.num_intact + rollout_length, jnp.where(overwritten, newer, length).min())
        inner = forget(replay.add(state.replay_state, rows._replace(observation=code)), intact)
        return Compressed(inner, _write_blocks(state.arena, codes, begin, used), spans, intact, end)

    def sample(state: Compressed, key: Key, batch_size: int) -> Draw:
        draw = replay.sample(state.replay_state, key, batch_size)
        return draw._replace(rows=draw.rows._replace(observation=codec.decode(state.arena, draw.rows.observation)))

    def update_priority(state: Compressed, indices: Array, priorities: Array) -> Compressed:
        return state._replace(replay_state=replay.update_priority(state.replay_state, indices, priorities))

    def age(state: Compressed) -> Array:
        return num_envs * jnp.maximum(state.num_intact - 1, 0) / 2

    def ready(state: Compressed) -> Array:
        return replay.ready(state.replay_state)

    return replay._replace(
        init=init, add=add, sample=sample, update_priority=update_priority, age=age, ready=ready, forget=None
    )


def _write_blocks(arena: Array, codes: Array, begin: Array, used: Array) -> Array:
    """Return the arena with the first `used` blocks of `codes` from block `begin` on; other blocks are unchanged."""
    before = jax.lax.dynamic_slice(arena, (begin, 0), codes.shape)
    in_use = jnp.arange(len(codes))[:, None] < used
    return jax.lax.dynamic_update_slice(arena, jnp.where(in_use, codes, before), (begin, 0))


def _require_room(codec: _Codec, blocks: int, compressed_bytes: int, steps: int, context: int) -> None:
    """Refuse an arena that cannot contain a complete sequence if nothing can be compressed.

    A sequence extends over several rollouts.  The space of one more is needed at the end of the arena, where the space
    that is left may be too small for a rollout.

    Raises:
      ConfigError: the arena is too small, or its blocks cannot be counted with 32 bits.
    """
    product = f"replay.compressed_bytes={compressed_bytes:,} times {steps:,} stored steps"
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
    """The encoder and decoder of each environment's rollout.

    The code is zlib's, or the observations themselves where these are not longer.
    """

    def __init__(self, observation: PyTree, num_envs: int, rollout_length: int):
        self.num_envs, self.rollout_length = num_envs, rollout_length
        self._leaves, self._structure = jax.tree.flatten(observation)
        sizes = [rollout_length * math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self._leaves]
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self._size = self._bounds[-1]
        self.max_blocks = num_envs * -(-self._size // BLOCK)
        """Number of blocks of all environments' rollouts where nothing can be compressed."""

    def encode(self, observation: PyTree) -> tuple[Array, Code, Array]:
        """Compress observations [E, T].

        Returns:
          The codes, the position of each observation relative to the first code, and the number of blocks in use.
        """
        numbers, number = jax.ShapeDtypeStruct((self.num_envs,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        like = jax.ShapeDtypeStruct((self.max_blocks, BLOCK), jnp.uint8), numbers, numbers, number
        codes, offset, size, used = buffer_callback(self._write, like)(*jax.tree.leaves(observation))
        code = Code(offset[:, None], size[:, None], jnp.arange(self.rollout_length))
        return codes, jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_envs, self.rollout_length)), code), used

    def decode(self, arena: Array, code: Code) -> PyTree:
        """Return the observations [B, R] at some positions of the arena."""
        like = tuple(jax.ShapeDtypeStruct(code.row.shape + leaf.shape, leaf.dtype) for leaf in self._leaves)
        return jax.tree.unflatten(self._structure, buffer_callback(self._read, like)(arena, code))

    def _write(self, _: Any, out: Any, *leaves: Any) -> None:
        codes, offsets, sizes, used = (np.asarray(x) for x in out)
        arrays, flat, position = [np.asarray(leaf) for leaf in leaves], codes.reshape(-1), 0
        flat[:] = 0
        for env in range(self.num_envs):
            plain = b"".join(x[env].tobytes() for x in arrays)
            # On a tie the plain bytes are stored, because `_plain` reads a code of the full length as plain bytes.
            code = min(plain, zlib.compress(plain, LEVEL), key=len)
            offsets[env], sizes[env] = position, len(code)
            flat[position * BLOCK :][: len(code)] = np.frombuffer(code, np.uint8)
            position += -(-len(code) // BLOCK)
        used[...] = position

    def _read(self, _: Any, out: Any, arena: Any, code: Any) -> None:
        arrays, flat = [np.asarray(x) for x in out], np.asarray(arena).reshape(-1)
        offsets, sizes, rows = (np.asarray(x) for x in code)
        for sequence in range(len(rows)):
            # The rows where another rollout begins.  Each code is decompressed once for all of its rows.
            seams = np.flatnonzero(np.diff(offsets[sequence]) | np.diff(sizes[sequence])) + 1
            for part in np.split(np.arange(rows.shape[1]), seams):
                begin, size = int(offsets[sequence, part[0]]) * BLOCK, int(sizes[sequence, part[0]])
                plain = self._plain(flat[begin : begin + size].tobytes())
                for x, whole in zip(arrays, plain, strict=True):
                    x[sequence, part] = whole[rows[sequence, part]]

    def _plain(self, code: bytes) -> list[np.ndarray]:
        """Return a rollout's observations, [T, ...] each, or zeros where the code is empty."""
        plain = code if len(code) == self._size else zlib.decompress(code) if code else bytes(self._size)
        parts = [plain[begin:end] for begin, end in zip(self._bounds, self._bounds[1:], strict=False)]
        shapes = [(self.rollout_length, *leaf.shape) for leaf in self._leaves]
        return [
            np.frombuffer(part, leaf.dtype).reshape(shape)
            for part, leaf, shape in zip(parts, self._leaves, shapes, strict=True)
        ]
