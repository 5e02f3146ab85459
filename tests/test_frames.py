"""Frames kept once: what is drawn is what was stacked, never across an episode's start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.config.config import compose
from bircher.replay import base, storage
from bircher.runs import build
from bircher.training.rollout import collect_rollout, start_actors
from builders import quick_jit

LENGTH, ENVS, STACK = 6, 3, 3


def rollouts(count, exponent=0.0, capacity=90):
    """A ring that was given the rollouts of stacked images, the learner's way; and all that it was given."""
    small = {"model.torso_widths": [4], "model.latent_width": 4, "model.dynamics_widths": [4], "model.head_widths": []}
    config = compose("toy/catch", {"env.stack": STACK, "env.num_envs": ENVS, **small})
    env = build.make_env(config, None, ENVS, 0, "train")
    agent = build.make_agent(config, env.spec)
    policy = agent.init(jax.random.key(0), env.spec)
    state = start_actors(agent, env, jax.random.key(1))
    play = quick_jit(lambda state: collect_rollout(agent, env, policy, state, LENGTH, 0.0)[:2])
    ring = storage.store_frames_once(base.make(ENVS, LENGTH, capacity, exponent, STACK - 1), STACK)
    held, given = None, []
    for _ in range(count):
        state, rows = play(state)
        rows = jax.tree.map(lambda x: x[:, :-1], rows)
        rows = rows._replace(reward=jnp.arange(ENVS)[:, None] * 1000.0 + len(given) * LENGTH + jnp.arange(LENGTH))
        held = ring.init(jax.tree.map(lambda x: x[0, 0], rows)) if held is None else held
        held = quick_jit(ring.add)(held, rows)
        given.append(rows)
    return ring, held, jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *given)


def ring_rows(held):
    return held.replay_state if hasattr(held, "replay_state") else held


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.6])
@pytest.mark.parametrize("count", [2, 9])
def test_drawn_stacks_are_those_that_were_seen(exponent, count):
    """Every field of every row, found again by the place that its reward tells; and every whole sequence comes up."""
    ring, held, given = rollouts(count, exponent)
    assert bool(ring.ready(held))
    drawn = jax.tree.map(np.asarray, quick_jit(ring.sample, static_argnums=2)(held, jax.random.key(0), 500).rows)
    env, time = drawn.reward.astype(int) // 1000, drawn.reward.astype(int) % 1000
    assert (env == env[:, :1]).all() and (np.diff(time, axis=1) == 1).all()
    np.testing.assert_array_equal(drawn.observation, np.asarray(given.observation)[env, time])
    np.testing.assert_array_equal(drawn.first, np.asarray(given.first)[env, time])
    assert drawn.first[:, 1:].any()
    oldest = max(count * LENGTH - 90 // ENVS, 0) + STACK - 1
    assert set(np.unique(time[:, 0])) == set(range(oldest, count * LENGTH - LENGTH))


def test_each_frame_is_stored_once():
    _, held, given = rollouts(2)
    kept = ring_rows(held).experience.observation
    assert kept.shape[-1] * STACK == given.observation.shape[-1]
    assert kept.nbytes == 90 * 10 * 5 * 4


def test_no_stack_reaches_across_a_first_row():
    """Against a plain loop, for starts anywhere."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (4, 12, 2, 2, 1)).astype(np.uint8)
    first = rng.uniform(size=(4, 12)) < 0.3
    found = np.asarray(storage.stack_frames(jnp.asarray(pictures), jnp.asarray(first), 4))
    assert found.shape == (4, 9, 2, 2, 4) and found.dtype == np.uint8
    for b in range(4):
        for t in range(3, 12):
            for back in range(4):
                row = t
                for _ in range(back):
                    row = row if first[b, row] else row - 1
                np.testing.assert_array_equal(found[b, t - 3, ..., 3 - back], pictures[b, row, ..., 0])


def test_a_learners_replay_keeps_single_frames():
    config = compose("toy/catch", {"env.stack": 4, "env.num_envs": 4, "replay.capacity": 400})
    parts = build.make_parts(config, environments.make("toy/catch", 1, 0, stack=4).spec)
    assert parts.template.replay.experience.observation.shape == (4, 100, 10, 5, 1)
