"""The updates that follow a rollout: batches, targets, and descent, whether the replay is beside them or elsewhere."""

from __future__ import annotations

from dataclasses import replace as _replaced
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from bircher.agents.base import Agent, weights_at
from bircher.agents.diagnostics import Packings, Told
from bircher.ops import losses
from bircher.optimiser import OptimiserConfig, learning_rate
from bircher.prefetch import Ahead, Marks
from bircher.replay import Replay
from bircher.sampling import Drawn, Shares, drawn, fresh_order, mixed, pieces, take, turned, windows
from bircher.types import Batch, Counters, Key, Policy, Symmetry, Tally, Targets, Trajectory

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


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point number of a tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all() if floats else jnp.asarray(True)


def _learnt(state: TrainState) -> tuple:
    return state.params, state.target_params, state.agent_state, state.optimiser_state


def sanitised(rows: Trajectory, failed: Array) -> Trajectory:
    """Rows of a rollout, made harmless where it failed: zeros, and no row leads anywhere."""
    rows = jax.tree.map(lambda x: jnp.where(failed, jnp.zeros_like(x), x), rows)
    return rows._replace(first=rows.first | failed, last=rows.last | failed)


class Plan(NamedTuple):
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


def after(
    plan: Plan, state: TrainState, rollout: Trajectory, tally: Tally, ahead: Ahead | None = None
) -> tuple[TrainState, dict[str, Array], Marks | None]:
    """The updates of one rollout: losses are means over them, what else is measured is the last one's.

    Replayed shares are drawn from `state.replay` as each update needs them, and priorities go back at once; or they
    are `ahead`, drawn already, and priorities are what is returned for a replay that is elsewhere.
    """
    key, order_key, group_key = jax.random.split(state.key, 3)
    before, packings = _learnt(state), Packings.fresh()
    state = _replaced(state, key=key)

    def step(state: TrainState, inputs: tuple[Array, Key, Array, Drawn | None]):
        state, (told, marks) = _group(plan, state, rollout, ahead is not None, *inputs)
        return state, (packings.pack(told), marks)

    last = (jnp.arange(plan.groups) == plan.groups - 1) | plan.measures_all
    order = fresh_order(plan.shares, plan.groups, order_key)
    keys, given = jax.random.split(group_key, plan.groups), None if ahead is None else ahead.drawn
    state, (vectors, marks) = jax.lax.scan(step, state, (order, keys, last, given))
    # A failed rollout teaches nothing: what was learnt before stays as it was.
    kept = jax.tree.map(lambda x, y: jnp.where(tally.failed >= 0, x, y), before, _learnt(state))
    state = eqx.tree_at(_learnt, state, kept, is_leaf=lambda x: x is None)
    # Counted last: the rate of these updates is that of where the rollout began, and never quite the last one.
    counters = state.counters._replace(
        env_steps=state.counters.env_steps + tally.env_steps,
        env_frames=state.counters.env_frames + plan.action_repeat * tally.env_steps,
        episodes=state.counters.episodes + tally.episodes,
    )
    metrics = packings.over(vectors, last).metrics() | _norms(before[0], state.params)
    share = plan.shares.num_replayed / plan.shares.batch_size
    metrics["target/replay_age"] = share * (plan.ring.age(state.replay) if ahead is None else ahead.age)
    return _replaced(state, counters=counters), metrics, marks


def _group(
    plan: Plan, state: TrainState, rollout: Trajectory, apart: bool,
    order: Array, key: Key, last: Array, given: Drawn | None,
) -> tuple[TrainState, tuple[Told, Marks | None]]:  # fmt: skip
    """One computation of targets, and the updates that share it."""
    draw_key, target_key, update_key = jax.random.split(key, 3)
    replayed = given if apart else drawn(plan.shares, plan.ring, state.replay, draw_key)
    batch = mixed(plan.shares, rollout, order, replayed)
    if plan.symmetries:
        # A key of its own: without symmetries the draws are what they were.
        turn_key = jax.random.fold_in(draw_key, len(plan.symmetries))
        batch = batch._replace(trajectory=turned(plan.symmetries, batch.trajectory, turn_key))
    target_policy = Policy(state.target_params, state.agent_state)
    targets, agent_state = plan.agent.targets(target_policy, batch, target_key, minibatches=plan.shares.minibatches)
    # A reward beyond a float's square would leave a normaliser infinite for ever.
    sound = all_finite(agent_state)
    agent_state = jax.tree.map(lambda x, y: jnp.where(sound, x, y), agent_state, state.agent_state)
    marks = Marks(batch.indices, targets.priority) if apart and plan.ring.prioritised else None
    replay = state.replay if apart else plan.ring.update_priority(state.replay, batch.indices, targets.priority)
    state = _replaced(state, agent_state=agent_state, replay=replay)
    state, told = _descend(plan, state, batch, targets, sound, update_key, last)
    return state, (told, marks)


def _descend(
    plan: Plan, state: TrainState, batch: Batch, targets: Targets, sound: Array, key: Key, last: Array
) -> tuple[TrainState, Told]:
    """Epochs × minibatches updates towards the same targets."""
    config = plan.config
    count = config.epochs * config.minibatches
    keys = jax.random.split(key, count)
    if config.window is not None:
        # A number that no update's key was split off by.
        batch, targets = windows(jax.random.fold_in(key, count), batch, targets, config.window)
    if count == 1 and config.pieces is None:
        return _update(plan, state, batch, targets, sound, keys[0], last)
    index = _minibatches(plan, jax.random.fold_in(key, count + 1))
    if config.pieces is not None:
        batch, targets = pieces(batch, targets, config.pieces)

    packings = Packings.fresh()

    def one(carry: tuple[TrainState, Array], inputs: tuple[Array, Key, Array]) -> tuple[tuple, tuple]:
        (state, stopped), (index, key, measured) = carry, inputs
        new, told = _update(plan, state, take(batch, index), _select_targets(targets, index), sound, key, measured)
        if config.kl_stop is None:
            return (new, stopped), packings.pack(told)
        stopped |= told.seen[DISTANCE] > config.kl_stop
        kept = jax.tree.map(lambda x, y: jnp.where(stopped, x, y), _learnt(state), _learnt(new))
        new = _replaced(eqx.tree_at(_learnt, new, kept, is_leaf=lambda x: x is None), counters=state.counters)
        counters = state.counters._replace(learner_steps=state.counters.learner_steps + ~stopped)
        return (_replaced(new, counters=counters), stopped), packings.pack(told)

    measured = (last & (jnp.arange(count) == count - 1)) | plan.measures_all
    (state, _), vectors = jax.lax.scan(one, (state, jnp.zeros((), bool)), (index, keys, measured))
    return state, packings.over(vectors, measured)


def _minibatches(plan: Plan, key: Key) -> Array:
    """[epochs × minibatches, items]: what each update of a group takes, of its sequences or of their pieces."""
    config = plan.config
    if config.pieces is None:
        order = jnp.arange(plan.shares.sequences).reshape(config.minibatches, -1)
        return jnp.tile(order, (config.epochs, 1))
    items = plan.shares.sequences * (plan.rollout_length // config.pieces)
    order = jnp.stack([jax.random.permutation(k, items) for k in jax.random.split(key, config.epochs)])
    return order.reshape(config.epochs * config.minibatches, -1)


def _update(
    plan: Plan, state: TrainState, batch: Batch, targets: Targets, sound: Array, key: Key, measured: Array
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


def _norms(before: PyTree, params: PyTree) -> dict[str, Array]:
    """Taken once behind all updates: within their loop they cost 0.9 % of it, for each step had to be kept for them."""
    start, end = ravel_pytree(before)[0], ravel_pytree(params)[0]
    return {"model/update_norm": jnp.linalg.norm(end - start), "model/parameter_norm": jnp.linalg.norm(end)}


def _select_targets(targets: Targets, index: Array) -> Targets:
    """The targets of some sequences; numbers that hold for the whole batch stay."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, targets)
