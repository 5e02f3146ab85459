"""What a run's measures cost: gradients by term, the doctor's looks, and the numbers that every update gives.

    python benchmarks/measures.py LunarLander-v3
    python benchmarks/measures.py CartPole-v1 agent=ppo

Two runs are made, the first with an empty compilation cache: their gauge and doctor are timed where they stand.  The
gauge is compiled in a thread, beside the run's own programs, so that what it adds to the wall is the difference
between short runs with it and without, which take turns.  Then a rollout's updates take turns with the same updates
that give no numbers at all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import bare
import jax
from ledger import append, commit, machine

from bircher.config import config
from bircher.runs import launch, logger
from bircher.training import learner
from bircher.training.rollout import collect_rollout

TIMED = {
    "measured": (logger.GradientMonitor, "__call__"),
    "doctor": (logger.DoctorMonitor, "__call__"),
}


def timing(spent: dict[str, float], name: str, function: Callable) -> Callable:
    """The function, and its seconds added up."""

    @wraps(function)
    def timed(*arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **more)
        finally:
            spent[name] += time.perf_counter() - began

    return timed


def run_seconds(env: str, settings: list[str], out: Path) -> dict[str, float]:
    """Of a whole run, and within it of each measure."""
    spent = dict.fromkeys(TIMED, 0.0)
    originals = {name: getattr(owner, method) for name, (owner, method) in TIMED.items()}
    for name, (owner, method) in TIMED.items():
        setattr(owner, method, timing(spent, name, originals[name]))
    began = time.perf_counter()
    try:
        launch.start(config.compose(env, settings), None, out).run()
    finally:
        for name, (owner, method) in TIMED.items():
            setattr(owner, method, originals[name])
    return {"run": time.perf_counter() - began, **spent}


def start_seconds(env: str, settings: list[str], folder: Path, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Of processes that compile, learn a little and measure once: with the gauge and without, cold cache and warm."""
    found: dict[str, dict[str, list[float]]] = {cache: {"with": [], "without": []} for cache in ("cold", "warm")}
    short = ["steps=4096", "evaluation.count=1", "evaluation.episodes=1", "evaluation.diagnose=false"]
    for number in range(pairs):
        for name in ("with", "without") if number % 2 else ("without", "with"):
            environment = {**os.environ, "BIRCHER_CACHE": str(folder / f"cache-{name}-{number}")}
            gauge = f"evaluation.gradients={'true' if name == 'with' else 'false'}"
            for cache in found:
                out = folder / f"start-{name}-{cache}-{number}"
                command = ["-m", "bircher", "train", env, *settings, *short, gauge, "--out", str(out)]
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
                found[cache][name].append(time.perf_counter() - began)
    return found


def update_seconds(settings: config.Config, repeats: int) -> dict[str, list[float]]:
    """Of a rollout's updates with their numbers and without, and of a rollout."""
    env, parts, programs, (train, state, progress) = bare.start(settings)
    train, state, progress = programs.advance(train, state, progress, 4)  # the replay has something
    roll = jax.jit(
        lambda policy, state: collect_rollout(parts.agent, env, policy, state, settings.loop.rollout_length, 0.0)
    )
    with_numbers = jax.jit(parts.learner.update)
    without = jax.jit(lambda *arguments: parts.learner.update(*arguments)[0])
    timed = bare.Times()
    for _ in range(repeats + 1):
        state, rows, tally = timed("rollout", roll, learner.acting_policy(parts.agent, train), state)
        timed("with", with_numbers, train, rows, tally)
        timed("without", without, train, rows, tally)
    env.close()
    return timed.after_the_first()


def main() -> None:
    """Measure, print shares of the wall, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as for bircher train")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3, help="short runs with the gauge and without")
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
        os.environ["BIRCHER_CACHE"] = str(Path(folder) / "cache")
        starts = start_seconds(options.env, options.settings, Path(folder), options.pairs)
        runs = {name: run_seconds(options.env, options.settings, Path(folder) / name) for name in ("cold", "warm")}
    updates = update_seconds(config.compose(options.env, options.settings), options.repeats)
    median = {name: statistics.median(values) for name, values in updates.items()}
    numbers = (median["with"] - median["without"]) / (median["with"] + median["rollout"])
    for name, seconds in runs.items():
        start = {which: statistics.median(values) for which, values in starts[name].items()}
        seconds["compiled"] = max(start["with"] - start["without"], 0.0)
        share = {part: value / seconds["run"] for part, value in seconds.items() if part != "run"}
        total = sum(share.values()) + numbers
        told = ", ".join(f"{part} {value:.2%}" for part, value in share.items())
        print(
            f"{options.env}, {name} cache, {seconds['run']:.0f} s: {told}, numbers {numbers:.2%}; together {total:.2%}"
        )
    rounded = {name: {part: round(value, 3) for part, value in seconds.items()} for name, seconds in runs.items()}
    if not options.dry:
        append({
            "name": "measures",
            "command": "python benchmarks/measures.py " + " ".join([options.env, *options.settings]),
            "commit": commit(),
            "machine": machine(),
            "env": options.env,
            "runs": rounded,
            "starts": starts,
            "updates": {name: round(value, 6) for name, value in median.items()},
        })  # fmt: skip


if __name__ == "__main__":
    main()
