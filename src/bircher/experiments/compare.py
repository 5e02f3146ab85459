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
from typing import Any

import numpy as np

from bircher import metrics
from bircher.config.config import AGENTS, Config, ConfigError, compose
from bircher.config.settings import as_text
from bircher.errors import RunFolderError, near
from bircher.experiments import report, statistics
from bircher.experiments.grid import Job, Variant, flat, is_free
from bircher.experiments.statistics import Band, Curve
from bircher.metrics import Line
from bircher.runs import build, directory

DERIVED = (
    "optimizer.batch_size", "optimizer.updates_per_step", "optimizer.segment_length", "replay.capacity",
    "losses.model_value.weight", "losses.model_reward.weight",
)  # fmt: skip
"""Settings that follow from others, and are in a run's name only if nothing else differs."""


def finished_jobs(paths: Sequence[Path], planned: Sequence[Job] = ()) -> list[Job]:
    """Return finished runs as jobs, named by their agents and by the settings in which they differ.

    A run has the name of a planned variant if their settings are the same. Otherwise runs of one agent get names like
    those of a plan, such as `ppo,losses.cmpo.weight=0.01`. They contain the preset, if runs on an environment differ in
    it, and the settings in which runs of one preset on an environment differ.

    Raises:
      RunFolderError: a path is not a run directory, the run is not finished, or the same run is listed twice.
      ConfigError, UnknownEnvironment: a configuration is damaged, or its environment is not known here.
    """
    runs = {path: _finished(path) for path in dict.fromkeys(paths)}
    plans = {(job.variant, job.env): compose(job.env, job.settings) for job in planned}
    names = _distinctive_names([*runs.values(), *plans.values()])
    jobs: dict[tuple[str, str, int], Job] = {}
    for path in paths:
        config = runs[path]
        env, seed = config.env.id, config.seed
        own = _settings(config)
        words = [f"{name}={_short(own.get(name))}" for name in names[config.agent.name] if name in own]
        same = (name for (name, place), plan in plans.items() if place == env and _settings(plan) == own)
        variant = next(same, ",".join([config.agent.name, *words]))
        twin = jobs.get((variant, env, seed))
        if twin is not None:
            both = f"{path} is given" if twin.path == path else f"{twin.path} and {path} are one run"
            raise RunFolderError(f"{both} twice: {variant} on {env} with seed {seed}, and no setting differs")
        jobs[variant, env, seed] = Job(variant, env, seed, path, ("--config", str(path / directory.CONFIG)))
    return list(jobs.values())


def _finished(path: Path) -> Config:
    config = directory.read_config(path)
    build.require_source(config, None)
    done = directory.counters(path)
    if not config.reached(done):
        raise RunFolderError(
            f"{path} is not finished ({done.get('env_steps', 0):,} of {config.steps:,} environment steps): "
            f"finish it first with bircher train --resume {shlex.quote(str(path))}"
        )
    return config


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings on which it depends what a run learns, except its seed, with dotted names."""
    settings = flat(config.model_dump(mode="json", by_alias=True))
    return {name: value for name, value in settings.items() if name != "seed" and not is_free(name)}


def _distinctive_names(configs: Iterable[Config]) -> dict[str, list[str]]:
    """Return for each agent the names of the settings by which its runs are told apart."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for config in configs:
        presets = groups.setdefault((config.agent.name, config.env.id), {})
        presets.setdefault(config.preset, []).append(_settings(config))
    distinctive: dict[str, list[str]] = {}
    for (agent, _), presets in groups.items():
        names = distinctive.setdefault(agent, [])
        if len(presets) > 1:
            names.append("preset")
        for group in presets.values():
            names += _differing(group)
        distinctive[agent] = list(dict.fromkeys(names))
    return distinctive


def _differing(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings in which some of these differ, without the derived ones where others suffice."""
    every = list(dict.fromkeys(name for settings in group for name in settings))
    missing = object()
    names = [name for name in every if any(one.get(name, missing) != group[0].get(name, missing) for one in group)]
    set_names = [name for name in names if name not in DERIVED]

    def values(names: Iterable[str]) -> set[str]:
        return {json.dumps([one.get(name, None) for name in names]) for one in group}

    return set_names if len(values(set_names)) == len(values(names)) else names


def _short(value: object) -> str:
    return as_text(value).replace(", ", ",") if isinstance(value, list) else as_text(value)


_POLICY_MODEL = ("losses.model_policy.weight=0.001", "model.policy_horizon=1")
_CMPO = ("losses.cmpo.weight=0.01",)
_VALUES = ("losses.model_value.weight=1.0", "losses.model_reward.weight=1.0")
_FOURTH = ("agent=ppo", "model.unroll_steps=3", *_POLICY_MODEL, *_CMPO, *_VALUES)


def steps(env: str, settings: Sequence[str] = ()) -> list[Variant]:
    """Return the five steps from PPO to Muesli as variants; `settings` are settings that all five share.

    A model is unrolled within a segment of a rollout, and a deeper unroll needs longer segments by default. Steps 2 and
    3 have the segment length of step 4, so that each step adds one thing only.

    Raises:
      ConfigError, UnknownEnvironment: step 4 cannot be composed.
    """
    length = f"optimizer.segment_length={as_text(compose(env, [*_FOURTH, *settings]).optimizer.segment_length)}"
    prior = ("agent=ppo", "agent.policy_target=prior", "model.unroll_steps=1", length, *_POLICY_MODEL)
    return [
        Variant("1 ppo", ("agent=ppo",)),
        Variant("2 + policy model", prior),
        Variant("3 + cmpo", ("agent=ppo", "model.unroll_steps=1", length, *_POLICY_MODEL, *_CMPO, *_VALUES)),
        Variant("4 + model of 3 steps", _FOURTH),
        Variant("5 muesli", ("agent=muesli",)),
    ]


NOTES = (
    "Steps 2 to 4 cut rollouts into segments of one length, longer than step 1's: a model is unrolled within one.",
    "Step 2 has no improved policy yet, so its policy model learns the prior.",
    "CMPO looks one step ahead, so step 3 learns rewards and values one step deep, and step 4 three steps deep.",
)


PROGRESS_NOTES = (
    "A run's steps to the threshold are those after which the mean of its last 100 training episodes first reached it, "
    "as exactly as its metrics are written. From 20 to 99 episodes the mean is over all of them. A run that never gets "
    "there counts as its whole budget.",
    "On environments where an agent trains with clipped rewards, evaluations during training replace the training "
    "episodes of all agents.",
    "The interval of a difference or a ratio resamples the seeds of both agents within each environment. The ratio is "
    "the median over environments of the ratio of the median steps.",
)


PAGE, TABLE, NUMBERS = "comparison.html", "comparison.md", "comparison.json"
POINTS = 60
"""Maximum number of points of a curve."""
FEW = 5
"""Minimum number of runs for a meaningful bootstrap interval."""
MANY = 4
"""Minimum number of agents for which each is compared only with the first, not with every other."""


def variants(words: Sequence[str]) -> list[Variant]:
    """Parse agents by name, each with its own settings after commas: `ppo,losses.cmpo.weight=0.01`.

    Raises:
      ConfigError: an agent is unknown, or the same variant is listed twice.
    """
    result = []
    for word in words:
        agent, *settings = split_settings(word)
        if agent not in AGENTS:
            raise ConfigError(f"unknown agent {agent!r}{near(agent, AGENTS)}: expected one of {', '.join(AGENTS)}")
        result.append(Variant(word, (f"agent={agent}", *settings)))
    twice = next((word for word in words if list(words).count(word) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice")
    return result


def split_settings(word: str) -> list[str]:
    """Split an agent and its settings at the commas outside brackets, as in `ppo,model.head_widths=[64,64]`."""
    parts, depth = [""], 0
    for character in word:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def require_own(jobs: Sequence[Job], out: Path) -> None:
    """Require that the files of a comparison in `out` belong to this comparison or to a part of it.

    Raises:
      ConfigError: the files belong to something else; the message names a file.
    """
    existing = next((out / name for name in (PAGE, TABLE, NUMBERS) if (out / name).exists()), None)
    if existing is None:
        return
    try:
        numbers = json.loads((out / NUMBERS).read_text(encoding="utf-8"))
        agents = {(row["env"], row["agent"]) for row in numbers["rows"]}
        commands = {frozenset(shlex.split(command)) for command in numbers["commands"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{existing} is not from this comparison: set another --out, or move it away") from None
    own_commands = {frozenset(shlex.split(job.command)) for job in jobs}
    if not (agents <= {(job.env, job.variant) for job in jobs} and commands <= own_commands):
        raise ConfigError(
            f"{existing} is from another comparison ({numbers.get('title', 'without a title')}): set another --out, or "
            "move it away"
        )


def returns(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of a run's metrics that contain returns of training episodes."""
    return [line for line in lines if np.isfinite(line.get("act/episode_return", np.nan))]


def curve(lines: Sequence[Line]) -> Curve | None:
    """Return a run's training returns over steps and seconds, as means within equal spans of steps.

    Returns None if fewer than two lines contain returns.
    """
    lines = returns(lines)
    if len(lines) < 2:
        return None
    steps, seconds, means = (
        np.array([line[name] for line in lines], float) for name in ("env_steps", "wall_seconds", "act/episode_return")
    )
    edges = np.linspace(0, steps[-1], min(POINTS, len(lines)) + 1)
    span = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, len(edges) - 2)
    spans = np.unique(span)
    points = [[float(column[span == index].mean()) for index in spans] for column in (steps, seconds, means)]
    return Curve([int(value) for value in points[0]], points[1], points[2])


def findings(jobs: Sequence[Job], title: str, notes: Sequence[str] = (), suite: Suite | None = None) -> report.Findings:
    """Compute the results of a comparison from its runs, which must all be done.

    With a suite, which must have all of their environments, scores are normalized by its references.

    Raises:
      RunFolderError: a run's evaluation or metrics cannot be read.
    """
    agents = list(dict.fromkeys(job.variant for job in jobs))
    envs = list(dict.fromkeys(job.env for job in jobs))
    generator = np.random.default_rng(0)
    reports = {job: job.evaluation() for job in jobs}
    lines = {job: directory.read_metrics(job.path) for job in jobs}
    curves = {job: curve(lines[job]) for job in jobs}
    scores: dict[str, dict[str, list[float]]] = {agent: {} for agent in agents}
    rows, losses = [], []
    for env in envs:
        for agent in agents:
            own = [job for job in jobs if (job.env, job.variant) == (env, agent)]
            if not own:
                continue
            means = [float(reports[job]["mean"]) for job in own]
            scores[agent][env] = means
            estimate = statistics.aggregate({env: means}, lambda values: values.mean(-1), generator)
            steps = max(int(lines[job][-1]["env_steps"]) for job in own)
            seconds = float(np.mean([lines[job][-1]["wall_seconds"] for job in own]))
            by_agent = _by_agent([reports[job] for job in own])
            rows.append(report.Row(env, agent, estimate, tuple(means), steps, seconds, by_agent))
            losses += _losses(env, agent, [lines[job] for job in own])
    scaled, aggregates = _aggregates(scores, [(job.env, lines[job]) for job in jobs], suite, generator)
    improvement = {
        (ours, theirs): statistics.probability_of_improvement(scores[ours], scores[theirs], generator)
        for ours, theirs in _pairs(agents)
        if set(scores[ours]) & set(scores[theirs])
    }
    all_notes = [*notes, _evaluation_note(list(reports.values())), *_cautions(rows, envs, suite)]
    over = {
        axis: {env: _bands(jobs, curves, env, agents, axis) for env in envs} for axis in ("env_steps", "wall_seconds")
    }
    commands = [job.command for job in jobs]
    progress = None if suite is None else _progress(scaled, lines, suite, generator)
    return report.Findings(
        title, rows, aggregates, improvement, over["env_steps"], over["wall_seconds"], commands, all_notes, progress,
        losses,
    )  # fmt: skip


def _losses(env: str, agent: str, runs: Sequence[Sequence[Line]]) -> list[report.LossRow]:
    """Return the magnitude of each loss term: the mean over runs of its mean in the last third of their steps."""

    def size(name: str) -> float:
        """Return the mean of a metric, NaN if no run has it."""
        means = []
        for lines in runs:
            late = [line[name] for line in lines if name in line and line["env_steps"] > 2 / 3 * lines[-1]["env_steps"]]
            if late:
                means.append(float(np.mean(late)))
        return float(np.mean(means)) if means else np.nan

    found = {term: (size(f"loss/{term}"), size(f"weighted/{term}")) for term in metrics.TERMS}
    sizes = {term: pair for term, pair in found.items() if not np.isnan(pair).any()}
    total = sum(abs(weighted) for _, weighted in sizes.values()) or 1.0
    return [
        report.LossRow(env, agent, term, loss, weighted, abs(weighted) / total)
        for term, (loss, weighted) in sizes.items()
    ]


def _by_agent(reports: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the mean return of each of several agents over runs; None where environments have one agent."""
    if not all("agents" in each for each in reports):
        return None
    return {
        name: float(np.mean([each["agents"][name]["mean"] for each in reports])) for name in reports[0]["agents"]
    }


def _aggregates(
    scores: Mapping[str, Scores], runs: Sequence[tuple[str, Sequence[Line]]], suite: Suite | None,
    generator: np.random.Generator,
) -> tuple[Mapping[str, Scores], dict[str, dict[str, Estimate]]]:  # fmt: skip
    """Return the scores in common units, and their statistics by name and agent."""
    if suite is not None:
        scaled = {
            agent: {env: [suite.references[env].scale(value) for value in values] for env, values in own.items()}
            for agent, own in scores.items()
        }
        kinds = {"mean": statistics.mean, "median": statistics.median, "IQM": statistics.iqm}
        names = {name: f"{name} of normalized scores" for name in kinds}
    else:
        envs = dict.fromkeys(env for env, _ in runs)
        floors = {env: _untrained([lines for other, lines in runs if other == env]) for env in envs}
        scaled = statistics.normalize(scores, floors) if len(envs) > 1 else scores
        unit = "normalized return" if len(envs) > 1 else "return"
        kinds = {"IQM": statistics.iqm, "median": statistics.median}
        names = {"IQM": f"IQM of runs, {unit}", "median": f"median over environments of mean {unit}"}
    return scaled, {
        names[kind]: {agent: estimate(scaled[agent], generator) for agent in scores} for kind, estimate in kinds.items()
    }


def _progress(
    scaled: Mapping[str, Scores], lines: Mapping[Job, Sequence[Line]], suite: Suite, generator: np.random.Generator
) -> report.Progress:
    """Return each environment's normalized scores and steps to its threshold, and how the first agent compares."""
    agents, steps, rows = list(scaled), {agent: {} for agent in scaled}, []
    configs = {job: directory.read_config(job.path) for job in lines}
    clipped = {job.env for job, config in configs.items() if config.env.reward_clip is not None}
    for env in dict.fromkeys(job.env for job in lines):
        reference = suite.references[env]
        for agent in agents:
            own = [job for job in lines if (job.env, job.variant) == (env, agent)]
            if not own:
                continue
            reached = [_steps_to(lines[job], reference.threshold, env in clipped) for job in own]
            whole = [configs[job].steps for job in own]
            steps[agent][env] = [end if step is None else step for step, end in zip(reached, whole, strict=True)]
            score = statistics.mean({env: scaled[agent][env]}, generator)
            solved = sum(step is not None for step in reached)
            row = report.ProgressRow(
                env, agent, reference.zero, reference.one, reference.threshold, score, tuple(steps[agent][env]), solved
            )
            rows.append(row)
    pairs = [(agents[0], other) for other in agents[1:] if set(scaled[agents[0]]) & set(scaled[other])]
    return report.Progress(
        rows,
        {(ours, theirs): statistics.difference(scaled[ours], scaled[theirs], generator) for ours, theirs in pairs},
        {(ours, theirs): statistics.ratio(steps[ours], steps[theirs], generator) for ours, theirs in pairs},
    )


def _steps_to(lines: Sequence[Line], threshold: float, clipped: bool) -> int | None:
    """Return the steps after which the training returns of a run reached a threshold; None if they never did.

    Where rewards of training are `clipped`, its evaluations are used instead.
    """
    if clipped:
        evaluated = [line for line in lines if np.isfinite(line.get("eval/return_mean", np.nan))]
        return next((int(line["env_steps"]) for line in evaluated if line["eval/return_mean"] >= threshold), None)
    counted = returns(lines)
    totals = [int(line["episodes"]) for line in counted]
    episodes = np.diff([0, *totals]).tolist()
    steps = [int(line["env_steps"]) for line in counted]
    return statistics.steps_to_threshold(steps, [line["act/episode_return"] for line in counted], episodes, threshold)


def _evaluation_note(reports: Sequence[dict[str, Any]]) -> str:
    """Return the note that says which number each run contributes and how it was measured."""
    episodes = " or ".join(f"{number:,}" for number in sorted({int(report["episodes"]) for report in reports}))
    return (
        f"A run counts as one number, the mean return of its final agent on {episodes} fresh episodes (bircher eval "
        "RUN --episodes N --seed SEED, with the run's own seed); intervals are 95 % stratified bootstrap intervals of "
        f"{statistics.RESAMPLES:,} resamples."
    )


def _cautions(rows: Sequence[report.Row], envs: Sequence[str], suite: Suite | None) -> list[str]:
    """Return notes on how to read the numbers."""
    notes = []
    if len(envs) == 1:
        notes.append("The median is over the means of the environments, so with one environment it equals that mean.")
    if any(len(row.runs) < FEW for row in rows):
        notes.append(
            f"An interval of fewer than {FEW} runs is little more than their range; a single run has no interval."
        )
    for env in envs:
        steps = [row.env_steps for row in rows if row.env == env]
        if max(steps) > 1.1 * min(steps):
            notes.append(
                f"{env}: the agents had different numbers of steps, {min(steps):,} to {max(steps):,}; --steps sets "
                "one number for all runs that are trained."
            )
    for row in rows:
        if row.agents:
            own = ", ".join(f"{name} {value:.4g}" for name, value in row.agents.items())
            notes.append(f"{row.env}, {row.agent}: the return is that of the team, the sum of its agents': {own}.")
    for agent in dict.fromkeys(row.agent for row in rows):
        missing = [env for env in envs if not any((row.env, row.agent) == (env, agent) for row in rows)]
        if missing:
            notes.append(
                f"{agent} has no run on {', '.join(missing)}: its statistics over environments leave that out."
            )
    if suite is not None:
        notes += [f"Normalized scores are those of the suite: {suite.meaning}.", *PROGRESS_NOTES]
        missing = [env for env in suite.references if env not in envs]
        if missing:
            notes.append(f"No agent has a run on {', '.join(missing)}: the statistics leave that out.")
    elif len(envs) > 1:
        notes.append(
            "Returns are normalized in each environment: 0 is the return of the first training episodes, 1 that of the "
            "best agent."
        )
    return notes


def _pairs(agents: Sequence[str]) -> list[tuple[str, str]]:
    """Return the ordered pairs of agents that are compared."""
    every = list(permutations(agents, 2))
    return every if len(agents) < MANY else [pair for pair in every if pair[1] == agents[0]]


def _untrained(runs: Sequence[Sequence[Line]]) -> float:
    """Return the mean return of the first episodes of these runs; 0 if no episode ended."""
    first = [lines[0]["act/episode_return"] for lines in map(returns, runs) if lines]
    return float(np.mean(first)) if first else 0.0


def _bands(
    jobs: Sequence[Job], curves: dict[Job, Curve | None], env: str, agents: Sequence[str], axis: str
) -> dict[str, Band]:
    bands = {}
    for agent in agents:
        own = [curves[job] for job in jobs if (job.env, job.variant) == (env, agent)]
        known = [one for one in own if one is not None]
        if known:
            bands[agent] = statistics.band(known, axis)
    return bands


def write(found: report.Findings, out: Path) -> dict[str, Any]:
    """Write page, table and numbers to a folder, each file in one step, and return the numbers."""
    numbers = report.as_json(found)
    texts = {PAGE: report.html(found), TABLE: report.markdown(found), NUMBERS: json.dumps(numbers, indent=1)}
    for name, text in texts.items():
        temporary = out / f".{name}.unfinished"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out / name)
    return numbers
