"""Train an environment's preset over several seeds, evaluate each final agent, and append to the ledger.

    python benchmarks/learning.py LunarLander-v3 --seeds 0 1 2 3 4
    python benchmarks/learning.py CartPole-v1 --seeds 0 1 2 3 4 --cold

Every seed is one fresh process of the command line.  Its wall time runs from the start of that process to its end,
compilation included; --cold gives it an empty compilation cache.  The agent scored is the run's last checkpoint, on
100 fresh episodes whose starts the run never saw, sampling from its policy; with --greedy taking its best action,
as the MuZero papers do after training.  The flags that `bircher doctor` raises on the run are kept with its returns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger import append, commit, machine


def measure(env: str, seed: int, settings: list[str], episodes: int, cold: bool, greedy: bool, folder: Path) -> dict:
    """One seed: train, evaluate, and say everything about it."""
    run = folder / f"{env.replace('/', '-')}-{seed}"
    environment = dict(os.environ)
    if cold:
        environment["BIRCHER_CACHE"] = str(folder / f"cache-{seed}")
    bircher = [sys.executable, "-m", "bircher"]
    command = ["train", env, f"seed={seed}", *settings]
    started = time.perf_counter()
    with run.with_suffix(".log").open("w") as log:
        subprocess.run([*bircher, *command, "--out", str(run)], check=True, stdout=log, stderr=log, env=environment)
    wall = time.perf_counter() - started
    evaluation = ["eval", str(run), "--episodes", str(episodes), "--seed", str(1000 + seed), "--json"]
    evaluation += ["--greedy"] if greedy else []
    answer = subprocess.run([*bircher, *evaluation], check=True, capture_output=True, text=True, env=environment)
    report = json.loads(answer.stdout)
    doctor = subprocess.run([*bircher, "doctor", str(run), "--json"], capture_output=True, text=True, env=environment)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "name": "learning",
        "command": "bircher " + " ".join(command),
        "commit": commit(),
        "machine": machine(),
        "env": env,
        "agent": report["agent"],
        "seed": seed,
        "env_steps": last["env_steps"],
        "learner_steps": last["learner_steps"],
        "wall_seconds": round(wall, 1),
        "cold_cache": cold,
        "episodes": episodes,
        "eval_seed": report["seed"],
        "mode": report["mode"],
        "mean": report["mean"],
        "returns": [round(value, 2) for value in report["returns"]],
        "flags": json.loads(doctor.stdout)["flags"],
    }


def main() -> None:
    """Read the arguments, measure each seed in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, passed on to bircher train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--cold", action="store_true", help="an empty compilation cache for every seed")
    parser.add_argument("--greedy", action="store_true", help="evaluate without drawing actions")
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
        for seed in options.seeds:
            entry = measure(
                options.env, seed, options.settings, options.episodes, options.cold, options.greedy, Path(folder)
            )
            if not options.dry:
                append(entry)
            returns = entry["returns"]
            print(
                f"{options.env} seed {seed}: mean {entry['mean']:.1f}, least {min(returns):.1f}, "
                f"{entry['env_steps']:,} steps, wall {entry['wall_seconds']:.1f} s, "
                f"flags {[flag['number'] for flag in entry['flags']]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
