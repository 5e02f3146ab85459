"""Draws by priority against a plain dictionary: what is held, how probable it is, and what stale indices do."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bircher.replay import base, batching
from bircher.replay.base import EPSILON, Weights
from bircher.types import Trajectory

# environments, rollout length, capacity: just large enough, a multiple, no multiple, several rollouts
SHAPES = ((3, 4, 15), (2, 5, 20), (2, 4, 27), (4, 3, 100))
BATCH = 6


class Plain:
    """The same ring as a dictionary from (environment, time of the first row) to weight."""

    def __init__(self, num_envs: int, rollout_length: int, capacity: int, exponent: float):
        self.num_envs, self.rollout_length, self.length = num_envs, rollout_length, capacity // num_envs
        self.exponent, self.time, self.greatest, self.weights = exponent, 0, 1.0, {}

    def add(self) -> None:
        self.time += self.rollout_length
        starts = range(max(self.time - self.length, 0), self.time - self.rollout_length)
        keys = [(env, start) for env in range(self.num_envs) for start in starts]
        self.weights = {key: self.weights.get(key, self.greatest) for key in keys}

    def index(self, key: tuple[int, int]) -> int:
        return key[0] * self.length + key[1] % self.length

    def update(self, indices: list[int], priorities: list[float]) -> None:
        held, new = {self.index(key): key for key in self.weights}, {}
        for index, priority in zip(indices, priorities, strict=True):
            if index in held and math.isfinite(priority):
                weight = (priority + EPSILON) ** self.exponent
                new[held[index]] = max(new.get(held[index], 0.0), weight)
        self.weights |= new
        self.greatest = max([self.greatest, *new.values()])


@functools.cache
def programs(shape, exponent):
    ring = base.make(*shape, exponent)
    return ring, jax.jit(ring.add), jax.jit(ring.sample, static_argnums=2), jax.jit(ring.update_priority)


def rows(num_envs: int, length: int, start: int) -> dict[str, jax.Array]:
    """Rows [E, T] that say which environment and which time they are of."""
    time = jnp.broadcast_to(jnp.arange(start, start + length), (num_envs, length))
    return {"env": jnp.broadcast_to(jnp.arange(num_envs)[:, None], (num_envs, length)), "time": time}


def empty(ring):
    return ring.init({"env": jnp.zeros((), jnp.int32), "time": jnp.zeros((), jnp.int32)})


def filled(shape, exponent, adds):
    """The ring and the dictionary after so many rollouts."""
    ring, add, _, _ = programs(shape, exponent)
    state, plain = empty(ring), Plain(*shape, exponent)
    for n in range(adds):
        state = add(state, rows(*shape[:2], n * shape[1]))
        plain.add()
    return state, plain


def weights_of(state, plain: Plain) -> np.ndarray:
    """Weights by index; whatever pads them is 0."""
    flat = np.asarray(state.weights.blocks).reshape(-1)
    size = plain.num_envs * plain.length
    assert not flat[size:].any()
    return flat[:size]


def assert_same(state, plain: Plain) -> None:
    """Exactly the whole sequences have a weight, the dictionary's."""
    expected = np.zeros(plain.num_envs * plain.length)
    for key, weight in plain.weights.items():
        expected[plain.index(key)] = weight
    np.testing.assert_allclose(weights_of(state, plain), expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights.sums, np.asarray(state.weights.blocks, float).sum(-1), rtol=1e-6)
    assert float(state.weights.greatest) == pytest.approx(plain.greatest, rel=1e-5)


def assert_sound(drawn, plain: Plain) -> None:
    """Whole sequences of one environment, those that their indices name, with their probabilities."""
    time, env = np.asarray(drawn.rows["time"]), np.asarray(drawn.rows["env"])
    assert time.shape[1] == plain.rollout_length + 1
    assert (np.diff(time, axis=1) == 1).all() and (env == env[:, :1]).all()
    keys = list(zip(env[:, 0].tolist(), time[:, 0].tolist(), strict=True))
    assert [plain.index(key) for key in keys] == np.asarray(drawn.indices).tolist()
    total = sum(plain.weights.values())
    expected = [plain.weights[key] / total for key in keys]
    np.testing.assert_allclose(drawn.probabilities, expected, rtol=1e-4)


PRIORITIES = st.floats(0, 1000, width=32) | st.sampled_from([0.0, math.nan, math.inf])
UPDATES = st.lists(st.tuples(st.integers(-1, 99), PRIORITIES), min_size=BATCH, max_size=BATCH)


@pytest.mark.parametrize("shape", SHAPES)
@given(st.lists(st.none() | UPDATES, min_size=3, max_size=16), st.integers(0, 2**31 - 1))
def test_it_equals_the_dictionary_after_any_rollouts_and_updates(shape, steps, seed):
    """Indices of any age, of the seam, twice at once, -1, and priorities that are no numbers among them."""
    _, add, sample, update = programs(shape, 0.7)
    state, plain = filled(shape, 0.7, 0)
    for step in steps:
        if step is None:
            state = add(state, rows(*shape[:2], plain.time))
            plain.add()
        else:
            indices = [-1 if i < 0 else i % (plain.num_envs * plain.length) for i, _ in step]
            priorities = [p for _, p in step]
            state = update(state, jnp.asarray(indices), jnp.asarray(priorities, jnp.float32))
            plain.update(indices, priorities)
        assert_same(state, plain)
        assert bool(programs(shape, 0.7)[0].ready(state)) == bool(plain.weights)
        if plain.weights:
            assert_sound(sample(state, jax.random.key(seed), 32), plain)


@pytest.mark.parametrize("exponent", [0.4, 1.0])
@pytest.mark.parametrize("batch_size", [7, 25_000])
def test_frequencies_follow_the_priorities(exponent, batch_size):
    """Chi-square over 68 sequences, in one large draw and in many small ones."""
    shape = SHAPES[3]
    _, _, sample, update = programs(shape, exponent)
    state, plain = filled(shape, exponent, 7)
    assert len(plain.weights) == 4 * (21 - 3)
    rng = np.random.default_rng(0)
    indices = [plain.index(key) for key in plain.weights]
    priorities = rng.exponential(size=len(indices)) * 10.0 ** rng.integers(-1, 2, len(indices))
    state = update(state, jnp.asarray(indices), jnp.asarray(priorities, jnp.float32))
    repeats = 28_000 // batch_size
    keys = jax.random.split(jax.random.key(1), repeats)
    drawn = np.asarray(jax.vmap(lambda key: sample(state, key, batch_size).indices)(keys)).reshape(-1)
    counts = np.bincount(drawn, minlength=100)[indices]
    assert counts.sum() == drawn.size
    expected = priorities**exponent / (priorities**exponent).sum() * drawn.size
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(indices) - 1
    assert 0 < chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_draws_of_one_batch_are_spread_over_the_whole_and_in_random_order():
    """One from each of B equal parts; so B equal blocks come up once each."""
    blocks = jnp.ones((8, 4))
    weights = Weights(blocks, blocks.sum(-1), jnp.ones(()))
    orders = set()
    for seed in range(20):
        indices, probabilities = weights.draw(jax.random.key(seed), 8)
        np.testing.assert_allclose(probabilities, 1 / 32, rtol=1e-6)
        assert sorted(np.asarray(indices) // 4) == list(range(8))
        orders.add(tuple(np.asarray(indices) // 4))
    assert len(orders) > 15


def test_new_sequences_have_the_greatest_priority_so_far():
    shape = (2, 4, 27)
    _, add, _, update = programs(shape, 1.0)
    state, plain = filled(shape, 1.0, 3)
    assert set(weights_of(state, plain)) == {0.0, 1.0}
    state = update(state, jnp.array([5, 6]), jnp.array([2.5, 0.25]))
    state = update(state, jnp.array([5, 7]), jnp.array([0.5, 0.25]))
    state = add(state, rows(2, 4, 12))
    weights = weights_of(state, plain).reshape(2, 13)
    # Rows 13 to 15 took the places of rows 0 to 2.
    np.testing.assert_allclose(weights[0], [0, 0, 0, 1, 1, 0.5, 0.25, 0.25, *[2.5] * 4, 0], atol=2e-6)


def test_an_update_of_priorities_changes_the_samples():
    shape = (2, 4, 27)
    _, _, sample, update = programs(shape, 1.0)
    state, plain = filled(shape, 1.0, 8)
    before = np.asarray(sample(state, jax.random.key(0), 700).indices)
    chosen = int(before[0])
    others = [plain.index(key) for key in plain.weights if plain.index(key) != chosen]
    raised = update(state, jnp.array([chosen]), jnp.array([1e6]))
    assert (before == chosen).mean() < 0.1
    assert (np.asarray(sample(raised, jax.random.key(0), 700).indices) == chosen).mean() > 0.99
    # Without any error it hardly ever comes up, but is not lost.
    lowered = update(state, jnp.array([chosen]), jnp.array([0.0]))
    assert chosen not in np.asarray(sample(lowered, jax.random.key(0), 700).indices)
    only = update(lowered, jnp.array(others), jnp.zeros(len(others)))
    assert len(np.unique(sample(only, jax.random.key(0), 700).indices)) == len(others) + 1


def test_huge_priorities_leave_every_sum_finite():
    shape = (4, 3, 100)
    _, _, sample, update = programs(shape, 1.0)
    state, plain = filled(shape, 1.0, 9)
    state = update(state, jnp.array([3, 53]), jnp.array([3e38, 3e38]))
    assert np.isfinite(state.weights.sums).all()
    drawn = sample(state, jax.random.key(0), 64)
    assert set(np.asarray(drawn.indices)) == {3, 53} and np.allclose(drawn.probabilities, 0.5)


@given(
    st.lists(st.just(0.0) | st.integers(-20, 66).map(lambda n: 2.0**n), min_size=8, max_size=8),
    st.floats(0, 1, width=32),
)
def test_a_weight_of_nothing_is_never_picked(weights, share):
    """Also at a share of exactly 1, with sums in which small weights drown."""
    picked = int(base._pick(jnp.asarray(weights, jnp.float32), jnp.float32(share)))
    assert 0 <= picked < 8
    assert weights[picked] > 0 or not any(weights)


def test_sums_do_not_drift():
    """Ten thousand corrections over 12 orders of magnitude, after which flashbax's sum tree has a negative sum."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(10.0 ** rng.uniform(-6, 6, (2500, 4)), jnp.float32)
    indices = jnp.asarray(rng.integers(0, 100, (2500, 4)))
    blocks = jnp.ones((10, 16)).at[:, 10:].set(0.0)

    def step(weights, inputs):
        return weights.correct(*inputs, jnp.ones(4, bool)), None

    weights, _ = jax.lax.scan(step, Weights(blocks, blocks.sum(-1), jnp.ones(())), (indices, values))
    last = weights.correct(jnp.arange(160), jnp.full(160, 1e-6), jnp.ones(160, bool))
    np.testing.assert_allclose(last.sums, 1e-5, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(last.blocks) > 0, np.asarray(blocks) > 0)


def test_importance_weights_against_hand_values_and_the_formula():
    probabilities = jnp.array([0.1, 0.2, 0.4])
    np.testing.assert_allclose(batching.importance_weights(probabilities, 1.0), np.array([12, 6, 3]) / 7, rtol=1e-6)
    roots = np.array([1, 0.5**0.5, 0.5])
    np.testing.assert_allclose(batching.importance_weights(probabilities, 0.5), roots / roots.mean(), rtol=1e-6)
    np.testing.assert_array_equal(batching.importance_weights(probabilities, 0.0), [1, 1, 1])
    tiny = batching.importance_weights(jnp.array([1e-30, 1.0, 1.0]), 1.0)
    np.testing.assert_allclose(tiny, [3, 0, 0], atol=1e-6)
    rng = np.random.default_rng(0)
    for beta in (0.3, 1.0):
        p = rng.dirichlet(np.ones(50), 2)[:, :8]
        raw = (50 * p) ** -beta
        expected = raw / raw.mean(1, keepdims=True)
        found = batching.importance_weights(jnp.asarray(p, jnp.float32), beta)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def trajectory(num_envs: int, length: int, start: int) -> Trajectory:
    """Rows whose observation is their time and whose action is their environment."""
    marks = rows(num_envs, length, start)
    zeros, no = jnp.zeros((num_envs, length)), jnp.zeros((num_envs, length), bool)
    return Trajectory(marks["time"], zeros, zeros + 1, no, no, no, no[..., None], marks["env"])


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_a_batch_has_the_positions_and_weights_of_its_sequences(beta):
    num_envs, length, minibatches, num_replayed = 4, 3, 3, 5
    ring = base.make(num_envs, length, 100, 0.6)
    shares = batching.BatchSpec(num_envs, minibatches, 7, num_replayed, beta)
    state = ring.init(jax.tree.map(lambda x: x[0, 0], trajectory(num_envs, length, 0)))

    def draw(state, rollout, order, key):
        return batching.assemble_batch(shares, rollout, order, batching.sample_replay(shares, ring, state, key))

    order = batching.fresh_order(shares, 1, jax.random.key(0))[0]
    for n in range(9):
        rollout = trajectory(num_envs, length + 1, n * length)
        state = ring.add(state, jax.tree.map(lambda x: x[:, :-1], rollout))
        batch = jax.tree.map(np.asarray, draw(state, rollout, order, jax.random.key(n)))
        indices, importance = batch.indices.reshape(3, 7), batch.importance.reshape(3, 7)
        assert (indices[:, :2] == -1).all() and (importance[:, :2] == 1).all()
        assert (batch.trajectory.observation.reshape(3, 7, -1)[:, :2, 0] == n * length).all()
        if n == 0:
            # Nothing whole is held: fresh ones stand in, and they are not in the ring.
            assert (indices == -1).all() and (importance == 1).all()
            continue
        expected_index = batch.trajectory.action[:, 0] * 25 + batch.trajectory.observation[:, 0] % 25
        np.testing.assert_array_equal(indices[:, 2:], expected_index.reshape(3, 7)[:, 2:])
        weights = np.asarray(state.weights.blocks, float).reshape(-1)
        raw = ((weights > 0).sum() * weights[indices[:, 2:]] / weights.sum()) ** -beta
        np.testing.assert_allclose(importance[:, 2:], raw / raw.mean(1, keepdims=True), rtol=1e-4)
        assert n < 3 or (importance.min() < 0.95 and importance.max() > 1.05)
        priorities = 0.1 + batch.trajectory.observation[:, 0] % 5
        state = ring.update_priority(state, jnp.asarray(batch.indices), jnp.asarray(priorities, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_replayed_sequences_count_as_much_as_fresh_ones_on_average(beta):
    """In each minibatch, however unequal the priorities are: by the greatest weight it was 0.5 here and less."""
    num_envs, length, minibatches = 8, 4, 4
    ring = base.make(num_envs, length, 800, 1.0)
    shares = batching.BatchSpec(num_envs, minibatches, 24, 16, beta)
    state = ring.init(jax.tree.map(lambda x: x[0, 0], trajectory(num_envs, length, 0)))
    for n in range(10):
        rollout = trajectory(num_envs, length + 1, n * length)
        state = ring.add(state, jax.tree.map(lambda x: x[:, :-1], rollout))
    indices = jnp.arange(ring.capacity)
    state = ring.update_priority(state, indices, jax.random.exponential(jax.random.key(1), indices.shape))
    order = batching.fresh_order(shares, 1, jax.random.key(0))[0]
    batch = batching.assemble_batch(
        shares, rollout, order, batching.sample_replay(shares, ring, state, jax.random.key(2))
    )
    importance = np.asarray(batch.importance).reshape(minibatches, 24)
    assert (importance[:, :8] == 1).all()
    np.testing.assert_allclose(importance[:, 8:].mean(1), 1, rtol=1e-5)
    # Weights undo what the priorities did: what is drawn often counts less.
    probabilities = np.asarray(batching.sample_replay(shares, ring, state, jax.random.key(2)).draw.probabilities)
    raw = probabilities.reshape(minibatches, 16) ** -beta
    np.testing.assert_allclose(importance[:, 8:], raw / raw.mean(1, keepdims=True), rtol=1e-4)
    assert (raw / raw.max(1, keepdims=True)).mean() < 0.5
