"""`loop=ray`: rollouts by workers in other processes or on other machines, placed by Ray, and the loop that learns.

Each of N workers has a share of the environments.  Rollout n of the run is that of all shares, so that the number of
workers changes neither the batch nor the replay, and each environment's rows stay in sequence.

    driver       r_1 … r_{n-1} learned: policy n - 1, one object reference for all workers
    each worker  collects its part of r_n, r_{n+1}, … with the newest policy, at most `ray.max_lag` rollouts old

A worker may begin its part of r_n once policy n - 1 - max_lag exists.  So a slow worker holds the others up only when
they are max_lag rollouts ahead of it, and at most max_lag + 1 parts of each worker wait or are collected.  With
max_lag = 1 the policy of every part is fixed, as in the pipelined loop, and a run can be repeated while no worker dies.

A worker that dies is replaced.  Its environments begin anew with other seeds, and the new worker collects the part
that was lost.  Parts are numbered, and each is learned from once.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bircher.agents.base import Agent
from bircher.envs.base import Actions, EnvState, blank_rows
from bircher.errors import EnvironmentFailure, RunFailed, UnsupportedEnvironment
from bircher.training.cluster import RayConfig, connect, ray_module
from bircher.training.learner import Learner, TrainState, without_replay
from bircher.training.learners import Learners, observe
from bircher.training.loops import Programs, Progress, Snapshots, Updated, make_update
from bircher.training.remote_worker import (
    HostTree,
    Part,
    Recipe,
    RemoteWorker,
    Share,
    failed_part,
    from_host,
    join,
    shares,
    to_host,
)
from bircher.training.rollout import ActorState, describe_failure, start_actors
from bircher.training.sharding import gathered
from bircher.types import EnvSpec, Key, Tally, TimeStep, Trajectory


class WorkerState(eqx.Module):
    """A worker's state in a checkpoint: its oldest part that is not learned from, and its environments after it."""

    actor: ActorState
    rollout: Trajectory
    tally: Tally
    lag: Any
    """Whole number of rollouts by which the policy of the part was older than the policy that learns from it."""


class Collected(NamedTuple):
    """A part that arrived."""

    number: int
    """The rollout's number."""
    lag: int
    part: Part
    reference: Any
    """Ray's reference to the part, for the other learners, if there are several."""


class _Worker:
    """What the driver knows of one worker."""

    def __init__(self, share: Share):
        self.share = share
        self.parts: deque[Collected] = deque()
        self.actor: Any = None
        self.process = 0
        """How many times the worker was replaced."""
        self.number = 0
        """The number of the last part that arrived."""
        self.busy = False
        self.deaths = 0
        """Deaths since the last part that arrived."""
        self.idle_since = 0.0

    def __str__(self) -> str:
        share = self.share
        last = share.first + share.count - 1
        which = f"environments {share.first} to {last}" if share.count > 1 else f"environment {share.first}"
        return f"worker {share.index} ({which})"


MOST_DEATHS = 3
"""The number of times that a worker is begun again without a rollout in between."""
GENERATIONS = 2**20
"""Times that a run can be resumed; a replaced worker's environments have seeds of a generation beyond them."""


class Workers:
    """All environments of a run, in workers: an `Env` whose steps are taken elsewhere."""

    def __init__(
        self, spec: EnvSpec, pure: bool, num_envs: int, config: RayConfig, recipe: Recipe, generation: int,
        learners: Learners | None = None,
    ):  # fmt: skip
        """Connect to Ray; workers are started by `launch`.

        `learners` are those of the run, if there are several, and end with the workers.

        Raises:
          ConfigError: there is no cluster.
        """
        self.spec, self.pure, self.num_envs, self._recipe = spec, pure, num_envs, recipe
        self._config, self._generation = config, generation
        self.learners = learners
        self._workers = [_Worker(share) for share in shares(num_envs, config.workers)]
        self._disconnect = connect(config)
        self._key: Any = None
        # How many rollouts the newest policy learned from, and Ray's reference to it.
        self._policy: tuple[int, Any] | None = None
        self._learned = 0
        self._failure: str | None = None
        self._error: Exception | None = None
        self._news: list[str] = []
        self._lags: list[int] = []
        self._since = time.monotonic()
        self._waited = self._idled = 0.0
        self._changed = threading.Condition()
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)

    # As environments.

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Return rows of zeros: workers reset their environments themselves."""
        return (), blank_rows(self.spec, self.num_envs)

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """Refuse, because workers step their environments themselves."""
        raise TypeError(f"{self.spec.id} is stepped by workers")

    def failure(self) -> str | None:
        """Return the error of an environment, with its worker; None if there is none."""
        return self._failure

    def close(self) -> None:
        """End all workers, and Ray if it was started here."""
        if self._thread.is_alive():
            self._events.put(None)
            self._thread.join()
            ray = ray_module()
            for worker in self._workers:
                if worker.actor is not None:
                    with contextlib.suppress(ray.exceptions.RayError):
                        ray.kill(worker.actor)
        if self.learners is not None:
            self.learners.close()
        self._disconnect()

    def state_shapes(self, rollout: Trajectory, tally: Tally) -> tuple[WorkerState, ...]:
        """Return the shapes of a `snapshot`, from those of a whole rollout; for environments that can be saved."""

        def one(share: Share) -> WorkerState:
            agent, env = self._recipe.make(share, 0)
            with contextlib.closing(env):
                actor = jax.eval_shape(partial(start_actors, agent, env), jax.random.key(0))
            rows = share.count * env.spec.num_agents
            part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), rollout)
            return WorkerState(actor, part, tally, jax.ShapeDtypeStruct((), jnp.int32))

        return tuple(one(worker.share) for worker in self._workers)

    # As a monitor.

    def metrics(self) -> dict[str, float]:
        """Return the policy's lag, and who waited for whom, since the last call."""
        with self._changed:
            now = time.monotonic()
            for worker in self._workers:
                self._count_idle(worker, now)
            seconds = max(now - self._since, 1e-9)
            metrics = {
                "speed/learner_waiting": min(self._waited / seconds, 1.0),
                "speed/workers_waiting": min(self._idled / seconds / len(self._workers), 1.0),
            }
            if self._lags:
                metrics["act/policy_lag"] = float(np.mean(self._lags))
            self._lags, self._since, self._waited, self._idled = [], now, 0.0, 0.0
            return metrics

    def sentences(self) -> list[str]:
        """Return what happened to workers since the last call."""
        with self._changed:
            news, self._news = self._news, []
            return news

    # The driver's side.

    def launch(self) -> None:
        """Start the workers' processes, which then compile their rollout, without waiting for them."""
        self._thread.start()
        workers, learners = self._config.workers, self._config.learners
        cores, needed = int(ray_module().cluster_resources().get("CPU", 0)), workers + learners - 1
        with self._changed:
            if cores < needed:
                others = f" and {learners - 1} of ray.learners={learners}" if learners > 1 else ""
                self._news.append(
                    f"ray.workers={workers}{others} need a core each, and the cluster has {cores}: the run begins when "
                    "more join"
                )
            for worker in self._workers:
                self._begin(worker)

    def begin(self, key: Key, observed: HostTree, states: tuple[WorkerState, ...] | None = None) -> None:
        """Let the workers collect, with the first policy and from the states of a checkpoint, if any."""
        with self._changed:
            self._key = key
            for index, worker in enumerate(self._workers):
                self._start(worker, None if states is None else states[index])
        self._publish(0, observed)

    def next_rollout(self) -> tuple[Trajectory, Tally]:
        """Wait for the next rollout, and return it with the sums over it.

        Raises:
          RunFailed: a worker cannot continue.
        """
        return self.joined(self.next_parts())

    def joined(self, collected: list[Collected]) -> tuple[Trajectory, Tally]:
        """Return the rollout of these parts, and the sums over it."""
        return join([each.part for each in collected], self.num_envs)

    def rows_of(self, collected: list[Collected], rows: slice) -> tuple[Any, ...]:
        """Return (start, *references) of the parts with these rows, which begin at row `start` of the parts."""
        agents = self.spec.num_agents
        found = []
        for worker, each in zip(self._workers, collected, strict=True):
            first, count = worker.share.first * agents, worker.share.count * agents
            if first < rows.stop and first + count > rows.start:
                found.append((first, each.reference))
        return rows.start - found[0][0], *(reference for _, reference in found)

    def next_parts(self) -> list[Collected]:
        """Wait for the parts of the next rollout, one of each worker.

        Raises:
          RunFailed: a worker cannot continue.
        """
        began = time.monotonic()
        with self._changed:
            self._wait_for_parts()
            if self._error is not None:
                raise self._error
            collected = [worker.parts.popleft() for worker in self._workers]
            self._waited += time.monotonic() - began
            self._lags += [each.lag for each in collected]
        assert all(each.number == self._learned + 1 for each in collected), "a part is learned from once, in order"
        parts = [each.part for each in collected]
        if (failed := failed_part(parts)) is not None and self._failure is None:
            worker = self._workers[failed]
            self._failure = f"{worker}: {_failure_of(worker, parts[failed])}"
        return collected

    def publish(self, observed: HostTree) -> None:
        """Give the workers the policy that learned from the last rollout."""
        self._learned += 1
        self._publish(self._learned, observed)

    def snapshot(self) -> tuple[WorkerState, ...] | None:
        """Return what a checkpoint contains of the workers, once each has a part that is not learned from.

        It is None if a worker cannot continue.
        """
        with self._changed:
            self._wait_for_parts()
            if self._error is not None:
                return None
            oldest = [worker.parts[0] for worker in self._workers]
        return tuple(
            WorkerState(from_host(each.part.state), each.part.rollout, each.part.tally, np.asarray(each.lag, np.int32))
            for each in oldest
            if each.part.state is not None
        )

    def _wait_for_parts(self) -> None:
        self._changed.wait_for(lambda: self._error is not None or all(worker.parts for worker in self._workers))

    def _publish(self, version: int, observed: HostTree) -> None:
        policy = (version, ray_module().put(observed))
        self._events.put(lambda: setattr(self, "_policy", policy))

    @property
    def _replaces_failed(self) -> bool:
        return self._config.failed_environments == "replace"

    # What the thread does.

    def _run(self) -> None:
        """Wait for events, and let every worker collect that may."""
        while (event := self._events.get()) is not None:
            with self._changed:
                try:
                    event()
                    self._submit()
                except Exception as error:  # the thread that learns raises it
                    self._error = self._error or error
                self._changed.notify_all()

    def _submit(self) -> None:
        """Let every idle worker collect whose policy is not too old."""
        if self._policy is None or self._error is not None:
            return
        version, reference = self._policy
        for worker in self._workers:
            number = worker.number + 1
            lag = number - 1 - version
            if worker.busy or lag > self._config.max_lag:
                continue
            self._count_idle(worker, time.monotonic())
            worker.busy = True
            collecting = worker.actor.collect.remote(reference)
            self._hear(worker, collecting, partial(self._arrived, worker, number, lag, reference=collecting))

    def _arrived(self, worker: _Worker, number: int, lag: int, part: Part, reference: Any) -> None:
        if self._replaces_failed and failed_part([part]) is not None:
            self._begin_again(worker, f"an environment of {worker} failed", _failure_of(worker, part))
            return
        worker.parts.append(Collected(number, lag, part, None if self.learners is None else reference))
        worker.number, worker.deaths, worker.busy, worker.idle_since = number, 0, False, time.monotonic()

    def _begin(self, worker: _Worker) -> None:
        """Start a worker's process, and let it make its environments."""
        remote: Any = ray_module().remote(num_cpus=1, max_restarts=0)(RemoteWorker)
        worker.actor, worker.busy = remote.remote(worker.share, sys.path), True
        generation = self._generation + worker.process * GENERATIONS
        self._hear(worker, worker.actor.prepare.remote(self._recipe, generation))

    def _start(self, worker: _Worker, state: WorkerState | None = None) -> None:
        """Give a worker its random key, or the state of a checkpoint; from then on it may collect."""
        key = self._key
        # A replaced worker's key is that of no other worker.
        numbers = (worker.share.index, GENERATIONS, worker.process) if worker.process else (worker.share.index,)
        for number in numbers:
            key = jax.random.fold_in(key, number) if number else key
        actor = None
        if state is not None and self._replaces_failed and int(state.tally.failed) >= 0:
            state = None  # its environments begin new episodes, as after a failure in this run
        if state is not None:
            actor = to_host(state.actor)
            rollout, tally = jax.device_get((state.rollout, state.tally))
            part = Part(rollout, tally, None, actor)
            self._arrived(worker, 1, int(state.lag), part, None if self.learners is None else ray_module().put(part))
        worker.busy, worker.idle_since = False, time.monotonic()
        self._hear(worker, worker.actor.start.remote(to_host(key), actor))

    def _hear(self, worker: _Worker, reference: Any, arrived: Callable[[Any], None] = lambda _: None) -> None:
        """Pass the result of a worker's method to a function on the thread, unless the worker was replaced."""
        process = worker.process

        def hear(future: Future[Any]) -> None:
            if worker.process != process:
                return
            error = future.exception()
            if error is not None:
                self._replace(worker, error)
            else:
                arrived(future.result())

        reference.future().add_done_callback(lambda future: self._events.put(partial(hear, future)))

    def _replace(self, worker: _Worker, error: BaseException) -> None:
        """Begin a worker again whose process or machine is gone.

        Raises:
          RunFailed: its own code raised, or it ends again and again.
        """
        ray = ray_module()
        if not isinstance(error, ray.exceptions.RayTaskError):
            self._begin_again(worker, f"{worker} ended", (str(error) or type(error).__name__).splitlines()[0])
            return
        cause = getattr(error, "cause", error)
        reason = f"{type(cause).__name__}: {cause}"
        if not (self._replaces_failed and isinstance(cause, EnvironmentFailure | UnsupportedEnvironment)):
            raise RunFailed(f"{self.spec.id} failed in {worker}: {reason}") from error
        self._begin_again(worker, f"an environment of {worker} failed", reason)

    def _begin_again(self, worker: _Worker, event: str, reason: str) -> None:
        """Replace a worker, and have its part collected again with new episodes.

        Raises:
          RunFailed: this happens again and again.
        """
        ray = ray_module()
        worker.process, worker.deaths = worker.process + 1, worker.deaths + 1
        if worker.deaths > MOST_DEATHS:
            raise RunFailed(f"{event}, for the {worker.deaths}th time without a rollout in between: {reason}")
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        self._news.append(f"{event}, and the worker is replaced, with new episodes in its environments: {reason}")
        self._begin(worker)
        if self._key is not None:
            self._start(worker)

    def _count_idle(self, worker: _Worker, now: float) -> None:
        if not worker.busy:
            self._idled += now - worker.idle_since
            worker.idle_since = now


def _failure_of(worker: _Worker, part: Part) -> str:
    """Return what happened to an environment of a part in which one failed."""
    return part.failure or describe_failure(int(part.tally.failed), worker.share.count)


def remote(agent: Agent, env: Workers, learner: Learner) -> Programs:
    """Return the programs of the loop with workers; its state is ().

    A run's last rollouts, which workers collected in advance, are neither learned from nor counted.
    """

    update, learners = make_update(learner, partial(observe, agent)), env.learners
    observe_program = jax.jit(partial(observe, agent))
    rollout, tally = learner.rollout_shapes()

    def observed(train: TrainState) -> HostTree:
        return to_host(observe_program(gathered(without_replay(train))))

    def begin(train: TrainState, actor_state: ActorState) -> tuple[()]:
        env.begin(actor_state.key, observed(train))
        return ()

    def resume(train: TrainState, states: tuple[WorkerState, ...]) -> tuple[()]:
        env.begin(states[0].actor.key, observed(train), states)
        return ()

    def learn(train: TrainState, progress: Progress, begins: bool) -> Updated:
        collected = env.next_parts()
        rows, sums = env.joined(collected)
        if learners is None:
            return update(train, progress, rows, sums)
        layout, leaves = learner.layout, [np.asarray(leaf) for leaf in jax.tree.leaves(sums)]
        assert layout is not None
        own = jax.tree.map(lambda leaf: leaf[layout.rows(0)], rows)
        with learners.together("update", lambda other: (begins, leaves, *env.rows_of(collected, layout.rows(other)))):
            return update(train, progress, own, sums)

    def advance(train: TrainState, state: tuple[()], progress: Progress, iterations: int):
        for iteration in range(iterations):
            train, progress, policy = learn(train, progress, iteration == 0)
            env.publish(to_host(policy))
        return update.finish(train), state, progress

    def fresh_progress(train: TrainState, state: tuple[()]) -> Progress:
        return update.zero_progress(train, rollout, tally)

    def compile(train: TrainState, state: tuple[()], progress: Progress) -> int:
        env.launch()
        if learners is None:
            return update.compile(train, progress, rollout, tally)
        with learners.together("compile"):
            return update.compile(train, progress, rollout, tally)

    snapshots = Snapshots(env.snapshot, partial(env.state_shapes, rollout, tally), resume)
    programs = Programs(begin, advance, fresh_progress, compile, env, snapshots)
    return programs if learners is None else programs._replace(whole=partial(learners.whole, learner))
