"""Comparison of agents: which runs are made or found, and what they show together.

Runs that exist are found and named by the settings in which they differ.  The protocol `from PPO to Muesli` adds one of
Muesli's parts at a time.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bircher.config.config import AGENTS, Config, ConfigError, compose
from bircher.config.settings import shown
from bircher.errors import RunFolderError, near
from bircher.experiments import report, statistics
from bircher.experiments.grid import Job, Variant, differences, flat, is_free
from bircher.experiments.statistics import Band, Curve
from bircher.metrics import Line
from bircher.runs import build, directory

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
        """Those of them that change what is learned."""
        return {name: word for name, word in self.settings.items() if not is_free(name)}


class _Member(NamedTuple):
    """A run, or what a planned one would be."""

    config: Config
    recipe: Recipe

    @property
    def agent(self) -> str:
        return self.config.agent.name


def cells(paths: Sequence[Path], planned: Sequence[Job] = ()) -> list[Job]:
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
    found: dict[tuple[str, str, int], Job] = {}
    for path in paths:
        config, (_, made) = configs[path], runs[path]
        env, seed, agent = config.env.id, config.seed, config.agent.name
        same = (name for (name, _), plan in plans.items() if not differences(runs[path].config, plan.config))
        words = [word for name, word in made.telling.items() if agent in named or name in telling[agent]]
        variant = next(same, ",".join([agent, *words]))
        twin = found.get((variant, env, seed))
        if twin is not None:
            both = f"{path} is given" if twin.path == path else f"{twin.path} and {path} are one run"
            raise RunFolderError(f"{both} twice: {variant} on {env} with seed {seed}, and no setting differs")
        file = ("--config", str(path / directory.CONFIG))
        command = (f"agent={agent}", *made.settings.values(), f"seed={seed}") if made.exact else file
        found[variant, env, seed] = Job(variant, env, seed, path, command)
    return list(found.values())


def _finished(path: Path) -> Config:
    config = directory.read_config(path)
    build.require_source(config, None)
    done = directory.counters(path)
    if not config.reached(done):
        raise RunFolderError(
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


_POLICY_MODEL = ("losses.model_policy.weight=0.001", "model.policy_horizon=1")
_CMPO = ("losses.cmpo.weight=0.01",)
_VALUES = ("losses.model_value.weight=1.0", "losses.model_reward.weight=1.0")
_FOURTH = ("agent=ppo", "model.unroll_steps=3", *_POLICY_MODEL, *_CMPO, *_VALUES)


def steps(env: str, settings: Sequence[str] = ()) -> list[Variant]:
    """Each with the settings that make it; `settings` are those that all five are given besides.

    A model is unrolled within a piece of a rollout, and a deeper one gets longer pieces: steps 2 and 3 have those of
    step 4, so that each adds one thing only.

    Raises:
      ConfigError, UnknownEnvironment: step 4 cannot be composed.
    """
    pieces = f"optimizer.segment_length={shown(compose(env, [*_FOURTH, *settings]).optimizer.segment_length)}"
    prior = ("agent=ppo", "agent.policy_target=prior", "model.unroll_steps=1", pieces, *_POLICY_MODEL)
    return [
        Variant("1 ppo", ("agent=ppo",)),
        Variant("2 + policy model", prior),
        Variant("3 + cmpo", ("agent=ppo", "model.unroll_steps=1", pieces, *_POLICY_MODEL, *_CMPO, *_VALUES)),
        Variant("4 + model of 3 steps", _FOURTH),
        Variant("5 muesli", ("agent=muesli",)),
    ]


NOTES = (
    "Steps 2 to 4 cut rollouts into pieces of one length, longer than step 1's, for a model is unrolled within one.",
    "Step 2 has no improved policy to learn yet: its model of policies learns the prior's.",
    "CMPO looks one step ahead, so that step 3 learns rewards and values one step deep; step 4 learns them three.",
)


PAGE, TABLE, NUMBERS = "comparison.html", "comparison.md", "comparison.json"
POINTS = 60
"""Places at which a curve is known."""
FEW = 5
"""Runs from which on a bootstrap's interval means something."""
MANY = 4
"""Agents from which on each is held against the first alone, not against every other."""


def variants(words: Sequence[str]) -> list[Variant]:
    """Agents by name, each with settings of its own behind commas: `ppo,losses.cmpo.weight=0.01`.

    Raises:
      ConfigError: no such agent, or the same one twice.
    """
    found = []
    for word in words:
        agent, *settings = apart(word)
        if agent not in AGENTS:
            raise ConfigError(f"unknown agent {agent!r}{near(agent, AGENTS)}: expected one of {', '.join(AGENTS)}")
        found.append(Variant(word, (f"agent={agent}", *settings)))
    twice = next((word for word in words if list(words).count(word) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice")
    return found


def apart(word: str) -> list[str]:
    """An agent and its settings, at the commas that no bracket holds: `ppo,model.head_widths=[64,64]`."""
    parts, depth = [""], 0
    for character in word:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def require_own(cells: Sequence[Job], out: Path) -> None:
    """Refuse to overwrite what another comparison wrote; the same one, or one that has grown, may.

    Raises:
      ConfigError: says what is there.
    """
    there = next((out / name for name in (PAGE, TABLE, NUMBERS) if (out / name).exists()), None)
    if there is None:
        return
    try:
        found = json.loads((out / NUMBERS).read_text(encoding="utf-8"))
        agents = {(row["env"], row["agent"]) for row in found["rows"]}
        commands = {frozenset(shlex.split(command)) for command in found["commands"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{there} is not this comparison's: give another --out, or move it away") from None
    ours = {frozenset(shlex.split(cell.command)) for cell in cells}
    if not (agents <= {(cell.env, cell.variant) for cell in cells} and commands <= ours):
        raise ConfigError(
            f"{there} is of another comparison ({found.get('title', 'without a title')}): give another --out, or move "
            "it away"
        )


def returns(lines: Sequence[Line]) -> list[Line]:
    """The lines of a run that tell returns of training episodes."""
    return [line for line in lines if np.isfinite(line.get("act/episode_return", np.nan))]


def curve(lines: Sequence[Line]) -> Curve | None:
    """A run's training returns over steps and seconds, as means between evenly spaced places; None without any."""
    lines = returns(lines)
    if len(lines) < 2:
        return None
    steps, seconds, means = (
        np.array([line[name] for line in lines], float) for name in ("env_steps", "wall_seconds", "act/episode_return")
    )
    edges = np.linspace(0, steps[-1], min(POINTS, len(lines)) + 1)
    place = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, len(edges) - 2)
    kept = np.unique(place)
    found = [[float(column[place == index].mean()) for index in kept] for column in (steps, seconds, means)]
    return Curve([int(value) for value in found[0]], found[1], found[2])


def findings(cells: Sequence[Job], title: str, notes: Sequence[str] = ()) -> report.Findings:
    """What these runs, all of them done, say together.

    Raises:
      RunFolderError: a run's evaluation or metrics cannot be read.
    """
    agents = list(dict.fromkeys(cell.variant for cell in cells))
    envs = list(dict.fromkeys(cell.env for cell in cells))
    generator = np.random.default_rng(0)
    reports = {cell: cell.evaluation() for cell in cells}
    lines = {cell: directory.read_metrics(cell.path) for cell in cells}
    curves = {cell: curve(lines[cell]) for cell in cells}
    scores: dict[str, dict[str, list[float]]] = {agent: {} for agent in agents}
    rows = []
    for env in envs:
        for agent in agents:
            own = [cell for cell in cells if (cell.env, cell.variant) == (env, agent)]
            if not own:
                continue
            means = [float(reports[cell]["mean"]) for cell in own]
            scores[agent][env] = means
            estimate = statistics.aggregate({env: means}, lambda values: values.mean(-1), generator)
            steps = max(int(lines[cell][-1]["env_steps"]) for cell in own)
            seconds = float(np.mean([lines[cell][-1]["wall_seconds"] for cell in own]))
            rows.append(report.Row(env, agent, estimate, tuple(means), steps, seconds))
    floors = {env: _untrained([lines[cell] for cell in cells if cell.env == env]) for env in envs}
    scaled = statistics.normalized(scores, floors) if len(envs) > 1 else scores
    unit = "normalized return" if len(envs) > 1 else "return"
    aggregates = {
        f"IQM of runs, {unit}": {agent: statistics.iqm(scaled[agent], generator) for agent in agents},
        f"median over environments of mean {unit}": {
            agent: statistics.median(scaled[agent], generator) for agent in agents
        },
    }
    improvement = {
        (ours, theirs): statistics.probability_of_improvement(scores[ours], scores[theirs], generator)
        for ours, theirs in _pairs(agents)
        if set(scores[ours]) & set(scores[theirs])
    }
    said = [*notes, _evaluated(list(reports.values())), *_cautions(rows, envs)]
    over = {
        axis: {env: _bands(cells, curves, env, agents, axis) for env in envs} for axis in ("env_steps", "wall_seconds")
    }
    commands = [cell.command for cell in cells]
    return report.Findings(
        title, rows, aggregates, improvement, over["env_steps"], over["wall_seconds"], commands, said
    )  # fmt: skip


def _evaluated(reports: Sequence[dict[str, Any]]) -> str:
    """What was measured of each run, and how."""
    episodes = " or ".join(f"{number:,}" for number in sorted({int(report["episodes"]) for report in reports}))
    return (
        f"A run counts as one number, the mean return of its final agent on {episodes} fresh episodes (bircher eval "
        "RUN --episodes N --seed SEED, with the run's own seed); intervals are 95 % stratified bootstrap intervals of "
        f"{statistics.RESAMPLES:,} resamples."
    )


def _cautions(rows: Sequence[report.Row], envs: Sequence[str]) -> list[str]:
    """How the numbers are to be read."""
    said = []
    if len(envs) == 1:
        said.append("The median is over environments, of the means of their runs: of one environment it is that mean.")
    if any(len(row.runs) < FEW for row in rows):
        said.append(
            f"Of fewer than {FEW} runs such an interval is hardly more than the range of what they are; one has none."
        )
    for env in envs:
        steps = [row.env_steps for row in rows if row.env == env]
        if max(steps) > 1.1 * min(steps):
            said.append(
                f"{env}: the agents had different numbers of steps, {min(steps):,} to {max(steps):,}; --steps sets "
                "those of all that are trained."
            )
    for agent in dict.fromkeys(row.agent for row in rows):
        missing = [env for env in envs if not any((row.env, row.agent) == (env, agent) for row in rows)]
        if missing:
            said.append(
                f"{agent} has no run on {', '.join(missing)}: what is said of it over environments leaves it out."
            )
    if len(envs) > 1:
        said.append(
            "Normalized: 0 is the return of training's first episodes, 1 that of the best agent, in each environment."
        )
    return said


def _pairs(agents: Sequence[str]) -> list[tuple[str, str]]:
    """Who is held against whom."""
    every = list(permutations(agents, 2))
    return every if len(agents) < MANY else [pair for pair in every if pair[1] == agents[0]]


def _untrained(runs: Sequence[Sequence[Line]]) -> float:
    """The mean return of the first episodes of these runs; 0 where none ended."""
    first = [told[0]["act/episode_return"] for told in map(returns, runs) if told]
    return float(np.mean(first)) if first else 0.0


def _bands(
    cells: Sequence[Job], curves: dict[Job, Curve | None], env: str, agents: Sequence[str], axis: str
) -> dict[str, Band]:
    found = {}
    for agent in agents:
        own = [curves[cell] for cell in cells if (cell.env, cell.variant) == (env, agent)]
        known = [one for one in own if one is not None]
        if known:
            found[agent] = statistics.band(known, axis)
    return found


def write(found: report.Findings, out: Path) -> dict[str, Any]:
    """Page, table and numbers in a folder, each at once or not at all; returns the numbers."""
    numbers = report.as_json(found)
    texts = {PAGE: report.html(found), TABLE: report.markdown(found), NUMBERS: json.dumps(numbers, indent=1)}
    for name, text in texts.items():
        temporary = out / f".{name}.unfinished"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out / name)
    return numbers
