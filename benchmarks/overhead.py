"""What console, metrics and checkpoints cost: a whole run against the same iterations in a bare loop.

    python benchmarks/overhead.py LunarLander-v3 --steps 200000

Runs and bare loops alternate in one process, so that the machine's noise meets both.  A run is timed from its first
update to its end, its last checkpoint included, without evaluations; the bare loop dispatches the same programs for as
many iterations and waits once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import bare
import jax
from ledger import append, commit, machine

from bircher.config import config
from bircher.runs import launch


def whole_run(settings: config.Config, folder: Path) -> tuple[float, int]:
    """(seconds from the first update to the end, iterations after the first)."""
    training = launch.start(settings, None, folder)
    started = time.monotonic()
    training.run()
    total = time.monotonic() - started
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = lines[0]["learner_steps"]
    return total - lines[0]["wall_seconds"], lines[-1]["learner_steps"] // updates - 1


def bare_loop(settings: config.Config, iterations: int) -> float:
    """Seconds for so many iterations after the first, with nothing around them."""
    env, _, programs, states = bare.start(settings)
    states = jax.block_until_ready(programs.advance(*states, 1))
    started = time.monotonic()
    jax.block_until_ready(programs.advance(*states, iterations))
    seconds = time.monotonic() - started
    env.close()
    return seconds


def main() -> None:
    """Alternate both, and print the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--steps", type=float, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    settings = config.compose(options.env, {"steps": int(options.steps), "evaluation.count": 0})
    runs, bare = [], []
    with tempfile.TemporaryDirectory(prefix="bircher-overhead-") as folder:
        for i in range(options.repeats):
            seconds, iterations = whole_run(settings, Path(folder) / f"run-{i}")
            runs.append(seconds)
            bare.append(bare_loop(settings, iterations))
            print(f"run {seconds:.2f} s, bare loop {bare[-1]:.2f} s, {iterations} iterations", flush=True)
    ratio = statistics.median(runs) / statistics.median(bare)
    print(f"{options.env}: ratio of medians {ratio:.3f}, of minima {min(runs) / min(bare):.3f}")
    if not options.dry:
        append({
            "name": "overhead",
            "command": f"python benchmarks/overhead.py {options.env} --steps {int(options.steps)}",
            "commit": commit(),
            "machine": machine(),
            "env": options.env,
            "run_seconds": [round(t, 3) for t in runs],
            "bare_seconds": [round(t, 3) for t in bare],
            "ratio": round(ratio, 4),
        })  # fmt: skip


if __name__ == "__main__":
    main()
