"""Many runs from one command: each has its own directory and process, several run at a time, all can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bircher.config.config import Config, ConfigError, compose
from bircher.config.settings import shown
from bircher.errors import CheckpointError, RunFolderError
from bircher.runs import build, directory
from bircher.runs.trainer import StopRequest

LONGEST = 200
"""Characters of a folder's name."""
EVALUATION, LOG = "evaluation.json", "log.txt"
BIRCHER = (sys.executable, "-m", "bircher")


class Variant(NamedTuple):
    """An agent as it is compared: a name, and the settings that make it."""

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
        """What a user would type for this run alone."""
        return shlex.join(["bircher", "train", self.env, *self.settings])

    @property
    def unfinished(self) -> Path:
        """Where its evaluation is written until it is whole."""
        return self.path / f"{EVALUATION}.unfinished"

    @property
    def log(self) -> Path:
        """What its processes said, beside its folder."""
        return self.path.with_name(f"{self.path.name}.{LOG}")

    def __str__(self) -> str:
        return f"{self.env}, {self.variant}, seed {self.seed}"

    def done(self, episodes: int | None = None) -> bool:
        """Whether it was trained and evaluated, on so many episodes where that is asked."""
        return (self.path / EVALUATION).exists() and episodes in (None, self.evaluation().get("episodes"))

    def evaluation(self) -> dict[str, Any]:
        """The report of `bircher eval`, as it was printed.

        Raises:
          RunFolderError: it cannot be read.
        """
        try:
            return json.loads((self.path / EVALUATION).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / EVALUATION} cannot be read: {error}") from error


class _Job(NamedTuple):
    cell: Job
    process: subprocess.Popen
    evaluating: bool
    slot: int


def plan(
    variants: Sequence[Variant], envs: Sequence[str], seeds: Sequence[int], settings: Sequence[str], out: Path
) -> list[Job]:
    """Every variant on every environment with every seed; what a run would be refused for is refused here, and once.

    Seeds come first: whatever is stopped early has as many of each.

    Raises:
      ConfigError, UnknownEnvironment, UnsupportedEnvironment: a cell cannot be run, with its own sentence; two would
        share a folder; or a folder holds a run of other settings.
    """
    cells: list[Job] = []
    possible: set[tuple[str, str]] = set()
    for word in settings:
        if word.split("=")[0] in PLANNED:
            raise ConfigError(
                f"{word} is not for all runs to share: agents, environments and seeds are what is compared"
            )
    for seed in seeds:
        for env in envs:
            for variant in variants:
                path = out / folder_name(env) / folder_name(variant.name) / str(seed)
                cell = Job(variant.name, env, seed, path, (*variant.settings, *settings, f"seed={seed}"))
                twin = next((other for other in cells if other.path == path), None)
                if twin is not None:
                    raise ConfigError(f"{twin.env}, {twin.variant} and {env}, {variant.name} would both be {path}")
                config = compose(env, cell.settings)
                if (path / directory.CONFIG).exists():
                    _require_same(cell, config)
                elif (variant.name, env) not in possible:
                    build.require_possible(config)
                    possible.add((variant.name, env))
                cells.append(cell)
    return cells


PLANNED = ("agent", "agent.name", "seed", "env.id")
"""What a plan sets itself."""
FREE = ("device", "checkpoint.", "evaluation.", "env.num_threads")
"""What may differ in a run that is there already: nothing learned depends on it."""


def is_free(name: str) -> bool:
    """Whether a setting changes nothing that is learned."""
    return name.startswith(FREE)


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, but for those that change nothing learned."""
    first, second = (flat(config.model_dump(mode="json", by_alias=True)) for config in (one, other))
    names = (name for name in sorted(first.keys() | second.keys()) if not is_free(name))
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _require_same(cell: Job, config: Config) -> None:
    for name, (before, now) in differences(directory.read_config(cell.path), config).items():
        raise ConfigError(f"{cell.path} holds a run with {name}={shown(before)}, not {shown(now)}: give another --out")


def flat(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by dotted names."""
    found: dict[str, Any] = {}
    for name, value in layer.items():
        within = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if within else {f"{prefix}{name}": value}
    return found


def run(
    cells: Sequence[Job], processes: int, episodes: int, tell: Callable[[str], None] = print
) -> tuple[list[Job], list[Job]]:
    """Train and evaluate what is not done yet, `processes` at a time: (done, failed); stops early where it is asked to.

    Cores are shared out, so that processes do not fight for them.  A run that was interrupted goes on from its last
    checkpoint.
    """
    waiting = [cell for cell in cells if not cell.done(episodes)]
    if len(waiting) < len(cells):
        tell(f"{len(cells) - len(waiting)} of {len(cells)} runs are done already")
    slots, jobs, failed = list(range(processes)), [], []
    told_to_stop: set[int] = set()
    with StopRequest() as stop, _none_left(jobs):
        while jobs or (waiting and not stop.requested):
            while waiting and slots and not stop.requested:
                jobs.append(_begin(waiting.pop(0), slots.pop(0), processes, episodes, tell))
            if stop.requested:
                # Once each: a second one would not let it save.
                for job in [job for job in jobs if job.process.pid not in told_to_stop]:
                    job.process.send_signal(signal.SIGINT)
                    told_to_stop.add(job.process.pid)
            time.sleep(0.2)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                following = _next(job, processes, episodes, stop.requested, failed, tell)
                if following is None:
                    slots.append(job.slot)
                else:
                    jobs.append(following)
    return [cell for cell in cells if cell.done(episodes)], failed


@contextlib.contextmanager
def _none_left(jobs: Sequence[_Job]) -> Iterator[None]:
    """Whatever goes wrong here, no run is left to itself: each is asked to save and end."""
    try:
        yield
    except Exception:
        for job in jobs:
            job.process.send_signal(signal.SIGINT)
        raise


def _begin(cell: Job, slot: int, processes: int, episodes: int, tell: Callable[[str], None]) -> _Job:
    resumes = (cell.path / directory.CONFIG).exists()
    if resumes and _trained(cell):
        tell(f"{cell}: evaluating")
        return _evaluate(cell, slot, processes, episodes)
    tell(f"{cell}: " + ("going on" if resumes else "training"))
    arguments = ["--resume", str(cell.path)] if resumes else [cell.env, *cell.settings, "--out", str(cell.path)]
    return _Job(cell, _spawn(cell, ["train", *arguments], None, slot, processes), False, slot)


def _trained(cell: Job) -> bool:
    try:
        return directory.read_config(cell.path).reached(directory.counters(cell.path))
    except CheckpointError:
        return False  # to resume it will say so


def _evaluate(cell: Job, slot: int, processes: int, episodes: int) -> _Job:
    arguments = ["eval", str(cell.path), "--episodes", str(episodes), "--seed", str(cell.seed), "--json"]
    return _Job(cell, _spawn(cell, arguments, cell.unfinished, slot, processes), True, slot)


def _next(
    job: _Job, processes: int, episodes: int, stopping: bool, failed: list[Job], tell: Callable[[str], None]
) -> _Job | None:
    """What follows a process that ended: the evaluation, or nothing."""
    cell, code = job.cell, job.process.returncode
    if code != 0:
        if not stopping:
            failed.append(cell)
            tell(f"{cell}: failed, see {cell.log}")
        return None
    if job.evaluating:
        os.replace(cell.unfinished, cell.path / EVALUATION)
        tell(f"{cell}: mean return {cell.evaluation()['mean']:.1f}")
        return None
    return None if stopping else _evaluate(cell, job.slot, processes, episodes)


def _spawn(cell: Job, arguments: list[str], output: Path | None, slot: int, processes: int) -> subprocess.Popen:
    """A command line of its own, on its share of the cores; what it says goes to the log beside its run."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = set(cores[slot % len(cores) :: processes]) if cores else set()

    with cell.log.open("a") as said, output.open("w") if output else cell.log.open("a") as printed:
        # In a session of its own: Ctrl-C reaches it through `run` alone.
        process = subprocess.Popen([*BIRCHER, *arguments], stdout=printed, stderr=said, start_new_session=True)
    if share:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, share)
    return process


def folder_name(text: str) -> str:
    """A name that every file system takes; a long one ends in a hash of what was cut off."""
    name = "".join(character if character.isalnum() or character in "-_." else "-" for character in text).strip("-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
