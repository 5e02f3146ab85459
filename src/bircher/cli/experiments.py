"""The commands that start and compare many runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bircher.cli.shared import FAILED, STOPPED, AsJson, exit_on_error
from bircher.errors import RunFolderError

Steps = Annotated[
    int | None, typer.Option(min=1, help="Environment steps of each run; by default those of the preset.")
]
Seeds = Annotated[
    int, typer.Option(min=1, help="The number of runs for each agent and environment, with seeds 0, 1, …")
]
Processes = Annotated[int, typer.Option(min=1, help="The number of runs at the same time; they share the cores.")]
Episodes = Annotated[int, typer.Option(min=1, help="Episodes of the evaluation of each final agent.")]
Together = Annotated[
    bool, typer.Option("--together", help="Train all runs in one program; they may differ in numbers only.")
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
    seeds: Seeds = 3,
    steps: Steps = None,
    processes: Processes = 1,
    episodes: Episodes = 100,
    together: Together = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare agents over environments and seeds: train missing runs, evaluate all, and write one page.

    \b
    bircher compare muesli ppo --env LunarLander-v3 --seeds 3
    bircher compare ppo ppo,losses.cmpo.weight=0.01 --env CartPole-v1 --env Acrobot-v1 steps=1e5
    bircher compare runs/one runs/two --out runs/both
    bircher compare muesli --env Breakout-MinAtar --seeds 10 --together

    Settings of one agent follow it after commas.  Existing runs must be finished.  Runs of the same agent are labeled
    by the settings in which they differ.  The exit status is 1 if a run failed, and 130 if the command was stopped.
    """
    with exit_on_error():
        from bircher import devices
        from bircher.errors import ConfigError
        from bircher.experiments import compare, grid
        from bircher.runs import directory

        if not together:
            devices.stay_on_cpu()  # the runs are separate processes
        runs, agents, settings = _sorted(words)
        if not runs and not agents:
            raise ConfigError("nothing to compare: name agents, such as muesli ppo, or folders of runs")
        if runs and (settings or steps is not None):
            raise ConfigError("existing runs keep their settings: remove KEY=VALUE and --steps")
        if agents and not env:
            raise ConfigError(f"{agents[0]} needs an environment: --env ENV")
        if env and not agents:
            raise ConfigError(f"--env {env[0]} is for agents to be trained; existing runs have their environments")
        place = out or directory.RUNS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
        pairs = [*settings, *([] if steps is None else [f"steps={steps}"])]
        made = grid.plan(compare.variants(agents), env or [], range(seeds), pairs, place) if agents else []
        there = compare.finished_jobs(runs, made)
        # An existing run replaces a planned one of the same variant, environment and seed.
        existing = {(job.variant, job.env, job.seed) for job in there}
        every = [*there, *(job for job in made if (job.variant, job.env, job.seed) not in existing)]
        if together:
            from bircher.experiments import replicas

            if not made:
                raise ConfigError("--together trains agents: name at least one, and --env ENV")
            replicas.configs(made)
        title = " against ".join(dict.fromkeys(job.variant for job in every))
    _make(every, place, title, (), processes, episodes, as_json, made if together else ())


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
    steps: Steps = None,
    processes: Processes = 1,
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
        every = grid.plan(five.steps(env, pairs), [env], range(seeds), pairs, place)
    _make(every, place, f"From PPO to Muesli: {env}", five.NOTES, processes, episodes, as_json)


def _make(
    every: list, place: Path, title: str, notes: tuple[str, ...], processes: int, episodes: int, as_json: bool,
    together: Sequence = (),
) -> None:  # fmt: skip
    """Run the missing runs, those of one program first, then write and print the results."""
    with exit_on_error():
        from bircher.experiments import compare

        compare.require_own(every, place)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{place} cannot be created: {error.strerror or error}") from error
    with exit_on_error(FAILED):
        from bircher.experiments import grid

        def log(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        stopped = False
        if together:
            from bircher.experiments import replicas

            stopped = not replicas.run(together, log)
        done, failed = ([], []) if stopped else grid.run(every, processes, episodes, log)
        missing = len(every) - len(done)
        if missing:
            advice = f"continue with the same command and --out {shlex.quote(str(place))}"
            print(f"{missing} of {len(every)} runs are missing: {advice}", file=sys.stderr)
        if not done:
            raise typer.Exit(FAILED if failed else STOPPED)
        said = (*notes, *([f"{missing} of {len(every)} runs are missing."] if missing else []))
        found = compare.findings(done, title, said)
        numbers = compare.write(found, place)
    if as_json:
        print(json.dumps(numbers))
    else:
        from bircher.experiments import report

        print(report.markdown(found))
        print(place / compare.PAGE)
    if missing:
        raise typer.Exit(FAILED if failed else STOPPED)
