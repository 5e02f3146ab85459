"""Compare the speed of programs by running them in turn on the same cores.

    python benchmarks/in_turn.py --turns 3 --cores 0 \\
        --program "bircher" 500000 "python -m bircher train LunarLander-v3 agent=ppo steps=500000 evaluation.count=0 \\
                                    --out {folder}" \\
        --program "peer" 98304 "build/sb3/bin/python benchmarks/peers/ppo_lunarlander.py --steps 98304 --episodes 1 \\
                                --dry"

A machine that others use is fast in one minute and slow in the next, so two runs made on different days say little.
Here every turn runs each program once, one after the other.  Each turn gives one ratio; the median of the ratios is
reported with their range.  Start and compilation count.  `{folder}` in a command is a path that does not exist yet.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ledger import append, commit, machine


class Program(NamedTuple):
    """A command, and the environment steps that it makes."""

    name: str
    steps: int
    command: str


class Duration(NamedTuple):
    """The time of one process and its children, in seconds."""

    wall: float
    processor: float


def run(program: Program, cores: list[int], folder: Path) -> Duration:
    """Run a program on some cores and measure it; its output is shown if it fails."""
    words = shlex.split(program.command.replace("{folder}", str(folder)))
    words[0] = sys.executable if words[0] == "python" else words[0]
    started = time.perf_counter()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{program.name} failed:\n{output}")
    return Duration(wall, usage.ru_utime + usage.ru_stime)


def report(programs: list[Program], durations: list[list[Duration]]) -> dict:
    """Print each program's steps a second and the ratios to it, and return the numbers for the ledger."""
    speeds = [[program.steps / turn.wall for turn in turns] for program, turns in zip(programs, durations, strict=True)]
    for program, speed, turns in zip(programs, speeds, durations, strict=True):
        each = ", ".join(f"{value:,.0f}" for value in speed)
        processor = median(turn.processor for turn in turns)
        print(f"{program.name}: {median(speed):,.0f} steps a second ({each}), {processor:.1f} s of processor time")
    ratios = {}
    for program, speed in zip(programs[1:], speeds[1:], strict=True):
        turns = [first / other for first, other in zip(speeds[0], speed, strict=True)]
        ratios[program.name] = [round(ratio, 3) for ratio in turns]
        print(f"{programs[0].name} / {program.name}: {median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})")
    return {
        "programs": [program._asdict() for program in programs],
        "wall_seconds": [[round(turn.wall, 2) for turn in turns] for turns in durations],
        "processor_seconds": [[round(turn.processor, 2) for turn in turns] for turns in durations],
        "ratios": ratios,
    }


def main() -> None:
    """Run every program once a turn, print speeds and ratios, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--program", nargs=3, action="append", required=True, metavar=("NAME", "STEPS", "COMMAND"), dest="programs"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    programs = [Program(name, int(steps), " ".join(command.split())) for name, steps, command in options.programs]
    durations: list[list[Duration]] = [[] for _ in programs]
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
        for turn in range(options.turns):
            for number, program in enumerate(programs):
                durations[number].append(run(program, options.cores, Path(folder) / f"{turn}-{number}"))
    numbers = report(programs, durations)
    if not options.dry:
        append({
            "name": "in_turn", "command": "python benchmarks/in_turn.py " + shlex.join(sys.argv[1:]),
            "commit": commit(), "machine": machine(), "cores": options.cores, **numbers,
        })  # fmt: skip


if __name__ == "__main__":
    main()
