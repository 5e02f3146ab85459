"""Many runs from one command: each has its own directory and process, several run at a time, all can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bircher.config.config import Config, ConfigError, compose
from bircher.config.settings import as_text
from bircher.envs import atari, small
from bircher.errors import CheckpointError, RunFolderError, near
from bircher.experiments.commands import Command, Commands
from bircher.experiments.statistics import Reference, format_return
from bircher.runs import build, directory
from bircher.runs.trainer import StopRequest

LONGEST = 200
"""Maximum number of characters of a folder's name before its hash."""
EVALUATION, LOG = "evaluation.json", "log.txt"
MOST_LOSSES = 3
"""The number of times that a run is begun again because its machine was gone."""


class Variant(NamedTuple):
    """An agent in a comparison: a name, and the settings that define it."""

    name: str
    settings: tuple[str, ...]


class Job(NamedTuple):
    """One run: a variant on an environment with a seed."""

    variant: str
    env: str
    seed: int
    path: Path
    settings: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that makes this run alone."""
        return shlex.join(["bircher", "train", self.env, *self.settings])

    @property
    def unfinished(self) -> Path:
        """The file to which its evaluation is written until it is complete."""
        return self.path / f"{EVALUATION}.unfinished"

    @property
    def log(self) -> Path:
        """The file next to its folder with the output of its processes."""
        return self.path.with_name(f"{self.path.name}.{LOG}")

    def __str__(self) -> str:
        return f"{self.env}, {self.variant}, seed {self.seed}"

    def done(self, episodes: int | None = None) -> bool:
        """Return whether it was trained and evaluated, and on this number of episodes unless that is None."""
        return (self.path / EVALUATION).exists() and episodes in (None, self.evaluation().get("episodes"))

    def evaluation(self) -> dict[str, Any]:
        """Return the report that `bircher eval` printed.

        Raises:
          RunFolderError: the report cannot be read.
        """
        try:
            return json.loads((self.path / EVALUATION).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / EVALUATION} cannot be read: {error}") from error


class Suite(NamedTuple):
    """Environments that agents are compared on, and the returns that make their scores comparable."""

    steps: Mapping[str, int | None]
    """Environment steps of a run, by environment; None takes those of the preset."""
    references: Mapping[str, Reference]
    meaning: str
    """The meaning of the normalized scores and of the threshold, as a note for the page."""


SUITES = ("small", "small-choosing", "minatar", "atari5", "atari57")
"""The names of the suites."""

MINATAR = {
    "Asterix-MinAtar": (0.45, 50.96),
    "Breakout-MinAtar": (0.44, 103.85),
    "Freeway-MinAtar": (0.38, 66.7),
    "Seaquest-MinAtar": (0.1, 37.85),
    "SpaceInvaders-MinAtar": (4.19, 177.57),
}
"""Returns of random actions (`python benchmarks/references.py --minatar`), and the highest mean return of a run in
`benchmarks/ledger.jsonl` as of 29 November 2026. The second is not a bound."""

ATARI5 = ("BattleZone-v5", "DoubleDunk-v5", "NameThisGame-v5", "Phoenix-v5", "Qbert-v5")
"""The games of "Atari-5: Distilling the Arcade Learning Environment down to Five Games" by Aitchison et al. 2023
(https://arxiv.org/abs/2210.02019). The paper predicts the median over 57 games from them by a regression, which is not
applied here."""

SOLVED = "the threshold is four fifths of the way from 0 to 1"


def suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
      ConfigError: the suite is unknown.
    """
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}{near(name, SUITES)}: expected one of {', '.join(SUITES)}")
    if name.startswith("small"):
        tasks = small.REPORTING if name == "small" else small.CHOOSING
        references = {
            env: Reference(task.random, task.best, task.threshold) for env in tasks for task in (small.TASKS[env],)
        }
        meaning = f"0 is the return of random actions, 1 that of the best player; {SOLVED}"
        return Suite({env: small.TASKS[env].steps for env in tasks}, references, meaning)
    if name == "minatar":
        references = {env: Reference(low, high, low + 0.8 * (high - low)) for env, (low, high) in MINATAR.items()}
        meaning = f"0 is the return of random actions, 1 the best mean of a run in this project's ledger; {SOLVED}"
        return Suite(dict.fromkeys(MINATAR, 1_000_000), references, meaning)
    scores = atari.scores()
    games = ATARI5 if name == "atari5" else tuple(scores)
    references = {env: Reference(scores[env].random, scores[env].human, scores[env].human) for env in games}
    meaning = "human-normalized: 0 is the score of random actions, 1 that of a human, which is also the threshold"
    return Suite(dict.fromkeys(games), references, meaning)


class _RunningJob(NamedTuple):
    job: Job
    command: Command
    evaluating: bool
    slot: int


def plan(
    variants: Sequence[Variant], envs: Sequence[str] | Mapping[str, int | None], seeds: Sequence[int],
    settings: Sequence[str], out: Path,
) -> list[Job]:  # fmt: skip
    """Return a job for every variant on every environment with every seed, and check each before any run starts.

    `envs` may have the steps of each environment, as a suite does; settings of steps replace them.
    The outermost loop is over seeds, so that a comparison that is stopped early has the same number of each.

    Raises:
      ConfigError, UnknownEnvironment, UnsupportedEnvironment: a job cannot be run, two jobs would share a folder, or a
        folder contains a run with other settings.
    """
    budgets = {env: steps for env, steps in envs.items() if steps} if isinstance(envs, Mapping) else {}
    jobs: list[Job] = []
    possible: set[tuple[str, str]] = set()
    for word in settings:
        if word.split("=")[0] in PLANNED:
            raise ConfigError(
                f"{word} cannot be a setting of all runs, because a comparison sets agents, environments and seeds "
                "itself: name agents as arguments, environments with --env, and the number of seeds with --seeds"
            )
    for seed in seeds:
        for env in envs:
            for variant in variants:
                path = out / folder_name(env) / folder_name(variant.name) / str(seed)
                own = (*variant.settings, *settings)
                if env in budgets and not any(word.split("=")[0] == "steps" for word in own):
                    own = (*own, f"steps={budgets[env]}")
                job = Job(variant.name, env, seed, path, (*own, f"seed={seed}"))
                twin = next((other for other in jobs if other.path == path), None)
                if twin is not None:
                    raise ConfigError(
                        f"the runs of {twin.variant} on {twin.env} and of {variant.name} on {env} would both be "
                        f"written to {path}: compare them in two commands with different --out"
                    )
                config = compose(env, job.settings)
                if (path / directory.CONFIG).exists():
                    _require_same(job, config)
                elif (variant.name, env) not in possible:
                    build.require_possible(config)
                    possible.add((variant.name, env))
                jobs.append(job)
    return jobs


PLANNED = ("agent", "agent.name", "seed", "env.id")
"""Settings that a plan sets itself."""
FREE = ("device", "checkpoint.", "evaluation.", "env.num_threads")
"""Settings that may differ in an existing run, because nothing learned depends on them."""


def is_free(name: str) -> bool:
    """Return whether a setting has no influence on what is learned."""
    return name.startswith(FREE)


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ, except those that have no influence on what is learned."""
    first, second = (flat(config.model_dump(mode="json", by_alias=True)) for config in (one, other))
    names = (name for name in sorted(first.keys() | second.keys()) if not is_free(name))
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _require_same(job: Job, config: Config) -> None:
    for name, (before, now) in differences(directory.read_config(job.path), config).items():
        raise ConfigError(f"{job.path} has a run with {name}={as_text(before)}, not {as_text(now)}: set another --out")


def flat(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dictionary to one with dotted names."""
    result: dict[str, Any] = {}
    for name, value in layer.items():
        nested = isinstance(value, Mapping) and value
        result |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return result


def run(
    jobs: Sequence[Job], commands: Commands, episodes: int, log: Callable[[str], None] = print
) -> tuple[list[Job], list[Job]]:
    """Train and evaluate the jobs that are not done yet, in processes, and return (done, failed).

    An interrupted run continues from its last checkpoint, also one whose machine is gone.  A stop request ends the loop
    early, after the running jobs have saved.
    """
    pending = [job for job in jobs if not job.done(episodes)]
    if len(pending) < len(jobs):
        log(f"{len(jobs) - len(pending)} of {len(jobs)} runs are done already")
    slots, running, failed = list(range(commands.processes)), [], []
    interrupted: set[Job] = set()
    losses: Counter[Job] = Counter()
    with StopRequest() as stop, _interrupt_on_error(running):
        while running or (pending and not stop.requested):
            while slots and not stop.requested and (job := _take(pending, losses)):
                running.append(_begin(job, slots.pop(0), commands, episodes, log))
            if stop.requested:
                # Each process gets one signal, because a second one would stop it before it has saved.
                for active in [active for active in running if active.job not in interrupted]:
                    active.command.interrupt()
                    interrupted.add(active.job)
            time.sleep(0.2)
            for active in [active for active in running if active.command.poll() is not None]:
                running.remove(active)
                if active.command.lost and losses[active.job] < MOST_LOSSES and not stop.requested:
                    log(f"{active.job}: its machine is gone, and the run goes on elsewhere")
                    losses[active.job] += 1
                    pending.insert(0, active.job)
                    slots.append(active.slot)
                    continue
                following = _next(active, commands, episodes, stop.requested, failed, log)
                if following is None:
                    slots.append(active.slot)
                else:
                    running.append(following)
    return [job for job in jobs if job.done(episodes)], failed


def _take(pending: list[Job], losses: Mapping[Job, int]) -> Job | None:
    """Remove and return the first job that can begin.

    One whose machine seemed to be gone may still be saving there.
    """
    for job in pending:
        if job not in losses or not directory.in_use(job.path):
            pending.remove(job)
            return job
    return None


@contextlib.contextmanager
def _interrupt_on_error(running: Sequence[_RunningJob]) -> Iterator[None]:
    """Request every running process to save and end if an exception occurs."""
    try:
        yield
    except Exception:
        for active in running:
            active.command.interrupt()
        raise


def _begin(job: Job, slot: int, commands: Commands, episodes: int, log: Callable[[str], None]) -> _RunningJob:
    resumes = (job.path / directory.CONFIG).exists()
    if resumes and _trained(job):
        log(f"{job}: evaluating")
        return _evaluate(job, slot, commands, episodes)
    log(f"{job}: " + ("going on" if resumes else "training"))
    path = str(job.path.absolute())
    arguments = ["--resume", path] if resumes else [job.env, *job.settings, "--out", path]
    return _start(job, ["train", *arguments], None, slot, commands)


def _trained(job: Job) -> bool:
    try:
        return directory.read_config(job.path).reached(directory.counters(job.path))
    except CheckpointError:
        return False  # resuming the run reports this error


def _evaluate(job: Job, slot: int, commands: Commands, episodes: int) -> _RunningJob:
    path = str(job.path.absolute())
    arguments = ["eval", path, "--episodes", str(episodes), "--seed", str(job.seed), "--json"]
    return _start(job, arguments, job.unfinished, slot, commands)


def _start(job: Job, arguments: list[str], output: Path | None, slot: int, commands: Commands) -> _RunningJob:
    """Start a command, whose messages go to the log next to its run."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    return _RunningJob(job, commands.start(arguments, job.log, output, slot), output is not None, slot)


def _next(
    active: _RunningJob, commands: Commands, episodes: int, stopping: bool, failed: list[Job],
    log: Callable[[str], None],
) -> _RunningJob | None:  # fmt: skip
    """Start the evaluation after a training that ended; return None if nothing follows."""
    job, status = active.job, active.command.poll()
    if status != 0:
        if not stopping:
            failed.append(job)
            log(f"{job}: failed, see {job.log}")
        return None
    if active.evaluating:
        os.replace(job.unfinished, job.path / EVALUATION)
        log(f"{job}: mean return {format_return(job.evaluation()['mean'])}")
        return None
    return None if stopping else _evaluate(job, active.slot, commands, episodes)


def folder_name(text: str) -> str:
    """Return a name that every file system accepts; a long one is cut and ends in a hash of the whole text."""
    name = "".join(character if character.isalnum() or character in "-_." else "-" for character in text).strip("-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
