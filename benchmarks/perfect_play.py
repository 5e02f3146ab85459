"""Train tic-tac-toe over several seeds, and count the lines of play that the network alone loses.

    python benchmarks/perfect_play.py --seeds 0 1 2

Every seed is one fresh process of the command line.  Then the network plays greedily, without search, in both seats
against every reply: once those that exact minimax may choose, and once all that are legal.  0 lost lines in both is a
player that cannot be beaten.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ledger import append, commit, machine

import bircher
from bircher.games import solvers

ENV = "tic_tac_toe"


def moves(run: Path) -> np.ndarray:
    """The move of the greatest probability in every position, of the run's network without search."""
    agent = bircher.load(run, search={"num_simulations": 0})
    cells = np.arange(3**9)[:, None] // solvers.POWERS % 3
    grid = cells.reshape(-1, 3, 3)
    observation = np.stack([grid == 1, grid == 2], -1)
    return np.asarray(agent.act(observation, greedy=True, legal_actions=cells == 0))


def measure(seed: int, settings: list[str], folder: Path) -> dict:
    """One seed: train, then follow every line of play."""
    run = folder / str(seed)
    command = ["train", ENV, f"seed={seed}", *settings]
    environment = dict(os.environ, BIRCHER_CACHE=str(folder / f"cache-{seed}"))
    started = time.perf_counter()
    with (folder / f"{seed}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "bircher", *command, "--out", str(run)],
            check=True, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    wall = time.perf_counter() - started
    chosen = moves(run)
    return {
        "name": "perfect_play",
        "command": "bircher " + " ".join(command),
        "commit": commit(),
        "machine": machine(),
        "env": ENV,
        "seed": seed,
        "env_steps": bircher.load(run).env_steps,
        "wall_seconds": round(wall, 1),
        "cold_cache": True,
        "mode": "greedy, without search",
        "lost_to_minimax": [len(solvers.lost_lines(chosen, seat, best_only=True)) for seat in (0, 1)],
        "lost_to_any": [len(solvers.lost_lines(chosen, seat, best_only=False)) for seat in (0, 1)],
    }


def main() -> None:
    """Read the arguments, measure each seed in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["agent=gumbel_muzero"], help="KEY=VALUE for bircher train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
        for seed in options.seeds:
            entry = measure(seed, options.settings, Path(folder))
            if not options.dry:
                append(entry)
            print(
                f"seed {seed}: lines lost to minimax, moving first and second: {entry['lost_to_minimax']}; to any "
                f"replies: {entry['lost_to_any']}; wall {entry['wall_seconds']:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
