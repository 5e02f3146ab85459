"""From the start of the process to the first update, with a warm compilation cache.

    python benchmarks/startup.py LunarLander-v3 CartPole-v1

Each run is a process of its own, timed from its creation until the first line of metrics.jsonl stands on the disk,
which is written when the first rollout and its updates are done; then it is interrupted.  The first run of each
environment fills a cache that was empty (printed as cold), the next ones find it.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger import append, commit, machine


def seconds_to_first_update(env: str, run: Path, cache: Path) -> float:
    """Start one run, wait for its first line of metrics, and stop it."""
    command = [sys.executable, "-m", "bircher", "train", env, "evaluation.count=0", "--out", str(run)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "BIRCHER_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"{env} ended before its first update: {process.stderr.read().decode()[-500:]}")
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.communicate()
    return seconds


def main() -> None:
    """Measure each environment, cold once and then warm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    for env in options.envs:
        with tempfile.TemporaryDirectory(prefix="bircher-startup-") as folder:
            cache = Path(folder) / "cache"
            times = [seconds_to_first_update(env, Path(folder) / f"run-{i}", cache) for i in range(options.repeats + 1)]
        cold, warm = times[0], times[1:]
        print(f"{env}: cold {cold:.1f} s; warm median {statistics.median(warm):.2f} s of {[f'{t:.2f}' for t in warm]}")
        if not options.dry:
            append({
                "name": "startup",
                "command": f"python benchmarks/startup.py {env}",
                "commit": commit(),
                "machine": machine(),
                "env": env,
                "cold_seconds": round(cold, 2),
                "warm_seconds": [round(t, 3) for t in warm],
            })  # fmt: skip


if __name__ == "__main__":
    main()
