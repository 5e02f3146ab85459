"""Many runs as one program: jobs that differ in numbers alone are a batch axis, for a GPU.

`jax.vmap` makes one program of all runs whose network and terms are the same.  The numbers in which they may differ are
arrays with an entry for each run.  Each run begins as `bircher train` begins it, with the same keys and environments,
and ends at the same iteration, so both agree up to rounding.  Each is written to its directory as an ordinary run,
without evaluations during training, and can be continued as one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher import devices
from bircher.agents.base import Schedule
from bircher.agents.config import PolicyAgentConfig, PolicyLosses
from bircher.config.config import Config, compose, validated
from bircher.envs.base import Env
from bircher.errors import ConfigError, UnsupportedEnvironment
from bircher.experiments.grid import Job, differences
from bircher.runs import build, directory
from bircher.runs.logger import Averages
from bircher.runs.trainer import StopRequest
from bircher.training import learner, loops
from bircher.training.rollout import start_actors
from bircher.viz.writers import JsonLines

CLIP, FACTOR = "agent.cmpo.clip_bound", "agent.advantage.factor"
TERMS = ("policy_gradient", "cmpo", "model_policy")
NUMBERS = (CLIP, FACTOR, *(f"losses.{name}.weight" for name in TERMS))
"""Settings of policy agents that may differ between runs of one program."""
SECONDS = 2.0
"""Time that a call of the program should take at least."""


class Knobs(NamedTuple):
    """The numbers of each run, [runs] each; empty for agents that have none."""

    weights: dict[str, jax.Array]
    clip_bound: jax.Array | None
    factor: jax.Array | None


class _Run(NamedTuple):
    """A run that is being trained."""

    job: Job
    config: Config
    averages: Averages
    lines: JsonLines
    saver: directory.Saver


def configs(jobs: Sequence[Job]) -> list[Config]:
    """Return the configurations of jobs that can be one program.

    Raises:
      ConfigError: two differ in something else than numbers that may differ, or the setting of one excludes it.
      UnsupportedEnvironment: the environment is not one in pure JAX.
    """
    found = [compose(job.env, job.settings) for job in jobs]
    allowed = ("seed", *NUMBERS) if _has_numbers(found[0]) else ("seed",)
    for job, config in zip(jobs, found, strict=True):
        for name, (first, other) in differences(found[0], config).items():
            if name not in allowed:
                known = ", ".join(allowed)
                raise ConfigError(
                    f"--together is for runs that differ in numbers alone ({known}): {jobs[0]} has {name}={first} and "
                    f"{job} has {name}={other}; leave it out, or compare them apart"
                )
    _require_one_program(found[0], _structure(found))
    return found


def _require_one_program(config: Config, structure: Config) -> None:
    refused = {
        "loop.name": config.loop.name != "synchronous" and config.loop.name,
        "replay.device": config.replay.device == "host" and "host",
        "episodes": config.episodes,
        "debug": config.debug,
        "devices": config.devices != 1 and config.devices,
    }
    for name, value in refused.items():
        if value:
            raise ConfigError(
                f"--together trains all runs in one program, which is not possible with {name}={value}: remove one of "
                "the two"
            )
    with contextlib.closing(build.make_env(structure, None, config.env.num_envs, config.seed, "check")) as env:
        if not env.pure:
            raise UnsupportedEnvironment(
                f"--together needs an environment in pure JAX, and {config.env.id} is not one: leave --together out"
            )


def _has_numbers(config: Config) -> bool:
    return isinstance(config.agent, PolicyAgentConfig) and isinstance(config.losses, PolicyLosses)


def _structure(found: Sequence[Config]) -> Config:
    """The configuration whose program has every term that any run has."""
    layer = found[0].model_dump(mode="json", by_alias=True)
    if not _has_numbers(found[0]):
        return found[0]
    for name in TERMS:
        weights = [getattr(config.losses, name).weight for config in found]
        if any(weight != weights[0] for weight in weights):
            if layer["losses"][name]["final_weight"] is not None:
                raise ConfigError(f"--together cannot vary losses.{name}.weight with losses.{name}.final_weight set")
            layer["losses"][name]["weight"] = next(weight for weight in weights if weight)
    return validated(layer)


def _knobs(found: Sequence[Config]) -> Knobs:
    if not _has_numbers(found[0]):
        return Knobs({}, None, None)
    losses: list[Any] = [config.losses for config in found]
    agents: list[Any] = [config.agent for config in found]
    weights = {name: [getattr(loss, name).weight for loss in losses] for name in TERMS}
    varied = {name: jnp.array(values) for name, values in weights.items() if len(set(values)) > 1}
    bounds = [agent.cmpo.clip_bound for agent in agents]
    bounds = [jnp.inf if bound is None else bound for bound in bounds]
    factors = [agent.advantage.factor for agent in agents]
    return Knobs(
        varied,
        jnp.array(bounds) if len(set(bounds)) > 1 else None,
        jnp.array(factors) if len(set(factors)) > 1 else None,
    )


def _program(config: Config, env: Env) -> Any:
    """(train, actor, progress, knobs, iterations) -> the first three after these iterations, of all runs."""

    learner_config = build.make_parts(config, env.spec).learner.config

    def advance(train, actor, progress, knobs: Knobs, iterations):
        settings: Any = config.agent
        # Copies are not validated: these numbers are traced.
        if knobs.clip_bound is not None:
            cmpo = settings.cmpo.model_copy(update={"clip_bound": knobs.clip_bound})
            settings = settings.model_copy(update={"cmpo": cmpo})
        if knobs.factor is not None:
            advantage = settings.advantage.model_copy(update={"factor": knobs.factor})
            settings = settings.model_copy(update={"advantage": advantage})
        agent = build.make_agent(config.model_copy(update={"agent": settings}), env.spec)
        weights: dict[str, Any] = knobs.weights
        varied = {name: Schedule(weight, weight) for name, weight in weights.items()}
        agent = agent._replace(weights={**agent.weights, **varied})
        learn = learner.Learner(agent, env.spec, learner_config)
        loop = loops.synchronous(agent, env, learn, config.loop.rollout_length, config.steps)
        return loop.advance(train, actor, progress, iterations)

    return jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, 0, None)), donate_argnums=(0, 1, 2))


def _begin(config: Config) -> tuple[Env, tuple[Any, Any], Any]:
    """The environments, the first state of a run as `bircher train` begins it, and sums over no iteration."""
    env = build.make_env(config, None, config.env.num_envs, config.seed, "train")
    parts = build.make_parts(config, env.spec)
    actor_key, train_key = jax.random.split(jax.random.key(config.seed))
    actor = start_actors(parts.agent, env, jax.random.fold_in(actor_key, 0))
    train = parts.init(train_key, actor.timestep)
    return env, (train, actor), build.make_loop(config, env, parts).fresh_progress(train, actor)


def run(jobs: Sequence[Job], tell: Callable[[str], None] = print) -> bool:
    """Train the jobs that have no directory yet as one program; returns False where SIGINT or SIGTERM ended it.

    Each run is saved every `checkpoint.every_seconds`, at its end, and where training stops.

    Raises:
      ConfigError, UnsupportedEnvironment: they cannot be one program.
      RunFolderError: a directory cannot be written.
    """
    found = configs(jobs)
    new = [(job, config) for job, config in zip(jobs, found, strict=True) if not _exists(job)]
    if not new:
        return True
    if len(new) < len(jobs):
        tell(f"{len(jobs) - len(new)} of {len(jobs)} runs exist already and are continued one by one")
    devices.use_device(found[0].device)
    devices.keep_programs()
    with contextlib.ExitStack() as stack:
        return _Training([job for job, _ in new], [config for _, config in new], stack, tell).run()


def _exists(job: Job) -> bool:
    return (job.path / directory.CONFIG).exists()


class _Training:
    """The loop over calls of the program, and what is written between them."""

    def __init__(
        self, jobs: Sequence[Job], found: Sequence[Config], stack: contextlib.ExitStack, tell: Callable[[str], None]
    ):
        structure = _structure(found)
        self._config, self._tell, self._count = structure, tell, len(jobs)
        begun = {config.seed: _begin(structure.model_copy(update={"seed": config.seed})) for config in found}
        self._env, _, blank = begun[found[0].seed]
        self._train, self._actor = jax.tree.map(lambda *xs: jnp.stack(xs), *(begun[c.seed][1] for c in found))
        self._zero = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(jobs), *x.shape)), blank)
        self._advance, self._knobs = _program(structure, self._env), _knobs(found)
        self._runs = [self._open(job, config, stack) for job, config in zip(jobs, found, strict=True)]
        self._left = set(range(len(jobs)))
        """Runs that have not ended."""

    def _open(self, job: Job, config: Config, stack: contextlib.ExitStack) -> _Run:
        path = directory.create(config, job.path)
        claim = directory.claim(path)
        stack.callback(os.close, claim)
        lines = JsonLines(path / directory.METRICS)
        stack.callback(lines.close)
        saver = directory.Saver(path / directory.CHECKPOINTS, config.checkpoint.keep, config.checkpoint.replay_every)
        stack.callback(saver.close)
        return _Run(job, config, Averages(self._env.spec.agents), lines, saver)

    def run(self) -> bool:
        """Advance all runs until the last has ended; returns False where it was asked to stop before."""
        config = self._config
        each = config.env.num_envs * config.loop.rollout_length
        steps, chunk = np.zeros(self._count, int), 1
        self._began = saved = time.monotonic()
        self._tell(f"{self._count} runs of {config.agent.name} on {config.env.id} as one program")
        with StopRequest() as stop:
            while self._left and not stop.requested:
                # No run that is left may pass its end by more than one iteration.
                safe = min((config.steps - steps[index]) // each for index in self._left)
                iterations, before = min(chunk, max(int(safe), 1)), time.monotonic()
                progress = jax.tree.map(jnp.copy, self._zero)
                self._train, self._actor, progress = self._advance(
                    self._train, self._actor, progress, self._knobs, jnp.asarray(iterations, jnp.int32)
                )
                steps = self._read(progress)
                now = time.monotonic()
                chunk = chunk if now - before > SECONDS else 2 * chunk
                if now - saved > config.checkpoint.every_seconds:
                    self._save(self._left, last=False)
                    saved = now
            self._save(self._left, last=True)
        return not self._left

    def _read(self, progress: loops.Progress) -> np.ndarray:
        """Write what a call measured; returns the environment steps of each run."""
        progress, counters, non_finite = jax.device_get((progress, self._train.counters, self._train.non_finite))
        for index in sorted(self._left):
            run = self._runs[index]
            own = jax.tree.map(lambda x, index=index: x[index], progress)
            count = {name: int(values[index]) for name, values in counters._asdict().items()}
            wall = round(time.monotonic() - self._began, 3)
            run.lines.write({**count, "wall_seconds": wall}, run.averages(own))
            if int(own.tally.failed) >= 0 or int(non_finite[index]):
                self._left.discard(index)
                self._tell(f"{run.job}: failed, and will be repeated alone from its last checkpoint")
            elif run.config.reached(count):
                self._save([index], last=True)
                self._left.discard(index)
        done = self._count - len(self._left)
        self._tell(f"{int(counters.env_steps.min()):,} of {self._config.steps:,} steps, {done} runs have ended")
        return np.asarray(counters.env_steps)

    def _save(self, indices: Any, last: bool) -> None:
        """Save some runs, each as a run by itself would be."""
        for index in sorted(indices):
            train, actor = jax.tree.map(lambda x, index=index: x[index], (self._train, self._actor))
            saver = self._runs[index].saver
            meta = {
                "generation": 0,
                "wall_seconds": time.monotonic() - self._began,
                "spec": directory.spec_to(self._env.spec),
            }
            parts = {"train": learner.without_replay(train), "replay": train.replay, "actor": actor}
            saver.save(parts, meta, train.counters, last)
            saver.wait()
