"""Make the saved runs under `runs/`, which later versions must still load, evaluate and resume.

    python tests/golden/make_runs.py --to FOLDER

Each archive holds a whole run folder after 256 environment steps, and `expected.json` next to the archives holds
the returns of a greedy evaluation and the counters at that time.  The archives of a version are made once and stay as
they are: new ones are added under a new folder when the format of runs changes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import bircher

TINY: dict[str, Any] = {
    "steps": 256,
    "seed": 3,
    "env.num_envs": 4,
    "loop.rollout_length": 4,
    "optimiser.batch_size": 4,
    "optimiser.updates_per_step": 1 / 16,
    "replay.capacity": 128,
    "model.torso_widths": [8],
    "model.latent_width": 8,
    "model.dynamics_widths": [8],
    "model.head_widths": [8],
    "model.num_atoms": 11,
    "model.unroll_steps": 2,
    "evaluation.count": 1,
    "evaluation.episodes": 2,
    "checkpoint.keep": 1,
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "muesli-cartpole": ("CartPole-v1", {}),
    "gumbel-muzero-tic-tac-toe": (
        "tic_tac_toe",
        {"agent": "gumbel_muzero", "search.num_simulations": 4, "preset": "default"},
    ),
    "ppo-frozen-lake": (
        "FrozenLake-v1",
        {"agent": "ppo", "optimiser.epochs": 2, "optimiser.minibatches": 2, "optimiser.updates_per_step": 0.25},
    ),
    "muesli-lstm-recall": ("toy/recall", {"model.memory": "lstm", "model.memory_width": 8}),
}
EPISODES, SEED = 8, 5


def main() -> None:
    """Train each run, archive it, and write down what its agent scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True)
    to = parser.parse_args().to
    to.mkdir(parents=True, exist_ok=True)
    expected = {"version": bircher.__version__, "runs": {}}
    for name, (env, settings) in RUNS.items():
        run = bircher.train(env, out=to / name, **{**TINY, **settings})
        # Events hold times and pictures, and no version reads them again.
        for events in run.path.glob("events.*"):
            events.unlink()
        report = bircher.evaluate(bircher.load(run.path), EPISODES, SEED, greedy=True)
        counters = {counter: run.counters[counter] for counter in ("env_steps", "learner_steps", "episodes")}
        expected["runs"][name] = {"returns": report.returns, "lengths": report.lengths, "counters": counters}
        with tarfile.open(to / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(run.path, name)
        shutil.rmtree(run.path)
    (to / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
