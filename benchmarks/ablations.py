"""The paper's ablations of Muesli as recipes: each a variant of the same preset, resumable, with one page for all.

    python benchmarks/ablations.py LunarLander-v3 --group parts --steps 1000000 --seeds 3 --out runs/ablations-lander
    python benchmarks/ablations.py Breakout-MinAtar --group scale --steps 1000000 --seeds 3 --processes 2

Interrupted, it goes on where it was when the same command is given again.  What the paper found is in docs/muesli.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bircher.run import cells, comparing
from bircher.run.cells import Variant

SCALES = (0.001, 0.1, 10.0, 1000.0)


def muesli(name: str, *settings: str) -> Variant:
    """A variant of the whole agent."""
    return Variant(name, ("agent=muesli", *settings))


GROUPS = {
    "parts": (
        muesli("whole"),
        muesli("without cmpo", "losses.cmpo.weight=0"),
        muesli("without policy gradient", "losses.policy_gradient.weight=0"),
        muesli("without policy model", "losses.model_policy.weight=0"),
        muesli("unroll 1", "model.unroll_steps=1"),
        muesli("q^ only", "agent.advantage.source=look_ahead"),
        muesli("v-trace", "agent.returns.kind=v_trace"),
    ),
    "samples": (muesli("exact"), *(muesli(f"{n} samples", f"agent.cmpo.samples={n}") for n in (1, 4, 16))),
    "scale": (
        muesli("1, clipped"),
        muesli("1, unclipped", "agent.cmpo.clip_bound=null"),
        *(muesli(f"{scale:g}, clipped", f"agent.advantage.factor={scale}") for scale in SCALES),
        *(
            muesli(f"{scale:g}, unclipped", f"agent.advantage.factor={scale}", "agent.cmpo.clip_bound=null")
            for scale in SCALES
        ),
    ),
    "replay": tuple(muesli(f"{share:.0%} replay", f"replay.fraction={share}") for share in (0.0, 0.5, 0.75, 0.95)),
}
"""What is varied together."""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--group", choices=GROUPS, default="parts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path("runs") / f"ablations-{options.env}-{options.group}"
    settings = [*options.settings, f"steps={options.steps}"]
    every = cells.plan(GROUPS[options.group], [options.env], range(options.seeds), settings, out)
    done, _ = cells.run(every, options.processes, options.episodes)
    if done:
        comparing.write(comparing.findings(done, f"Muesli's {options.group}: {options.env}"), out)
        print(out / comparing.PAGE)


if __name__ == "__main__":
    main()
