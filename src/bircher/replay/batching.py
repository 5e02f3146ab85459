"""The batch of an update: fresh and replayed sequences in fixed shares, each with its importance weight."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bircher.replay.base import Draw, Replay
from bircher.types import Batch, Key, Symmetry, Targets, Trajectory


class BatchSpec(NamedTuple):
    """The composition of the sequences that share one computation of targets."""

    num_envs: int
    minibatches: int
    batch_size: int
    """Number of sequences of each minibatch."""
    num_replayed: int
    """Number of sequences of each minibatch that come from replay."""
    importance_exponent: float
    """beta of the importance weights, where sequences are sampled by priority."""

    @property
    def num_fresh(self) -> int:
        """Return the number of sequences of each minibatch that come from the rollout."""
        return self.batch_size - self.num_replayed

    @property
    def sequences(self) -> int:
        """Return the number of sequences that share one computation of targets."""
        return self.minibatches * self.batch_size


def take(tree: PyTree, index: Array) -> PyTree:
    """Return every leaf at `index` of its first axis."""
    return jax.tree.map(lambda x: x[index], tree)


def fresh_order(spec: BatchSpec, groups: int, key: Key) -> Int[Array, "groups fresh"]:
    """Return the environments whose rollouts each group of minibatches uses.

    They are in random order, and each environment occurs equally often.
    """
    needed = groups * spec.minibatches * spec.num_fresh
    repeats = max(-(-needed // spec.num_envs), 1)
    order = jnp.concatenate([jax.random.permutation(k, spec.num_envs) for k in jax.random.split(key, repeats)])
    return order[:needed].reshape(groups, -1)


def importance_weights(probabilities: Float[Array, "*M B"], exponent: float) -> Float[Array, "*M B"]:
    """Return (N p)^-beta of each replayed sequence, divided by the mean over its minibatch, in which N cancels.

    "Prioritized Experience Replay" by Schaul et al. 2016 (https://arxiv.org/abs/1511.05952), section 3.4, divides by
    the greatest weight, because there every sequence is replayed.  Here fresh sequences with a weight of 1 share the
    minibatch.  With beta 1 the expectation of 1 / (N p) is 1 under draws by p, so replayed sequences must count as much
    as fresh ones on average.
    """
    # The least probability is divided out first, because a power of a small probability may not be finite.
    weights = (probabilities.min(-1, keepdims=True) / probabilities) ** exponent
    return weights / weights.mean(-1, keepdims=True)


class ReplaySample(NamedTuple):
    """Replayed sequences for a computation of targets, and whether they are valid."""

    draw: Draw
    ready: Bool[Array, "*groups"]
    """False where the replay contained no complete sequence.  The rows are then meaningless."""


def sample_replay(spec: BatchSpec, replay: Replay, replay_state: Any, key: Key) -> ReplaySample | None:
    """Sample the replayed share of minibatches × batch_size sequences, or return None where the share is 0."""
    if not spec.num_replayed:
        return None
    draw = replay.sample(replay_state, key, spec.minibatches * spec.num_replayed)
    return ReplaySample(draw, replay.ready(replay_state))


def assemble_batch(spec: BatchSpec, rollout: Trajectory, order: Array, replayed: ReplaySample | None) -> Batch:
    """Return minibatches × batch_size sequences, with the same number of fresh ones in each minibatch.

    Fresh sequences have importance 1 and the index -1, because the replay does not contain them completely.

    Args:
      spec: the composition of the batch.
      rollout: rows of each environment.
      order: the environments whose rollouts are used, in order.
      replayed: the sequences from replay.
    """
    parts, annotations = [], None
    if spec.num_fresh:
        parts.append(_by_minibatch(spec, take(rollout, order)))
    if replayed is not None:
        # Fresh sequences are used until the replay contains a complete one.
        substitute = take(rollout, jnp.arange(spec.minibatches * spec.num_replayed) % spec.num_envs)
        ready = replayed.ready
        rows = jax.tree.map(lambda x, y: jnp.where(ready, x, y), replayed.draw.rows, substitute)
        parts.append(_by_minibatch(spec, rows))
        annotations = _indices_and_importance(spec, replayed.draw, ready)
    size = spec.sequences
    rows = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1).reshape(size, *xs[0].shape[2:]), *parts)
    return Batch(rows, *(annotations or (jnp.full(size, -1), jnp.ones(size))))


def _by_minibatch(spec: BatchSpec, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(spec.minibatches, len(x) // spec.minibatches, *x.shape[1:]), tree)


def _indices_and_importance(spec: BatchSpec, draw: Draw, ready: Array) -> tuple[Array, Array] | None:
    """Return the indices and the importance of all sequences of a group, or None where samples are uniform."""
    if draw.indices is None or draw.probabilities is None:
        return None
    indices = _by_minibatch(spec, jnp.where(ready, draw.indices, -1))
    probabilities = _by_minibatch(spec, jnp.where(ready, draw.probabilities, 1.0))
    weights = importance_weights(probabilities, spec.importance_exponent)
    # Replayed sequences follow the fresh ones of their minibatch.
    fresh = ((0, 0), (spec.num_fresh, 0))
    return (
        jnp.pad(indices, fresh, constant_values=-1).reshape(-1),
        jnp.pad(weights, fresh, constant_values=1.0).reshape(-1),
    )


def apply_symmetries(symmetries: tuple[Symmetry, ...], rows: Trajectory, key: Key) -> Trajectory:
    """Apply a random symmetry of the board to each sequence, and to what its rows store for each action."""
    choice = jax.random.randint(key, rows.action.shape[:1], 0, len(symmetries))
    cells = jnp.array([symmetry.cells for symmetry in symmetries])[choice]
    actions = jnp.array([symmetry.actions for symmetry in symmetries])[choice]
    pick = jax.vmap(lambda x, index: jnp.take(x, index, axis=-1))
    board = rows.observation.shape
    flat = rows.observation.reshape(*board[:2], -1, board[-1])
    return rows._replace(
        observation=jax.vmap(lambda x, index: x[:, index])(flat, cells).reshape(board),
        legal_actions=pick(rows.legal_actions, actions),
        # The action of the transformed board that corresponds to the action taken.
        action=jax.vmap(jnp.take)(jnp.argsort(actions, axis=-1), rows.action).astype(rows.action.dtype),
        extras=rows.extras._replace(per_action={name: pick(x, actions) for name, x in rows.extras.per_action.items()}),
    )


def crop_sequences(key: Key, batch: Batch, targets: Targets, length: int) -> tuple[Batch, Targets]:
    """Return `length` rows of every sequence from a random row on, the row after them, and the targets of these rows.

    Targets were computed from whole sequences.  Numbers for a whole sequence or batch stay as they are.
    """
    size, transitions = targets.mask.shape
    begin = jax.random.randint(key, (size,), 0, transitions - length + 1)

    def cut(width: int, x: Array) -> Array:
        return jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, width))(x, begin)

    per_transition, per_row = partial(cut, length), partial(cut, length + 1)
    trajectory = jax.tree.map(per_row, batch.trajectory)
    return batch._replace(trajectory=trajectory), targets.map(per_transition, per_row)


def split_sequences(batch: Batch, targets: Targets, length: int) -> tuple[Batch, Targets]:
    """Split all sequences into segments of `length` rows, each with the row after it.

    Targets were computed from whole sequences.  Every transition is in exactly one segment, because `length` divides
    the length of the sequences.  A number of a whole sequence is repeated for each of its segments.
    """
    size, transitions = targets.mask.shape
    count = transitions // length

    def cut(width: int, x: Array) -> Array:
        index = jnp.arange(count)[:, None] * length + jnp.arange(width)
        return x[:, index].reshape(size * count, width, *x.shape[2:])

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, count, axis=0)

    per_transition, per_row = partial(cut, length), partial(cut, length + 1)
    segments = Batch(jax.tree.map(per_row, batch.trajectory), repeat(batch.indices), repeat(batch.importance))
    return segments, targets.map(per_transition, per_row, repeat)
