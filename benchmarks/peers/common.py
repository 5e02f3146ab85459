"""What every peer's line in the ledger says: the machine, the versions and the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "benchmarks" / "ledger.jsonl"


def machine(*packages: str) -> dict:
    """Processor, cores of the machine and cores that this process may use, and the versions of these packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def commit() -> str:
    """The short hash of the checked-out commit, or `uncommitted` outside a repository."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() if git.returncode == 0 else "uncommitted"


def append(line: dict, ledger: Path = LEDGER) -> None:
    """Add a line to the ledger."""
    with ledger.open("a") as file:
        file.write(json.dumps(line) + "\n")
