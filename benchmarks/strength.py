"""Train a board game for some minutes, and print how its strength against an opponent grew.

    python benchmarks/strength.py connect_four agent=gumbel_muzero --minutes 60 --opponent mcts:1000

The run is one fresh process of the command line, stopped as Ctrl-C would when its time is over.  Its checkpoints are
copied on the way; afterward each copy plays the opponent, half of the games in each seat.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger import append, commit, machine

from bircher.runs import directory
from bircher.training import checkpoint

BIRCHER = [sys.executable, "-m", "bircher"]


def train(env: str, settings: list[str], run: Path, minutes: float, every: float, copies: Path) -> list[tuple]:
    """Train, and copy what was saved every so often: [(minutes, folder of a copy)], the last one of the end."""
    command = [*BIRCHER, "train", env, *settings, "checkpoint.keep=4", "--out", str(run)]
    found = []
    with (copies / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        next_copy = every
        while process.poll() is None:
            time.sleep(1)
            passed = (time.monotonic() - began) / 60
            if passed >= minutes:
                process.send_signal(signal.SIGINT)
                process.wait()
                break
            if passed >= next_copy and checkpoint.latest(run / directory.CHECKPOINTS, "train"):
                found.append((passed, copy(run, copies / str(len(found)))))
                next_copy += every
    passed = (time.monotonic() - began) / 60
    return [*found, (passed, run)]


def copy(run: Path, target: Path) -> Path:
    """A run's folder with its newest checkpoint alone."""
    saved = directory.last_checkpoint(run)
    (target / directory.CHECKPOINTS).mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
    shutil.copytree(saved, target / directory.CHECKPOINTS / saved.name)
    return target


def play(run: Path, opponent: str, episodes: int, seed: int, settings: list[str]) -> dict:
    """The report of `bircher eval`."""
    command = [*BIRCHER, "eval", str(run), *settings, "--opponent", opponent, "--episodes", str(episodes)]
    answer = subprocess.run([*command, "--seed", str(seed), "--json"], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def asked(arguments: list[str]) -> list[str]:
    """What to ask for to have the same run again: without where it was kept."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if "--out" not in (before, word) and not word.startswith("--out=")]


def main() -> None:
    """Train, play, print a line for each copy, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, passed on to bircher train")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="minutes between copies")
    parser.add_argument("--opponent", default="mcts:1000")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000, help="of the games played")
    parser.add_argument("--search", nargs="*", default=[], help="search.KEY=VALUE of the agent when it plays")
    parser.add_argument("--out", type=Path, help="keep the run here; else it is dropped")
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as name:
        run = options.out or Path(name) / "run"
        copies = Path(name) / "copies"
        copies.mkdir()
        curve = []
        for passed, saved in train(options.env, options.settings, run, options.minutes, options.every, copies):
            meta = checkpoint.read_meta(directory.last_checkpoint(saved))
            report = play(saved, options.opponent, options.episodes, options.seed, options.search)
            steps = meta["counters"]["env_steps"]
            # `env_steps` of the report are the moves of the games played.
            curve.append({"minutes": round(passed, 1), "trained_steps": steps, **report})
            print(
                f"{passed:5.1f} minutes, {steps:,} steps: score {report['score']:.3f} "
                f"({report['score_low']:.3f} to {report['score_high']:.3f}), first {report['first']}, "
                f"second {report['second']}",
                flush=True,
            )
    if not options.dry:
        append({
            "name": "strength",
            "command": "python benchmarks/strength.py " + " ".join(asked(sys.argv[1:])),
            "commit": commit(),
            "machine": machine() + f", {len(os.sched_getaffinity(0))} of them used",
            "env": options.env,
            "opponent": options.opponent,
            "curve": curve,
        })  # fmt: skip


if __name__ == "__main__":
    main()
