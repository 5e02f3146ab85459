"""The ledger: one JSON object a line, appended and never edited; and the machine and commit that each line names."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

PATH = Path(__file__).parent / "ledger.jsonl"


def append(entry: dict) -> None:
    """Add a line to the ledger."""
    with PATH.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def entries(name: str | None = None) -> list[dict]:
    """Every line, or those of one benchmark."""
    if not PATH.exists():
        return []
    lines = [json.loads(line) for line in PATH.read_text().splitlines() if line]
    return [line for line in lines if name is None or line["name"] == name]


def commit() -> str:
    """The short commit that was measured, with + where the package differs from it."""
    folder = PATH.parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def machine() -> str:
    """Processor, cores, Python and JAX."""
    import jax

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, JAX {jax.__version__}"
