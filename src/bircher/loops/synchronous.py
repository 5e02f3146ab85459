"""Rollout, then learn: two programs, or one scan over both where environment and replay are beside the networks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bircher import actor, learner
from bircher.actor import ActorState
from bircher.agents.base import Agent
from bircher.envs.base import Env
from bircher.learner import Learner, TrainState
from bircher.loops.base import Programs, Progress, Stopwatch, temporary_bytes, timed
from bircher.loops.learning import Learning, Together
from bircher.loops.learning import make as learning_of


def make(agent: Agent, env: Env, learn: Learner, rollout_length: int, total_steps: int) -> Programs:
    """Programs for one agent, environment and learner; the loop's state is the actor's."""

    def collect(policy, actor_state: ActorState, counters):
        progress = counters.env_steps / total_steps
        return actor.rollout(agent, env, policy, actor_state, rollout_length, progress)

    learning = learning_of(learn)

    def fresh_progress(train: TrainState, actor_state: ActorState) -> Progress:
        _, rollout, tally = jax.eval_shape(collect, learner.acting_policy(agent, train), actor_state, train.counters)
        return learning.zeros(train, rollout, tally)

    if env.pure and isinstance(learning, Together):
        advance, compile = _joined(agent, collect, learning)
        stopwatch = None
    else:
        stopwatch = Stopwatch()
        advance, compile = _split(agent, collect, learning, stopwatch)
    return Programs(lambda train, actor_state: actor_state, advance, fresh_progress, compile, stopwatch)


def _joined(agent: Agent, collect: Callable, learning: Together) -> tuple[Callable, Callable]:
    """Both as one program with a loop over many iterations: `advance` and `compile`."""

    def iterate(train: TrainState, actor_state: ActorState, progress: Progress):
        policy = learner.acting_policy(agent, train)
        actor_state, rollout, tally = collect(policy, actor_state, train.counters)
        train, progress, _ = learning.learn_from(train, progress, rollout, tally)
        return train, actor_state, progress

    def chunk(train, actor_state, progress, iterations):
        return jax.lax.fori_loop(0, iterations, lambda _, carry: iterate(*carry), (train, actor_state, progress))

    program: Any = jax.jit(chunk, donate_argnums=(0, 1, 2))

    def advance(train, actor_state, progress, iterations):
        return program(train, actor_state, progress, jnp.asarray(iterations, jnp.int32))

    def compile(train, actor_state, progress):
        nonlocal program
        program = program.lower(train, actor_state, progress, jax.ShapeDtypeStruct((), jnp.int32)).compile()
        return temporary_bytes(program)

    return advance, compile


def _split(agent: Agent, collect: Callable, learning: Learning, stopwatch: Stopwatch) -> tuple[Callable, Callable]:
    """A program each, for environments that are no arrays, or a replay that is elsewhere: `advance` and `compile`."""
    collect_program: Any = jax.jit(collect, donate_argnums=1)

    def advance(train, actor_state, progress, iterations):
        for _ in range(iterations):
            policy = learner.acting_policy(agent, train)
            acting = partial(collect_program, policy, actor_state, train.counters)
            if not stopwatch.due():
                actor_state, rollout, tally = acting()
                train, progress, _ = learning(train, progress, rollout, tally)
                continue
            train = jax.block_until_ready(learning.settled(train))
            (actor_state, rollout, tally), acted = timed(acting)
            (train, progress, _), learnt = timed(partial(learning, train, progress, rollout, tally))
            stopwatch.record(acted, learnt)
        return learning.settled(train), actor_state, progress

    def compile(train, actor_state, progress):
        nonlocal collect_program
        collecting = collect_program.lower(learner.acting_policy(agent, train), actor_state, train.counters)
        _, rollout, tally = collecting.out_info
        # The one is compiled while the other is traced.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(collecting.compile)
            taken = learning.compile(train, progress, rollout, tally)
            collect_program = compiled.result()
        return taken + temporary_bytes(collect_program)

    return advance, compile
