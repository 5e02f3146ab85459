"""A rollout is made while the one before it is learnt from: two programs at once, on two cores or more.

    iteration i:    collect r_{i+1} by the policy that learnt r_1 ... r_{i-1}   |   learn from r_i

Which policy makes which rollout is fixed, however the iterations are cut into calls and however long each part takes:
a run can be had again, and resumed bit for bit, as with the synchronous loop.  The price is that the policy that acts
is one rollout older.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bircher import actor, learner
from bircher.actor import ActorState
from bircher.agents.base import Agent
from bircher.envs.base import Env
from bircher.learner import Learner, TrainState, networks
from bircher.loops.base import Programs, Progress, Stopwatch, temporary_bytes, timed
from bircher.loops.learning import make as learning_of
from bircher.types import Counters, Policy, Tally, Trajectory


class PipelineState(eqx.Module):
    """Where the environments stand, and the rollout that brought them there, not yet learnt from."""

    actor: ActorState
    rollout: Trajectory
    tally: Tally


def make(agent: Agent, env: Env, learn: Learner, rollout_length: int, total_steps: int) -> Programs:
    """Programs for one agent, environment and learner; the last rollout of a run is never learnt from, nor counted."""

    def collect(seen: tuple[Policy, Counters], actor_state: ActorState) -> PipelineState:
        policy, counters = seen
        progress = counters.env_steps / total_steps
        return PipelineState(*actor.rollout(agent, env, policy, actor_state, rollout_length, progress))

    def see(train: TrainState) -> tuple[Policy, Counters]:
        # In buffers of its own: the learner's next update overwrites its own while this still acts.
        return jax.tree.map(jnp.copy, (learner.acting_policy(agent, train), train.counters))

    collect_program: Any = jax.jit(collect, donate_argnums=1)
    see_program = jax.jit(see)
    learning = learning_of(learn, see)
    stopwatch = Stopwatch()

    def begin(train: TrainState, actor_state: ActorState) -> PipelineState:
        return collect_program(see_program(networks(train)), actor_state)

    def advance(train: TrainState, state: PipelineState, progress: Progress, iterations: int):
        seen = see_program(networks(train))
        # What two threads dispatch runs at the same time; what one dispatches runs one after the other.
        with ThreadPoolExecutor(1, "actor") as pool:
            for _ in range(iterations):
                acting = partial(collect_program, seen, state.actor)
                if not stopwatch.due():
                    collecting = pool.submit(acting)
                    train, progress, seen = learning(train, progress, state.rollout, state.tally)
                    state = collecting.result()
                    continue
                train, state = jax.block_until_ready((learning.settled(train), state))
                collecting = pool.submit(timed, acting)
                learning_from = partial(learning, train, progress, state.rollout, state.tally)
                (train, progress, seen), learnt = timed(learning_from)
                state, acted = collecting.result()
                stopwatch.record(acted, learnt)
        return learning.settled(train), state, progress

    def compile(train: TrainState, state: PipelineState, progress: Progress) -> int:
        nonlocal collect_program
        collecting = collect_program.lower(jax.eval_shape(see, networks(train)), state.actor)
        # The one is compiled while the other is traced.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(collecting.compile)
            taken = learning.compile(train, progress, state.rollout, state.tally)
            collect_program = compiled.result()
        return taken + temporary_bytes(collect_program)

    def fresh_progress(train: TrainState, state: PipelineState) -> Progress:
        return learning.zeros(train, state.rollout, state.tally)

    return Programs(begin, advance, fresh_progress, compile, stopwatch)
