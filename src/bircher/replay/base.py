"""Replay of sequences: a bounded ring buffer for each environment, over flashbax.

Rows are kept as they came, T for each rollout of T + 1 (the last row is the next rollout's first).
Sampled sequences never cross the ring's seam; where a row inside one is ``first``, the agents cut.

Draws are uniform, or proportional to priorities: "Prioritized Experience Replay" by Schaul et al. 2016
(https://arxiv.org/abs/1511.05952), section 3.3.  flashbax's own prioritized buffer is not used: it rounds the greatest
priority to a whole number, and sums kept by adding differences drift until they lead to what must not be drawn.
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
"""Added to every priority, so that a sequence without an error may come up again (section 3.3)."""
GREATEST = 1e20
"""Priorities are cut here: sums over any ring stay finite."""


class ReplayConfig(BaseModel):
    """How much is kept, how much of each batch comes from it, and what is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity: int = Field(100_000, gt=0, lt=2**53)
    """Steps kept, over all environments."""
    device: Literal["device", "host"] = "device"
    """Where: beside the networks, or in the host's memory, with what the next updates are given drawn ahead."""
    fraction: float = Field(0.75, ge=0.0, le=1.0)
    """Share of each batch drawn from replay; the rest is fresh (Muesli: 0.75, large runs 0.95)."""
    priority_exponent: float = Field(0.0, ge=0.0, le=1.0)
    """alpha: sequences are drawn in proportion to their priority to this power; 0 draws uniformly, as Muesli does."""
    importance_exponent: float = Field(1.0, ge=0.0, le=1.0)
    """beta: how much of the bias of such draws importance weights undo, 1 is all; without effect if alpha is 0."""
    compressed_bytes: int | None = Field(None, gt=0)
    """Room for each observation on average, kept compressed without loss in the host's memory; null: kept as it is."""
    symmetries: bool = False
    """Whether each sequence of a batch is turned by a random symmetry of the board: for games that have some."""

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
    """Sequences from replay, and where they came from."""

    rows: PyTree[Array]
    """[B, T + 1, ...]"""
    indices: Int[Array, " B"] | None
    """Where each begins, for `update_priority`; None where draws are uniform."""
    probabilities: Float[Array, " B"] | None
    """How probable each was among all that are held; None where draws are uniform."""


class Replay(NamedTuple):
    """`init, add, sample, update_priority` of one ring; the state is a pytree of arrays."""

    init: Callable[[PyTree], Any]
    """(one row without its batch axis) -> state"""
    add: Callable[[Any, PyTree], Any]
    """(state, rows [E, T, ...]) -> state; new sequences enter with the greatest priority so far"""
    sample: Callable[[Any, Key, int], Draw]
    """(state, key, B) -> B of all whole sequences that are held, uniformly or by priority"""
    update_priority: Callable[[Any, Array, Array], Any]
    """(state, indices [B], priorities [B]) -> state; -1 stands for a sequence that is not in here"""
    age: Callable[[Any], Array]
    """(state) -> mean age of the steps that are held, in steps of all environments"""
    ready: Callable[[Any], Array]
    """(state) -> whether a whole sequence can be drawn; asked too early, flashbax gives rows of zeros"""
    capacity: int
    """Steps it really holds: the same number for every environment."""
    prioritized: bool
    """Whether draws go by priority."""
    forget: Callable[[Any, Array], Any] | None = None
    """(state, n) -> state; none but the newest n rows of each environment are drawn from.  None where draws have no
    weights."""


class View(NamedTuple):
    """What of a replay is open to those who only look into it, as a `Replay` has it."""

    sample: Callable[[Any, Key, int], Draw]
    ready: Callable[[Any], Array]
    capacity: int


def make(
    num_envs: int, rollout_length: int, capacity: int, priority_exponent: float = 0.0, context: int = 0,
    weighted: bool = False,
) -> Replay:  # fmt: skip
    """A ring of `capacity` steps shared evenly by `num_envs` environments, for sequences of T + 1 rows.

    With a `context` they are so many rows longer, and begin that much earlier.  `weighted` draws by weights where a
    priority exponent of 0 makes them all equal, too, for a ring that can `forget`: uniform, from equal parts as there.

    Raises:
      ValueError: the capacity does not hold one sequence for each environment.
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
        held = jnp.where(state.is_full, length, state.current_index)
        return num_envs * jnp.maximum(held - 1, 0) / 2

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
    """p^alpha of every sequence by where it begins, in blocks, so that a draw reads about 2 sqrt(N) numbers.

    Where no whole sequence begins the weight is 0.
    """

    blocks: Float[Array, "blocks width"]
    sums: Float[Array, " blocks"]
    """Of each block; summed anew whenever a weight in it changes, so that no error grows."""
    greatest: Float[Array, ""]
    """The greatest weight so far, at first 1."""

    @classmethod
    def zero(cls, size: int) -> Weights:
        """Room for the weights of `size` sequences, all of them 0."""
        width = 2 ** math.ceil(math.log2(size) / 2)
        number = -(-size // width)
        return cls(jnp.zeros((number, width)), jnp.zeros(number), jnp.ones(()))

    def draw(self, key: Key, batch_size: int) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """Indices in proportion to the weights, and their probabilities.

        As in the paper the whole is cut into B equal parts and one is drawn from each; in random order.
        """
        strata_key, order_key, key = jax.random.split(key, 3)
        strata = jax.random.permutation(order_key, batch_size) + jax.random.uniform(strata_key, (batch_size,))
        block = jax.vmap(_pick, (None, 0))(self.sums, strata / batch_size)
        # A number of its own for the place in the block: one alone has too few digits for a large ring.
        weights = self.blocks[block]
        place = jax.vmap(_pick)(weights, jax.random.uniform(key, (batch_size,)))
        weight = jnp.take_along_axis(weights, place[:, None], 1)[:, 0]
        return block * self.blocks.shape[1] + place, weight / jnp.maximum(self.sums.sum(), jnp.finfo(jnp.float32).tiny)

    def correct(self, indices: Int[Array, " B"], values: Float[Array, " B"], use: Bool[Array, " B"]) -> Weights:
        """New weights where `use` is True; where none was drawable, none will be. Of several for one the greatest."""
        number, width = self.blocks.shape
        block, place = indices // width, indices % width
        use = use & (self.blocks.at[block, place].get(mode="clip") > 0)
        block = jnp.where(use, block, number)  # beyond the end, and dropped
        # First 0, then the greatest: whatever the order in which a device writes.
        blocks = self.blocks.at[block, place].set(0.0, mode="drop").at[block, place].max(values, mode="drop")
        sums = self.sums.at[block].set(blocks.at[block].get(mode="clip").sum(-1), mode="drop")
        return Weights(blocks, sums, jnp.maximum(self.greatest, jnp.where(use, values, 0.0).max()))


def _pick(weights: Float[Array, " N"], share: Float[Array, ""]) -> Int[Array, ""]:
    """The number in which this share of the sum lies; never one whose weight is 0, whatever the rounding."""
    sums = jnp.where(weights > 0, jnp.cumsum(weights), 0.0)
    # 1 - 2^-24 is the greatest number below 1: times the sum it stays below the sum.
    return jnp.argmax(sums > jnp.minimum(share, 1 - 2**-24) * sums.max())


class WeightedState(NamedTuple):
    """The rows, and the weights of the sequences among them."""

    ring: Any
    weights: Weights


def _weighted(
    buffer: Any, num_envs: int, length: int, rollout_length: int, exponent: float, age: Callable[[Any], Array],
    context: int,
) -> Replay:  # fmt: skip
    """The same ring, drawn from by weight; index e * length + t stands for environment e from row t on."""

    def init(row: PyTree) -> WeightedState:
        return WeightedState(buffer.init(row), Weights.zero(num_envs * length))

    def unfolded(weights: Weights) -> Float[Array, "num_envs length"]:
        return weights.blocks.reshape(-1)[: num_envs * length].reshape(num_envs, length)

    def folded(weights: Float[Array, "num_envs length"], old: Weights) -> Weights:
        blocks = jnp.pad(weights.reshape(-1), (0, old.blocks.size - weights.size)).reshape(old.blocks.shape)
        return Weights(blocks, blocks.sum(-1), old.greatest)

    def add(state: WeightedState, rows: PyTree) -> WeightedState:
        before, ring = state.ring, buffer.add(state.ring, rows)
        weights, greatest = unfolded(state.weights), state.weights.greatest
        # These T rows complete the sequences that begin in the T rows before them (a context earlier), and no other ...
        written = (before.current_index + jnp.arange(rollout_length)) % length
        begin = before.current_index - 1 - context - jnp.arange(rollout_length)
        held = before.is_full | (begin >= 0)
        weights = weights.at[:, begin % length].set(jnp.where(held, greatest, 0.0))
        # ... and from where they lie none is whole yet; in a short ring that is also where some of those began.
        weights = weights.at[:, written].set(0.0)
        return WeightedState(ring, folded(weights, state.weights))

    def forget(state: WeightedState, count: Array) -> WeightedState:
        newer = (state.ring.current_index - 1 - jnp.arange(length)) % length
        return state._replace(weights=folded(jnp.where(newer < count, unfolded(state.weights), 0.0), state.weights))

    def sample(state: WeightedState, key: Key, batch_size: int) -> Draw:
        indices, probabilities = state.weights.draw(key, batch_size)
        env, start = indices // length, indices % length
        time = (start[:, None] + jnp.arange(context + rollout_length + 1)) % length
        rows = jax.tree.map(lambda x: x[env[:, None], time], state.ring.experience)
        return Draw(rows, indices, probabilities) if exponent else Draw(rows, None, None)

    def update_priority(state: WeightedState, indices: Array, priorities: Array) -> WeightedState:
        if not exponent:
            return state
        values = (jnp.clip(priorities, 0.0, GREATEST) + EPSILON) ** exponent
        use = (indices >= 0) & jnp.isfinite(priorities)
        return state._replace(weights=state.weights.correct(indices, values, use))

    def ready(state: WeightedState) -> Array:
        return buffer.can_sample(state.ring)

    def age_of_ring(state: WeightedState) -> Array:
        return age(state.ring)

    return Replay(
        init, add, sample, update_priority, age_of_ring, ready, num_envs * length, bool(exponent), forget
    )  # fmt: skip


def num_bytes(row: PyTree, capacity: int) -> int:
    """Bytes of `capacity` rows, known before anything is allocated."""
    return capacity * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
