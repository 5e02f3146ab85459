"""One update, whole: store the rollout, sample, build targets, and descend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from pydantic import BaseModel, ConfigDict, Field

from bircher import replay as replay_room
from bircher.actor import Tally
from bircher.agents.base import Agent
from bircher.ops import losses
from bircher.replay import Replay, ReplayConfig
from bircher.types import Batch, Counters, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory


class OptimiserConfig(BaseModel):
    """AdamW, and how many updates of how many sequences each rollout gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(3e-4, gt=0)
    final_learning_rate: float = Field(0.0, ge=0)
    """The rate falls linearly to this at the last update."""
    update_clip: float = Field(1.0, gt=0)
    """Adam's update is clipped element by element to ± this, before the learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: Literal["none", "value", "norm"] = "none"
    """How gradients are clipped before Adam; the paper does not."""
    gradient_clip_bound: float = Field(1.0, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    batch_size: int = Field(32, gt=0)
    """Sequences in each update."""
    updates_per_step: float = Field(1 / 128, gt=0)
    """Updates for each environment step."""
    minibatches: int = Field(1, gt=0)
    """Updates that share one computation of targets; 1 recomputes them for each (the paper)."""
    epochs: int = Field(1, gt=0)
    """Times each of those batches is used."""


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


def updates_per_iteration(config: OptimiserConfig, steps: int) -> int:
    """Updates after each rollout of `steps` environment steps, a multiple of epochs × minibatches.

    Raises:
      ValueError: the settings ask for less than one.
    """
    group = config.epochs * config.minibatches
    groups = round(config.updates_per_step * steps / group)
    if groups < 1:
        raise ValueError(
            f"optimiser.updates_per_step={config.updates_per_step:g} gives {config.updates_per_step * steps:.3g} updates "
            f"for a rollout of {steps} steps; it must give at least epochs × minibatches = {group}"
        )
    return groups * group


def make_optimiser(config: OptimiserConfig, total_updates: int) -> optax.GradientTransformation:
    """AdamW with its update clipped element by element and a rate that falls linearly (Muesli, appendix)."""
    clip = {
        "none": optax.identity(),
        "value": optax.clip(config.gradient_clip_bound),
        "norm": optax.clip_by_global_norm(config.gradient_clip_bound),
    }[config.gradient_clip]
    schedule = optax.linear_schedule(config.learning_rate, config.final_learning_rate, max(total_updates, 1))
    return optax.chain(
        clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.clip(config.update_clip),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


def acting_policy(agent: Agent, state: TrainState) -> Policy:
    """The policy that acts: the target network's, or the online one's."""
    return Policy(state.target_params if agent.acts_with_target else state.params, state.agent_state)


def _learnt(state: TrainState) -> tuple:
    return state.params, state.target_params, state.agent_state, state.optimiser_state


def _take(tree: PyTree, index: Array) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def _sanitised(rows: Trajectory, failed: Array) -> Trajectory:
    """Rows of a rollout that failed, made harmless: zeros, and every row the first of an episode."""
    rows = jax.tree.map(lambda x: jnp.where(failed, jnp.zeros_like(x), x), rows)
    return rows._replace(first=rows.first | failed)


def make(
    agent: Agent,
    spec: EnvSpec,
    optimiser_config: OptimiserConfig,
    replay_config: ReplayConfig,
    num_envs: int,
    rollout_length: int,
    total_steps: int,
    target_update_rate: float,
) -> Learner:
    """The learner for `num_envs` environments and rollouts of `rollout_length` steps.

    Raises:
      ValueError: the replay is too small, or there would be no update.
    """
    config = optimiser_config
    steps = num_envs * rollout_length
    updates = updates_per_iteration(config, steps)
    groups = updates // (config.epochs * config.minibatches)
    optimiser = make_optimiser(config, updates * -(-total_steps // steps))
    ring = replay_room.make(num_envs, rollout_length, max(replay_config.capacity, 0))
    num_replayed = round(replay_config.fraction * config.batch_size)
    num_fresh = config.batch_size - num_replayed
    sequences = config.minibatches * config.batch_size

    def init(key: Key, timestep: TimeStep) -> TrainState:
        init_key, key = jax.random.split(key)
        policy = agent.init(init_key, spec)
        carry = agent.start(num_envs)
        output, _ = agent.act(policy, carry, timestep, init_key, "explore", 0.0)
        row = Trajectory.of(timestep, output.action, output.extras)
        return TrainState(
            params=policy.params,
            target_params=jax.tree.map(jnp.copy, policy.params),
            agent_state=policy.state,
            optimiser_state=optimiser.init(policy.params),
            replay=ring.init(_take(row, jnp.asarray(0))),
            key=key,
            counters=Counters.zero(),
            non_finite=jnp.zeros((), jnp.int32),
        )

    def draw(state: TrainState, rollout: Trajectory, order: Array, key: Key) -> Batch:
        """minibatches × batch_size sequences, each minibatch with its own fresh share."""
        fresh = _take(rollout, order[: config.minibatches * max(num_fresh, 1)])
        parts = []
        if num_fresh:
            parts.append(jax.tree.map(lambda x: x.reshape(config.minibatches, num_fresh, *x.shape[1:]), fresh))
        if num_replayed:
            count = config.minibatches * num_replayed
            # Until the ring holds a whole sequence, fresh ones stand in.
            stand_in = _take(rollout, jnp.arange(count) % num_envs)
            sampled = ring.sample(state.replay, key, count)
            ready = ring.ready(state.replay)
            sampled = jax.tree.map(lambda x, y: jnp.where(ready, x, y), sampled, stand_in)
            parts.append(jax.tree.map(lambda x: x.reshape(config.minibatches, num_replayed, *x.shape[1:]), sampled))
        rows = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1).reshape(sequences, *xs[0].shape[2:]), *parts)
        return Batch(rows, agent.start(sequences), jnp.full(sequences, -1), jnp.ones(sequences))

    def update(state: TrainState, batch: Batch, targets: Targets, key: Key) -> tuple[TrainState, dict[str, Array]]:
        def objective(params):
            terms, metrics = agent.loss(params, state.agent_state, batch, targets, key)
            total, term_metrics = losses.combine(terms, agent.weights, targets.mask, batch.importance)
            return total, {**metrics, **term_metrics}

        (total, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        step, optimiser_state = optimiser.update(gradients, state.optimiser_state, state.params)
        params = optax.apply_updates(state.params, step)
        target_params = optax.incremental_update(params, state.target_params, target_update_rate)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = (params, target_params, optimiser_state)
        old = (state.params, state.target_params, state.optimiser_state)
        params, target_params, optimiser_state = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
        metrics |= {
            "model/gradient_norm": norm,
            "model/update_norm": optax.global_norm(step),
            "model/parameter_norm": optax.global_norm(params),
        }
        counters = state.counters._replace(learner_steps=state.counters.learner_steps + 1)
        non_finite = state.non_finite + ~finite
        state = TrainState(
            params, target_params, state.agent_state, optimiser_state, state.replay, state.key, counters, non_finite
        )
        return state, metrics

    def group(carry, inputs):
        state, rollout = carry
        order, key = inputs
        draw_key, target_key, update_key = jax.random.split(key, 3)
        batch = draw(state, rollout, order, draw_key)
        targets, agent_state = agent.targets(Policy(state.target_params, state.agent_state), batch, target_key)
        state = eqx.tree_at(lambda s: s.agent_state, state, agent_state, is_leaf=lambda x: x is None)

        def one(state, inputs):
            index, key = inputs
            return update(state, _take(batch, index), _select_targets(targets, index), key)

        count = config.epochs * config.minibatches
        keys = jax.random.split(update_key, count)
        if count == 1:
            state, metrics = update(state, batch, targets, keys[0])
        else:
            index = jnp.tile(jnp.arange(sequences).reshape(config.minibatches, -1), (config.epochs, 1))
            state, metrics = jax.lax.scan(one, state, (index, keys))
            metrics = jax.tree.map(lambda x: x.mean(0), metrics)
        return (state, rollout), metrics

    def learn(state: TrainState, rollout: Trajectory, tally: Tally) -> tuple[TrainState, dict[str, Array]]:
        failed = tally.failed >= 0
        rollout = _sanitised(rollout, failed)
        stored = jax.tree.map(lambda x: x[:, :-1], rollout)
        key, order_key, group_key = jax.random.split(state.key, 3)
        counters = state.counters._replace(
            env_steps=state.counters.env_steps + tally.env_steps,
            env_frames=state.counters.env_frames + tally.env_steps,
            episodes=state.counters.episodes + tally.episodes,
        )
        state = TrainState(
            state.params, state.target_params, state.agent_state, state.optimiser_state,
            ring.add(state.replay, stored), key, counters, state.non_finite,
        )  # fmt: skip
        # Every environment's sequence comes up equally often, in random order.
        needed = groups * config.minibatches * max(num_fresh, 1)
        repeats = -(-needed // num_envs)
        order = jnp.concatenate([jax.random.permutation(k, num_envs) for k in jax.random.split(order_key, repeats)])
        order = order[:needed].reshape(groups, -1)
        before = _learnt(state)
        (state, _), metrics = jax.lax.scan(group, (state, rollout), (order, jax.random.split(group_key, groups)))
        # A failed rollout teaches nothing: what was learnt before stays as it was.
        kept = jax.tree.map(lambda x, y: jnp.where(failed, x, y), before, _learnt(state))
        state = eqx.tree_at(_learnt, state, kept, is_leaf=lambda x: x is None)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return Learner(init, learn, updates, ring)


def _select_targets(targets: Targets, index: Array) -> Targets:
    """The targets of some sequences; numbers that hold for the whole batch stay."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, targets)
