"""The learner of a run: its state, and one update of it, whole: store the rollout, sample, build targets, descend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bircher import compression, frames, prefetch, updates
from bircher import replay as replay_room
from bircher.agents.base import Agent
from bircher.optimiser import OptimiserConfig, make_optimiser, require_rows, updates_per_iteration
from bircher.prefetch import Ahead, Marks, Prefetched
from bircher.replay import Replay, ReplayConfig, View
from bircher.sampling import Shares, take
from bircher.types import Counters, EnvSpec, Key, Policy, Tally, TimeStep, Trajectory
from bircher.updates import Plan, TrainState

__all__ = ["Apart", "Learner", "TrainState", "acting_policy", "make", "networks"]


class Learner(NamedTuple):
    """The learner's functions for one agent, specification and configuration."""

    init: Callable[[Key, TimeStep], TrainState]
    learn: Callable[[TrainState, Trajectory, Tally], tuple[TrainState, dict[str, Array]]]
    updates_per_iteration: int
    replay: Replay | View
    """To look into `TrainState.replay`."""
    apart: Apart | None = None
    """The same in parts, where the replay stands apart from the networks; None where it is beside them."""


class Apart(NamedTuple):
    """`init` and `learn` in parts: each part's arguments are on one device, the networks' or the host's."""

    init: Callable[[Key, TimeStep], TrainState]
    """A state with () for its replay."""
    init_replay: Callable[[Key, TimeStep], Any]
    """The same key and rows -> the replay, empty, on the host."""
    learn: Callable[[TrainState, Trajectory, Tally, Ahead], tuple[TrainState, dict[str, Array], Marks | None]]
    """From what was drawn ahead; the state's replay is ()."""
    turn: Callable[[Any, Key, Trajectory, Array, Marks | None], Prefetched]
    """(ring, key, rollout, `Tally.failed`, marks) -> with the rollout, and with draws for the next; on the host"""


def acting_policy(agent: Agent, state: TrainState) -> Policy:
    """The policy that acts: the target network's, or the online one's."""
    return Policy(state.target_params if agent.acts_with_target else state.params, state.agent_state)


def networks(state: TrainState) -> TrainState:
    """All of a state but its replay, in whose place is ()."""
    return replace(state, replay=())


def make(
    agent: Agent,
    spec: EnvSpec,
    optimiser_config: OptimiserConfig,
    replay_config: ReplayConfig,
    num_envs: int,
    rollout_length: int,
    total_steps: int,
    target_update_rate: float,
    stack: int = 1,
) -> Learner:
    """The learner for `num_envs` environments and rollouts of `rollout_length` steps.

    Where observations are `stack` joined ones, the replay keeps each of them once.

    Raises:
      ValueError: the replay is too small, sequences cannot be cut as asked, or there would be no update.
    """
    config, steps = optimiser_config, num_envs * rollout_length
    require_rows(config, rollout_length)
    if config.kl_stop is not None and not agent.keeps_behaviour:
        raise ValueError(f"optimiser.kl_stop needs the policy that acted, which {agent.name} does not keep")
    count = updates_per_iteration(config, steps)
    plan = Plan(
        agent=agent,
        optimiser=make_optimiser(config),
        ring=ring(replay_config, spec.observation, num_envs, rollout_length, stack),
        shares=Shares(
            num_envs=num_envs,
            minibatches=config.minibatches,
            batch_size=config.batch_size,
            num_replayed=round(replay_config.fraction * config.batch_size),
            importance_exponent=replay_config.importance_exponent,
        ),
        config=config,
        total_steps=total_steps,
        groups=count // (config.epochs * config.minibatches),
        target_update_rate=target_update_rate,
        rollout_length=rollout_length,
        symmetries=spec.symmetries if replay_config.symmetries else (),
        action_repeat=spec.action_repeat,
    )

    def policy_and_row(key: Key, timestep: TimeStep) -> tuple[Policy, Trajectory]:
        policy = agent.init(key, spec)
        output, _ = agent.act(policy, agent.start(num_envs), timestep, key, "explore", 0.0)
        return policy, take(Trajectory.of(timestep, output.action, output.extras), jnp.asarray(0))

    return _functions(plan, policy_and_row, count, replay_config.place == "host")


def _functions(plan: Plan, policy_and_row: Callable, count: int, elsewhere: bool) -> Learner:
    """Those of a learner, from (key, first rows) -> policy and a row of what it does."""

    def init_networks(key: Key, timestep: TimeStep) -> TrainState:
        init_key, key = jax.random.split(key)
        policy, _ = policy_and_row(init_key, timestep)
        return TrainState(
            params=policy.params,
            target_params=jax.tree.map(jnp.copy, policy.params),
            agent_state=policy.state,
            optimiser_state=plan.optimiser.init(policy.params),
            replay=(),
            key=key,
            counters=Counters.zero(),
            non_finite=jnp.zeros((), jnp.int32),
        )

    def init_replay(key: Key, timestep: TimeStep) -> Any:
        init_key, _ = jax.random.split(key)
        _, row = policy_and_row(init_key, timestep)
        if not elsewhere:
            return plan.ring.init(row)
        return prefetch.init(plan.ring, plan.shares, plan.groups, jax.random.fold_in(key, 0), row)

    def init(key: Key, timestep: TimeStep) -> TrainState:
        return replace(init_networks(key, timestep), replay=init_replay(key, timestep))

    if not elsewhere:
        return Learner(init, partial(_learn, plan), count, plan.ring)
    apart = Apart(init_networks, init_replay, partial(_learn_ahead, plan), partial(_turn, plan))
    return Learner(init, partial(_learn_apart, apart), count, prefetch.view(plan.ring), apart)


def ring(config: ReplayConfig, observation: PyTree, num_envs: int, rollout_length: int, stack: int) -> Replay:
    """The replay of these settings; of `stack` joined observations each is kept once.

    Raises:
      ValueError: too small for a sequence of every environment.
    """
    size, context = config.observation_bytes, stack - 1
    ring = replay_room.make(
        num_envs, rollout_length, config.capacity, config.priority_exponent, context, weighted=size is not None
    )
    if size is not None:
        single = observation if stack == 1 else jax.eval_shape(partial(frames.newest_of, stack=stack), observation)
        ring = compression.rows_kept_compressed(ring, single, num_envs, rollout_length, context, size)
    return ring if stack == 1 else frames.kept_once(ring, stack)


def _stored(rollout: Trajectory) -> Trajectory:
    """All rows but the last, which is the next rollout's first, and is stored with it."""
    return jax.tree.map(lambda x: x[:, :-1], rollout)


def _learn(plan: Plan, state: TrainState, rollout: Trajectory, tally: Tally) -> tuple[TrainState, dict[str, Array]]:
    """Store a rollout, then update."""
    rollout = updates.sanitised(rollout, tally.failed >= 0)
    state = replace(state, replay=plan.ring.add(state.replay, _stored(rollout)))
    state, metrics, _ = updates.after(plan, state, rollout, tally)
    return state, metrics


def _learn_ahead(
    plan: Plan, state: TrainState, rollout: Trajectory, tally: Tally, ahead: Ahead
) -> tuple[TrainState, dict[str, Array], Marks | None]:
    return updates.after(plan, state, updates.sanitised(rollout, tally.failed >= 0), tally, ahead)


def _learn_apart(
    apart: Apart, state: TrainState, rollout: Trajectory, tally: Tally
) -> tuple[TrainState, dict[str, Array]]:
    """Update by what was drawn ahead, then store the rollout and draw for the next; all of it in one place."""
    ring, key, ahead = state.replay
    state, metrics, marks = apart.learn(networks(state), rollout, tally, ahead)
    return replace(state, replay=apart.turn(ring, key, rollout, tally.failed, marks)), metrics


def _turn(plan: Plan, ring: Any, key: Key, rollout: Trajectory, failed: Array, marks: Marks | None) -> Prefetched:
    rows = _stored(updates.sanitised(rollout, failed >= 0))
    return prefetch.turn(plan.ring, plan.shares, plan.groups, ring, key, rows, marks)
