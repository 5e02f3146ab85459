"""A run from its start to its end: the loop, and what surrounds it.

Python looks at the device after each chunk of iterations.  Ctrl-C and termination set a flag, so that the loop ends
where what was learned can be saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bircher import devices
from bircher.config.config import Config
from bircher.envs.base import Env, failure
from bircher.envs.config import EnvSource
from bircher.errors import CheckpointError, EvaluationFailed, EvaluationStopped, LearnerLost, RunFailed
from bircher.runs import build, costs, directory, inspect, loaded_agent, logger
from bircher.runs.build import Parts
from bircher.runs.directory import CHECKPOINTS, Saver, copy_buffers
from bircher.runs.loaded_agent import LoadedAgent
from bircher.runs.logger import Averages, RunLogger, scores
from bircher.training import learner
from bircher.training.learner import TrainState
from bircher.training.loops import Progress
from bircher.training.rollout import ActorState, describe_failure, start_actors
from bircher.training.sharding import gathered
from bircher.types import Counters


class Run(NamedTuple):
    """The result of a run that has ended."""

    path: Path
    agent: LoadedAgent
    counters: dict[str, int | float]
    stopped: bool
    """Whether the user ended the run before its last step."""


class ResumePoint(NamedTuple):
    """The state from which a run continues: that of a checkpoint, or none for a new run."""

    train: TrainState | None = None
    actor: Any = None
    """The loop's state with that of the environments; None if the environments are reset."""
    env_steps: int | None = None
    wall_seconds: float = 0.0
    generation: int = 0
    """The number of times that the run was resumed; environments that are reset have other seeds each time."""


SECONDS = 1.0
"""The time that one chunk should take, which is also the time between two reads of metrics."""


class PendingChunk(NamedTuple):
    """A chunk that was dispatched to the device, and its results, which may not be computed yet."""

    progress: Progress
    state: tuple[Any, jax.Array]
    """(counters, number of updates that were not finite) after the chunk."""
    iterations: int
    seconds: Callable[[], float]
    """() -> the time that the chunk took, after waiting for its end."""


class ChunkScheduler:
    """The sizes of chunks of iterations, which take about a second each.

    A chunk never passes a goal by more than one iteration.  An iteration takes at most `steps` environment steps and
    ends at most `episodes` episodes, and fewer if environments are reset.  Therefore a goal is reached at the same
    iteration for any sizes of chunks.
    """

    def __init__(self, num_envs: int, rollout_length: int):
        self.steps = num_envs * rollout_length
        # The shortest episode is one action and one reset.
        self.episodes = num_envs * -(-rollout_length // 2)
        self._chunk = 1

    def chunk(self, steps_left: int, episodes_left: int | None, nothing_pending: bool) -> int:
        """Return the iterations of the next chunk, given the steps and episodes that are left after pending chunks.

        It is 0 if the pending chunks may reach a goal.  If `nothing_pending`, it is at least 1.
        """
        safe = steps_left // self.steps
        if episodes_left is not None:
            safe = min(safe, episodes_left // self.episodes)
        return min(self._chunk, max(safe, 1 if nothing_pending else 0))

    def record(self, iterations: int, seconds: float) -> None:
        """Adapt the size of chunks to the time that one took."""
        size = round(iterations * SECONDS / max(seconds, 1e-6))
        # At the first measurement the machine may still be warming up.
        self._chunk = max(1, min(size, 8 * iterations))


class Clock:
    """The time that each chunk takes from its possible beginning, measured by a thread that waits for its end.

    The time at which Python reads a chunk cannot be used, because some loops block until the next one has nearly ended.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "clock")
        self._ended = time.monotonic()

    def begin(self) -> Callable[[jax.Array], Callable[[], float]]:
        """Start to measure a chunk that is dispatched now.

        Returns a function of an array of the chunk's result, which returns a function that waits and returns seconds.
        """
        at = time.monotonic()
        return lambda array: self._thread.submit(self._wait, array, at).result

    def close(self) -> None:
        """End the thread, after all chunks have ended."""
        self._thread.shutdown()

    def _wait(self, array: jax.Array, at: float) -> float:
        jax.block_until_ready(array)
        before, self._ended = self._ended, time.monotonic()
        return max(self._ended - max(at, before), 1e-9)


class StopRequest:
    """A flag that SIGINT or SIGTERM sets while the block runs; a second signal has its usual effect."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


class Training:
    """A run that is possible and has a folder; nothing is compiled yet."""

    def __init__(
        self,
        config: Config,
        source: EnvSource | None,
        env: Env,
        parts: Parts,
        path: Path,
        device: devices.Device,
        resume_point: ResumePoint,
        sentences: tuple[str, ...] = (),
    ):
        self.path = path
        self._config, self._source, self._env, self._parts, self._device = config, source, env, parts, device
        self._resume_point, self._sentences = resume_point, sentences
        self._agent = parts.agent
        self._scheduler = ChunkScheduler(config.env.num_envs, config.loop.rollout_length)
        self._averages = Averages(env.spec.agents)
        self._pending: list[PendingChunk] = []
        self._train: Any = None
        self._actor: Any = None
        self._programs: Any = None
        self._advanced = False
        self._counters: dict[str, int] = {"env_steps": 0, "env_frames": 0, "learner_steps": 0, "episodes": 0}
        self._forecast = costs.Forecast(config)
        mode, self._limit = config.evaluation.mode, costs.evaluation_limit(config, env.spec)
        self._monitor = inspect.Monitors(parts, config)
        self._gradients = logger.GradientMonitor(parts, config) if config.evaluation.gradients else None
        self._evaluator = loaded_agent.make_evaluator(
            parts.agent, config, source, config.seed, mode, "monitor", self._limit
        )

    def hold(self, descriptor: int) -> None:
        """Keep the lock of the folder until the run has ended."""
        self._claim = descriptor

    def run(self) -> Run:
        """Train until the last step (or episode), or until SIGINT or SIGTERM; the last state is saved.

        Raises:
          RunFailed: an environment failed, or a loss was not finite; the state before is saved.
          CheckpointError: a checkpoint could not be written.
        """
        with contextlib.ExitStack() as stack:
            if self._config.debug:
                stack.enter_context(jax.disable_jit())
                stack.enter_context(jax.debug_nans(True))
            self._stop = stack.enter_context(StopRequest())
            self._started_at = time.monotonic()
            stack.callback(os.close, self._claim)
            stack.callback(self._release)
            self._clock = Clock()
            stack.callback(self._clock.close)
            self._logger = RunLogger(self.path, self._config, self._resume_point.env_steps)
            stack.callback(self._logger.close)
            settings = self._config.checkpoint
            self._saver = Saver(self.path / CHECKPOINTS, settings.keep, settings.replay_every)
            stack.callback(self._saver.close)
            for sentence in self._sentences:
                self._logger.say(sentence)
            try:
                self._begin()
                self._loop()
            except (RunFailed, EvaluationFailed) as error:
                raise RunFailed(f"{error}; {self._save_after_failure(error)}") from error
            if self._advanced or self._resume_point.train is None:
                self._save(last=True)
                self._saver.wait()
            agent = self._loaded_agent()
            self._picture(agent)
            return Run(self.path, agent, self._counters_now(), self._stop.requested and not self._done())

    def _begin(self) -> None:
        """Create or restore the state, and compile the programs."""
        actor_key, train_key = jax.random.split(jax.random.key(self._config.seed))
        resumed = self._resume_point.actor is not None
        self._actor = self._resume_point.actor if resumed else self._first_rows(actor_key)
        self._train = self._resume_point.train
        if self._train is None:
            self._train = self._parts.init(train_key, self._actor.timestep)
        else:
            self._train = self._parts.place(self._train)
        if layout := self._parts.learner.layout:
            of_learners = "" if layout.num_learners == 1 else f" of {layout.num_learners} learners"
            self._logger.say(f"each update is divided over {layout.mesh.size} devices{of_learners}")
        counters, _ = jax.device_get(_read_counters(self._train))
        self._counters = {name: int(value) for name, value in counters._asdict().items()}
        config, count = self._config, self._config.evaluation.count
        goals = [config.steps * number // count for number in range(1, count + 1)]
        self._milestones = [goal for goal in goals if goal > self._counters["env_steps"]]
        if self._done():
            return
        self._programs = build.make_loop(config, self._env, self._parts)
        snapshots = self._programs.snapshots
        if snapshots:
            state = ()
        else:
            state = self._actor if resumed else self._programs.state_shapes(self._train, self._actor)
        self._zero = self._programs.fresh_progress(self._train, state)
        if not config.debug:
            if self._gradients and self._milestones:
                self._gradients.compile(self._train)  # on another core, while the programs are compiled
            taken = self._programs.compile(self._train, state, self._zero)
            if sentence := costs.update_sentence(config, taken, self._device):
                self._logger.say(sentence)
        if not resumed:
            self._actor = self._programs.begin(self._train, self._actor)
        elif snapshots:
            self._actor = snapshots.resume(self._train, self._actor)

    def _first_rows(self, key: jax.Array) -> ActorState:
        """Reset the environments, and return their state in separate buffers, because it will be donated."""
        try:
            return copy_buffers(
                start_actors(self._agent, self._env, jax.random.fold_in(key, self._resume_point.generation))
            )
        except Exception as error:  # the environment's package may raise any error
            raise RunFailed(f"{self._env.spec.id} failed at its first reset: {error}") from error

    def _loop(self) -> None:
        """Keep one chunk running while the previous one is read, so that the device never waits for Python."""
        # The time starts here, because a checkpoint right after a long compilation would contain nothing new.
        self._saved_at = time.monotonic()
        while True:
            iterations = 0 if self._stop.requested else self._next_iterations()
            if iterations:
                self._dispatch(iterations)
            while len(self._pending) > (1 if iterations else 0):
                self._read(self._pending.pop(0))
            if not self._pending:
                self._evaluate_if_due()
                if self._stop.requested or self._done():
                    return
            if time.monotonic() - self._saved_at > self._config.checkpoint.every_seconds and not self._saver.busy():
                self._save()

    def _done(self) -> bool:
        return self._config.reached(self._counters)

    def _next_iterations(self) -> int:
        """Return the iterations of the next chunk; 0 if the pending chunks may reach a goal."""
        pending_iterations = sum(pending.iterations for pending in self._pending)
        goal = min([self._config.steps, *self._milestones[:1]])
        steps = goal - self._counters["env_steps"] - pending_iterations * self._scheduler.steps
        episodes = None
        if self._config.episodes is not None:
            episodes = (
                self._config.episodes - self._counters["episodes"] - pending_iterations * self._scheduler.episodes
            )
        nothing_pending = not self._pending
        if nothing_pending and (steps <= 0 or (episodes is not None and episodes <= 0)):
            return 0
        return self._scheduler.chunk(max(steps, 0), None if episodes is None else max(episodes, 0), nothing_pending)

    def _dispatch(self, iterations: int) -> None:
        watching = self._clock.begin()
        self._train, self._actor, progress = self._programs.advance(
            self._train, self._actor, copy_buffers(self._zero), iterations
        )
        self._pending.append(
            PendingChunk(progress, _read_counters(self._train), iterations, watching(progress.iterations))
        )

    def _read(self, pending: PendingChunk, failed: bool = False) -> None:
        """Wait for a chunk and write its metrics.

        Raises:
          RunFailed: an environment or an update failed; not raised again if `failed`.
        """
        progress, (counters, non_finite) = jax.device_get((pending.progress, pending.state))
        seconds = pending.seconds()
        before, self._counters = self._counters, {name: int(value) for name, value in counters._asdict().items()}
        metrics = self._averages(progress)
        steps = self._counters["env_steps"] - before["env_steps"]
        metrics["speed/env_steps_per_second"] = steps / seconds
        metrics["speed/updates_per_second"] = (self._counters["learner_steps"] - before["learner_steps"]) / seconds
        if monitor := self._programs.monitor:
            metrics |= monitor.metrics()
            for sentence in monitor.sentences():
                self._logger.say(sentence)
        used = devices.used_bytes(self._device)
        if used is not None:
            metrics["speed/memory_bytes"] = used
        self._logger.write(self._counters_now(), metrics)
        if self._advanced:
            self._scheduler.record(pending.iterations, seconds)
        left = self._config.steps - self._counters["env_steps"]
        if sentence := self._forecast(steps, seconds, left, metrics.get("speed/acting_share")):
            self._logger.say(sentence)
        self._advanced = True
        if not failed:
            self._require_sound(int(progress.tally.failed), int(progress.failed_at), int(non_finite))

    def _require_sound(self, failed: int, failed_at: int, non_finite: int) -> None:
        env_id = self._env.spec.id
        if failed >= 0:
            reason = failure(self._env) or describe_failure(failed, self._env.num_envs)
            raise RunFailed(f"{env_id} failed by environment step {failed_at:,}: {reason}")
        if non_finite:
            raise RunFailed(
                f"the loss of {non_finite} updates in {env_id} was not finite by environment step "
                f"{self._counters['env_steps']:,}, learner step {self._counters['learner_steps']:,}"
            )

    def _evaluate_if_due(self) -> None:
        steps = self._counters["env_steps"]
        due = bool(self._milestones) and (steps >= self._milestones[0] or self._done())
        if not due or self._stop.requested:
            return
        self._milestones = [milestone for milestone in self._milestones if milestone > steps]
        train = self._programs.whole(self._train)
        policy = gathered(learner.acting_policy(self._agent, train))
        with contextlib.suppress(EvaluationStopped):
            report = self._evaluator(
                policy, self._config.evaluation.episodes, self._config.seed, lambda: self._stop.requested
            )
            metrics = self._monitor(policy, train.replay)
            metrics |= self._gradients(train) if self._gradients else {}
            self._logger.write(self._counters_now(), scores(report) | metrics)

    def _save(self, last: bool = False, with_actor: bool = True) -> None:
        """Begin to write the state after all pending chunks."""
        self._saved_at = time.monotonic()
        train = self._programs.whole(self._train) if self._programs else self._train
        parts = {"train": learner.without_replay(train), "replay": train.replay}
        if self._env.pure and with_actor and (actor := self._actor_to_save()) is not None:
            parts["actor"] = actor
        counters, _ = _read_counters(self._train)
        meta = {
            "generation": self._resume_point.generation,
            "wall_seconds": self._wall_seconds(),
            "spec": directory.spec_to(self._env.spec),
        }
        self._saver.save(parts, meta, counters, last)

    def _actor_to_save(self) -> Any:
        """Return the loop's state as arrays, or None if it cannot be saved."""
        snapshots = self._programs.snapshots if self._programs else None
        return self._actor if snapshots is None else snapshots.take()

    def _save_after_failure(self, error: Exception) -> str:
        """Save the state, unless it is not finite or lost, and return a clause that says what was saved."""
        if isinstance(error, LearnerLost):
            self._pending.clear()
            self._saver.wait()
            return self._saver.last_good()
        if self._train is None:
            return "nothing was learned yet"
        while self._pending:
            self._read(self._pending.pop(0), failed=True)
        if not bool(jax.jit(learner.all_finite)(gathered(learner.without_replay(self._train)))):
            return self._saver.last_good()
        # Without the environments, whose state may contain the failure.
        try:
            self._save(last=True, with_actor=False)
            self._saver.wait()
        except CheckpointError as error:
            return f"{error}; {self._saver.last_good()}"
        return f"what was learned in {self._counters['env_steps']:,} steps is saved in {self.path}"

    def _loaded_agent(self) -> LoadedAgent:
        policy = gathered(learner.acting_policy(self._agent, self._train))
        return LoadedAgent(self._config, self._env.spec, self._agent, policy, self._source, self._counters["env_steps"])

    def _picture(self, agent: LoadedAgent) -> None:
        """Write the last frame of one more evaluation episode to TensorBoard."""
        if not self._config.evaluation.count or self._stop.requested or not self._advanced:
            return
        greedy = self._config.evaluation.mode == "greedy"
        try:
            frames = loaded_agent.episode_frames(agent, self._config.seed, greedy, max_steps=self._limit)
            self._logger.image("eval/episode", frames[-1], self._counters_now())
        except Exception as error:  # a window system or the environment's drawing may raise any error
            self._logger.say(f"no picture of an episode could be drawn: {error}")

    def _counters_now(self) -> dict[str, int | float]:
        return {**self._counters, "wall_seconds": round(self._wall_seconds(), 3)}

    def _wall_seconds(self) -> float:
        return self._resume_point.wall_seconds + time.monotonic() - self._started_at

    def _release(self) -> None:
        """Wait for all programs, and close the environments.

        A program that still runs would use EnvPool's invalid handle, or a replay that calls Python.
        """
        jax.block_until_ready([pending.progress for pending in self._pending])
        with contextlib.suppress(RuntimeError):  # the buffers are donated if a chunk failed to begin
            jax.block_until_ready(self._train and self._train.replay)
        self._evaluator.close()
        self._env.close()


@jax.jit
def _copy_counters(counters: Counters, non_finite: jax.Array) -> tuple[Counters, jax.Array]:
    return jax.tree.map(jnp.copy, (counters, non_finite))


def _read_counters(train: TrainState) -> tuple[Counters, jax.Array]:
    """Return the counters, and the number of updates left out as not finite, in separate buffers."""
    return _copy_counters(*gathered((train.counters, train.non_finite)))
