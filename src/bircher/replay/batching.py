"""The batch of an update: fresh and replayed sequences in fixed shares, each with its importance weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.replay.base import Draw, Replay
from bircher.types import Batch, Key, Symmetry, Targets, Trajectory


class BatchSpec(NamedTuple):
    """How the sequences that share one computation of targets are made up."""

    num_envs: int
    minibatches: int
    batch_size: int
    """Sequences of each minibatch."""
    num_replayed: int
    """How many of them come from replay."""
    importance_exponent: float
    """beta of the importance weights, where draws go by priority."""

    @property
    def num_fresh(self) -> int:
        """Sequences of each minibatch that come from the rollout."""
        return self.batch_size - self.num_replayed

    @property
    def sequences(self) -> int:
        """Sequences that share one computation of targets."""
        return self.minibatches * self.batch_size


def take(tree: PyTree, index: Array) -> PyTree:
    """Every leaf at `index` of its first axis."""
    return jax.tree.map(lambda x: x[index], tree)


def fresh_order(shares: BatchSpec, groups: int, key: Key) -> Int[Array, "groups fresh"]:
    """Environments whose rollout each group is given: each comes up equally often, in random order."""
    needed = groups * shares.minibatches * shares.num_fresh
    repeats = max(-(-needed // shares.num_envs), 1)
    order = jnp.concatenate([jax.random.permutation(k, shares.num_envs) for k in jax.random.split(key, repeats)])
    return order[:needed].reshape(groups, -1)


def importance_weights(probabilities: Float[Array, "*M B"], exponent: float) -> Float[Array, "*M B"]:
    """(N p)^-beta of each replayed sequence, divided by their mean over its minibatch, in which N cancels.

    "Prioritized Experience Replay" by Schaul et al. 2016 (https://arxiv.org/abs/1511.05952), section 3.4, divides by
    the greatest weight, because there every sequence is replayed.  Here fresh sequences with a weight of 1 share the
    minibatch.  With beta 1 the expectation of 1 / (N p) is 1 under draws by p, so replayed sequences must count as much
    as fresh ones on average.
    """
    # Over the greatest first: a power of a small probability may not be finite.
    weights = (probabilities.min(-1, keepdims=True) / probabilities) ** exponent
    return weights / weights.mean(-1, keepdims=True)


class ReplaySample(NamedTuple):
    """Replayed sequences for a computation of targets, and whether they are any."""

    draw: Draw
    ready: Bool[Array, "*groups"]
    """False where the ring held no whole sequence: the rows are then none."""


def sample_replay(shares: BatchSpec, ring: Replay, replay: Any, key: Key) -> ReplaySample | None:
    """The replayed share of minibatches × batch_size sequences; None where there is none."""
    if not shares.num_replayed:
        return None
    return ReplaySample(ring.sample(replay, key, shares.minibatches * shares.num_replayed), ring.ready(replay))


def assemble_batch(shares: BatchSpec, rollout: Trajectory, order: Array, replayed: ReplaySample | None) -> Batch:
    """minibatches × batch_size sequences, each minibatch with its own fresh share.

    `order` says whose rollout is taken.  Fresh sequences have importance 1 and no index, for the ring does not hold
    them whole.
    """
    parts, marks = [], None
    if shares.num_fresh:
        parts.append(_by_minibatch(shares, take(rollout, order)))
    if replayed is not None:
        # Until the ring holds a whole sequence, fresh ones stand in.
        stand_in = take(rollout, jnp.arange(shares.minibatches * shares.num_replayed) % shares.num_envs)
        ready = replayed.ready
        rows = jax.tree.map(lambda x, y: jnp.where(ready, x, y), replayed.draw.rows, stand_in)
        parts.append(_by_minibatch(shares, rows))
        marks = _marks(shares, replayed.draw, ready)
    size = shares.sequences
    rows = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1).reshape(size, *xs[0].shape[2:]), *parts)
    return Batch(rows, *(marks or (jnp.full(size, -1), jnp.ones(size))))


def _by_minibatch(shares: BatchSpec, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(shares.minibatches, -1, *x.shape[1:]), tree)


def _marks(shares: BatchSpec, draw: Draw, ready: Array) -> tuple[Array, Array] | None:
    """Indices and importance of all sequences of a group; None where draws are uniform."""
    if draw.indices is None or draw.probabilities is None:
        return None
    indices = _by_minibatch(shares, jnp.where(ready, draw.indices, -1))
    probabilities = _by_minibatch(shares, jnp.where(ready, draw.probabilities, 1.0))
    weights = importance_weights(probabilities, shares.importance_exponent)
    # Replayed sequences stand behind the fresh ones of their minibatch.
    fresh = ((0, 0), (shares.num_fresh, 0))
    return (
        jnp.pad(indices, fresh, constant_values=-1).reshape(-1),
        jnp.pad(weights, fresh, constant_values=1.0).reshape(-1),
    )


def apply_symmetries(symmetries: tuple[Symmetry, ...], rows: Trajectory, key: Key) -> Trajectory:
    """Every sequence as it would be on a board turned by one of the symmetries, drawn for each.

    Extras of three axes hold a number for each action, and are turned too.
    """
    choice = jax.random.randint(key, rows.action.shape[:1], 0, len(symmetries))
    cells = jnp.array([symmetry.cells for symmetry in symmetries])[choice]
    actions = jnp.array([symmetry.actions for symmetry in symmetries])[choice]
    pick = jax.vmap(lambda x, index: jnp.take(x, index, axis=-1))
    board = rows.observation.shape
    flat = rows.observation.reshape(*board[:2], -1, board[-1])
    return rows._replace(
        observation=jax.vmap(lambda x, index: x[:, index])(flat, cells).reshape(board),
        legal_actions=pick(rows.legal_actions, actions),
        # Which action of the turned board is the one that was taken.
        action=jax.vmap(jnp.take)(jnp.argsort(actions, axis=-1), rows.action).astype(rows.action.dtype),
        extras={name: pick(x, actions) if x.ndim == 3 else x for name, x in rows.extras.items()},
    )


def crop_sequences(key: Key, batch: Batch, targets: Targets, length: int) -> tuple[Batch, Targets]:
    """`length` rows of every sequence, and the row behind them, from a random row on; and the targets there.

    Targets were computed with whole sequences; numbers for a whole sequence or batch stay as they are.
    """
    size, rows = targets.mask.shape
    begin = jax.random.randint(key, (size,), 0, rows - length + 1)

    def cut(x: Array) -> Array:
        if x.ndim < 2 or x.shape[1] not in (rows, rows + 1):
            return x
        kept = length + x.shape[1] - rows
        return jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, kept))(x, begin)

    return batch._replace(trajectory=jax.tree.map(cut, batch.trajectory)), jax.tree.map(cut, targets)


def split_sequences(batch: Batch, targets: Targets, length: int) -> tuple[Batch, Targets]:
    """All sequences cut into pieces of `length` rows and the row behind each; numbers of a sequence go with its pieces.

    Targets were computed with whole sequences.  Every transition is in one piece; `length` divides the sequences'.
    """
    size, rows = targets.mask.shape
    count = rows // length

    def cut(x: Array) -> Array:
        if not x.ndim or x.shape[0] != size:
            return x
        if x.ndim < 2 or x.shape[1] not in (rows, rows + 1):
            return jnp.repeat(x, count, axis=0)
        kept = length + x.shape[1] - rows
        index = jnp.arange(count)[:, None] * length + jnp.arange(kept)
        return x[:, index].reshape(size * count, kept, *x.shape[2:])

    return jax.tree.map(cut, batch), jax.tree.map(cut, targets)
