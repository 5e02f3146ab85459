"""A run's programs without a run around them: what several benchmarks time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bircher import actor, config
from bircher.envs.base import Env
from bircher.loops.base import Programs
from bircher.run import assembly
from bircher.run.assembly import Parts


class Bare(NamedTuple):
    """Environments, agent and learner, their programs, and the states to begin with; nothing is compiled yet."""

    env: Env
    parts: Parts
    programs: Programs
    states: tuple[Any, Any, Any]
    """train, actor, progress: what `programs.advance` takes, and gives up"""


def start(settings: config.Config) -> Bare:
    """As a run of these settings would begin."""
    env = assembly.make_env(settings.env, None, settings.env.num_envs, settings.seed, "train")
    parts = assembly.make_parts(settings, env.spec)
    programs = assembly.make_loop(settings, env, parts)
    actor_key, train_key = jax.random.split(jax.random.key(settings.seed))
    state = jax.tree.map(jnp.copy, actor.start(parts.agent, env, actor_key))
    train = parts.init(train_key, state.timestep)
    state = programs.begin(train, state)
    progress = jax.tree.map(jnp.copy, programs.fresh_progress(train, state))
    return Bare(env, parts, programs, (train, state, progress))
