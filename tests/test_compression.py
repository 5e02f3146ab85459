"""Observations kept compressed: what is drawn is what was given, and as much is held as finds room."""

from __future__ import annotations

import functools
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from bircher.config.config import compose
from bircher.errors import ConfigError
from bircher.replay import base, storage
from bircher.replay.base import ReplayConfig
from bircher.replay.storage import BLOCK
from bircher.runs import build
from bircher.training import learner
from bircher.types import Trajectory
from builders import assert_trees_equal

ENVS, LENGTH, ROWS = 3, 4, 40
PICTURE = {"eye": jax.ShapeDtypeStruct((12, 12, 1), np.uint8), "sense": jax.ShapeDtypeStruct((5,), np.float32)}
BYTES = LENGTH * (12 * 12 + 5 * 4)
"""Of one environment's rollout."""
BLOCKS = 11
"""Of the same where it cannot be compressed."""
ROOM = 300
"""Bytes for an observation, enough for all where nothing can be."""


def rollout(number: int, noisy: bool) -> Trajectory:
    """Rows [E, T] whose reward says which they are; of noise, which no code is shorter than, or of a single gray."""
    rng = np.random.default_rng(number)
    shape = (ENVS, LENGTH)
    eye = rng.integers(0, 256, (*shape, 12, 12, 1)) if noisy else np.tile(number % 256, (*shape, 12, 12, 1))
    sense = rng.normal(size=(*shape, 5)) if noisy else np.full((*shape, 5), number)
    no, time = jnp.zeros(shape, bool), number * LENGTH + jnp.arange(LENGTH)
    return Trajectory(
        observation={"eye": jnp.asarray(eye, jnp.uint8), "sense": jnp.asarray(sense, jnp.float32)},
        reward=jnp.arange(ENVS)[:, None] * 10_000.0 + time, discount=jnp.ones(shape),
        first=no, last=no, terminal=no, legal_actions=jnp.ones((*shape, 2), bool),
        action=jnp.zeros(shape, jnp.int32),
    )  # fmt: skip


@functools.cache
def programs(room: int, exponent: float = 0.0, context: int = 0):
    """The compressing ring and the ring that it is made over, and what the two do with rows, compiled."""
    plain = base.make(ENVS, LENGTH, ENVS * ROWS, exponent, context, weighted=True)
    small = storage.compress_observations(plain, PICTURE, ENVS, LENGTH, context, room)
    return [(r, jax.jit(r.add, donate_argnums=0), jax.jit(r.sample, static_argnums=2)) for r in (plain, small)]


def empty(ring):
    return jax.jit(ring.init)(jax.tree.map(lambda x: x[0, 0], rollout(0, True)))


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_with_room_for_all_it_samples_like_the_uncompressed_replay(exponent):
    """Bit for bit, before and after the ring is full, by weight and uniformly, with priorities that were changed."""
    (plain, plain_add, plain_sample), (small, add, sample) = programs(ROOM, exponent)
    states = empty(plain), empty(small)
    update = jax.jit(plain.update_priority), jax.jit(small.update_priority)
    assert not small.ready(states[1])
    for number in range(2 * ROWS // LENGTH):
        rows = rollout(number, noisy=number % 3 > 0)
        states = plain_add(states[0], rows), add(states[1], rows)
        draws = plain_sample(states[0], jax.random.key(number), 32), sample(states[1], jax.random.key(number), 32)
        assert small.ready(states[1]) == plain.ready(states[0]) and small.age(states[1]) == plain.age(states[0])
        if number:
            assert_trees_equal(*draws)
            assert (draws[0].indices is not None) == (exponent > 0) == small.prioritized
        if exponent:
            marks = draws[0].indices, jnp.arange(32.0)
            states = update[0](states[0], *marks), update[1](states[1], *marks)
    assert int(states[1].num_intact) == ROWS == small.capacity // ENVS


def data_of(rows: Trajectory, env: int) -> bytes:
    """What of an environment's rollout is compressed."""
    return b"".join(np.asarray(leaf)[env].tobytes() for leaf in jax.tree.leaves(rows.observation))


class Arena:
    """The same arena as a plain list of the times whose codes are in it."""

    def __init__(self, blocks: int):
        self.blocks, self.position = blocks, 0
        self.inside: list[tuple[int, int, int]] = []

    def add(self, number: int, rows: Trajectory) -> None:
        begin = 0 if self.position + ENVS * BLOCKS > self.blocks else self.position
        end = begin
        for env in range(ENVS):
            data = data_of(rows, env)
            end += -(-min(len(data), len(zlib.compress(data, storage.LEVEL))) // BLOCK)
        lost = [time for time, first, behind in self.inside if behind > begin and first < end]
        # What lies before the last that was lost may still be in the arena, but no sequence reaches across the hole.
        intact = [span for span in self.inside if span[0] > max(lost, default=-1)]
        intact += [(number * LENGTH + time, begin, end) for time in range(LENGTH)]
        self.inside, self.position = intact[-ROWS:], end

    def times(self) -> list[int]:
        return [time for time, _, _ in self.inside]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["noise", "gray", "both", "first gray"])
@pytest.mark.parametrize(("room", "context", "exponent"), [(90, 0, 0.0), (90, 3, 0.6), (71, 5, 0.0), (53, 0, 0.6)])
def test_as_many_of_the_newest_rows_are_drawn_as_find_room(pattern, room, context, exponent):
    """Against a plain list, for codes of all lengths and the least room; what is drawn is always what was given."""
    small, add, sample = programs(room, exponent, context)[1]
    update, length = jax.jit(small.update_priority), context + LENGTH + 1
    state, arena, given = empty(small), Arena(-(-ENVS * ROWS * room // BLOCK)), []
    seen, rng = set(), np.random.default_rng(0)
    for number in range(4 * ROWS // LENGTH):
        noisy = {"noise": True, "gray": False, "both": number % 5 < 2, "first gray": number > 15}[pattern]
        rows = rollout(number, noisy)
        state = add(state, rows)
        arena.add(number, rows)
        given.append(rows.observation)
        held = arena.times()
        assert held == list(range(held[0], (number + 1) * LENGTH)) and int(state.num_intact) == len(held)
        seen.add(len(held))
        assert bool(small.ready(state)) == ((number + 1) * LENGTH >= length)
        if not small.ready(state):
            continue
        assert len(held) >= length, "a whole sequence, whatever came"
        draw = sample(state, jax.random.key(number), 400)
        drawn = jax.tree.map(np.asarray, draw.rows)
        env, time = drawn.reward.astype(int) // 10_000, drawn.reward.astype(int) % 10_000
        assert (env == env[:, :1]).all() and (np.diff(time, axis=1) == 1).all()
        assert set(np.unique(time[:, 0])) == set(range(held[0], held[-1] - length + 2))
        everything = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *given)
        assert_trees_equal(drawn.observation, jax.tree.map(lambda x, e=env, t=time: x[e, t], everything))
        if exponent:
            state = update(state, draw.indices, jnp.asarray(rng.uniform(0.5, 2.0, 400), jnp.float32))
    assert len(seen) > 3 or pattern == "noise"
    assert max(seen) == ROWS or pattern not in ("gray", "first gray")
    assert max(seen) < ROWS or pattern != "noise"


def test_codes_are_zlibs_unless_they_are_no_shorter():
    small, add, _ = programs(ROOM)[1]
    for noisy in (True, False):
        rows = rollout(7, noisy)
        state = add(empty(small), rows)
        code = jax.tree.map(np.asarray, state.replay_state.replay_state.experience.observation)
        assert len(set(code.offset[1, :LENGTH])) == 1 and code.row[1, :LENGTH].tolist() == list(range(LENGTH))
        begin, size = int(code.offset[1, 2]) * BLOCK, int(code.size[1, 2])
        kept, data = np.asarray(state.arena).reshape(-1)[begin : begin + size].tobytes(), data_of(rows, 1)
        assert (kept if noisy else zlib.decompress(kept)) == data and (size == BYTES) == noisy
        assert size in (BYTES, len(zlib.compress(data, storage.LEVEL)))


def test_a_code_as_long_as_its_observation_is_not_mistaken_for_it(monkeypatch):
    small, add, sample = programs(ROOM)[1]
    # Only here: JAX compresses its saved programs by zlib as well.
    as_long = SimpleNamespace(
        compress=lambda data, level: bytes(len(data)), decompress=zlib.decompress, error=zlib.error
    )
    monkeypatch.setattr(storage, "zlib", as_long)
    state, given = empty(small), [rollout(number, noisy=True) for number in range(2)]
    for rows in given:
        state = add(state, rows)
    drawn = jax.tree.map(np.asarray, sample(state, jax.random.key(0), 4).rows)
    env, time = drawn.reward.astype(int) // 10_000, drawn.reward.astype(int) % 10_000
    everything = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *(rows.observation for rows in given))
    assert_trees_equal(drawn.observation, jax.tree.map(lambda x: x[env, time], everything))


@pytest.mark.parametrize(
    ("room", "sentence"),
    [
        (10, "compressed_bytes=10 times 120 stored steps is less than 3 rollouts .*compressed_bytes=53 or more"),
        (2**31 * BLOCK // (ENVS * ROWS), "more than 128 GiB: lower one of them"),
    ],
)
def test_too_little_room_or_too_much_is_refused(room, sentence):
    with pytest.raises(ConfigError, match=sentence):
        programs(room)


def test_only_the_hosts_replay_compresses():
    with pytest.raises(ValidationError, match="set replay.device=host"):
        ReplayConfig.model_validate({"compressed_bytes": 100})


def test_a_learner_stores_stacked_frames_once_and_compressed():
    settings = {"env.stack": 4, "env.num_envs": 4, "loop.rollout_length": 8, "optimizer.updates_per_step": 1 / 16}
    room = {"replay": {"device": "host", "capacity": 400, "compressed_bytes": 250}}
    config = compose("toy/catch", {**settings, **room})
    env = build.make_env(config, None, 4, 0, "train")
    parts = build.make_parts(config, env.spec)
    held = parts.template.replay.replay_state
    assert isinstance(held, storage.Compressed)
    assert held.arena.shape == (-(-400 * 250 // BLOCK), BLOCK)
    assert held.replay_state.replay_state.experience.observation.size.shape == (4, 100)
    assert parts.template.replay.next_batches.samples.draw.rows.observation.shape[-1] == 4
    sentence = build.replay_sentence(config, parts, jax.devices()[0])
    assert sentence.endswith("in the host's memory, with 250 bytes for each observation, compressed")


@pytest.mark.slow
def test_stacks_are_joined_from_compressed_frames():
    """The two wrappers, one in the other, against frames kept as they are."""
    spec = jax.ShapeDtypeStruct((12, 12, 3), np.uint8)
    plain = ReplayConfig.model_validate({"capacity": ENVS * ROWS, "device": "host", "priority_exponent": 0.6})
    drawn = []
    for config in (plain, plain.model_copy(update={"compressed_bytes": 200})):
        ring, state = learner.make_replay(config, spec, ENVS, LENGTH, 3), None
        add, sample = jax.jit(ring.add), jax.jit(ring.sample, static_argnums=2)
        for number in range(15):
            rows = rollout(number, noisy=True)
            eye = np.random.default_rng(number).integers(0, 256, (ENVS, LENGTH, 12, 12, 3))
            first = rows.first.at[:, number % LENGTH].set(True)
            rows = rows._replace(observation=jnp.asarray(eye, jnp.uint8), first=first)
            state = ring.init(jax.tree.map(lambda x: x[0, 0], rows)) if state is None else state
            state = add(state, rows)
        drawn.append(sample(state, jax.random.key(0), 64).rows)
    assert drawn[1].observation.shape == (64, LENGTH + 1, 12, 12, 3) and drawn[1].observation.any()
    assert_trees_equal(*drawn)
