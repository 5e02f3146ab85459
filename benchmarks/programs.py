"""The programs of a run without the run itself, which several benchmarks time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bircher.config import config
from bircher.envs.base import Env
from bircher.runs import build
from bircher.runs.build import Parts
from bircher.training.loops import Programs
from bircher.training.rollout import start_actors


class Times:
    """Seconds of programs that take turns, by name, each until what it gives is there."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, program: Callable, *arguments: Any) -> Any:
        """What the program gives."""
        began = time.perf_counter()
        result = jax.block_until_ready(program(*arguments))
        self._seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def after_the_first(self) -> dict[str, list[float]]:
        """Of every turn but the first, which compiled."""
        return {name: values[1:] for name, values in self._seconds.items()}


class Bare(NamedTuple):
    """Environments, agent and learner, their programs, and the states to begin with; nothing is compiled yet."""

    env: Env
    parts: Parts
    programs: Programs
    states: tuple[Any, Any, Any]
    """train, actor, progress: what `programs.advance` takes, and gives up"""


def start(settings: config.Config) -> Bare:
    """As a run of these settings would begin."""
    env = build.make_env(settings, None, settings.env.num_envs, settings.seed, "train")
    parts = build.make_parts(settings, env.spec)
    programs = build.make_loop(settings, env, parts)
    actor_key, train_key = jax.random.split(jax.random.key(settings.seed))
    state = jax.tree.map(jnp.copy, start_actors(parts.agent, env, actor_key))
    train = parts.init(train_key, state.timestep)
    state = programs.begin(train, state)
    progress = jax.tree.map(jnp.copy, programs.fresh_progress(train, state))
    return Bare(env, parts, programs, (train, state, progress))
