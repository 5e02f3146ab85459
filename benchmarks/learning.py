"""Runs that learn: presets over seeds with the score of each final agent, and the ablations of Muesli.

python benchmarks/learning.py runs LunarLander-v3 --seeds 0 1 2 3 4
python benchmarks/learning.py runs CartPole-v1 --seeds 0 1 2 3 4 --cold
python benchmarks/learning.py ablations Breakout-MinAtar --group parts scale --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import runner
from ledger import entries
from runner import Result, Study

from bircher import metrics
from bircher.experiments import compare, grid, replicas
from bircher.experiments.commands import LocalCommands
from bircher.experiments.grid import Job, Variant
from bircher.runs import directory


def _run(env: str, seed: int, settings: list[str], episodes: int, cold: bool, greedy: bool, folder: Path) -> Result:
    """Train and evaluate one seed."""
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
    return Result(
        env=env,
        agent=report["agent"],
        seeds=(seed,),
        returns=tuple(round(value, 2) for value in report["returns"]),
        wall_seconds=round(wall, 1),
        command="bircher " + " ".join(command),
        results={
            "env_steps": last["env_steps"],
            "env_frames": last["env_frames"],
            "learner_steps": last["learner_steps"],
            "cold_cache": cold,
            "episodes": episodes,
            "eval_seed": report["seed"],
            "mode": report["mode"],
            "mean": report["mean"],
            "flags": json.loads(doctor.stdout)["flags"],
            "settings": directory.read_config(run).model_dump(mode="json", by_alias=True),
        },
    )


def runs(options: argparse.Namespace) -> Iterator[Result]:
    """Train the preset of an environment over several seeds, and evaluate each final agent.

    Every seed is one process of the command line.  Its wall time includes compilation.  With --cold it has an empty
    compilation cache.  The agent is the last checkpoint of the run.  It plays 100 fresh episodes whose starts are never
    used in training, with actions sampled from its policy, or its best actions with --greedy.  The flags that `bircher
    doctor` raises on the run are recorded with its returns.
    """
    with runner.scratch() as folder:
        for seed in options.seeds:
            result = _run(options.env, seed, options.settings, options.episodes, options.cold, options.greedy, folder)
            print(
                f"{options.env} seed {seed}: mean {result.results['mean']:.1f}, least {min(result.returns):.1f}, "
                f"{result.results['env_steps']:,} steps, wall {result.wall_seconds:.1f} s, "
                f"flags {[flag['number'] for flag in result.results['flags']]}",
                flush=True,
            )
            yield result


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--cold", action="store_true", help="an empty compilation cache for every seed")
    parser.add_argument("--greedy", action="store_true", help="evaluate with the best action instead of a sampled one")


SCALES = (0.001, 0.1, 10.0, 1000.0)


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
"""Variants by what they vary; the whole agent is compared with each."""


def ablations(options: argparse.Namespace) -> Iterator[Result]:
    """Run the paper's ablations of Muesli: each is a variant of the same preset.

    An interrupted study continues when the same command is given again.  All groups share the runs of the whole agent.
    """
    out = options.out or Path("runs") / f"ablations-{options.env}"
    variants = [WHOLE, *(variant for group in options.group for variant in GROUPS[group])]
    settings = [*options.settings, f"steps={options.steps}"]
    jobs = grid.plan(variants, [options.env], range(options.seeds), settings, out)
    if options.together:
        programs: dict[tuple[str, ...], list[Job]] = {}
        for job in jobs:
            apart = [word for word in job.settings if word.split("=")[0] not in (*replicas.NUMBERS, "seed")]
            programs.setdefault(tuple(apart), []).append(job)
        for group in programs.values():
            replicas.run(group)
    done, _ = grid.run(jobs, LocalCommands(options.processes), options.episodes)
    known = {(line.command, line.returns) for line in entries("ablation")}
    yield from (result for result in map(_ablated, done) if (result.command, result.returns) not in known)
    if done:
        compare.write(compare.findings(done, f"Muesli's ablations: {options.env}"), out)
        print(out / compare.PAGE)


def _ablated(job: Job) -> Result:
    report = job.evaluation()
    last = metrics.read(job.path / directory.METRICS)[-1]
    return Result(
        env=job.env,
        agent="muesli",
        seeds=(job.seed,),
        returns=tuple(round(value, 2) for value in report["returns"]),
        wall_seconds=round(last["wall_seconds"], 1),
        command=job.command,
        results={
            "variant": job.variant,
            "env_steps": last["env_steps"],
            "env_frames": last["env_frames"],
            "learner_steps": last["learner_steps"],
            "episodes": report["episodes"],
            "eval_seed": report["seed"],
            "mode": report["mode"],
            "mean": report["mean"],
            "settings": directory.read_config(job.path).model_dump(mode="json", by_alias=True),
        },
    )


def _ablations_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--group", choices=GROUPS, nargs="*", default=list(GROUPS), help="none: the whole agent alone")
    parser.add_argument("--together", action="store_true", help="runs that differ in numbers alone as one program")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path)


if __name__ == "__main__":
    runner.main(
        __doc__,
        {
            "runs": Study(runs, _runs_arguments, "learning"),
            "ablations": Study(ablations, _ablations_arguments, "ablation"),
        },
    )
