"""How fast a run's parts are, each compared with what limits it, and what the run waits for."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bircher import devices
from bircher.analysis import network_summary
from bircher.config.config import Config
from bircher.envs.base import Env, random_actions
from bircher.envs.config import EnvSource
from bircher.errors import RunFailed
from bircher.runs import build, logger
from bircher.runs.build import Parts
from bircher.runs.directory import copy_buffers
from bircher.training import cluster
from bircher.training.learner import acting_policy
from bircher.training.loops import make_update
from bircher.training.remote_worker import to_host
from bircher.training.rollout import collect_rollout, start_actors
from bircher.training.sharding import gathered
from bircher.training.workers import Workers
from bircher.types import Policy


class Speed(NamedTuple):
    """The speed of one part of a run."""

    name: str
    steps_per_second: float
    """Rows of all environments a second."""
    share: float | None
    """The speed divided by its limit; None where no limit is known."""
    limit: str
    """The limit, in words."""


class WorkerSpeeds(NamedTuple):
    """Predicts the speed of `loop=ray` with any number of workers, with a core for each, from measured seconds.

    A worker collects a rollout of n environments in a + b n seconds, including the time to send its rows.  The
    learner learns from the rollout of all E environments in l seconds, in which the workers collect the next one.  So
    an iteration with N workers takes

        max(a + b ceil(E / N), l)    seconds

    What the learner's process does to join the parts and to send a policy is not counted.
    """

    rows: int
    """The rows of a rollout of all environments."""
    num_envs: int
    """E"""
    fixed: float
    """a"""
    each: float
    """b"""
    learning: float
    """l"""

    @classmethod
    def fitted(cls, rows: int, num_envs: int, one: float, every: float, learning: float) -> WorkerSpeeds:
        """Return the model of a worker that takes these seconds for one environment, and for all of them."""
        each = max(every - one, 0.0) / max(num_envs - 1, 1)
        if each > one:  # by measurement alone: one environment takes no longer than a share of all
            each = every / num_envs
        return cls(rows, num_envs, max(one - each, 0.0), each, learning)

    def steps_per_second(self, workers: int) -> float:
        """Return the predicted rows of all environments a second."""
        return self.rows / max(self._collecting(workers), self.learning)

    def counts(self) -> list[int]:
        """Return the numbers of workers to show: powers of two, until the learner is the limit or no more are used."""
        found = [1]
        while found[-1] < self.num_envs and self._collecting(found[-1]) > self.learning:
            found.append(min(2 * found[-1], self.num_envs))
        return found

    def line(self) -> str:
        """Return the predictions as a sentence."""
        counts = self.counts()
        speeds = ", ".join(f"{count:,}: {self.steps_per_second(count):,.0f}" for count in counts)
        end = (
            "then the learner is the limit" if self._collecting(counts[-1]) <= self.learning else "one environment each"
        )
        return f"steps/s predicted by ray.workers, with a core for each: {speeds} ({end})"

    def _collecting(self, workers: int) -> float:
        return self.fixed + self.each * math.ceil(self.num_envs / workers)


class Bench(NamedTuple):
    """The speeds of a run's parts, and what to do about the slowest."""

    speeds: tuple[Speed, ...]
    waits_for: str
    advice: str
    with_workers: WorkerSpeeds | None = None
    """With `loop=ray`."""

    def lines(self) -> list[str]:
        """Return a table, with `loop=ray` the predictions for other numbers of workers, and a sentence."""
        rows = [("", "steps/s", "share of its limit", "the limit")]
        rows += [
            (name, f"{speed:,.0f}", "—" if share is None else f"{share:.0%}", limit)
            for name, speed, share, limit in self.speeds
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:3], widths[1:]), row[3]]) for row in rows]
        predicted = [] if self.with_workers is None else [self.with_workers.line()]
        end = f"this run waits for {self.waits_for}; try {self.advice}"
        return [*(line.rstrip() for line in table), *predicted, end]


def measure(config: Config, seconds: float = 3.0, source: EnvSource | None = None) -> Bench:
    """Measure environments, acting, learning and the whole loop of a configuration, each for so many seconds.

    With `loop=ray` it also measures one worker, and predicts the speed with other numbers of workers.  `source` is a
    callable that the configuration only names, or None.

    Raises:
      UnknownEnvironment, UnsupportedEnvironment, ConfigError, DeviceError: the configuration cannot be run here.
    """
    with contextlib.ExitStack() as stack:
        if config.loop.name == "ray":
            stack.callback(cluster.connect(config.ray))
        devices.use_device(config.device)
        devices.keep_programs()
        rows = config.env.num_envs * config.loop.rollout_length
        with contextlib.closing(build.make_env(config, source, config.env.num_envs, config.seed, "train")) as env:
            parts = build.make_parts(config, env.spec)
            playing, acting, learning = (1 / rate for rate in _parts(config, env, parts, seconds))
        possible = _operations(parts) / _arithmetic(min(seconds, 1.0))
        with_workers = None
        if config.loop.name == "ray":
            one, every = (_part_seconds(config, source, parts, count, seconds) for count in (1, config.env.num_envs))
            with_workers = WorkerSpeeds.fitted(rows, config.env.num_envs, one, every, learning)
        whole = 1 / _whole(config, source, seconds)
    apart = config.loop.name != "synchronous"
    workers = min(config.ray.workers, config.env.num_envs) if config.loop.name == "ray" else 1
    allowed = max(acting / workers, learning) if apart else acting + learning
    together = "the slower of both" if apart else "one after the other"
    speeds = (
        Speed("environments", rows / playing, None, "none is known"),
        Speed("acting", rows / acting, playing / acting, "the environments alone"),
        Speed("learning", rows / learning, possible / learning, "the arithmetic of this device"),
        Speed("the whole run", rows / whole, allowed / whole, f"acting and learning, {together}"),
    )
    verdict = _verdict(config, playing, acting / workers if apart else acting, learning, workers)
    return Bench(speeds, *verdict, with_workers)


def _verdict(config: Config, playing: float, acting: float, learning: float, workers: int) -> tuple[str, str]:
    """Return what a run waits for, and settings to change, from the seconds that a rollout takes in each part."""
    acts = acting > learning
    advice = logger.speed_advice(config, acts)
    if not acts:
        share = learning / (acting + learning)
        return f"learning ({share:.0%} of the time of acting and learning)", ", ".join(advice)
    share = acting / (acting + learning)
    if playing > acting * workers / 2:
        return f"its environments ({share:.0%} is acting, most of it in the environments)", ", ".join(advice)
    simulations = config.search.num_simulations
    advice = [f"fewer search.num_simulations (now {simulations})"] * bool(simulations) + advice[1:]
    return f"acting ({share:.0%}, most of it in the network and its search)", ", ".join(advice)


def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Return the calls a second, each until its result is there; the first one compiles and is not counted."""
    jax.block_until_ready(call())
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds or not count:
        jax.block_until_ready(call())
        count += 1
    return count / (time.monotonic() - began)


def _collect(config: Config, env: Env, parts: Parts, policy: Policy, state: Any) -> Any:
    return collect_rollout(parts.agent, env, policy, state, config.loop.rollout_length, 0.0)


def play_randomly(env: Env, length: int, carry: Any) -> Any:
    """Return (state, rows, random key) of environments after so many random actions."""

    def step(carry: Any, _: None) -> tuple[Any, None]:
        state, timestep, key = carry
        key, now = jax.random.split(key)
        return (*env.step(state, random_actions(env.spec, now, timestep)), key), None

    return jax.lax.scan(step, carry, None, length=length)[0]


def _parts(config: Config, env: Env, parts: Parts, seconds: float) -> list[float]:
    """Return the rollouts a second of the environments alone, of acting and of learning."""
    length = config.loop.rollout_length
    playing = _Repeated(jax.jit(partial(play_randomly, env, length)), (*env.reset(), jax.random.key(config.seed)))
    rates = [_rate(playing, seconds)]
    actor = copy_buffers(start_actors(parts.agent, env, jax.random.key(config.seed)))
    train = parts.init(jax.random.key(config.seed), actor.timestep)
    policy = gathered(acting_policy(parts.agent, train))
    collect = jax.jit(lambda state: _collect(config, env, parts, policy, state))
    acting = _Repeated(collect, actor, lambda result: result[0])
    rates.append(_rate(acting, seconds))
    _, rollout, tally = acting.result
    if int(tally.failed) >= 0:
        raise RunFailed(f"{env.spec.id} failed while it was measured")
    update = make_update(parts.learner)
    progress = copy_buffers(update.zero_progress(train, rollout, tally))
    learn = _Repeated(lambda it: update(it[0], it[1], rollout, tally), (train, progress), lambda result: result[:2])
    rates.append(_rate(learn, seconds))
    update.finish(learn.state[0])
    return rates


class _Repeated:
    """A function that is called with a part of its last result."""

    def __init__(self, function: Callable[[Any], Any], state: Any, following: Callable[[Any], Any] = lambda x: x):
        self._function, self.state, self._following = function, state, following
        self.result: Any = None

    def __call__(self) -> Any:
        self.result = self._function(self.state)
        self.state = self._following(self.result)
        return self.result


SIDE = 1024
"""The rows and columns of the matrices whose product measures a device's arithmetic."""


def _arithmetic(seconds: float) -> float:
    """Return the floating-point operations a second of a product of large matrices."""
    matrix = jnp.ones((SIDE, SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * SIDE**3 * _rate(lambda: product(matrix, matrix), seconds)


def _operations(parts: Parts) -> int:
    """Return the floating-point operations of matrices in the updates of one rollout."""
    rollout, tally = parts.learner.rollout_shapes()
    return network_summary.count(parts.learner.update, parts.template, rollout, tally)


def _part_seconds(config: Config, source: EnvSource | None, parts: Parts, num_envs: int, seconds: float) -> float:
    """Return the seconds in which a worker collects a rollout of so many environments and sends it."""
    alone = config.ray.model_copy(update={"workers": 1, "learners": 1})
    spec, key = parts.learner.spec, jax.random.key(config.seed)
    pool = Workers(spec, False, num_envs, alone, build.recipe(config, source), 0)
    with contextlib.closing(pool):
        policy = jax.jit(lambda key: parts.agent.init(key, spec))(key)
        observed = to_host((policy, jnp.zeros((), jnp.int32)))
        pool.launch()
        pool.begin(key, observed)

        def follow() -> None:
            pool.next_rollout()
            if (failed := pool.failure()) is not None:
                raise RunFailed(f"{spec.id} failed while it was measured: {failed}")
            pool.publish(observed)

        return 1 / _rate(follow, seconds)


def _whole(config: Config, source: EnvSource | None, seconds: float) -> float:
    """Return rollouts a second of the configured loop."""
    env = build.make_training_env(config, source, 0)
    with contextlib.closing(env):
        parts = build.make_parts(config, env.spec)
        programs = build.make_loop(config, env, parts)
        actor = copy_buffers(start_actors(parts.agent, env, jax.random.key(config.seed)))
        train = parts.init(jax.random.key(config.seed), actor.timestep)
        shapes = () if programs.snapshots else programs.state_shapes(train, actor)
        progress = programs.fresh_progress(train, shapes)
        programs.compile(train, shapes, progress)
        state = train, programs.begin(train, actor), copy_buffers(progress)
        loop = _Repeated(lambda it: programs.advance(it[0], it[1], it[2], 1), state)
        rate = _rate(loop, seconds)
        jax.block_until_ready(loop.state)
        return rate
