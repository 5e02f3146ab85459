"""The loops: how rollouts and updates follow one another.

`synchronous` collects a rollout and then learns from it.  Where environments and replay are plain arrays on the same
device, both are one program with a loop over many iterations.

`pipeline` collects the next rollout while the last one is learned from: two programs at the same time, on two cores or
more.

    iteration i:    collect r_{i+1} with the policy that learned from r_1 ... r_{i-1}   |   learn from r_i

Which policy collects which rollout is fixed, however the iterations are cut into calls and however long each part
takes.  So a run is repeatable, and resumes bit for bit, as with the synchronous loop.  The price is that the policy
that acts is one rollout older.

With `replay.device=host` the update itself is two programs (`HostReplayUpdate`):

    networks' device:   learn from r_i and the batches for it  |   collect r_{i+1}      |  learn from r_{i+1} ...
    host, a thread:     (priorities;) store r_i, draw the batches for r_{i+1}, copy them to the device
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int, PyTree

from bircher import devices
from bircher.agents.base import Agent
from bircher.envs.base import Env
from bircher.replay.prefetch import HostReplayState, NextBatches, PriorityUpdate
from bircher.training.learner import Learner, TrainState, acting_policy, without_replay
from bircher.training.rollout import ActorState, collect_rollout
from bircher.training.sharding import gathered
from bircher.types import Counters, Policy, Tally, Trajectory


class Progress(eqx.Module):
    """Sums of metrics and episode returns over the iterations since the last line of the log.

    They stay on the device, so that an iteration does not wait until Python has read its numbers.
    """

    iterations: Int[Array, ""]
    tally: Tally
    metrics: dict[str, Float[Array, ""]]
    failed_at: Int[Array, ""]
    """Environment steps of the run when an environment first failed; -1 while none did."""

    @classmethod
    def zero(cls, metrics: dict[str, Any], num_agents: int = 1) -> Progress:
        """Return sums over no iteration, for metrics of these shapes."""
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return cls(jnp.zeros((), jnp.int32), Tally.zero(num_agents), blank, jnp.full((), -1, jnp.int32))

    def add(self, tally: Tally, metrics: dict[str, Array], env_steps: Array) -> Progress:
        """Return the sums with one more iteration, after which the run has `env_steps` environment steps."""
        newly = (self.tally.failed < 0) & (tally.failed >= 0)
        return Progress(
            self.iterations + 1,
            self.tally.merge(tally),
            jax.tree.map(jnp.add, self.metrics, metrics),
            jnp.where(newly, env_steps, self.failed_at),
        )


class Monitor(Protocol):
    """What a loop measures outside its programs."""

    def metrics(self) -> dict[str, float]:
        """Return metrics by name, of the time since the last call."""
        ...

    def sentences(self) -> list[str]:
        """Return what the user should know of the time since the last call."""
        ...


class Stopwatch:
    """Measures now and then how an iteration's time is shared between acting and learning, by waiting for it."""

    SECONDS = 10.0
    """Time between two measurements; in between nothing waits."""

    def __init__(self) -> None:
        self.acting_share: float | None = None
        self._next = 0.0

    def due(self) -> bool:
        """Return whether to measure the iteration that begins."""
        return time.monotonic() >= self._next

    def record(self, acting: float, learning: float) -> None:
        """Store a measurement, in seconds."""
        self.acting_share = acting / max(acting + learning, 1e-9)
        self._next = time.monotonic() + self.SECONDS

    def metrics(self) -> dict[str, float]:
        """Return the last measurement."""
        return {} if self.acting_share is None else {"speed/acting_share": self.acting_share}

    def sentences(self) -> list[str]:
        """Return nothing."""
        return []


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, once it is computed, and the seconds that it took."""
    started = time.monotonic()
    result = jax.block_until_ready(call())
    return result, time.monotonic() - started


class Snapshots(NamedTuple):
    """How a checkpoint contains a loop whose state is not a tree of arrays; that state is () then."""

    take: Callable[[], PyTree | None]
    """() -> arrays that `resume` takes; None if the loop cannot continue"""
    shapes: Callable[[], PyTree]
    """() -> their shapes"""
    resume: Callable[[TrainState, Any], PyTree]
    """(train, arrays) -> the loop's state"""


class Programs(NamedTuple):
    """The functions of a loop.  The loop's state is that of the environments, and what it needs to continue."""

    begin: Callable[[TrainState, ActorState], PyTree]
    """(train, actor state of fresh environments) -> the loop's state; traceable without `snapshots`, so that its shapes
    are known early"""
    advance: Callable[[TrainState, Any, Progress, int], tuple[TrainState, Any, Progress]]
    """(train, state, progress, iterations): runs them and returns without waiting; its arguments are donated"""
    fresh_progress: Callable[[TrainState, PyTree], Progress]
    """(train, state or its shapes) -> zeros of the right shapes; traces, does not compile"""
    compile: Callable[[TrainState, PyTree, Progress], int]
    """Compiles what `begin` and `advance` will run for arguments of these shapes, several programs at the same time
    where there are several, and returns the bytes that they take while they run.  Optional: without it they compile
    at their first call."""
    monitor: Monitor | None = None
    """None where acting and learning are one program, whose parts cannot be measured separately"""
    snapshots: Snapshots | None = None
    whole: Callable[[TrainState], TrainState] = lambda train: train
    """(train) -> the state with all arrays in this process, also those that several learners share"""

    def state_shapes(self, train: TrainState, actor_state: ActorState) -> PyTree:
        """Return the shapes of the loop's state, for a loop without `snapshots`."""
        return jax.eval_shape(self.begin, train, actor_state)


def temporary_bytes(compiled: Any) -> int:
    """Return the bytes that a compiled program allocates while it runs, without its arguments and results."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else int(memory.temp_size_in_bytes)


Observe = Callable[[TrainState], PyTree]
"""What a program returns of the new state besides the state, in separate buffers."""
Updated = tuple[TrainState, Progress, PyTree]


class DeviceUpdate:
    """`Learner.update` as one program, with the replay where the networks are."""

    def __init__(self, learner: Learner, observe: Observe):
        # A jitted function within the program, so that it is traced only once.
        update = jax.jit(learner.update)

        def update_and_count(train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> Updated:
            train, metrics = update(train, rollout, tally)
            if self._layout is not None:
                train = self._layout.settle(train)
            return train, progress.add(tally, metrics, train.counters.env_steps), observe(train)

        self._layout, self._agents = learner.layout, learner.spec.num_agents
        self.traceable = update_and_count
        """The same, for a loop that is one program itself."""
        self._update = update
        self._program: Any = jax.jit(update_and_count, donate_argnums=(0, 1))

    def __call__(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> Updated:
        """Return the new state and sums, and what `observe` returns of the state; the old ones are donated.

        With several learners the rollout contains only the rows of this one's environments.
        """
        if self._layout is None:
            return self._program(train, progress, rollout, tally)
        rollout = self._layout.put_rows(rollout)
        progress, tally = self._layout.put((progress, tally))
        train, progress, observed = self._program(train, progress, rollout, tally)
        return train, progress, gathered(observed)

    def finish(self, train: TrainState) -> TrainState:
        """Return the state with everything that is still computed elsewhere: here, nothing is."""
        return train

    def zero_progress(self, train: TrainState, rollout: Trajectory, tally: Tally) -> Progress:
        """Return sums over no iteration, of the right shapes; traces only."""
        return Progress.zero(jax.eval_shape(self._update, train, rollout, tally)[1], self._agents)

    def compile(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> int:
        """Compile for arguments of these shapes, and return the bytes that the program takes while it runs."""
        if self._layout is not None:
            rollout = _shapes_with(rollout, self._layout.divided)
            progress, tally = _shapes_with((progress, tally), self._layout.everywhere)
        self._program = self._program.lower(train, progress, rollout, tally).compile()
        return temporary_bytes(self._program)


class HostReplayUpdate:
    """The two halves of `Learner.update`: a program for the networks, and one for the replay, called by a thread."""

    def __init__(self, learner: Learner, observe: Observe):
        update = jax.jit(learner.update_networks)

        def update_and_count(
            train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally, next_batches: NextBatches
        ):
            train, metrics, priorities = update(train, rollout, tally, next_batches)
            return train, progress.add(tally, metrics, train.counters.env_steps), priorities, observe(train)

        self._update, self._agents = update, learner.spec.num_agents
        self._program: Any = jax.jit(update_and_count, donate_argnums=(0, 1))
        self._advance: Any = jax.jit(learner.advance_host_replay, donate_argnums=0)
        self._host, self._device = devices.host(), devices.default()
        self._thread = ThreadPoolExecutor(1, "replay")
        self._pending: Future[tuple[HostReplayState, NextBatches]] | None = None

    def __call__(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> Updated:
        """The same as `DeviceUpdate`; the replay is not in the new state but on the thread: see `finish`."""
        if self._pending is None:
            replay, next_batches = train.replay, self._to_device(train.replay)
        else:
            replay, next_batches = self._pending.result()
        state = without_replay(train)
        state, progress, priorities, observed = self._program(state, progress, rollout, tally, next_batches)
        self._pending = self._thread.submit(self._advance_replay, replay, rollout, tally.failed, priorities)
        return state, progress, observed

    def finish(self, train: TrainState) -> TrainState:
        """Return the state with its replay, once that has stored the last rollout."""
        if self._pending is None:
            return train
        (replay, _), self._pending = self._pending.result(), None
        return replace(train, replay=replay)

    def zero_progress(self, train: TrainState, rollout: Trajectory, tally: Tally) -> Progress:
        """Return sums over no iteration, of the right shapes; traces only."""
        next_batches = train.replay.next_batches
        shapes = jax.eval_shape(self._update, without_replay(train), rollout, tally, next_batches)
        return Progress.zero(shapes[1], self._agents)

    def compile(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> int:
        """Compile both programs at the same time, and return the bytes that the networks' takes while it runs."""
        replay, key, next_batches = train.replay
        on_device, on_host = (partial(_shapes_on, target=target) for target in (self._device, self._host))
        update = self._program.lower(without_replay(train), progress, rollout, tally, on_device(next_batches))
        priorities = update.out_info[2]
        advance = self._advance.lower(*map(on_host, (replay, key, rollout, tally.failed, priorities)))
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(advance.compile)
            self._program, self._advance = update.compile(), compiled.result()
        return temporary_bytes(self._program)

    def _to_device(self, replay: HostReplayState) -> NextBatches:
        return jax.device_put(replay.next_batches, self._device)

    def _advance_replay(
        self, replay: HostReplayState, rollout: Trajectory, failed: Array, priorities: PriorityUpdate | None
    ) -> tuple[HostReplayState, NextBatches]:
        """Runs on the thread: only this waits for the rollout and the priorities to arrive on the host."""
        on_host = jax.device_put((rollout, failed, priorities), self._host)
        replay = self._advance(replay.replay_state, replay.key, *on_host)
        return replay, self._to_device(replay)


def _shapes_on(tree: PyTree, target: devices.Device) -> PyTree:
    """Return the shapes of arrays that are on a device."""
    return _shapes_with(tree, SingleDeviceSharding(target))


def _shapes_with(tree: PyTree, sharding: Any) -> PyTree:
    """Return the shapes of arrays with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def make_update(learner: Learner, observe: Observe = lambda train: ()) -> DeviceUpdate | HostReplayUpdate:
    """Return the learner's update as one program, or as two where the replay is on the host."""
    return HostReplayUpdate(learner, observe) if learner.replay_on_host else DeviceUpdate(learner, observe)


def synchronous(agent: Agent, env: Env, learner: Learner, rollout_length: int, total_steps: int) -> Programs:
    """Return the programs of the synchronous loop; its state is the `ActorState`."""

    def collect(policy: Policy, actor_state: ActorState, counters: Counters):
        progress = counters.env_steps / total_steps
        return collect_rollout(agent, env, policy, actor_state, rollout_length, progress)

    update = make_update(learner)

    def fresh_progress(train: TrainState, actor_state: ActorState) -> Progress:
        _, rollout, tally = jax.eval_shape(collect, acting_policy(agent, train), actor_state, train.counters)
        return update.zero_progress(train, rollout, tally)

    if env.pure and isinstance(update, DeviceUpdate) and learner.layout is None:
        advance, compile = _one_program(agent, collect, update)
        stopwatch = None
    else:
        stopwatch = Stopwatch()
        advance, compile = _two_programs(agent, collect, update, stopwatch)
    return Programs(lambda train, actor_state: actor_state, advance, fresh_progress, compile, stopwatch)


def _one_program(agent: Agent, collect: Callable, update: DeviceUpdate) -> tuple[Callable, Callable]:
    """Return `advance` and `compile` of one program with a loop over many iterations."""

    def iterate(train: TrainState, actor_state: ActorState, progress: Progress):
        actor_state, rollout, tally = collect(acting_policy(agent, train), actor_state, train.counters)
        train, progress, _ = update.traceable(train, progress, rollout, tally)
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


def _two_programs(
    agent: Agent, collect: Callable, update: DeviceUpdate | HostReplayUpdate, stopwatch: Stopwatch
) -> tuple[Callable, Callable]:
    """Return `advance` and `compile` for environments that are not arrays, or a replay that is on the host."""
    collect_program: Any = jax.jit(collect, donate_argnums=1)

    def advance(train, actor_state, progress, iterations):
        for _ in range(iterations):
            policy, counters = gathered((acting_policy(agent, train), train.counters))
            acting = partial(collect_program, policy, actor_state, counters)
            if not stopwatch.due():
                actor_state, rollout, tally = acting()
                train, progress, _ = update(train, progress, rollout, tally)
                continue
            train = jax.block_until_ready(update.finish(train))
            (actor_state, rollout, tally), acting_seconds = timed(acting)
            (train, progress, _), learning_seconds = timed(partial(update, train, progress, rollout, tally))
            stopwatch.record(acting_seconds, learning_seconds)
        return update.finish(train), actor_state, progress

    def compile(train, actor_state, progress):
        nonlocal collect_program
        policy, counters = gathered((acting_policy(agent, train), train.counters))
        collecting = collect_program.lower(policy, actor_state, counters)
        _, rollout, tally = collecting.out_info
        # One is compiled while the other is traced.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(collecting.compile)
            size = update.compile(train, progress, rollout, tally)
            collect_program = compiled.result()
        return size + temporary_bytes(collect_program)

    return advance, compile


class PipelineState(eqx.Module):
    """The state of the environments, and the rollout that led to it, which is not learned from yet."""

    actor: ActorState
    rollout: Trajectory
    tally: Tally


def pipeline(agent: Agent, env: Env, learner: Learner, rollout_length: int, total_steps: int) -> Programs:
    """Return the programs of the pipelined loop.  A run's last rollout is neither learned from nor counted."""

    def collect(observed: tuple[Policy, Counters], actor_state: ActorState) -> PipelineState:
        policy, counters = observed
        progress = counters.env_steps / total_steps
        return PipelineState(*collect_rollout(agent, env, policy, actor_state, rollout_length, progress))

    def observe(train: TrainState) -> tuple[Policy, Counters]:
        # In separate buffers: the next update overwrites the learner's while these still act.
        return jax.tree.map(jnp.copy, (acting_policy(agent, train), train.counters))

    collect_program: Any = jax.jit(collect, donate_argnums=1)
    observe_program = jax.jit(observe)
    update = make_update(learner, observe)
    stopwatch = Stopwatch()

    def begin(train: TrainState, actor_state: ActorState) -> PipelineState:
        return collect_program(gathered(observe_program(without_replay(train))), actor_state)

    def advance(train: TrainState, state: PipelineState, progress: Progress, iterations: int):
        observed = gathered(observe_program(without_replay(train)))
        # JAX runs in sequence what one thread dispatches on a CPU, so that a second thread dispatches the rollout.
        with ThreadPoolExecutor(1, "actor") as pool:
            for _ in range(iterations):
                acting = partial(collect_program, observed, state.actor)
                if not stopwatch.due():
                    collecting = pool.submit(acting)
                    train, progress, observed = update(train, progress, state.rollout, state.tally)
                    state = collecting.result()
                    continue
                train, state = jax.block_until_ready((update.finish(train), state))
                collecting = pool.submit(timed, acting)
                learning = partial(update, train, progress, state.rollout, state.tally)
                (train, progress, observed), learning_seconds = timed(learning)
                state, acting_seconds = collecting.result()
                stopwatch.record(acting_seconds, learning_seconds)
        return update.finish(train), state, progress

    def compile(train: TrainState, state: PipelineState, progress: Progress) -> int:
        nonlocal collect_program
        collecting = collect_program.lower(jax.eval_shape(observe, without_replay(train)), state.actor)
        # One is compiled while the other is traced.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(collecting.compile)
            size = update.compile(train, progress, state.rollout, state.tally)
            collect_program = compiled.result()
        return size + temporary_bytes(collect_program)

    def fresh_progress(train: TrainState, state: PipelineState) -> Progress:
        return update.zero_progress(train, state.rollout, state.tally)

    return Programs(begin, advance, fresh_progress, compile, stopwatch)


LOOPS = {"synchronous": synchronous, "pipeline": pipeline}
"""The loops by the name in `loop.name`."""
