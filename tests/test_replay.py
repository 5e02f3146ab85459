"""The ring: bounded, whole, and never read across its seam."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bircher.replay import base
from bircher.replay.base import ReplayConfig

# environments, rollout length, capacity: just large enough, a multiple, no multiple, several rollouts
SHAPES = ((3, 4, 15), (2, 5, 20), (2, 4, 27), (4, 3, 100))


@functools.cache
def programs(shape):
    ring = base.make(*shape)
    return ring, jax.jit(ring.add, donate_argnums=0), jax.jit(ring.sample, static_argnums=2)


def rows(num_envs: int, length: int, start: int) -> dict[str, jax.Array]:
    """Rows [E, T] that say which environment and which time they are of; times begin at 1."""
    time = jnp.broadcast_to(jnp.arange(start, start + length) + 1, (num_envs, length))
    return {"env": jnp.broadcast_to(jnp.arange(num_envs)[:, None], (num_envs, length)), "time": time}


def filled(shape, adds: int):
    """The ring after so many rollouts."""
    num_envs, length, _ = shape
    ring, add, sample = programs(shape)
    state = ring.init({"env": jnp.zeros((), jnp.int32), "time": jnp.zeros((), jnp.int32)})
    for n in range(adds):
        state = add(state, rows(num_envs, length, n * length))
    return ring, sample, state


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(2, 17), st.integers(0, 2**31 - 1))
def test_samples_are_whole_recent_and_of_one_environment(shape, adds, seed):
    """After any number of rollouts each sequence is T + 1 rows, consecutive in time, none older than the capacity."""
    num_envs, length, capacity = shape
    ring, sample, state = filled(shape, adds)
    assert ring.capacity == num_envs * (capacity // num_envs) <= capacity
    if not ring.ready(state):
        assert adds * length < length + 1
        return
    drawn = jax.tree.map(np.asarray, sample(state, jax.random.key(seed), 64).rows)
    assert drawn["time"].shape == (64, length + 1)
    assert (np.diff(drawn["time"], axis=1) == 1).all()
    assert (drawn["env"] == drawn["env"][:, :1]).all()
    newest = adds * length
    assert drawn["time"].max() <= newest
    assert drawn["time"].min() > max(newest - capacity // num_envs, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_whole_sequence_is_drawn_equally_often(shape):
    num_envs, length, capacity = shape
    _, sample, state = filled(shape, 9)
    drawn = sample(state, jax.random.key(0), 20_000).rows
    starts = np.asarray(drawn["time"][:, 0])
    held = min(capacity // num_envs, 9 * length)
    possible = held - length
    assert len(np.unique(starts)) == possible
    counts = np.zeros((num_envs, possible))
    np.add.at(counts, (np.asarray(drawn["env"][:, 0]), starts - starts.min()), 1)
    expected = 20_000 / counts.size
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_it_is_not_ready_before_a_whole_sequence_is_there():
    """One rollout is T rows, a sequence T + 1: flashbax would give rows of zeros."""
    shape = (2, 5, 20)
    ring, _, state = filled(shape, 0)
    assert not ring.ready(state)
    assert not ring.ready(filled(shape, 1)[2])
    assert ring.ready(filled(shape, 2)[2])


def test_an_older_state_is_not_changed_by_adding():
    """Trap 5: entries never alias each other, nor the rows that were given."""
    ring = base.make(2, 3, 20)
    state = ring.init({"env": jnp.zeros((), jnp.int32), "time": jnp.zeros((), jnp.int32)})
    given_rows = rows(2, 3, 0)
    one = ring.add(state, given_rows)
    copy = jax.tree.map(lambda x: np.array(x), one)
    ring.add(one, rows(2, 3, 3))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(copy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_bytes_are_known_before_anything_is_allocated():
    row = {
        "image": jax.ShapeDtypeStruct((8, 8, 2), np.uint8),
        "reward": jax.ShapeDtypeStruct((), np.float32),
        "flag": jax.ShapeDtypeStruct((), np.bool_),
        "logits": jax.ShapeDtypeStruct((5,), np.float32),
    }
    ring = base.make(3, 4, 100)
    assert ring.capacity == 99
    state = ring.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), row))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.experience))
    assert base.num_bytes(row, ring.capacity) == held == 99 * (128 + 4 + 1 + 20)
    # It never grows.
    many = jax.tree.map(lambda x: jnp.ones((3, 4, *x.shape), x.dtype), row)
    for _ in range(40):
        state = ring.add(state, many)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.experience)) == held


def test_a_replay_too_small_for_one_sequence_each_is_refused():
    with pytest.raises(ValueError, match=r"replay.capacity=1,023 is too small: 64 .* 16 rows need at least 1,024"):
        base.make(64, 15, 1023)
    assert base.make(64, 15, 1024).capacity == 1024


def test_defaults_are_the_issues_and_nonsense_is_refused():
    assert (ReplayConfig().capacity, ReplayConfig().fraction) == (100_000, 0.75)
    assert (ReplayConfig().priority_exponent, ReplayConfig().importance_exponent) == (0.0, 1.0)
    wrongs = ({"fraction": 1.1}, {"fraction": -0.1}, {"capacity": 0}, {"size": 3}, {"priority_exponent": 1.1})
    for wrong in (*wrongs, {"priority_exponent": -0.1}, {"importance_exponent": 2.0}):
        with pytest.raises(ValidationError):
            ReplayConfig(**wrong)
