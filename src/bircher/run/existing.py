"""Runs that are there already, as cells of a comparison: named by the settings in which they differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bircher.config import Config, ConfigError, compose
from bircher.run import assembly, folder
from bircher.run.cells import Cell, differences, flat, is_free
from bircher.settings import shown

NAMED = ("seed", "env.id", "agent.name")
"""What a command names by itself."""


class Recipe(NamedTuple):
    """How `bircher train ENV agent=NAME seed=SEED` becomes a run's configuration."""

    settings: Mapping[str, str]
    """The fewest settings that do it, by name, each as a word of the command."""
    exact: bool = True
    """False where no settings do it, as of a preset that is no more: then these are all that differ."""

    @property
    def telling(self) -> dict[str, str]:
        """Those of them that change what is learnt."""
        return {name: word for name, word in self.settings.items() if not is_free(name)}


class _Member(NamedTuple):
    """A run, or what a planned one would be."""

    config: Config
    recipe: Recipe

    @property
    def agent(self) -> str:
        return self.config.agent.name


def cells(paths: Sequence[Path], planned: Sequence[Cell] = ()) -> list[Cell]:
    """Finished runs, each as a cell of its agent, and of a planned variant only where their settings are the same.

    Runs of one agent that differ within an environment are named as a plan would name them,
    `ppo,losses.cmpo.weight=0.01`, by what differs; settings that all of them share there are left out of the name,
    unless planned runs of that agent, whose names have all of theirs, stand beside them.

    Raises:
      RunFolderError: one is no run, is not finished, or is there twice.
      ConfigError, UnknownEnvironment: its configuration is damaged, or its environment is not known here.
    """
    known: dict[str, Recipe] = {}

    def member(config: Config) -> _Member:
        config = config.model_copy(update={"seed": 0})
        text = config.to_yaml()
        if text not in known:
            known[text] = recipe(config)
        return _Member(config, known[text])

    configs = {path: _finished(path) for path in dict.fromkeys(paths)}
    runs = {path: member(config) for path, config in configs.items()}
    plans = {(cell.variant, cell.env): member(compose(cell.env, cell.settings)) for cell in planned}
    telling = _telling(runs.values())
    named = {plan.agent for plan in plans.values()}
    found: dict[tuple[str, str, int], Cell] = {}
    for path in paths:
        config, (_, made) = configs[path], runs[path]
        env, seed, agent = config.env.id, config.seed, config.agent.name
        same = (name for (name, _), plan in plans.items() if not differences(runs[path].config, plan.config))
        words = [word for name, word in made.telling.items() if agent in named or name in telling[agent]]
        variant = next(same, ",".join([agent, *words]))
        twin = found.get((variant, env, seed))
        if twin is not None:
            both = f"{path} is given" if twin.path == path else f"{twin.path} and {path} are one run"
            raise folder.RunFolderError(f"{both} twice: {variant} on {env} with seed {seed}, and no setting differs")
        file = ("--config", str(path / folder.CONFIG))
        command = (f"agent={agent}", *made.settings.values(), f"seed={seed}") if made.exact else file
        found[variant, env, seed] = Cell(variant, env, seed, path, command)
    return list(found.values())


def _finished(path: Path) -> Config:
    config = folder.read_config(path)
    assembly.require_source(config, None)
    done = folder.counters(path)
    if not config.reached(done):
        raise folder.RunFolderError(
            f"{path} is not finished ({done.get('env_steps', 0):,} of {config.steps:,} environment steps): "
            f"go on with it first, by bircher train --resume {shlex.quote(str(path))}"
        )
    return config


def _telling(members: Iterable[_Member]) -> dict[str, set[str]]:
    """By agent, the settings in which its runs differ within an environment."""
    found: dict[str, set[str]] = {}
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for member in members:
        groups.setdefault((member.agent, member.config.env.id), []).append(member.recipe.telling)
    for (agent, _), recipes in groups.items():
        names = {name for one in recipes for name in one}
        found.setdefault(agent, set()).update(name for name in names if len({one.get(name) for one in recipes}) > 1)
    return found


def recipe(config: Config) -> Recipe:
    """The fewest settings by which a command makes this configuration.

    Those that follow from others, as a mixture's weights or all that a preset holds, are not among them.

    Raises:
      UnknownEnvironment: its environment is not known here.
    """
    env, agent = config.env.id, f"agent={config.agent.name}"

    def gives(words: Iterable[str]) -> bool:
        try:
            return compose(env, [agent, *words, f"seed={config.seed}"]) == config
        except ConfigError:
            return False

    usual = flat(compose(env, [agent]).model_dump(mode="json", by_alias=True))
    own = flat(config.model_dump(mode="json", by_alias=True))
    # An option that it lacks cannot be taken away by a setting, but tells it from others.
    own |= {name: None for name in usual if not any(other == name or other.startswith(f"{name}.") for other in own)}
    words = {
        name: f"{name}={_short(value)}"
        for name, value in own.items()
        if name not in NAMED and value != usual.get(name, {})
    }
    if not gives(words.values()):
        return Recipe(words, exact=False)
    # Last the preset: what it holds is then known to be so.
    for name in sorted(words, key=lambda name: name == "preset"):
        fewer = {other: word for other, word in words.items() if other != name}
        if gives(fewer.values()):
            words = fewer
    return Recipe(words)


def _short(value: object) -> str:
    return shown(value).replace(", ", ",") if isinstance(value, list) else shown(value)
