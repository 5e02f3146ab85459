"""The learner: the whole state of a run, and the updates that follow a rollout.

Read from top to bottom, this file is what an update is:

    Learner.update            store the rollout, then run its updates
      run_updates             one scan over batches
        _update_on_batch      assemble a batch, compute its targets once, return new priorities to the replay
          _run_sgd            epochs x minibatches steps toward the same targets
            _sgd_step         one step of the optimizer and of the target network
              agent.loss      the loss terms (agents/loss_terms.py), added up by ops.losses.combine

All of it is pure and may be traced.  Where the replay is in the host's memory, `update_networks` and
`advance_host_replay` are the two halves of `update`, for a loop that runs them at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from bircher.agents.base import Agent, weights_at
from bircher.agents.metrics import UpdateMetrics
from bircher.envs.base import blank_rows
from bircher.ops import losses
from bircher.replay import base as replay_base
from bircher.replay import prefetch, storage
from bircher.replay.base import Replay, ReplayConfig, View
from bircher.replay.batching import (
    BatchSpec,
    ReplaySample,
    apply_symmetries,
    assemble_batch,
    crop_sequences,
    fresh_order,
    sample_replay,
    split_sequences,
    take,
)
from bircher.replay.prefetch import HostReplayState, NextBatches, PriorityUpdate
from bircher.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    require_rows,
    updates_per_iteration,
)
from bircher.training.sharding import Layout
from bircher.types import Batch, Counters, EnvSpec, Key, Policy, Tally, Targets, TimeStep, Trajectory

DISTANCE = "act/kl_to_behavior"
"""The metric that `optimizer.target_kl` is compared with."""


class TrainState(eqx.Module):
    """The whole state of a run; what is not in here does not exist for a resume."""

    params: PyTree
    target_params: PyTree
    agent_state: PyTree
    optimizer_state: Any
    replay: Any
    key: Key
    counters: Counters
    non_finite: Array
    """Number of updates that were left out because the loss or a gradient was not finite."""


class LearnerConfig(NamedTuple):
    """The settings of a learner."""

    optimizer: OptimizerConfig
    replay: ReplayConfig
    num_envs: int
    """Number of environments, each with a row for every agent; batch sizes and capacities count environments too."""
    rollout_length: int
    total_steps: int
    """Environment steps of the run, over which rates and weights change."""
    target_update_rate: float
    stack: int = 1
    """Number of observations that are joined in each row; the replay stores each of them once."""


def acting_policy(agent: Agent, state: TrainState) -> Policy:
    """Return the policy that acts: the target network's or the online network's."""
    return Policy(state.target_params if agent.acts_with_target else state.params, state.agent_state)


def without_replay(state: TrainState) -> TrainState:
    """Return the state with () in place of the replay."""
    return replace(state, replay=())


def all_finite(tree: PyTree) -> Array:
    """Return whether every floating-point number of a tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all() if floats else jnp.asarray(True)


def make_replay(
    config: ReplayConfig, observation: PyTree, num_envs: int, rollout_length: int, stack: int = 1,
    with_absent: bool = False,
) -> Replay:  # fmt: skip
    """Return the replay of these settings; of `stack` joined observations each is stored once.

    `with_absent` is whether rows may be those of agents that are not there, of which no whole sequence is sampled.

    Raises:
      ValueError: the capacity does not hold one sequence of every environment.
    """
    size, context = config.compressed_bytes, stack - 1
    replay = replay_base.make(
        num_envs, rollout_length, config.capacity, config.priority_exponent, context,
        weighted=size is not None or with_absent,
    )  # fmt: skip
    if size is not None:
        single = observation if stack == 1 else jax.eval_shape(partial(storage.newest_of, stack=stack), observation)
        replay = storage.compress_observations(replay, single, num_envs, rollout_length, context, size)
    return replay if stack == 1 else storage.store_frames_once(replay, stack)


class Learner:
    """The updates of one agent in one environment, as pure functions of a `TrainState`."""

    def __init__(self, agent: Agent, spec: EnvSpec, config: LearnerConfig, layout: Layout | None = None):
        """Prepare a learner, over several devices with a `layout`; nothing is allocated or compiled.

        Raises:
          ValueError: the replay is too small, sequences cannot be cut as configured, or there would be no update.
        """
        optimizer, replay = config.optimizer, config.replay
        require_rows(optimizer, config.rollout_length)
        if optimizer.target_kl is not None and not agent.keeps_behavior:
            raise ValueError(f"optimizer.target_kl needs the policy that acted, which {agent.name} does not store")
        self.agent, self.spec, self.config, self.layout = agent, spec, config, layout
        self.updates_per_iteration = updates_per_iteration(optimizer, config.num_envs * config.rollout_length)
        agents = spec.num_agents
        self._num_rows = agents * config.num_envs
        self.replay_on_host = replay.device == "host"
        """Whether the replay is in the host's memory, with the next batches drawn in advance."""
        self._num_batches = self.updates_per_iteration // (optimizer.epochs * optimizer.minibatches)
        self._optimizer = make_optimizer(optimizer)
        # Settings count environments, each of which brings the sequences of all its agents.
        in_rows = replay.model_copy(update={"capacity": agents * replay.capacity})
        self._replay = make_replay(
            in_rows, spec.observation, self._num_rows, config.rollout_length, config.stack, with_absent=agents > 1
        )
        self._batch_spec = BatchSpec(
            num_envs=self._num_rows,
            minibatches=optimizer.minibatches,
            batch_size=agents * optimizer.batch_size,
            num_replayed=round(replay.fraction * agents * optimizer.batch_size),
            importance_exponent=replay.importance_exponent,
        )
        self._symmetries = spec.symmetries if replay.symmetries else ()
        self._measures_all = optimizer.target_kl is not None  # the distance at which updates stop is a measurement

    @property
    def replay(self) -> Replay | View:
        """The functions that read `TrainState.replay`."""
        return prefetch.view(self._replay) if self.replay_on_host else self._replay

    # The first state.

    def init(self, key: Key, timestep: TimeStep) -> TrainState:
        """Return the first state, from the first rows of every environment."""
        return replace(self.init_networks(key, timestep), replay=self.init_replay(key, timestep))

    def init_networks(self, key: Key, timestep: TimeStep) -> TrainState:
        """Return the first state with () in place of the replay."""
        init_key, key = jax.random.split(key)
        policy, _ = self._policy_and_row(init_key, timestep)
        return TrainState(
            params=policy.params,
            target_params=jax.tree.map(jnp.copy, policy.params),
            agent_state=policy.state,
            optimizer_state=self._optimizer.init(policy.params),
            replay=(),
            key=key,
            counters=Counters.zero(),
            non_finite=jnp.zeros((), jnp.int32),
        )

    def init_replay(self, key: Key, timestep: TimeStep) -> Any:
        """Return the empty replay of the same key and rows."""
        init_key, _ = jax.random.split(key)
        _, row = self._policy_and_row(init_key, timestep)
        if not self.replay_on_host:
            return self._replay.init(row)
        draw_key = jax.random.fold_in(key, 0)
        return prefetch.init(self._replay, self._batch_spec, self._num_batches, draw_key, row)

    def rollout_shapes(self) -> tuple[Trajectory, Tally]:
        """Return the shapes of a rollout of all environments, and of the sums over it; nothing is computed."""
        config = self.config
        blank = jax.eval_shape(partial(blank_rows, self.spec, config.num_envs))
        _, row = jax.eval_shape(self._policy_and_row, jax.random.key(0), blank)
        shape = self._num_rows, config.rollout_length + 1
        rollout = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype), row)
        largest = jnp.zeros(()) if self.agent.follows_returns else None
        agents = self.spec.num_agents
        return rollout, jax.eval_shape(lambda: Tally.zero(agents)._replace(largest_return=largest))

    def _policy_and_row(self, key: Key, timestep: TimeStep) -> tuple[Policy, Trajectory]:
        """Return the first policy, and a row of what it does."""
        policy = self.agent.init(key, self.spec)
        carry = self.agent.start(self._num_rows)
        output, _ = self.agent.act(policy, carry, timestep, key, "explore", 0.0)
        return policy, take(Trajectory.of(timestep, output), jnp.asarray(0))

    # One iteration.

    def update(self, state: TrainState, rollout: Trajectory, tally: Tally) -> tuple[TrainState, dict[str, Array]]:
        """Store a rollout, run the updates that follow it, and return the new state and metrics.

        `rollout` has T + 1 rows of every environment, `tally` the sums over it.  A failed rollout changes neither
        networks nor replay.  With the replay on the host, batches come from what was drawn before the rollout.
        """
        if self.replay_on_host:
            replay, key, next_batches = state.replay
            state, metrics, priorities = self.update_networks(without_replay(state), rollout, tally, next_batches)
            replay = self.advance_host_replay(replay, key, rollout, tally.failed, priorities)
            return replace(state, replay=replay), metrics
        rollout = sanitize(rollout, tally.failed >= 0)
        state = replace(state, replay=self._replay.add(state.replay, _stored_rows(rollout)))
        state, metrics, _ = self.run_updates(state, rollout, tally)
        return state, metrics

    def update_networks(
        self, state: TrainState, rollout: Trajectory, tally: Tally, next_batches: NextBatches
    ) -> tuple[TrainState, dict[str, Array], PriorityUpdate | None]:
        """Run the updates of a rollout with batches drawn in advance; the state's replay is ().

        Returns the new state, metrics, and the priorities for `advance_host_replay`.
        """
        return self.run_updates(state, sanitize(rollout, tally.failed >= 0), tally, next_batches)

    def advance_host_replay(
        self, replay: Any, key: Key, rollout: Trajectory, failed: Array, priorities: PriorityUpdate | None
    ) -> HostReplayState:
        """Return the host's replay with new priorities, the rollout stored, and the next batches drawn."""
        rows = _stored_rows(sanitize(rollout, failed >= 0))
        return prefetch.advance_host_replay(
            self._replay, self._batch_spec, self._num_batches, replay, key, rows, priorities
        )

    def run_updates(
        self, state: TrainState, rollout: Trajectory, tally: Tally, next_batches: NextBatches | None = None
    ) -> tuple[TrainState, dict[str, Array], PriorityUpdate | None]:
        """Run all updates of one rollout.

        Losses are means over the updates; measurements are those of the last one.  Replayed sequences are drawn
        from `state.replay` as each batch needs them, and priorities are returned to it immediately; or they are
        `next_batches`, and the priorities are returned for a replay that is on the host.
        """
        key, order_key, batch_key = jax.random.split(state.key, 3)
        before = _trainable(state)
        state = replace(state, key=key, agent_state=self._begun(state, rollout, tally))

        def step(state: TrainState, inputs: tuple[Array, Key, Array, ReplaySample | None]):
            state, (metrics, priorities) = self._update_on_batch(state, rollout, next_batches is not None, *inputs)
            return state, metrics, priorities

        last = (jnp.arange(self._num_batches) == self._num_batches - 1) | self._measures_all
        order = fresh_order(self._batch_spec, self._num_batches, order_key)
        keys = jax.random.split(batch_key, self._num_batches)
        samples = None if next_batches is None else next_batches.samples
        state, each, priorities = _scan(step, state, (order, keys, last, samples))
        # A failed rollout teaches nothing: what was learned before stays unchanged.
        kept = jax.tree.map(lambda x, y: jnp.where(tally.failed >= 0, x, y), before, _trainable(state))
        state = eqx.tree_at(_trainable, state, kept, is_leaf=lambda x: x is None)
        metrics = each.mean(last).metrics() | _norms(before[0], state.params)
        share = self._batch_spec.num_replayed / self._batch_spec.batch_size
        age = self._replay.age(state.replay) if next_batches is None else next_batches.age
        if self.spec.num_agents > 1:  # the replay counts rows
            age = age / self.spec.num_agents
        metrics["target/replay_age"] = share * age
        # Counted last: the learning rate of these updates is that of the rollout's first step.
        return replace(state, counters=self._count(state.counters, tally)), metrics, priorities

    def _begun(self, state: TrainState, rollout: Trajectory, tally: Tally) -> Any:
        """Return the agent's state before the updates of a rollout, with what it follows of the training."""
        agent_state = state.agent_state
        if tally.largest_return is not None:
            largest = jnp.maximum(agent_state.largest_return, tally.largest_return)
            agent_state = eqx.tree_at(lambda state: state.largest_return, agent_state, largest)
        if self.agent.begin is not None:
            progress = jnp.minimum(state.counters.env_steps / self.config.total_steps, 1.0)
            agent_state = self.agent.begin(agent_state, rollout, progress)
        return agent_state

    def _count(self, counters: Counters, tally: Tally) -> Counters:
        """Return the counters after a rollout."""
        return counters._replace(
            env_steps=counters.env_steps + tally.env_steps,
            env_frames=counters.env_frames + self.spec.action_repeat * tally.env_steps,
            episodes=counters.episodes + tally.episodes,
        )

    # One batch.

    def _update_on_batch(
        self, state: TrainState, rollout: Trajectory, on_host: bool,
        order: Array, key: Key, with_metrics: Array, sample: ReplaySample | None,
    ) -> tuple[TrainState, tuple[UpdateMetrics, PriorityUpdate | None]]:  # fmt: skip
        """Assemble a batch, compute its targets, and run the updates that share them."""
        draw_key, target_key, update_key = jax.random.split(key, 3)
        if not on_host:
            sample = sample_replay(self._batch_spec, self._replay, state.replay, draw_key)
        batch = assemble_batch(self._batch_spec, rollout, order, sample)
        if self.layout is not None:
            batch = self.layout.spread(batch)
        if self._symmetries:
            # A separate key: without symmetries the draws stay what they were.
            turn_key = jax.random.fold_in(draw_key, len(self._symmetries))
            batch = batch._replace(trajectory=apply_symmetries(self._symmetries, batch.trajectory, turn_key))
        target_policy = Policy(state.target_params, state.agent_state)
        targets, agent_state = self.agent.targets(
            target_policy, batch, target_key, minibatches=self._batch_spec.minibatches
        )
        # A reward beyond a float's square would make a normalizer infinite forever.
        sound = all_finite(agent_state)
        agent_state = jax.tree.map(lambda x, y: jnp.where(sound, x, y), agent_state, state.agent_state)
        priorities, replay = None, state.replay
        if not on_host:
            replay = self._replay.update_priority(replay, batch.indices, targets.priority)
        elif self._replay.prioritized:
            priorities = PriorityUpdate(batch.indices, targets.priority)
        state = replace(state, agent_state=agent_state, replay=replay)
        state, metrics = self._run_sgd(state, batch, targets, sound, update_key, with_metrics)
        return state, (metrics, priorities)

    def _run_sgd(
        self, state: TrainState, batch: Batch, targets: Targets, sound: Array, key: Key, with_metrics: Array
    ) -> tuple[TrainState, UpdateMetrics]:
        """Run epochs x minibatches steps toward the same targets."""
        config = self.config.optimizer
        count = config.epochs * config.minibatches
        keys = jax.random.split(key, count)
        if config.crop_length is not None:
            # fold_in with a number that no step's key has.
            batch, targets = crop_sequences(jax.random.fold_in(key, count), batch, targets, config.crop_length)
        if count == 1 and config.segment_length is None:
            return self._sgd_step(state, batch, targets, sound, keys[0], with_metrics)
        index = self._minibatches(jax.random.fold_in(key, count + 1))
        if config.segment_length is not None:
            batch, targets = split_sequences(batch, targets, config.segment_length)

        def one(carry: tuple[TrainState, Array], inputs: tuple[Array, Key, Array]):
            (state, stopped), (index, key, with_metrics) = carry, inputs
            part = take(batch, index), _select_targets(targets, index)
            new, metrics = self._sgd_step(state, *part, sound, key, with_metrics)
            if config.target_kl is None:
                return (new, stopped), metrics, None
            stopped |= metrics.occasional[DISTANCE] > config.target_kl
            kept = jax.tree.map(lambda x, y: jnp.where(stopped, x, y), _trainable(state), _trainable(new))
            new = replace(eqx.tree_at(_trainable, new, kept, is_leaf=lambda x: x is None), counters=state.counters)
            counters = state.counters._replace(learner_steps=state.counters.learner_steps + ~stopped)
            return (replace(new, counters=counters), stopped), metrics, None

        last = (with_metrics & (jnp.arange(count) == count - 1)) | self._measures_all
        (state, _), each, _ = _scan(one, (state, jnp.zeros((), bool)), (index, keys, last))
        return state, each.mean(last)

    def _minibatches(self, key: Key) -> Array:
        """Return which sequences, or parts of them, each step uses: [epochs x minibatches, items]."""
        config, sequences = self.config.optimizer, self._batch_spec.sequences
        if config.segment_length is None:
            return jnp.tile(jnp.arange(sequences).reshape(config.minibatches, -1), (config.epochs, 1))
        items = sequences * (self.config.rollout_length // config.segment_length)
        order = jnp.stack([jax.random.permutation(k, items) for k in jax.random.split(key, config.epochs)])
        return order.reshape(config.epochs * config.minibatches, -1)

    def _sgd_step(
        self, state: TrainState, batch: Batch, targets: Targets, sound: Array, key: Key, with_metrics: Array
    ) -> tuple[TrainState, UpdateMetrics]:
        """Take one step of the optimizer and of the target network; leave it out where a number is not finite."""
        config = self.config

        def objective(params: PyTree) -> tuple[Array, tuple[dict[str, Array], dict[str, Array]]]:
            terms, metrics = self.agent.loss(params, state.agent_state, batch, targets, key, with_metrics=with_metrics)
            progress = jnp.minimum(state.counters.env_steps / config.total_steps, 1.0)
            weights = weights_at(self.agent.weights, progress)
            total, term_metrics = losses.combine(terms, weights, targets.mask, batch.importance)
            return total, (term_metrics, metrics)

        (total, (always, occasional)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        step, optimizer_state = self._optimizer.update(gradients, state.optimizer_state, state.params)
        rate = learning_rate(config.optimizer, state.counters.env_steps, config.total_steps)
        step = jax.tree.map(lambda x: -rate * x, step)
        params = optax.apply_updates(state.params, step)
        target_params = optax.incremental_update(params, state.target_params, config.target_update_rate)
        norm = optax.tree.norm(gradients)
        finite = sound & jnp.isfinite(total) & jnp.isfinite(norm)
        new = (params, target_params, optimizer_state)
        old = (state.params, state.target_params, state.optimizer_state)
        params, target_params, optimizer_state = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
        always |= {"model/learning_rate": rate, "model/gradient_norm": norm}
        if self._replay.prioritized:
            always |= {
                "target/priority_mean": targets.priority.mean(),
                "target/importance_least": batch.importance.min(),
            }
        state = replace(
            state,
            params=params,
            target_params=target_params,
            optimizer_state=optimizer_state,
            counters=state.counters._replace(learner_steps=state.counters.learner_steps + 1),
            non_finite=state.non_finite + ~finite,
        )
        return state, UpdateMetrics(always, occasional)


def sanitize(rows: Trajectory, failed: Array) -> Trajectory:
    """Return the rows of a rollout, or harmless ones if it failed: zeros, each the first and last of an episode."""
    rows = jax.tree.map(lambda x: jnp.where(failed, jnp.zeros_like(x), x), rows)
    return rows._replace(first=rows.first | failed, last=rows.last | failed)


def _scan(step: Callable, carry: Any, inputs: PyTree) -> tuple[Any, UpdateMetrics, Any]:
    """Run `step` (carry, input) -> (carry, metrics, other) over inputs, and stack metrics and others.

    Metrics leave the loop as one vector a step: as about thirty arrays they cost a tenth of a run.
    """
    unravel: Any = None  # known once `vector_step` is traced

    def vector_step(carry: Any, inputs: PyTree):
        nonlocal unravel
        carry, metrics, other = step(carry, inputs)
        vector, unravel = ravel_pytree(metrics)
        return carry, (vector, other)

    carry, (vectors, others) = jax.lax.scan(vector_step, carry, inputs)
    return carry, jax.vmap(unravel)(vectors), others


def _stored_rows(rollout: Trajectory) -> Trajectory:
    """Return all rows but the last, which is the first of the next rollout and is stored with it."""
    return jax.tree.map(lambda x: x[:, :-1], rollout)


def _trainable(state: TrainState) -> tuple:
    return state.params, state.target_params, state.agent_state, state.optimizer_state


def _norms(before: PyTree, params: PyTree) -> dict[str, Array]:
    """Return the norms of the whole step and of the parameters, computed once after all updates.

    Within the loop they cost 0.9 % of it, because each step had to be stored for them.
    """
    start, end = ravel_pytree(before)[0], ravel_pytree(params)[0]
    return {"model/update_norm": jnp.linalg.norm(end - start), "model/parameter_norm": jnp.linalg.norm(end)}


def _select_targets(targets: Targets, index: Array) -> Targets:
    """Return the targets of some sequences."""

    def select(x: Array) -> Array:
        return x[index]

    return targets.map(select, select, select)
