"""Agents compared: which runs, what they say together, and where that is written."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from bircher import comparison, pages
from bircher.comparison import Band, Curve
from bircher.config import AGENTS, ConfigError
from bircher.run import folder
from bircher.run.cells import Cell, Variant
from bircher.series import Line
from bircher.suggestions import near

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


def require_own(cells: Sequence[Cell], out: Path) -> None:
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


def findings(cells: Sequence[Cell], title: str, notes: Sequence[str] = ()) -> pages.Findings:
    """What these runs, all of them done, say together.

    Raises:
      RunFolderError: a run's evaluation or metrics cannot be read.
    """
    agents = list(dict.fromkeys(cell.variant for cell in cells))
    envs = list(dict.fromkeys(cell.env for cell in cells))
    generator = np.random.default_rng(0)
    reports = {cell: cell.evaluation() for cell in cells}
    lines = {cell: folder.read_metrics(cell.path) for cell in cells}
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
            estimate = comparison.aggregate({env: means}, lambda values: values.mean(-1), generator)
            steps = max(int(lines[cell][-1]["env_steps"]) for cell in own)
            seconds = float(np.mean([lines[cell][-1]["wall_seconds"] for cell in own]))
            rows.append(pages.Row(env, agent, estimate, tuple(means), steps, seconds))
    floors = {env: _untrained([lines[cell] for cell in cells if cell.env == env]) for env in envs}
    scaled = comparison.normalised(scores, floors) if len(envs) > 1 else scores
    unit = "normalised return" if len(envs) > 1 else "return"
    aggregates = {
        f"IQM of runs, {unit}": {agent: comparison.iqm(scaled[agent], generator) for agent in agents},
        f"median over environments of mean {unit}": {
            agent: comparison.median(scaled[agent], generator) for agent in agents
        },
    }
    improvement = {
        (ours, theirs): comparison.probability_of_improvement(scores[ours], scores[theirs], generator)
        for ours, theirs in _pairs(agents)
        if set(scores[ours]) & set(scores[theirs])
    }
    said = [*notes, _evaluated(list(reports.values())), *_cautions(rows, envs)]
    over = {
        axis: {env: _bands(cells, curves, env, agents, axis) for env in envs} for axis in ("env_steps", "wall_seconds")
    }
    commands = [cell.command for cell in cells]
    return pages.Findings(
        title, rows, aggregates, improvement, over["env_steps"], over["wall_seconds"], commands, said
    )  # fmt: skip


def _evaluated(reports: Sequence[dict[str, Any]]) -> str:
    """What was measured of each run, and how."""
    episodes = " or ".join(f"{number:,}" for number in sorted({int(report["episodes"]) for report in reports}))
    return (
        f"A run counts as one number, the mean return of its final agent on {episodes} fresh episodes (bircher eval "
        "RUN --episodes N --seed SEED, with the run's own seed); intervals are 95 % stratified bootstrap intervals of "
        f"{comparison.RESAMPLES:,} resamples."
    )


def _cautions(rows: Sequence[pages.Row], envs: Sequence[str]) -> list[str]:
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
            "Normalised: 0 is the return of training's first episodes, 1 that of the best agent, in each environment."
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
    cells: Sequence[Cell], curves: dict[Cell, Curve | None], env: str, agents: Sequence[str], axis: str
) -> dict[str, Band]:
    found = {}
    for agent in agents:
        own = [curves[cell] for cell in cells if (cell.env, cell.variant) == (env, agent)]
        known = [one for one in own if one is not None]
        if known:
            found[agent] = comparison.band(known, axis)
    return found


def write(found: pages.Findings, out: Path) -> dict[str, Any]:
    """Page, table and numbers in a folder, each at once or not at all; returns the numbers."""
    numbers = pages.as_json(found)
    texts = {PAGE: pages.html(found), TABLE: pages.markdown(found), NUMBERS: json.dumps(numbers, indent=1)}
    for name, text in texts.items():
        temporary = out / f".{name}.unfinished"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out / name)
    return numbers
