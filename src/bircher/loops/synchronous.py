"""Rollout, then learn: two programs, or one scan over both where the environment is pure."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bircher import actor, learner
from bircher.actor import ActorState
from bircher.agents.base import Agent
from bircher.envs.base import Env
from bircher.learner import Learner, TrainState
from bircher.types import Tally


class Progress(eqx.Module):
    """Sums over the iterations since they were last read; on the device, so that nothing waits for Python."""

    iterations: Int[Array, ""]
    tally: Tally
    metrics: dict[str, Float[Array, ""]]
    failed_at: Int[Array, ""]
    """Environment steps of the run when an environment first failed; -1 while none did."""


class Programs(NamedTuple):
    """`advance` runs a number of iterations and returns without waiting for them."""

    advance: Callable[[TrainState, ActorState, Progress, int], tuple[TrainState, ActorState, Progress]]
    """(train, actor, progress, iterations); its arguments' buffers are donated"""
    fresh_progress: Callable[[TrainState, ActorState], Progress]
    """zeros of the right shapes; traces, does not compile"""
    compile: Callable[[TrainState, ActorState, Progress], None]
    """compiles what `advance` will run for arguments of these shapes, several programs at once where there are any;
    optional: without it the first `advance` compiles"""


def _add(progress: Progress, tally: Tally, metrics: dict[str, Array], env_steps: Array) -> Progress:
    total = jax.tree.map(jnp.add, progress.tally, tally)
    newly = (progress.tally.failed < 0) & (tally.failed >= 0)
    total = total._replace(failed=jnp.where(progress.tally.failed >= 0, progress.tally.failed, tally.failed))
    return Progress(
        progress.iterations + 1,
        total,
        jax.tree.map(jnp.add, progress.metrics, metrics),
        jnp.where(newly, env_steps, progress.failed_at),
    )


def make(agent: Agent, env: Env, learn: Learner, rollout_length: int, total_steps: int) -> Programs:
    """Programs for one agent, environment and learner."""

    def collect(policy, actor_state: ActorState, counters):
        progress = counters.env_steps / total_steps
        return actor.rollout(agent, env, policy, actor_state, rollout_length, progress)

    # A program of its own within the others, so that it is traced only once.
    learn_once = jax.jit(learn.learn)

    def learn_from(train: TrainState, progress: Progress, rollout, tally: Tally):
        train, metrics = learn_once(train, rollout, tally)
        return train, _add(progress, tally, metrics, train.counters.env_steps)

    def fresh_progress(train: TrainState, actor_state: ActorState) -> Progress:
        _, rollout, tally = jax.eval_shape(collect, learner.acting_policy(agent, train), actor_state, train.counters)
        _, metrics = jax.eval_shape(learn_once, train, rollout, tally)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (tally, metrics))
        # Two arrays, for both will be donated.
        tally = zeros[0]._replace(failed=jnp.full((), -1, jnp.int32))
        return Progress(jnp.zeros((), jnp.int32), tally, zeros[1], jnp.full((), -1, jnp.int32))

    advance, compile = (_joined if env.pure else _split)(agent, collect, learn_from)
    return Programs(advance, fresh_progress, compile)


def _joined(agent: Agent, collect: Callable, learn_from: Callable) -> tuple[Callable, Callable]:
    """Both as one program with a loop over many iterations: `advance` and `compile`."""

    def iterate(train: TrainState, actor_state: ActorState, progress: Progress):
        policy = learner.acting_policy(agent, train)
        actor_state, rollout, tally = collect(policy, actor_state, train.counters)
        train, progress = learn_from(train, progress, rollout, tally)
        return train, actor_state, progress

    def chunk(train, actor_state, progress, iterations):
        return jax.lax.fori_loop(0, iterations, lambda _, carry: iterate(*carry), (train, actor_state, progress))

    program: Any = jax.jit(chunk, donate_argnums=(0, 1, 2))

    def advance(train, actor_state, progress, iterations):
        return program(train, actor_state, progress, jnp.asarray(iterations, jnp.int32))

    def compile(train, actor_state, progress):
        nonlocal program
        program = program.lower(train, actor_state, progress, jax.ShapeDtypeStruct((), jnp.int32)).compile()

    return advance, compile


def _split(agent: Agent, collect: Callable, learn_from: Callable) -> tuple[Callable, Callable]:
    """A program each, for environments that are no arrays: `advance` and `compile`."""
    collect_program: Any = jax.jit(collect, donate_argnums=1)
    learn_program: Any = jax.jit(learn_from, donate_argnums=(0, 1))

    def advance(train, actor_state, progress, iterations):
        for _ in range(iterations):
            policy = learner.acting_policy(agent, train)
            actor_state, rollout, tally = collect_program(policy, actor_state, train.counters)
            train, progress = learn_program(train, progress, rollout, tally)
        return train, actor_state, progress

    def compile(train, actor_state, progress):
        nonlocal collect_program, learn_program
        collecting = collect_program.lower(learner.acting_policy(agent, train), actor_state, train.counters)
        _, rollout, tally = collecting.out_info
        # The one is compiled while the other is traced.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(collecting.compile)
            learn_program = learn_program.lower(train, progress, rollout, tally).compile()
            collect_program = compiled.result()

    return advance, compile
