"""The ledger: one JSON object a line, appended and never edited, and one reader for lines of every age.

A line has a name, the command, the commit, the machine, seeds, returns, the wall time, and `results` with whatever else
the benchmark measured.  Lines from before this schema have their own keys.  The reader moves those it does not know to
`results`.  This module needs the standard library alone, so that peers can use it in their own Python environments.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "benchmarks" / "ledger.jsonl"


class Line(NamedTuple):
    """A measurement."""

    name: str
    command: str
    commit: str
    machine: str
    env: str = ""
    agent: str = ""
    seeds: tuple[int, ...] = ()
    returns: tuple[float, ...] = ()
    """of every evaluation episode"""
    wall_seconds: float | None = None
    results: Mapping[str, Any] = {}

    @property
    def mean(self) -> float:
        """The mean return."""
        return self.results["mean"]

    @property
    def seed(self) -> int:
        """The seed of a line about one run."""
        return self.seeds[0]


def parse(text: str) -> Line:
    """Read a line of this schema or of the free form before it."""
    entry = json.loads(text)
    if "results" not in entry:
        entry = _from_free_form(entry)
    return Line(**{**entry, "seeds": tuple(entry["seeds"]), "returns": tuple(entry["returns"])})


def _from_free_form(entry: dict[str, Any]) -> dict[str, Any]:
    entry = dict(entry)
    machine = entry.pop("machine")
    seeds = [entry.pop("seed")] if "seed" in entry else []
    wall = entry.get("wall_seconds")
    found = {
        "name": entry.pop("name"),
        "command": entry.pop("command"),
        "commit": entry.pop("commit"),
        "machine": machine if isinstance(machine, str) else _sentence(**machine),
        "env": entry.pop("env", ""),
        "agent": entry.pop("agent", ""),
        "seeds": seeds,
        "returns": entry.pop("returns", []),
        # Programs that took turns have a list of times for each, which stays with the results.
        "wall_seconds": entry.pop("wall_seconds") if isinstance(wall, int | float) else None,
    }
    return {**found, "results": entry}


def record(line: Line, path: Path = PATH) -> None:
    """Append a line to the ledger."""
    with path.open("a") as file:
        file.write(json.dumps(line._asdict()) + "\n")


def entries(*names: str, path: Path = PATH) -> list[Line]:
    """Every line, or those of these benchmarks."""
    if not path.exists():
        return []
    lines = [parse(text) for text in path.read_text().splitlines() if text]
    return [line for line in lines if not names or line.name in names]


def git(*arguments: str) -> str:
    """The answer of git in this repository, empty where there is none."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def commit() -> str:
    """The short commit that is measured, with + where the package differs from it, `uncommitted` without git."""
    changed = git("status", "--porcelain", "--", "src")
    return (git("rev-parse", "--short", "HEAD") or "uncommitted") + ("+" if changed else "")


def machine(*packages: str) -> str:
    """Processor, cores, Python, and the versions of packages."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {package: version(package) for package in packages or ("jax",)}
    return _sentence(name, os.cpu_count(), cores, platform.python_version(), **versions)


def _sentence(cpu: str, cores: int | None, cores_used: int | None, python: str, **versions: str) -> str:
    used = "" if cores_used == cores else f" ({cores_used} used)"
    return ", ".join([cpu, f"{cores} cores{used}", f"Python {python}", *(f"{k} {v}" for k, v in versions.items())])
