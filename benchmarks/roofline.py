"""Acting and learning beside what a device could do, runs in slices of minutes, and what a cluster would need.

python benchmarks/roofline.py parts Breakout-v5 preset=atari_fast
python benchmarks/roofline.py slice Breakout-v5 preset=atari_fast --out runs/breakout --minutes 10
python benchmarks/roofline.py cluster Breakout-v5 preset=atari_fast --sustained 1e14 --gpu-hour 3 --core-hour 0.04
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import programs
import runner
from runner import Result, Study

from bircher import metrics
from bircher.analysis import network_summary
from bircher.config import config
from bircher.runs import bench
from bircher.training import learner
from bircher.training.rollout import collect_rollout


class Part(NamedTuple):
    """A program of a run: what it computes and moves for each decision, and the seconds that it takes."""

    name: str
    operations: float
    """of matrices and convolutions"""
    moved: float
    """bytes, as XLA counts them"""
    seconds: float
    """0 where it was not measured"""


def _measured_parts(settings: config.Config, repeats: int, learns: bool = True) -> list[Part]:
    """Environments with random actions, acting, and learning, whose operations alone are counted unless it `learns`."""
    env, parts, _, (train, state, _) = programs.start(settings)
    policy = learner.acting_policy(parts.agent, train)
    length = settings.loop.rollout_length
    decisions = settings.env.num_envs * length

    def act(policy, state):
        return collect_rollout(parts.agent, env, policy, state, length, 0.0)

    actor = getattr(state, "actor", state)  # the pipeline's state contains a rollout too
    playing = jax.jit(partial(bench.play_randomly, env, length))
    seconds = programs.Times()
    carry = (*env.reset(), jax.random.key(settings.seed))
    for _ in range(repeats + 1):
        carry = seconds("environments", playing, carry)
    acting = jax.jit(act).lower(policy, actor).compile()
    for _ in range(repeats + 1):
        actor, rollout, tally = seconds("acting", acting, policy, actor)
    operations = {
        "acting": network_summary.count(act, policy, actor),
        "learning": network_summary.count(parts.learner.update, train, rollout, tally),
    }
    moved = {"acting": _moved(acting)}
    if learns:
        learning = jax.jit(parts.learner.update, donate_argnums=0).lower(train, rollout, tally).compile()
        moved["learning"] = _moved(learning)
        for _ in range(repeats + 1):
            train, _ = seconds("learning", learning, train, rollout, tally)
    env.close()
    times = seconds.after_the_first()
    return [
        Part(
            name, operations.get(name, 0) / decisions, moved.get(name, 0) / decisions,
            median(times[name]) / decisions if name in times else 0.0,
        )
        for name in ("environments", "acting", "learning")
    ]  # fmt: skip


def _moved(compiled: Any) -> float:
    return float(compiled.cost_analysis().get("bytes accessed", 0.0))


class Device(NamedTuple):
    """What the device reaches with a product of matrices, and with a copy."""

    operations: float
    """a second"""
    moved: float
    """bytes a second"""


def _device(side: int, precision: str) -> Device:
    matrix, long = jnp.ones((side, side), precision), jnp.ones((4 * side * side,), jnp.float32)
    seconds, product, copy = programs.Times(), jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    for _ in range(11):
        seconds("product", product, matrix, matrix)
        seconds("copy", copy, long)
    found = {name: median(times) for name, times in seconds.after_the_first().items()}
    return Device(2 * side**3 / found["product"], 2 * long.nbytes / found["copy"])


def parts(options: argparse.Namespace) -> Iterator[Result]:
    """Compare acting and learning with what the device could do: its products of matrices, and its memory.

    The least time of a program is the longer of its operations and of its bytes.  Bytes are XLA's own count, in which
    each operation that is not fused reads and writes memory.
    """
    settings = config.compose(options.env, options.settings)
    found = _measured_parts(settings, options.repeats)
    device = _device(options.side, options.precision)
    print(f"{jax.devices()[0].device_kind}: {device.operations:.3g} operations and {device.moved:.3g} bytes a second")
    rows = []
    for part in found:
        least = max(part.operations / device.operations, part.moved / device.moved)
        limit = "operations" if part.operations / device.operations >= part.moved / device.moved else "bytes"
        rows.append({**part._asdict(), "least_seconds": least, "limit": limit if least else None})
        share = f", {least / part.seconds:.1%} of its roofline ({limit})" if least else ""
        print(
            f"{part.name}: {1 / part.seconds:,.0f} decisions a second, {part.operations / 1e6:,.1f} million operations "
            f"and {part.moved / 1e6:,.2f} MB each{share}"
        )
    yield Result({"device": device._asdict(), "parts": rows}, options.env, settings.agent.name)


def _parts_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=4096, help="of the matrices that measure the device")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of those matrices")


def slice_of_run(options: argparse.Namespace) -> Iterator[Result]:
    """Train for so many minutes, save and end; the same command again continues the run.

    For machines that are lent for minutes.  The log of the run is beside its folder.
    """
    run = Path(options.out)
    begun = (run / "config.yaml").exists()
    before = _last_line(run).get("env_frames", 0)
    words = ["--resume", str(run)] if begun else [options.env, *options.settings, "--out", str(run)]
    process = runner.start_training(words, run.with_suffix(".log"))
    began = time.monotonic()
    try:
        process.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        process.terminate()
    status = process.wait()
    last, seconds = _last_line(run), time.monotonic() - began
    if not last:
        raise SystemExit(f"nothing was logged in {seconds:.0f} s, in which programs are compiled: give more --minutes")
    frames = last["env_frames"] - before
    parts = {name: value for name, value in last.items() if name.startswith("speed/")}
    print(f"{frames:,} frames in {seconds:.0f} s, {last['env_frames']:,} of the run in all; at its end {parts}")
    yield Result(
        {"status": status, "frames": frames, "all_frames": last["env_frames"], "seconds": round(seconds, 1), **parts},
        options.env,
    )


def _last_line(run: Path) -> dict[str, Any]:
    """The last line of metrics, or {} if there is none yet."""
    path = run / "metrics.jsonl"
    lines = metrics.read(path) if path.exists() else []
    return lines[-1] if lines else {}


def _slice_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--out", required=True, help="the folder of the run")
    parser.add_argument("--minutes", type=float, default=10.0)


def cluster(options: argparse.Namespace) -> Iterator[Result]:
    """Predict frames a second, hours and costs of a run on GPUs with workers on a core each.

    What a worker does is measured on one core of this machine.  A GPU's time is counted: operations divided by what a
    GPU is said to sustain.  Workers and GPUs work at the same time, and the slower ones count.  The network acts on the
    workers, as with loop=ray, or on the GPUs while workers only play, as with loop=pipeline on one machine.
    """
    runner.use_one_core()
    settings = config.compose(options.env, [*options.settings, f"env.num_envs={options.envs_per_worker}"])
    playing, acting, learning = _measured_parts(settings, options.repeats, learns=False)
    repeat = options.frames_per_decision
    print(
        f"one core: {repeat / playing.seconds:,.0f} frames a second of environments, {repeat / acting.seconds:,.0f} "
        f"with the network; operations a decision: acting {acting.operations / 1e6:,.0f} million, learning "
        f"{learning.operations / 1e6:,.0f} million"
    )
    rows = []
    for place, seconds, operations in (
        ("workers", acting.seconds, learning.operations),
        ("GPUs", playing.seconds, learning.operations + acting.operations),
    ):
        for gpus in options.gpus:
            collected = options.workers / seconds * repeat
            learned = gpus * options.sustained / operations * repeat
            frames = min(collected, learned)
            hours = options.frames / frames / 3600
            price = hours * (gpus * options.gpu_hour + options.workers * options.core_hour)
            rows.append(
                {"acts": place, "gpus": gpus, "cores": collected, "limit": learned, "hours": hours, "price": price}
            )
            print(
                f"acting on {place}, {gpus} GPUs, {options.workers} cores: {frames:,.0f} frames a second (cores "
                f"{collected:,.0f}, GPUs {learned:,.0f}), {hours:,.1f} hours, {price:,.0f} in the prices' currency"
            )
    parts = {part.name: part._asdict() for part in (playing, acting, learning)}
    yield Result({"rows": rows, "parts": parts}, options.env, settings.agent.name)


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--sustained", type=float, required=True, help="operations a second of a GPU in an update")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--workers", type=int, default=128)
    parser.add_argument("--envs-per-worker", type=int, default=4)
    parser.add_argument("--frames", type=float, default=200e6)
    parser.add_argument("--frames-per-decision", type=int, default=4)
    parser.add_argument("--gpu-hour", type=float, required=True, help="price")
    parser.add_argument("--core-hour", type=float, required=True, help="price")
    parser.add_argument("--repeats", type=int, default=3)


if __name__ == "__main__":
    runner.main(
        __doc__,
        {
            "parts": Study(parts, _parts_arguments, "roofline"),
            "slice": Study(slice_of_run, _slice_arguments),
            "cluster": Study(cluster, _cluster_arguments),
        },
    )
