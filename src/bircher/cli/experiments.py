"""The commands that start and compare many runs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bircher.cli.shared import FAILED, STOPPED, AsJson, exit_on_error
from bircher.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from bircher.experiments.commands import Commands
    from bircher.experiments.grid import Job, Suite

Steps = Annotated[
    int | None, typer.Option(min=1, help="Environment steps of each run; by default those of the preset.")
]
Seeds = Annotated[int, typer.Option(min=1, help="The number of runs for each agent and environment.")]
FirstSeed = Annotated[int, typer.Option(min=0, metavar="N", help="The first of the seeds, which are N, N + 1, …")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The number of runs at the same time, which share the cores; by default 1, and with --ray as many as the "
        "cluster has cores.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Runs and their evaluations on a Ray cluster, each on a core of any node: auto, HOST:PORT of its head "
        "node, or local. All nodes must see the folder.",
    ),
]
Episodes = Annotated[int, typer.Option(min=1, help="Episodes of the evaluation of each final agent.")]
SuiteName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The environments, steps and normalized scores of small (six small tasks), small-choosing (six others, to "
        "choose settings by), minatar, atari5 or atari57.",
    ),
]
Together = Annotated[
    bool,
    typer.Option(
        "--together",
        help="Train all runs in one program; they may differ in numbers only. With --suite, the runs of an agent on an "
        "environment are a program.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder of runs and pages; the same folder continues a comparison."),
]


def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="(AGENT | RUN | KEY=VALUE)...", help="Agents or existing runs, followed by settings."),
    ],
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="ENV", help="An environment; may be repeated.")
    ] = None,
    suite: SuiteName = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    steps: Steps = None,
    processes: Processes = None,
    ray: Ray = None,
    episodes: Episodes = 100,
    together: Together = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare agents over environments and seeds: train missing runs, evaluate all, and write one page.

    \b
    bircher compare muesli ppo --env LunarLander-v3 --seeds 3
    bircher compare muesli ppo --suite small
    bircher compare ppo ppo,losses.cmpo.weight=0.01 --env CartPole-v1 --env Acrobot-v1 steps=1e5
    bircher compare runs/one runs/two --out runs/both
    bircher compare muesli --env Breakout-MinAtar --seeds 10 --together

    Settings of one agent follow it after commas.  Existing runs must be finished.  Runs of the same agent are labeled
    by the settings in which they differ.  The exit status is 1 if a run failed, and 130 if the command was stopped.
    """
    with exit_on_error():
        from bircher import devices
        from bircher.experiments import grid
        from bircher.runs import directory

        if not together:
            devices.stay_on_cpu()  # the runs are separate processes
        elif ray is not None:
            raise ConfigError("--together trains all runs in one program on this machine: leave out --ray")
        chosen = None if suite is None else grid.suite(suite)
        if env and chosen:
            raise ConfigError(f"--suite {suite} has environments already: leave out --env {env[0]}")
        place = out or directory.RUNS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
        envs = chosen.steps if chosen else env or []
        made, every = _jobs(words, envs, range(first_seed, first_seed + seeds), steps, place)
        outside = next((job for job in every if chosen and job.env not in chosen.references), None)
        if outside is not None:
            raise ConfigError(f"{outside.path} is a run on {outside.env}, which is not in the suite {suite}")
        programs = _programs(made, chosen is not None) if together else []
        title = " against ".join(dict.fromkeys(job.variant for job in every)) + (f": {suite}" if suite else "")
    _make(every, place, title, (), processes, ray, episodes, as_json, programs, chosen)


def _jobs(
    words: list[str], envs: Sequence[str] | Mapping[str, int | None], seeds: range, steps: int | None, place: Path
) -> tuple[list[Job], list[Job]]:
    """Return the jobs that are planned, and all jobs of the comparison with those that exist."""
    from bircher.experiments import compare, grid

    runs, agents, settings = _sorted(words)
    if not runs and not agents:
        raise ConfigError("nothing to compare: name agents, such as muesli ppo, or folders of runs")
    if runs and (settings or steps is not None):
        raise ConfigError("existing runs keep their settings: remove KEY=VALUE and --steps")
    if agents and not envs:
        raise ConfigError(f"{agents[0]} needs an environment: --env ENV, or several: --suite NAME")
    if not agents and envs and not isinstance(envs, Mapping):
        raise ConfigError(f"--env {envs[0]} is for agents to be trained; existing runs have their environments")
    pairs = [*settings, *([] if steps is None else [f"steps={steps}"])]
    made = grid.plan(compare.variants(agents), envs, seeds, pairs, place) if agents else []
    there = compare.finished_jobs(runs, made)
    # An existing run replaces a planned one of the same variant, environment and seed.
    existing = {(job.variant, job.env, job.seed) for job in there}
    return made, [*there, *(job for job in made if (job.variant, job.env, job.seed) not in existing)]


def _programs(made: list[Job], by_pair: bool) -> list[list[Job]]:
    """Return the jobs of each program: all of them, or those of each agent on each environment."""
    from bircher.experiments import replicas

    if not made:
        raise ConfigError("--together trains agents: name at least one, and --env ENV or --suite NAME")
    programs = [made]
    if by_pair:
        pairs = dict.fromkeys((job.env, job.variant) for job in made)
        programs = [[job for job in made if (job.env, job.variant) == pair] for pair in pairs]
    for program in programs:
        replicas.configs(program)
    return programs


def _sorted(words: list[str]) -> tuple[list[Path], list[str], list[str]]:
    """Sort words into folders of runs, agents with their settings, and settings for all runs."""
    from bircher.runs import directory

    runs, agents, settings = [], [], []
    for word in words:
        if os.path.isfile(Path(word) / directory.CONFIG):  # os.path accepts names of any length
            runs.append(Path(word))
        elif "=" in word.split(",")[0]:
            settings.append(word)
        elif os.sep in word.split(",")[0]:
            directory.read_config(word)  # raises with the reason
        else:
            agents.append(word)
    return runs, agents, settings


def protocol(
    env: Annotated[str, typer.Argument(metavar="ENV", help="The id of an environment.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings for all five agents.")
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    steps: Steps = None,
    processes: Processes = None,
    ray: Ray = None,
    episodes: Episodes = 100,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Train five agents from PPO to Muesli, and write one page with the effect of each step.

    \b
    bircher protocol CartPole-v1 --steps 100000
    """
    with exit_on_error():
        from bircher import devices
        from bircher.experiments import compare as five
        from bircher.experiments import grid
        from bircher.runs import directory

        devices.stay_on_cpu()  # the runs are separate processes
        place = out or directory.RUNS / f"protocol-{time.strftime('%Y%m%d-%H%M%S')}"
        pairs = [*(settings or []), *([] if steps is None else [f"steps={steps}"])]
        every = grid.plan(five.steps(env, pairs), [env], range(first_seed, first_seed + seeds), pairs, place)
    _make(every, place, f"From PPO to Muesli: {env}", five.NOTES, processes, ray, episodes, as_json)


def _commands(processes: int | None, ray: str | None) -> Commands:
    """Return the place for the processes of runs."""
    from bircher.experiments.commands import LocalCommands, RemoteCommands

    return LocalCommands(processes or 1) if ray is None else RemoteCommands(ray, processes)


def _make(
    every: list, place: Path, title: str, notes: tuple[str, ...], processes: int | None, ray: str | None,
    episodes: int, as_json: bool, programs: Sequence[Sequence[Job]] = (),
    suite: Suite | None = None,
) -> None:  # fmt: skip
    """Run the missing runs, those of one program first, then write and print the results."""
    with exit_on_error():
        from bircher.experiments import compare

        compare.require_own(every, place)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{place} cannot be created: {error.strerror or error}") from error
        commands = _commands(processes, ray)
    with exit_on_error(FAILED), contextlib.closing(commands):
        from bircher.experiments import grid

        def log(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        stopped = False
        if programs:
            from bircher.experiments import replicas

            stopped = not all(replicas.run(program, log) for program in programs)
        done, failed = ([], []) if stopped else grid.run(every, commands, episodes, log)
        missing = len(every) - len(done)
        if missing:
            advice = f"continue with the same command and --out {shlex.quote(str(place))}"
            print(f"{missing} of {len(every)} runs are missing: {advice}", file=sys.stderr)
        if not done:
            raise typer.Exit(FAILED if failed else STOPPED)
        said = (*notes, *([f"{missing} of {len(every)} runs are missing."] if missing else []))
        found = compare.findings(done, title, said, suite)
        numbers = compare.write(found, place)
    if as_json:
        print(json.dumps(numbers))
    else:
        from bircher.experiments import report

        print(report.markdown(found))
        print(place / compare.PAGE)
    if missing:
        raise typer.Exit(FAILED if failed else STOPPED)
