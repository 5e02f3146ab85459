"""The commands that start and compare many runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bircher.cli.shared import FAILED, STOPPED, AsJson, exit_on_error
from bircher.errors import RunFolderError

Steps = Annotated[int | None, typer.Option(min=1, help="Environment steps of each run; else the presets'.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each, with seeds 0, 1, …")]
Processes = Annotated[int, typer.Option(min=1, help="Runs side by side; the cores are shared out among them.")]
Episodes = Annotated[int, typer.Option(min=1, help="Fresh episodes that each final agent is evaluated on.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where runs and pages go; give it again to go on.")]


def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="(AGENT | RUN | KEY=VALUE)...", help="Agents, or runs that are there; then settings."),
    ],
    env: Annotated[list[str] | None, typer.Option("--env", metavar="ENV", help="Once for each environment.")] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    processes: Processes = 1,
    episodes: Episodes = 100,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare agents over environments and seeds: train what is not there yet, evaluate, and write one page.

    \b
    bircher compare muesli ppo --env LunarLander-v3 --seeds 3
    bircher compare ppo ppo,losses.cmpo.weight=0.01 --env CartPole-v1 --env Acrobot-v1 steps=1e5
    bircher compare runs/one runs/two --out runs/both

    An agent's own settings follow it behind commas.  Runs that are there must be finished; those of one agent are told
    apart by the settings in which they differ.  Exit status 1 where a run failed, 130 where it was stopped.
    """
    with exit_on_error():
        from bircher import devices
        from bircher.config.config import ConfigError
        from bircher.experiments import compare, grid
        from bircher.runs import directory

        devices.stay_on_cpu()  # the runs are processes of their own
        runs, agents, settings = _sorted(words)
        if not runs and not agents:
            raise ConfigError("nothing to compare: give agents, such as muesli ppo, or the folders of runs")
        if runs and (settings or steps is not None):
            raise ConfigError("runs that are there keep their settings: leave KEY=VALUE and --steps out")
        if agents and not env:
            raise ConfigError(f"{agents[0]} needs an environment: --env ENV")
        if env and not agents:
            raise ConfigError(f"--env {env[0]} is for agents to be trained, and runs that are there have their own")
        place = out or directory.RUNS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
        pairs = [*settings, *([] if steps is None else [f"steps={steps}"])]
        made = grid.plan(compare.variants(agents), env or [], range(seeds), pairs, place) if agents else []
        there = compare.finished_jobs(runs, made)
        # A run that is what a planned one would be stands for it.
        stand = {(cell.variant, cell.env, cell.seed) for cell in there}
        every = [*there, *(cell for cell in made if (cell.variant, cell.env, cell.seed) not in stand)]
        title = " against ".join(dict.fromkeys(cell.variant for cell in every))
    _make(every, place, title, (), processes, episodes, as_json)


def _sorted(words: list[str]) -> tuple[list[Path], list[str], list[str]]:
    """Folders of runs, agents with their own settings, and settings for all."""
    from bircher.runs import directory

    runs, agents, settings = [], [], []
    for word in words:
        if os.path.isfile(Path(word) / directory.CONFIG):  # also of what is too long for a path
            runs.append(Path(word))
        elif "=" in word.split(",")[0]:
            settings.append(word)
        elif os.sep in word.split(",")[0]:
            directory.read_config(word)  # says why it is no run
        else:
            agents.append(word)
    return runs, agents, settings


def protocol(
    env: Annotated[str, typer.Argument(metavar="ENV", help="An environment's id.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For all five.")] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    processes: Processes = 1,
    episodes: Episodes = 100,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """From PPO to Muesli in five steps, and one page that says what each of them added.

    \b
    bircher protocol CartPole-v1 --steps 100000
    """
    with exit_on_error():
        from bircher import devices
        from bircher.experiments import compare as five
        from bircher.experiments import grid
        from bircher.runs import directory

        devices.stay_on_cpu()  # the runs are processes of their own
        place = out or directory.RUNS / f"protocol-{time.strftime('%Y%m%d-%H%M%S')}"
        pairs = [*(settings or []), *([] if steps is None else [f"steps={steps}"])]
        every = grid.plan(five.steps(env, pairs), [env], range(seeds), pairs, place)
    _make(every, place, f"From PPO to Muesli: {env}", five.NOTES, processes, episodes, as_json)


def _make(
    every: list, place: Path, title: str, notes: tuple[str, ...], processes: int, episodes: int, as_json: bool
) -> None:
    """Run what is missing, and write and print what was found."""
    with exit_on_error():
        from bircher.experiments import compare

        compare.require_own(every, place)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{place} cannot be made: {error.strerror or error}") from error
    with exit_on_error(FAILED):
        from bircher.experiments import grid

        done, failed = grid.run(every, processes, episodes, lambda text: print(text, file=sys.stderr, flush=True))
        missing = len(every) - len(done)
        if missing:
            ask = f"go on with the same command and --out {shlex.quote(str(place))}"
            print(f"{missing} of {len(every)} runs are missing: {ask}", file=sys.stderr)
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
