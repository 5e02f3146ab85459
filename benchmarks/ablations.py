"""The paper's ablations of Muesli as recipes: each a variant of the same preset, resumable, with one page for all.

    python benchmarks/ablations.py LunarLander-v3 --steps 1000000 --seeds 3 --out runs/ablations-lander
    python benchmarks/ablations.py Breakout-MinAtar --group parts scale --processes 2

Interrupted, it goes on where it was when the same command is given again.  Groups share the whole agent's runs.  Each
run is a line of the ledger.  What the paper found is in docs/results/ablations.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ledger import append, commit, entries, machine

from bircher import metrics
from bircher.experiments import compare, grid
from bircher.experiments.grid import Job, Variant
from bircher.runs import directory

SCALES = (0.001, 0.1, 10.0, 1000.0)
NAME = "ablation"


def muesli(name: str, *settings: str) -> Variant:
    """A variant of the whole agent."""
    return Variant(name, ("agent=muesli", *settings))


WHOLE = muesli("whole")
GROUPS = {
    "parts": (
        muesli("without cmpo", "losses.cmpo.weight=0"),
        muesli("without policy gradient", "losses.policy_gradient.weight=0"),
        muesli("without policy model", "losses.model_policy.weight=0"),
        muesli("unroll 1", "model.unroll_steps=1"),
        muesli("q^ only", "agent.advantage.source=look_ahead"),
        muesli("v-trace", "agent.returns.kind=v_trace"),
    ),
    "samples": tuple(muesli(f"{n} samples", f"agent.cmpo.samples={n}") for n in (1, 4, 16)),
    "scale": (
        muesli("unclipped", "agent.cmpo.clip_bound=null"),
        *(muesli(f"{scale:g}, clipped", f"agent.advantage.factor={scale}") for scale in SCALES),
        *(
            muesli(f"{scale:g}, unclipped", f"agent.advantage.factor={scale}", "agent.cmpo.clip_bound=null")
            for scale in SCALES
        ),
    ),
    "replay": tuple(muesli(f"{share:.0%} replay", f"replay.fraction={share}") for share in (0.0, 0.5, 0.75, 0.95)),
}
"""What is varied together; the whole agent stands beside each."""


def record(cell: Job) -> None:
    """Append a run to the ledger, where its returns are not there yet."""
    report = cell.evaluation()
    returns = [round(value, 2) for value in report["returns"]]
    if any((line["command"], line["returns"]) == (cell.command, returns) for line in entries(NAME)):
        return
    last = metrics.read(cell.path / directory.METRICS)[-1]
    append(
        {
            "name": NAME,
            "variant": cell.variant,
            "command": cell.command,
            "commit": commit(),
            "machine": machine(),
            "env": cell.env,
            "seed": cell.seed,
            "env_steps": last["env_steps"],
            "learner_steps": last["learner_steps"],
            "wall_seconds": round(last["wall_seconds"], 1),
            "episodes": report["episodes"],
            "eval_seed": report["seed"],
            "mode": report["mode"],
            "mean": report["mean"],
            "returns": returns,
        }
    )


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--group", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    out = options.out or Path("runs") / f"ablations-{options.env}"
    variants = [WHOLE, *(variant for group in options.group for variant in GROUPS[group])]
    settings = [*options.settings, f"steps={options.steps}"]
    every = grid.plan(variants, [options.env], range(options.seeds), settings, out)
    done, _ = grid.run(every, options.processes, options.episodes)
    for cell in done:
        record(cell)
    if done:
        compare.write(compare.findings(done, f"Muesli's ablations: {options.env}"), out)
        print(out / compare.PAGE)


if __name__ == "__main__":
    main()
