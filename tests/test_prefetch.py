"""A replay in the host's memory: what is drawn ahead, for whom, and that two programs on two devices are as one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.config import config
from bircher.replay.base import ReplayConfig
from bircher.runs import build
from bircher.training import learner, loops
from bircher.training.optimizer import OptimizerConfig
from bircher.training.rollout import collect_rollout, start_actors
from builders import SMALL, assert_trees_equal, muesli_agent, quick_jit
from test_loop import ENVS, LENGTH, Handed

AGENT = muesli_agent(SMALL.model_copy(update={"unroll_steps": 1}))
GROUPS = 2


@functools.cache
def made(device: str = "host", fraction: float = 0.5, exponent: float = 0.0):
    """A learner for the cliff whose every iteration computes targets twice."""
    settings = OptimizerConfig(batch_size=4, updates_per_step=GROUPS / 20, learning_rate=1e-2)
    replay = ReplayConfig(capacity=200, fraction=fraction, priority_exponent=exponent, device=device)
    return learner.Learner(AGENT, Handed(True).spec, learner.LearnerConfig(settings, replay, ENVS, LENGTH, 400, 0.1))


@functools.cache
def rollouts(count: int = 5):
    """Rollouts of one policy; rewards tell where each row stands: 1000 e + its number."""
    env = Handed(True)
    start = start_actors(AGENT, env, jax.random.key(1))
    policy = AGENT.init(jax.random.key(2), env.spec)
    play = quick_jit(lambda state: collect_rollout(AGENT, env, policy, state, LENGTH, 0.0))
    found, state = [], start
    for number in range(count):
        state, rows, tally = play(state)
        told = jnp.arange(ENVS)[:, None] * 1000.0 + number * LENGTH + jnp.arange(LENGTH + 1)
        found.append((rows._replace(reward=told), tally))
    return start, found


def learning(count: int = 5, **settings):
    """The states before and after each rollout."""
    learn = made(**settings)
    start, found = rollouts()
    state = quick_jit(learn.init)(jax.random.key(0), start.timestep)
    states, program = [state], quick_jit(learn.update)
    for rows, tally in found[:count]:
        state, _ = program(state, rows, tally)
        states.append(state)
    return states


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_batches_sampled_in_advance_are_complete_sequences(exponent):
    """Draws for rollout i are sequences of rollouts 0 ... i - 1, as they were; before there are any they say so."""
    states, (_, found) = learning(exponent=exponent), rollouts()
    given = jax.tree.map(lambda *xs: np.concatenate([x[:, :-1] for x in xs], axis=1), *(rows for rows, _ in found))
    for number, state in enumerate(states):
        drawn = state.replay.next_batches.samples
        rows = jax.tree.map(np.asarray, drawn.draw.rows)
        assert rows.reward.shape == (GROUPS, 2, LENGTH + 1)
        assert np.asarray(drawn.ready).tolist() == [number >= 2] * GROUPS
        if number < 2:
            continue
        env, time = rows.reward.astype(int) // 1000, rows.reward.astype(int) % 1000
        assert time.max() < number * LENGTH and (np.diff(time, axis=-1) == 1).all()
        np.testing.assert_array_equal(rows.observation, np.asarray(given.observation)[env, time])
        if exponent:
            np.testing.assert_array_equal(drawn.draw.indices, env[..., 0] * 50 + time[..., 0])
    draws = [np.asarray(state.replay.next_batches.samples.draw.rows.reward[..., 0]) for state in states[2:]]
    assert all((a != b).any() for a, b in zip(draws, draws[1:], strict=False)), "each turn draws anew"
    assert any((draw[0] != draw[1]).any() for draw in draws), "and each group for itself"


@pytest.mark.slow
def test_the_replayed_share_is_learned_from_the_samples(monkeypatch):
    """The batches are the rollout and the draws of the state before, and nothing else."""
    seen = []
    real = AGENT.targets

    def targets(policy, batch, key, minibatches):
        jax.debug.callback(lambda reward: seen.append(np.asarray(reward)), batch.trajectory.reward)
        return real(policy, batch, key)

    settings = OptimizerConfig(batch_size=4, updates_per_step=GROUPS / 20, learning_rate=1e-2)
    replay = ReplayConfig(capacity=200, fraction=0.5, device="host")
    agent = AGENT._replace(targets=targets)
    learn = learner.Learner(agent, Handed(True).spec, learner.LearnerConfig(settings, replay, ENVS, LENGTH, 400, 0.1))
    start, found = rollouts()
    state = quick_jit(learn.init)(jax.random.key(0), start.timestep)
    program = quick_jit(learn.update)
    for number, (rows, tally) in enumerate(found):
        drawn = np.asarray(state.replay.next_batches.samples.draw.rows.reward)
        seen.clear()
        state, _ = jax.block_until_ready(program(state, rows, tally))
        jax.effects_barrier()
        assert len(seen) == GROUPS
        for group, batch in enumerate(seen):
            fresh, replayed = batch[:2], batch[2:]
            assert all(any((row == one).all() for one in np.asarray(rows.reward)) for row in fresh)
            if number >= 2:
                np.testing.assert_array_equal(replayed, drawn[group])
            else:
                np.testing.assert_array_equal(replayed, np.asarray(rows.reward)[:2])


def test_without_replayed_sequences_the_place_makes_no_difference():
    """Bit for bit; what is held is the same in both."""
    here, there = (learning(device=device, fraction=0.0)[-1] for device in ("device", "host"))
    assert there.replay.next_batches.samples is None
    assert_trees_equal(here.replay, there.replay.replay_state)
    assert_trees_equal(learner.without_replay(here), learner.without_replay(there))


def test_priorities_of_samples_return_before_the_next_rollout_is_stored():
    """Only weights of sequences that were drawn change, besides those that the rollout makes and unmakes."""
    states = learning(exponent=0.6)
    before, after = (np.asarray(state.replay.replay_state.weights.blocks).reshape(-1)[:200] for state in states[3:5])
    drawn = np.unique(np.asarray(states[3].replay.next_batches.samples.draw.indices))
    changed = set(np.flatnonzero(before != after).tolist())
    made_whole = {e * 50 + t for e in range(ENVS) for t in range(3 * LENGTH - LENGTH, 4 * LENGTH - LENGTH)}
    assert set(drawn.tolist()) <= changed <= set(drawn.tolist()) | made_whole
    assert (after[drawn] > 0).all()
    assert states[4].replay.replay_state.weights.greatest >= after[drawn].max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["synchronous", "pipeline"])
@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_two_programs_side_by_side_are_the_plain_learner(kind, exponent, monkeypatch):
    """A loop, cut into calls as it may be, against one call of `learn` after the other."""
    env, learn = Handed(False), made(exponent=exponent)
    rollout = jax.jit(lambda policy, state, share: collect_rollout(AGENT, env, policy, state, LENGTH, share))
    update = jax.jit(learn.update)
    where = start_actors(AGENT, env, jax.random.key(1))
    first = jax.jit(learn.init)(jax.random.key(0), where.timestep)
    plain, lag = first, kind == "pipeline"
    acting = [plain] * (2 if lag else 1)
    for number in range(5):
        seen = acting[number]
        where, rows, tally = rollout(learner.acting_policy(AGENT, seen), where, seen.counters.env_steps / 400)
        plain, _ = update(plain, rows, tally)
        acting.append(plain)
    programs = loops.LOOPS[kind](AGENT, env, learn, LENGTH, 400)
    train = jax.tree.map(jnp.copy, first)
    state = programs.begin(train, start_actors(AGENT, env, jax.random.key(1)))
    progress = programs.fresh_progress(train, state)
    programs.compile(train, state, progress)
    for iterations in (1, 3, 1):
        train, state, progress = programs.advance(train, state, progress, iterations)
    assert int(progress.iterations) == 5
    assert_trees_equal(plain, train)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["synchronous", pytest.param("pipeline", marks=pytest.mark.long)])
def test_a_failed_rollout_is_neither_learned_from_nor_kept(kind):
    env, learn = Handed(False), made()
    programs = loops.LOOPS[kind](AGENT, env, learn, LENGTH, 400)

    def after(iterations, fails_at):
        env.fails_at = fails_at
        start = start_actors(AGENT, env, jax.random.key(1))
        train = jax.jit(learn.init)(jax.random.key(0), start.timestep)
        state = programs.begin(train, start)
        return programs.advance(train, state, programs.fresh_progress(train, state), iterations)

    healthy = jax.tree.map(np.asarray, after(2, -1)[0].params)
    train, _, progress = after(4, 13)
    assert int(progress.tally.failed) == 2 and int(train.non_finite) == 0
    assert_trees_equal(healthy, jax.tree.map(np.asarray, train.params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(train.replay.replay_state.experience))


def test_a_pure_environment_is_left_in_two_programs_too():
    env, learn = Handed(True), made()
    programs = loops.synchronous(AGENT, env, learn, LENGTH, 400)
    assert programs.monitor is not None
    assert loops.synchronous(AGENT, env, made(device="device"), LENGTH, 400).monitor is None


def test_stacked_frames_are_sampled_in_advance_and_stored_once():
    small = {"model.torso_widths": [4], "model.latent_width": 4, "model.dynamics_widths": [4], "model.head_widths": []}
    settings = {"env.stack": 3, "env.num_envs": 4, "replay": {"device": "host", "capacity": 400}, **small}
    composed = config.compose("toy/catch", {**settings, "loop.rollout_length": 8, "optimizer.updates_per_step": 1 / 16})
    env = build.make_env(composed, None, 4, 0, "train")
    parts = build.make_parts(composed, env.spec)
    ring, ahead = parts.template.replay.replay_state, parts.template.replay.next_batches
    assert ahead.samples is not None
    assert ahead.samples.draw.rows.observation.shape[-1] == 3 == 3 * ring.experience.observation.shape[-1]
    sentence = build.replay_sentence(composed, parts, jax.devices()[0])
    assert sentence.startswith("the replay of 400 steps takes ") and sentence.endswith(" in the host's memory")


TWO_DEVICES = """
import sys
import jax, numpy as np
assert len(jax.devices()) == 2
jax.config.update("jax_default_device", jax.devices()[1])
from bircher.config import config
from bircher.runs import launch
from test_resume import run_to, state_of
from tiny import SETTINGS

def where(tree):
    return {str(device) for leaf in jax.tree.leaves(tree) for device in leaf.devices()}

# An arena of 160 blocks: in 50 rollouts of 4 codes some are forgotten.
replay = {"replay.device": "host", "replay.capacity": 1024, "replay.compressed_bytes": 10}
composed = config.compose("toy/catch", {**SETTINGS, "steps": 800, "seed": 1, **replay})
training = launch.start(composed, out=sys.argv[1] + "/whole")
whole = training.run()
assert where(training._train.replay) == {"cpu:0"}, where(training._train.replay)
assert where(training._train.params) == {"cpu:1"}, where(training._train.params)
half = run_to(launch.start(composed, out=sys.argv[1] + "/half"), 300)
assert half.stopped
again = launch.resume(half.path)
assert where(again._resume_point.train.replay) == {"cpu:0"}
found, expected = state_of(again.run().path), state_of(whole.path)
for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)
assert "['replay'].next_batches.samples.ready" in expected
assert 5 <= expected["['replay'].replay_state.num_intact"] < 200, expected["['replay'].replay_state.num_intact"]
sizes = expected["['replay'].replay_state.replay_state.replay_state.experience.observation.size"]
assert 0 < sizes.max() < 4 * 200, "codes shorter than what they stand for"
"""


@pytest.mark.long
def test_replay_and_networks_on_two_devices_and_a_resume_there(tmp_path: Path):
    """Arrays of the one never meet those of the other in a program; a run goes on bit for bit, compressed too."""
    flags = "--xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
