"""Rollouts of environments as NumPy rows, for tests."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs.base import random_actions
from bircher.types import TimeStep


def rollout(env, steps: int, actions=None, seed: int = 0) -> TimeStep:
    """Return ``steps`` + 1 rows [T + 1, B] from one compiled scan over actions [T, B], by default random ones."""
    given = jnp.zeros((steps, env.num_envs), jnp.int32) if actions is None else jnp.asarray(actions, jnp.int32)

    def one(carry, inputs):
        state, timestep = carry
        key, action = inputs
        if actions is None:
            action = random_actions(env.spec, key, timestep)
        state, timestep = env.step(state, action)
        return (state, timestep), timestep

    state, first = env.reset()
    keys = jax.random.split(jax.random.key(seed), steps)
    _, rest = jax.jit(lambda carry: jax.lax.scan(one, carry, (keys, given)))((state, first))
    return jax.tree.map(lambda a, b: np.concatenate([np.asarray(a)[None], np.asarray(b)]), first, rest)


def play(env, policy: Callable[[np.ndarray], np.ndarray], steps: int) -> TimeStep:
    """Return ``steps`` + 1 rows of environments that act by a function of the observation."""
    state, timestep = env.reset()
    step, rows = jax.jit(env.step), [timestep]
    for _ in range(steps):
        state, timestep = step(state, jnp.asarray(policy(np.asarray(timestep.observation)), jnp.int32))
        rows.append(timestep)
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)


def assert_same_rows(one: TimeStep, other: TimeStep) -> None:
    """Assert that every field is equal and has the same type."""
    for name in TimeStep._fields:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is None:
            continue
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
