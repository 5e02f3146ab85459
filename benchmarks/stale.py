"""Whether a line of the ledger still describes the preset that it names.

The configuration that a command had at the line's commit is compared, setting by setting, with the one that the same
command has now.  Both are read by the current package, so a setting that was renamed and a file that was moved are no
difference.  New lines contain their settings.  For older lines the package of their commit resolves the command.  What
an agent computes from equal settings cannot be compared in this way: commits that changed it are listed in `CHANGES`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import runner
from ledger import ROOT, Line, git

from bircher import renamed
from bircher.config.config import Config, ConfigError, compose, validated
from bircher.experiments.grid import differences

TRAIN = "bircher train "
RESOLVE = """
import json, sys
try:
    from bircher.config.config import compose
except ImportError:
    from bircher.config import compose
for command in json.load(sys.stdin):
    env, *words = command.split()[2:]
    try:
        found = compose(env, words).model_dump(mode="json", by_alias=True)
    except Exception as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""


class Change(NamedTuple):
    """A commit after which agents compute something else from the same settings."""

    commit: str
    agents: tuple[str, ...]
    what: str


CHANGES = (Change("61bdb80", ("gumbel_muzero",), "the temperature of acting scales the noise of the search"),)
BEFORE_RENAMES = {"retrace": "returns"}
"""Names in the group `agent` from before the first version, which the package does not read."""
UNUSED = {"gumbel_muzero": ("search.dirichlet_alpha", "search.dirichlet_share")}
"""Settings that an agent has and does not use."""

Key = tuple[str, str]
"""(commit, command) of a line"""


def command_of(line: Line) -> str:
    """The training command behind a line, also where many runs were one program."""
    return line.command if line.command.startswith(TRAIN) else str(line.results.get("settings", ""))


def key(line: Line) -> Key:
    """What a verdict is about."""
    return line.commit.rstrip("+"), command_of(line)


def verdicts(lines: Iterable[Line]) -> dict[Key, list[str]]:
    """What changed since each line of a training command; lines of peers are left out."""
    ours = [line for line in lines if command_of(line).startswith(TRAIN)]
    then = {key(line): line.results["settings"] for line in ours if isinstance(line.results.get("settings"), Mapping)}
    by_commit: dict[str, list[str]] = {}
    for commit, command in dict.fromkeys(map(key, ours)):
        if (commit, command) not in then:
            by_commit.setdefault(commit, []).append(command)
    for commit, commands in by_commit.items():
        then |= {(commit, command): found for command, found in zip(commands, resolve(commit, commands), strict=True)}
    return {found: changes(found[1], settings) + code_changes(*found) for found, settings in then.items()}


def changes(command: str, then: Mapping[str, Any] | str) -> list[str]:
    """The settings of a command that differ now from these, which may have the names of an earlier version."""
    if isinstance(then, str):
        return [then]
    env, *words = command.split()[2:]
    try:
        before = _read(then)
    except ConfigError as error:
        return [f"settings of that time are not known now: {error}"]
    now = compose(env, words)
    found = {k: v for k, v in differences(before, now).items() if k not in UNUSED.get(now.agent.name, ())}
    return [f"{name}: {old} then, {new} now" for name, (old, new) in found.items()]


def code_changes(commit: str, command: str) -> list[str]:
    """What the agent of a command computes otherwise since a commit."""
    env, *words = command.split()[2:]
    agent = compose(env, words).agent.name
    later = [change for change in CHANGES if agent in change.agents and not _contains(commit, change.commit)]
    return [f"{change.what} ({change.commit})" for change in later]


def _contains(commit: str, ancestor: str) -> bool:
    answer = subprocess.run(["git", "merge-base", "--is-ancestor", ancestor, commit], cwd=ROOT, capture_output=True)
    return answer.returncode == 0


def _read(settings: Mapping[str, Any]) -> Config:
    settings = renamed.with_new_names(settings)[0]
    agent = {BEFORE_RENAMES.get(name, name): value for name, value in settings["agent"].items()}
    return validated({**settings, "agent": agent})


def resolve(commit: str, commands: list[str]) -> list[Mapping[str, Any] | str]:
    """The settings of commands as the package of a commit resolves them, or its error."""
    if not git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        return [f"commit {commit} is not in this repository"] * len(commands)
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with runner.scratch() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        answer = subprocess.run(
            [sys.executable, "-c", RESOLVE],
            input=json.dumps(commands),
            env={**os.environ, "PYTHONPATH": str(Path(folder) / "src")},
            check=True,
            capture_output=True,
            text=True,
        )
    return [json.loads(text) for text in answer.stdout.splitlines()]
