"""The command `bircher`.

Exit status: 0 done, 1 failed while running, 2 refused before it began, 130 stopped by the user.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bircher.cli import experiments, games, inspect
from bircher.cli.shared import (
    FAILED,
    REFUSED,
    STOPPED,
    AsJson,
    Greedy,
    OneSentenceGroup,
    SavedRun,
    Seed,
    exit_on_error,
    print_refusal,
)
from bircher.version import __version__

app = typer.Typer(
    name="bircher",
    cls=OneSentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(requested: bool | None) -> None:
    if requested:
        print(f"bircher {__version__}")
        raise typer.Exit


@app.callback()
def bircher(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = None,
) -> None:
    """Muesli and the MuZero family of agents in JAX.

    \b
    bircher train LunarLander-v3
    bircher eval runs/lunarlander-v3-muesli-0-20260101-120000
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A path may contain bytes that are not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")


def _complete(incomplete: str) -> list[str]:
    """Return ids of environments and names of settings that begin with this text, for the shell."""
    from bircher.config import settings
    from bircher.config.config import AGENTS
    from bircher.envs import atari, registry

    env_ids = [*registry.TOYS, *registry.SMALL, *registry.GYMNAX, *registry.PGX, *registry.ENVPOOL, *atari.ids()]
    known = dict.fromkeys(name for kind in AGENTS.values() for name in settings.names(kind))
    keys = [f"{name}=" for name in ("agent", "loop", "observation", *known)]
    return [word for word in dict.fromkeys((*env_ids, *keys)) if word.startswith(incomplete)]


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ENV [KEY=VALUE]...",
        help="The id of an environment, or module:Id for one that a module registers, followed by settings.",
        autocompletion=_complete, show_default=False,
    ),
]  # fmt: skip
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A YAML file of settings, such as the output of `bircher config`."),
]


@app.command()
def train(
    words: Words = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The folder of the new run.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run to its end.")] = None,
) -> None:
    """Train an agent. Ctrl-C saves a checkpoint and stops.

    \b
    bircher train LunarLander-v3
    bircher train CartPole-v1 agent.cmpo.clip_bound=0.5 replay.fraction=0.9 steps=2e5 seed=3
    bircher train Breakout-MinAtar --config mine.yaml --out runs/mine
    bircher train --resume runs/mine
    """
    env, pairs = _env_and_settings(words)
    if "debug=true" in pairs:
        _check_shapes()
    with exit_on_error():
        from bircher import devices
        from bircher.runs import launch

        devices.share_arenas()
        if resume is not None:
            _require_alone(env, config, out)
            training = launch.resume(resume, pairs)
        else:
            from bircher.config import config as configuration

            training = launch.start(configuration.compose(env, pairs, config), None, out)
    with exit_on_error(FAILED):
        run = training.run()
    print(f"{run.counters['env_steps']:,} environment steps, {run.counters['wall_seconds']:,.0f} s: {run.path}")
    if run.stopped:
        print(f"stopped; to continue: bircher train --resume {run.path}", file=sys.stderr)
        raise typer.Exit(STOPPED)


app.command("eval")(games.evaluate)
app.command()(games.match)
app.command()(games.play)
app.command()(experiments.compare)
app.command()(experiments.protocol)
app.command()(inspect.diagnose)
app.command()(inspect.doctor)
app.command()(inspect.search)
app.command()(inspect.check)


@app.command()
def watch(
    run: SavedRun,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an MP4 file, or a GIF, instead of opening a window.")
    ] = None,
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="Frames a second.")] = 30.0,
    seed: Seed = 0,
    greedy: Greedy = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Show only the frames, without the agent's estimates.")
    ] = False,
) -> None:
    """Show one new episode, in a window or as a video, with the agent's estimates next to each frame.

    \b
    bircher watch runs/mine --video lander.mp4
    bircher watch runs/mine --video key.gif --fps 5
    bircher watch runs/mine --plain
    """
    with exit_on_error():
        from bircher.runs import inspect, launch
        from bircher.viz import plots

        agent = launch.load_for_playing(run)
        if video is None:
            plots.require_display()
            plots.show(inspect.episode(agent, seed, greedy, plain), f"{agent.spec.id}, {agent.name}", fps)
        else:
            print(inspect.record(agent, video, seed, greedy, plain, fps))


@app.command()
def plot(
    run: SavedRun,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture; by default learning_curve.png in RUN.")
    ] = None,
) -> None:
    """Draw a run's learning curve.

    \b
    bircher plot runs/mine --out curve.png
    """
    with exit_on_error():
        from bircher.runs import launch

        print(launch.plot(run, out))


@app.command()
def config(
    words: Words = None,
    config: ConfigFile = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print the size and the cost of the network's parts instead.")
    ] = False,
) -> None:
    """Print all settings with their values as YAML, which --config reads.

    \b
    bircher config LunarLander-v3 agent.gamma=0.999 > mine.yaml
    bircher config LunarLander-v3 model.latent_width=256 --summary
    """
    with exit_on_error():
        from bircher.config import config as configuration

        composed = configuration.compose(*_env_and_settings(words), config)
        if summary:
            from bircher.runs import inspect

            print(inspect.describe(composed))
        else:
            print(composed.to_yaml(), end="")


@app.command()
def bench(
    words: Words = None,
    config: ConfigFile = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="The time for which each part is measured.")] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a run would be, and say what it would wait for.

    It measures environments with random actions, acting, learning, and the whole loop, each as a share of its limit.
    With loop=ray it also measures one worker, and predicts the speed with other numbers of workers.

    \b
    bircher bench LunarLander-v3
    bircher bench connect_four agent=gumbel_muzero loop=pipeline
    """
    with exit_on_error():
        import json

        from bircher.config import config as configuration
        from bircher.runs import bench

        found = bench.measure(configuration.compose(*_env_and_settings(words), config), seconds)
    if as_json:
        parts, model = [speed._asdict() for speed in found.speeds], found.with_workers
        predicted = model and {str(count): model.steps_per_second(count) for count in model.counts()}
        verdict = {"waits_for": found.waits_for, "advice": found.advice}
        print(json.dumps({"parts": parts, "predicted_by_workers": predicted, **verdict}))
    else:
        print("\n".join(found.lines()))


@app.command()
def envs(name_filter: Annotated[str | None, typer.Argument(metavar="FILTER", show_default=False)] = None) -> None:
    """List known environments whose id contains FILTER, with observation, actions, preset and its agents.

    Agents that are not listed take the preset `default`. A preset for muzero is also for gumbel_muzero, and one for
    muesli is also for pg, mpo and trpo_penalty.

    \b
    bircher envs minatar
    """
    from bircher.config import presets
    from bircher.envs import registry

    found = [(*row[:-1], presets.describe(row.preset)) for row in registry.list_environments(name_filter)]
    rows = [("environment", "adapter", "observation", "actions", "preset"), *found]
    if len(rows) == 1:
        print_refusal(f"no environment's id contains {name_filter!r}")
        raise typer.Exit(REFUSED)
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _env_and_settings(words: list[str] | None) -> tuple[str | None, list[str]]:
    """Split the words of a command line into the environment, which may be missing, and settings."""
    words = words or []
    has_env = bool(words) and "=" not in words[0]
    return (words[0], words[1:]) if has_env else (None, words)


def _require_alone(env: str | None, config: Path | None, out: Path | None) -> None:
    """Raise for options that cannot be combined with --resume, which uses the settings of the run."""
    from bircher.errors import ConfigError

    for name, value in ((f"the environment {env}", env), ("--config", config), ("--out", out)):
        if value is not None:
            raise ConfigError(f"--resume uses the settings of the run: {name} cannot be given with it")


def _check_shapes() -> None:
    """Check the arrays of every function against their declared shapes, if beartype is installed."""
    with contextlib.suppress(ImportError):
        import beartype  # noqa: F401
        from jaxtyping import install_import_hook

        install_import_hook("bircher", "bircher.cli.type_checked")


def type_checked(function: Any) -> Any:
    """Return a function whose calls beartype checks; an int is accepted for a float, as in Python's type system."""
    try:
        from beartype import BeartypeConf, beartype
    except ImportError:  # not a dependency: the checks need it, a run does not
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
