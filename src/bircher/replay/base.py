"""Replay of sequences: a bounded ring buffer for each environment, over flashbax.

Rows are stored without changes, T for each rollout of T + 1 (the last row is the next rollout's first).  Sampled
sequences never extend from the newest row to the oldest.  A row inside a sequence may be ``first``, and the agents then
cut returns and memories there.

Samples are uniform, or proportional to priorities: "Prioritized Experience Replay" by Schaul et al. 2016
(https://arxiv.org/abs/1511.05952), section 3.3.  flashbax's own prioritized buffer is not used: it rounds the greatest
priority to a whole number, and its sums are updated by differences, whose errors grow until they lead to sequences that
must not be sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flashbax.buffers import trajectory_buffer
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.types import Key

EPSILON = 1e-6
"""This is added to every priority, so that a sequence without an error can be drawn again (section 3.3)."""
GREATEST = 1e20
"""Priorities are clipped to this, so that their sum is finite for a replay of any size."""


class ReplayConfig(BaseModel):
    """Settings of the replay: its size and memory, its share of each batch, and the distribution of samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity: int = Field(100_000, gt=0, lt=2**53)
    """Number of stored steps, over all environments; a step contains the rows of all agents. Null is derived: one
    rollout, and at least 8,192."""
    device: Literal["device", "host"] = "device"
    """Memory of the replay: `device` is the memory of the networks' device. `host` is main memory, and the batches of
    the next updates are then sampled in advance."""
    fraction: float = Field(0.75, ge=0.0, le=1.0)
    """Share of each batch that is sampled from replay; the rest is fresh (Muesli: 0.75, large runs 0.95)."""
    priority_exponent: float = Field(0.0, ge=0.0, le=1.0)
    """alpha: sequences are sampled in proportion to their priority to this power; 0 is uniform, as in Muesli."""
    importance_exponent: float = Field(1.0, ge=0.0, le=1.0)
    """beta: the degree to which importance weights correct the bias of prioritized samples; 1 corrects all of it. It
    has no effect if alpha is 0."""
    compressed_bytes: int | None = Field(None, gt=0)
    """Memory for each observation on average, where observations are stored in main memory with lossless compression;
    null: no compression."""
    symmetries: bool = False
    """Whether a random symmetry of the board is applied to each sequence of a batch, in games that have symmetries."""

    @model_validator(mode="after")
    def _has_something_to_draw(self) -> ReplayConfig:
        for name, value, idle in (
            ("priority_exponent", f"{self.priority_exponent:g}", 0),
            ("compressed_bytes", f"{self.compressed_bytes}", None),
        ):
            if getattr(self, name) != idle and not self.fraction:
                raise ValueError(
                    f"{name}={value} needs sequences from replay: set replay.fraction above 0, or leave {name} at "
                    f"{'null' if idle is None else idle}"
                )
        return self

    @model_validator(mode="after")
    def _compresses_on_the_host(self) -> ReplayConfig:
        if self.compressed_bytes is not None and self.device != "host":
            raise ValueError(
                f"compressed_bytes={self.compressed_bytes} compresses in the host's memory: set replay.device=host, "
                "or leave compressed_bytes at null"
            )
        return self


class Draw(NamedTuple):
    """Sequences that were sampled from a replay, with their positions and probabilities."""

    rows: PyTree[Array]
    """[B, T + 1, ...]"""
    indices: Int[Array, " B"] | None
    """Position where each sequence begins, for `update_priority`; None where samples are uniform."""
    probabilities: Float[Array, " B"] | None
    """Probability of each sequence among all stored ones; None where samples are uniform."""


class Replay(NamedTuple):
    """The functions of one replay.  Its state is a pytree of arrays."""

    init: Callable[[PyTree], Any]
    """(one row without its batch axis) -> state"""
    add: Callable[[Any, PyTree], Any]
    """(state, rows [E, T, ...]) -> state; new sequences have the greatest priority so far"""
    sample: Callable[[Any, Key, int], Draw]
    """(state, key, B) -> B of all complete stored sequences, uniformly or by priority"""
    update_priority: Callable[[Any, Array, Array], Any]
    """(state, indices [B], priorities [B]) -> state; an index of -1 is ignored"""
    age: Callable[[Any], Array]
    """(state) -> mean age of the stored steps, in steps of all environments"""
    ready: Callable[[Any], Array]
    """(state) -> whether there is a complete sequence; without one, flashbax samples rows of zeros"""
    capacity: int
    """Number of steps that fit, which is the same for every environment."""
    prioritized: bool
    """Whether sequences are sampled by priority."""
    forget: Callable[[Any, Array], Any] | None = None
    """(state, n) -> state from which only the newest n rows of each environment are sampled.  None where sequences are
    sampled without weights."""


class View(NamedTuple):
    """The read-only functions of a replay, as in `Replay`."""

    sample: Callable[[Any, Key, int], Draw]
    ready: Callable[[Any], Array]
    capacity: int


def make(
    num_envs: int, rollout_length: int, capacity: int, priority_exponent: float = 0.0, context: int = 0,
    weighted: bool = False,
) -> Replay:  # fmt: skip
    """Return a replay of `capacity` steps, shared equally by `num_envs` environments, for sequences of T + 1 rows.

    Args:
      num_envs: number of environments.
      rollout_length: T.
      capacity: steps of all environments together.
      priority_exponent: alpha; 0 samples uniformly.
      context: number of rows by which each sequence begins earlier and is longer.
      weighted: whether sequences are sampled by weights even if the exponent is 0, where all weights are equal.  Such a
        replay can `forget`, and does not sample sequences without a row whose agent is there.  Its samples are uniform,
        one from each of B equal parts, as with priorities.

    Raises:
      ValueError: the capacity is smaller than one sequence for each environment.
    """
    sequence_length = context + rollout_length + 1
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

    def age(state: Any) -> Array:
        stored = jnp.where(state.is_full, length, state.current_index)
        return num_envs * jnp.maximum(stored - 1, 0) / 2

    if priority_exponent or weighted:
        return _weighted(buffer, num_envs, length, rollout_length, priority_exponent, age, context)

    def sample(state: Any, key: Key, batch_size: int) -> Draw:
        return Draw(trajectory_buffer.sample(state, key, batch_size, sequence_length, 1).experience, None, None)

    def update_priority(state: Any, indices: Array, priorities: Array) -> Any:
        del indices, priorities
        return state

    return Replay(
        buffer.init, buffer.add, sample, update_priority, age, buffer.can_sample, num_envs * length, False
    )  # fmt: skip


class Weights(NamedTuple):
    """p^alpha of every sequence, by the position where it begins.

    The weight is 0 where no complete sequence begins.  Weights are in blocks, so that a sample reads about 2 sqrt(N)
    numbers.
    """

    blocks: Float[Array, "blocks width"]
    sums: Float[Array, " blocks"]
    """Sum of each block.  It is computed again whenever a weight in the block changes, so that errors do not grow."""
    greatest: Float[Array, ""]
    """The greatest weight so far, initially 1."""

    @classmethod
    def zero(cls, size: int) -> Weights:
        """Return weights of 0 for `size` sequences."""
        width = 2 ** math.ceil(math.log2(size) / 2)
        number = -(-size // width)
        return cls(jnp.zeros((number, width)), jnp.zeros(number), jnp.ones(()))

    def draw(self, key: Key, batch_size: int) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """Sample B indices in proportion to the weights, and return them with their probabilities.

        As in the paper, the sum of the weights is divided into B equal parts, and one index is drawn from each.  The
        indices are in random order.
        """
        strata_key, order_key, key = jax.random.split(key, 3)
        strata = jax.random.permutation(order_key, batch_size) + jax.random.uniform(strata_key, (batch_size,))
        block = jax.vmap(_pick, (None, 0))(self.sums, strata / batch_size)
        # The position in the block has a separate random number, because one alone has too few digits for a large
        # replay.
        weights = self.blocks[block]
        place = jax.vmap(_pick)(weights, jax.random.uniform(key, (batch_size,)))
        weight = jnp.take_along_axis(weights, place[:, None], 1)[:, 0]
        return block * self.blocks.shape[1] + place, weight / jnp.maximum(self.sums.sum(), jnp.finfo(jnp.float32).tiny)

    def correct(self, indices: Int[Array, " B"], values: Float[Array, " B"], use: Bool[Array, " B"]) -> Weights:
        """Return a copy of these sampling weights with new values at some indices.

        There is a weight for each position of the replay.  A weight of 0 stays 0: it marks a position at which no
        complete sequence begins.  Where an index occurs several times, the greatest of its values is used.

        Args:
          indices: positions of sequences.
          values: new weights.
          use: False at indices that are ignored.
        """
        number, width = self.blocks.shape
        block, place = indices // width, indices % width
        use = use & (self.blocks.at[block, place].get(mode="clip") > 0)
        block = jnp.where(use, block, number)  # beyond the end, and dropped
        # Entries are set to 0 and then to the greatest value, so that the order in which a device writes has no effect.
        blocks = self.blocks.at[block, place].set(0.0, mode="drop").at[block, place].max(values, mode="drop")
        sums = self.sums.at[block].set(blocks.at[block].get(mode="clip").sum(-1), mode="drop")
        return Weights(blocks, sums, jnp.maximum(self.greatest, jnp.where(use, values, 0.0).max()))


def _pick(weights: Float[Array, " N"], share: Float[Array, ""]) -> Int[Array, ""]:
    """Return the index at which the cumulative sum of the weights exceeds `share` of their sum.

    Rounding never leads to an index whose weight is 0.
    """
    sums = jnp.where(weights > 0, jnp.cumsum(weights), 0.0)
    # 1 - 2^-24 is the greatest number below 1, and its product with the sum is below the sum.
    return jnp.argmax(sums > jnp.minimum(share, 1 - 2**-24) * sums.max())


class WeightedState(NamedTuple):
    """The rows, and the weights of their sequences."""

    replay_state: Any
    weights: Weights


def _weighted(
    buffer: Any, num_envs: int, length: int, rollout_length: int, exponent: float, age: Callable[[Any], Array],
    context: int,
) -> Replay:  # fmt: skip
    """Return the replay that samples by weight.

    The index of a sequence is e * length + t, for environment e and the first row t.
    """

    def init(row: PyTree) -> WeightedState:
        return WeightedState(buffer.init(row), Weights.zero(num_envs * length))

    def by_env(weights: Weights) -> Float[Array, "num_envs length"]:
        return weights.blocks.reshape(-1)[: num_envs * length].reshape(num_envs, length)

    def in_blocks(weights: Float[Array, "num_envs length"], old: Weights) -> Weights:
        blocks = jnp.pad(weights.reshape(-1), (0, old.blocks.size - weights.size)).reshape(old.blocks.shape)
        return Weights(blocks, blocks.sum(-1), old.greatest)

    def add(state: WeightedState, rows: PyTree) -> WeightedState:
        before, ring = state.replay_state, buffer.add(state.replay_state, rows)
        weights, greatest = by_env(state.weights), state.weights.greatest
        # These T rows complete exactly the sequences that begin in the T rows before them (a context earlier).
        new_rows = (before.current_index + jnp.arange(rollout_length)) % length
        begin = before.current_index - 1 - context - jnp.arange(rollout_length)
        stored = before.is_full | (begin >= 0)
        stored = _with_agents(stored, ring.experience, begin + context, rollout_length, length)
        weights = weights.at[:, begin % length].set(jnp.where(stored, greatest, 0.0))
        # No complete sequence begins in the new rows yet.  In a short buffer, they replace rows where some of those
        # sequences began.
        weights = weights.at[:, new_rows].set(0.0)
        return WeightedState(ring, in_blocks(weights, state.weights))

    def forget(state: WeightedState, count: Array) -> WeightedState:
        newer = (state.replay_state.current_index - 1 - jnp.arange(length)) % length
        return state._replace(weights=in_blocks(jnp.where(newer < count, by_env(state.weights), 0.0), state.weights))

    def sample(state: WeightedState, key: Key, batch_size: int) -> Draw:
        indices, probabilities = state.weights.draw(key, batch_size)
        env, start = indices // length, indices % length
        time = (start[:, None] + jnp.arange(context + rollout_length + 1)) % length
        rows = jax.tree.map(lambda x: x[env[:, None], time], state.replay_state.experience)
        return Draw(rows, indices, probabilities) if exponent else Draw(rows, None, None)

    def update_priority(state: WeightedState, indices: Array, priorities: Array) -> WeightedState:
        if not exponent:
            return state
        values = (jnp.clip(priorities, 0.0, GREATEST) + EPSILON) ** exponent
        use = (indices >= 0) & jnp.isfinite(priorities)
        return state._replace(weights=state.weights.correct(indices, values, use))

    def ready(state: WeightedState) -> Array:
        return buffer.can_sample(state.replay_state)

    def mean_age(state: WeightedState) -> Array:
        return age(state.replay_state)

    return Replay(
        init, add, sample, update_priority, mean_age, ready, num_envs * length, bool(exponent), forget
    )  # fmt: skip


def _with_agents(stored: Array, experience: PyTree, begin: Int[Array, " T"], rows: int, length: int) -> Array:
    """Return which stored sequences have a row whose agent is there, [E, T]; all, where every environment has one.

    They begin at these times, and have so many rows before the last one.
    """
    valid = getattr(experience, "valid", None)
    if valid is None:
        return stored
    return stored & valid[:, (begin[:, None] + jnp.arange(rows)) % length].any(-1)


def num_bytes(row: PyTree, capacity: int) -> int:
    """Return the number of bytes of `capacity` rows, without allocating them."""
    return capacity * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
