"""One update, whole: store the rollout, sample, build targets, and descend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as _replaced
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from bircher import frames
from bircher import replay as replay_room
from bircher.agents.base import Agent, weights_at
from bircher.agents.diagnostics import Told, over, when
from bircher.ops import losses
from bircher.optimiser import OptimiserConfig, learning_rate, make_optimiser, require_rows, updates_per_iteration
from bircher.replay import Replay, ReplayConfig
from bircher.sampling import Shares, draw, fresh_order, pieces, take, turned, windows
from bircher.types import Batch, Counters, EnvSpec, Key, Policy, Symmetry, Tally, Targets, TimeStep, Trajectory

DISTANCE = "act/kl_to_behaviour"
"""The metric that `optimiser.kl_stop` looks at."""


class TrainState(eqx.Module):
    """All that a run is; what is not in here does not exist for a resume."""

    params: PyTree
    target_params: PyTree
    agent_state: PyTree
    optimiser_state: Any
    replay: Any
    key: Key
    counters: Counters
    non_finite: Array
    """Updates that were left out because loss or gradient were not finite."""


class Learner(NamedTuple):
    """The learner's functions for one agent, specification and configuration."""

    init: Callable[[Key, TimeStep], TrainState]
    learn: Callable[[TrainState, Trajectory, Tally], tuple[TrainState, dict[str, Array]]]
    updates_per_iteration: int
    replay: Replay


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point number of a tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all() if floats else jnp.asarray(True)


def acting_policy(agent: Agent, state: TrainState) -> Policy:
    """The policy that acts: the target network's, or the online one's."""
    return Policy(state.target_params if agent.acts_with_target else state.params, state.agent_state)


def _learnt(state: TrainState) -> tuple:
    return state.params, state.target_params, state.agent_state, state.optimiser_state


def _sanitised(rows: Trajectory, failed: Array) -> Trajectory:
    """Rows of a rollout that failed, made harmless: zeros, and no row leads anywhere."""
    rows = jax.tree.map(lambda x: jnp.where(failed, jnp.zeros_like(x), x), rows)
    return rows._replace(first=rows.first | failed, last=rows.last | failed)


class _Plan(NamedTuple):
    """What the functions of one learner share."""

    agent: Agent
    optimiser: optax.GradientTransformation
    ring: Replay
    shares: Shares
    config: OptimiserConfig
    total_steps: int
    groups: int
    """Computations of targets after each rollout; each serves epochs × minibatches updates."""
    target_update_rate: float
    rollout_length: int
    symmetries: tuple[Symmetry, ...]
    """Of the board, where sequences are to be turned; else ()."""
    action_repeat: int

    @property
    def measures_all(self) -> bool:
        """Whether every update needs its measures: the distance at which updates stop is one."""
        return self.config.kl_stop is not None


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
    updates = updates_per_iteration(config, steps)
    plan = _Plan(
        agent=agent,
        optimiser=make_optimiser(config),
        ring=_ring(replay_config, num_envs, rollout_length, stack),
        shares=Shares(
            num_envs=num_envs,
            minibatches=config.minibatches,
            batch_size=config.batch_size,
            num_replayed=round(replay_config.fraction * config.batch_size),
            importance_exponent=replay_config.importance_exponent,
        ),
        config=config,
        total_steps=total_steps,
        groups=updates // (config.epochs * config.minibatches),
        target_update_rate=target_update_rate,
        rollout_length=rollout_length,
        symmetries=spec.symmetries if replay_config.symmetries else (),
        action_repeat=spec.action_repeat,
    )

    def init(key: Key, timestep: TimeStep) -> TrainState:
        init_key, key = jax.random.split(key)
        policy = agent.init(init_key, spec)
        output, _ = agent.act(policy, agent.start(num_envs), timestep, init_key, "explore", 0.0)
        row = Trajectory.of(timestep, output.action, output.extras)
        return TrainState(
            params=policy.params,
            target_params=jax.tree.map(jnp.copy, policy.params),
            agent_state=policy.state,
            optimiser_state=plan.optimiser.init(policy.params),
            replay=plan.ring.init(take(row, jnp.asarray(0))),
            key=key,
            counters=Counters.zero(),
            non_finite=jnp.zeros((), jnp.int32),
        )

    return Learner(init, partial(_learn, plan), updates, plan.ring)


def _ring(config: ReplayConfig, num_envs: int, rollout_length: int, stack: int) -> Replay:
    ring = replay_room.make(num_envs, rollout_length, config.capacity, config.priority_exponent, stack - 1)
    return ring if stack == 1 else frames.kept_once(ring, stack)


def _learn(plan: _Plan, state: TrainState, rollout: Trajectory, tally: Tally) -> tuple[TrainState, dict[str, Array]]:
    """Store a rollout, then update: losses are means over the updates, what else is measured is the last one's."""
    failed = tally.failed >= 0
    rollout = _sanitised(rollout, failed)
    key, order_key, group_key = jax.random.split(state.key, 3)
    # The last row is the next rollout's first, and is stored with it.
    replay = plan.ring.add(state.replay, jax.tree.map(lambda x: x[:, :-1], rollout))
    before = _learnt(state)
    state = _replaced(state, replay=replay, key=key)

    def step(state: TrainState, inputs: tuple[Array, Key, Array]) -> tuple[TrainState, Told]:
        return _group(plan, state, rollout, *inputs)

    last = (jnp.arange(plan.groups) == plan.groups - 1) | plan.measures_all
    order = fresh_order(plan.shares, plan.groups, order_key)
    state, told = jax.lax.scan(step, state, (order, jax.random.split(group_key, plan.groups), last))
    # A failed rollout teaches nothing: what was learnt before stays as it was.
    kept = jax.tree.map(lambda x, y: jnp.where(failed, x, y), before, _learnt(state))
    state = eqx.tree_at(_learnt, state, kept, is_leaf=lambda x: x is None)
    # Counted last: the rate of these updates is that of where the rollout began, and never quite the last one.
    counters = state.counters._replace(
        env_steps=state.counters.env_steps + tally.env_steps,
        env_frames=state.counters.env_frames + plan.action_repeat * tally.env_steps,
        episodes=state.counters.episodes + tally.episodes,
    )
    metrics = over(told, last).metrics()
    share = plan.shares.num_replayed / plan.shares.batch_size
    metrics["target/replay_age"] = share * plan.ring.age(state.replay)
    return _replaced(state, counters=counters), metrics


def _group(
    plan: _Plan, state: TrainState, rollout: Trajectory, order: Array, key: Key, last: Array
) -> tuple[TrainState, Told]:
    """One computation of targets, and the updates that share it."""
    draw_key, target_key, update_key = jax.random.split(key, 3)
    batch = draw(plan.shares, plan.ring, state.replay, rollout, order, draw_key)
    if plan.symmetries:
        # A key of its own: without symmetries the draws are what they were.
        turn_key = jax.random.fold_in(draw_key, len(plan.symmetries))
        batch = batch._replace(trajectory=turned(plan.symmetries, batch.trajectory, turn_key))
    target_policy = Policy(state.target_params, state.agent_state)
    targets, agent_state = plan.agent.targets(target_policy, batch, target_key)
    # A reward beyond a float's square would leave a normaliser infinite for ever.
    sound = all_finite(agent_state)
    agent_state = jax.tree.map(lambda x, y: jnp.where(sound, x, y), agent_state, state.agent_state)
    replay = plan.ring.update_priority(state.replay, batch.indices, targets.priority)
    state = _replaced(state, agent_state=agent_state, replay=replay)
    config = plan.config
    count = config.epochs * config.minibatches
    keys = jax.random.split(update_key, count)
    if config.window is not None:
        # A number that no update's key was split off by.
        batch, targets = windows(jax.random.fold_in(update_key, count), batch, targets, config.window)
    if count == 1 and config.pieces is None:
        return _update(plan, state, batch, targets, sound, keys[0], last)
    index = _minibatches(plan, jax.random.fold_in(update_key, count + 1))
    if config.pieces is not None:
        batch, targets = pieces(batch, targets, config.pieces)

    def one(carry: tuple[TrainState, Array], inputs: tuple[Array, Key, Array]) -> tuple[tuple, Told]:
        (state, stopped), (index, key, measured) = carry, inputs
        new, told = _update(plan, state, take(batch, index), _select_targets(targets, index), sound, key, measured)
        if config.kl_stop is None:
            return (new, stopped), told
        stopped |= told.seen[DISTANCE] > config.kl_stop
        kept = jax.tree.map(lambda x, y: jnp.where(stopped, x, y), _learnt(state), _learnt(new))
        new = _replaced(eqx.tree_at(_learnt, new, kept, is_leaf=lambda x: x is None), counters=state.counters)
        counters = state.counters._replace(learner_steps=state.counters.learner_steps + ~stopped)
        return (_replaced(new, counters=counters), stopped), told

    measured = (last & (jnp.arange(count) == count - 1)) | plan.measures_all
    (state, _), told = jax.lax.scan(one, (state, jnp.zeros((), bool)), (index, keys, measured))
    return state, over(told, measured)


def _minibatches(plan: _Plan, key: Key) -> Array:
    """[epochs × minibatches, items]: what each update of a group takes, of its sequences or of their pieces."""
    config = plan.config
    if config.pieces is None:
        order = jnp.arange(plan.shares.sequences).reshape(config.minibatches, -1)
        return jnp.tile(order, (config.epochs, 1))
    items = plan.shares.sequences * (plan.rollout_length // config.pieces)
    order = jnp.stack([jax.random.permutation(k, items) for k in jax.random.split(key, config.epochs)])
    return order.reshape(config.epochs * config.minibatches, -1)


def _update(
    plan: _Plan, state: TrainState, batch: Batch, targets: Targets, sound: Array, key: Key, measured: Array
) -> tuple[TrainState, Told]:
    """One step of the optimiser and of the target network; left out where it or its targets are not finite."""

    def objective(params: PyTree) -> tuple[Array, tuple[dict[str, Array], dict[str, Array]]]:
        terms, metrics = plan.agent.loss(params, state.agent_state, batch, targets, key, measured=measured)
        progress = jnp.minimum(state.counters.env_steps / plan.total_steps, 1.0)
        weights = weights_at(plan.agent.weights, progress)
        total, term_metrics = losses.combine(terms, weights, targets.mask, batch.importance)
        return total, (term_metrics, metrics)

    (total, (always, seen)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    step, optimiser_state = plan.optimiser.update(gradients, state.optimiser_state, state.params)
    rate = learning_rate(plan.config, state.counters.env_steps, plan.total_steps)
    step = jax.tree.map(lambda x: -rate * x, step)
    params = optax.apply_updates(state.params, step)
    target_params = optax.incremental_update(params, state.target_params, plan.target_update_rate)
    norm = optax.tree.norm(gradients)
    finite = sound & jnp.isfinite(total) & jnp.isfinite(norm)
    new = (params, target_params, optimiser_state)
    old = (state.params, state.target_params, state.optimiser_state)
    params, target_params, optimiser_state = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
    always |= {"model/learning_rate": rate, "model/gradient_norm": norm}
    seen |= when(measured, lambda: _norms(step, params))
    if plan.ring.prioritised:
        always |= {
            "target/priority_mean": targets.priority.mean(),
            "target/importance_least": batch.importance.min(),
        }
    state = _replaced(
        state,
        params=params,
        target_params=target_params,
        optimiser_state=optimiser_state,
        counters=state.counters._replace(learner_steps=state.counters.learner_steps + 1),
        non_finite=state.non_finite + ~finite,
    )
    return state, Told(always, seen)


def _norms(step: PyTree, params: PyTree) -> dict[str, Array]:
    return {"model/update_norm": optax.tree.norm(step), "model/parameter_norm": optax.tree.norm(params)}


def _select_targets(targets: Targets, index: Array) -> Targets:
    """The targets of some sequences; numbers that hold for the whole batch stay."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, targets)
