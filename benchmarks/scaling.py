"""Rollouts by several workers and nodes: their speed, what deaths cost, and memory.  They need the extra `ray`.

python benchmarks/scaling.py workers --counts 1 2 4 8
python benchmarks/scaling.py nodes connect_four agent=gumbel_muzero search.num_simulations=50 steps=20000
python benchmarks/scaling.py overhead LunarLander-v3 steps=100000
python benchmarks/scaling.py survive CartPole-v1 loop=ray ray.workers=2 --kill-workers 30 --minutes 15
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import runner
from gymnasium import spaces
from runner import Result, Study

from bircher import metrics
from bircher.config import config
from bircher.runs import bench, directory, launch


class Sleeping(gymnasium.Env):
    """A step sleeps for 10 ms, and an episode has 500 steps."""

    seconds = 0.01
    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode."""
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int):
        """Sleep."""
        time.sleep(self.seconds)
        self.count += 1
        return np.full(4, self.count / 500, np.float32), float(action), self.count == 500, False, {}


def speed(run: Path, from_share: float = 0.25) -> float:
    """Environment steps a second of a run, without the first part of it, in which programs are compiled."""
    lines = metrics.read(run / "metrics.jsonl")
    last = lines[-1]
    first = next(line for line in lines if line["env_steps"] >= from_share * last["env_steps"])
    if first is last:
        raise SystemExit(f"{run} has too few lines of metrics to measure a speed: give more steps")
    return (last["env_steps"] - first["env_steps"]) / (last["wall_seconds"] - first["wall_seconds"])


def workers(options: argparse.Namespace) -> Iterator[Result]:
    """Compare the speed of numbers of workers, and the prediction of `bircher bench`, for environments that sleep.

    Environments sleep 10 ms at each step, so that workers need hardly any processor time, and there may be more of them
    than cores.  The prediction is made before the runs, from one worker with one environment and with all of them.
    """
    given = {"env.num_envs": options.envs, "loop": "ray", "evaluation.count": 0, "checkpoint.every_seconds": 3600}
    model = bench.measure(config.compose(Sleeping, {**given, "ray.workers": 1}), 4.0, Sleeping).with_workers
    assert model is not None
    print(f"predicted from {model}", flush=True)
    rows = []
    with runner.scratch() as folder:
        for count in options.counts:
            steps = int(options.seconds * model.steps_per_second(count))
            settings = config.compose(Sleeping, {**given, "ray.workers": count, "steps": steps})
            launch.start(settings, Sleeping, folder / str(count)).run()
            measured, predicted = speed(folder / str(count)), model.steps_per_second(count)
            rows.append({"workers": count, "measured": round(measured, 1), "predicted": round(predicted, 1)})
            linear = measured / count / (rows[0]["measured"] / rows[0]["workers"])
            print(
                f"{count} workers: {measured:.1f} steps/s, {linear:.2f} of linear, {measured / predicted:.2f} of the "
                "prediction",
                flush=True,
            )
    yield Result({"rows": rows, "model": model._asdict()}, "sleeping", "muesli")


def _workers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run")


class Nodes(NamedTuple):
    """A Ray cluster on this machine."""

    address: str
    environment: dict[str, str]
    """Variables for whoever connects"""
    processes: list[subprocess.Popen]
    """of each node, with a group for all of its processes"""


@contextmanager
def ray_nodes(cores: Sequence[int], places: int = 1) -> Iterator[Nodes]:
    """A Ray cluster on this machine with a node on each of these cores, which has so many places for workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {
        **os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)
    }  # fmt: skip
    started: list[subprocess.Popen] = []
    try:
        for index, core in enumerate(cores):
            head = ["--head", "--port", address.rpartition(":")[2], "--include-dashboard=false"]
            words = ["--num-cpus", str(places), "--object-store-memory=150000000", "--node-ip-address=127.0.0.1"]
            words += ["--address", address] if index else head
            started.append(
                subprocess.Popen(
                    ["taskset", "-c", str(core), ray, "start", "--block", "--disable-usage-stats", *words],
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            )
            _wait_for(ray, Nodes(address, environment, started))
        yield Nodes(address, environment, started)
    finally:
        for node in reversed(started):
            node.terminate()
        for node in started:
            node.wait()


def _wait_for(ray: str, nodes: Nodes, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    status = [ray, "status", "--address", nodes.address]
    while time.monotonic() < deadline:
        found = subprocess.run(status, capture_output=True, text=True, env=nodes.environment, check=False)
        if len(re.findall(r"^ 1 node_", found.stdout, re.MULTILINE)) == len(nodes.processes):
            return
        time.sleep(0.5)
    raise SystemExit(f"the Ray nodes did not start: {found.stderr}")


def _trained(env: str, words: Sequence[str], cores: Sequence[int], environment: dict[str, str] | None = None) -> float:
    """The steps a second of a run without evaluations on some cores."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "bircher", "train", env, *words]
    with runner.scratch() as folder:
        more = ["evaluation.count=0", "--out", str(folder / "run")]
        subprocess.run([*command, *more], stdout=subprocess.DEVNULL, env=environment, check=True)
        return round(speed(folder / "run"), 1)


def _ratios(speeds: dict[str, list[float]]) -> Result:
    """Print the second kind of run over the first, turn by turn."""
    (first, ones), (second, others) = speeds.items()
    ratios = [other / one for one, other in zip(ones, others, strict=True)]
    print(f"{second} / {first}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return Result({"steps_a_second": speeds, "ratios": [round(ratio, 3) for ratio in ratios]})


def nodes(options: argparse.Namespace) -> Iterator[Result]:
    """Compare a run on two Ray nodes of one core each with the same run on one of them, in turn.

    The learner shares the first core with a worker and with Ray itself; with two nodes it may use both.
    """
    speeds: dict[str, list[float]] = {"one node": [], "two nodes": []}
    for turn in range(options.turns):
        for count, (name, found) in enumerate(speeds.items(), 1):
            cores = options.cores[:count]
            with ray_nodes(cores) as cluster:
                words = [*options.settings, "loop=ray", f"ray.workers={count}", f"ray.address={cluster.address}"]
                found.append(_trained(options.env, words, cores, cluster.environment))
            print(f"turn {turn + 1}, {name}: {found[-1]:,.1f} steps a second", flush=True)
    yield _ratios(speeds)._replace(env=options.env)


def _nodes_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])


def overhead(options: argparse.Namespace) -> Iterator[Result]:
    """Compare `loop=ray` with one worker, and `loop=pipeline`, in turn on the same cores; starts are not counted."""
    speeds: dict[str, list[float]] = {"loop=pipeline": [], "loop=ray": []}
    for turn in range(options.turns):
        for name, found in speeds.items():
            more = ["ray.workers=1"] if name == "loop=ray" else []
            found.append(_trained(options.env, [*options.settings, name, *more], options.cores))
            print(f"turn {turn + 1}, {name}: {found[-1]:,.1f} steps a second", flush=True)
    yield _ratios(speeds)._replace(env=options.env)


class Memory(NamedTuple):
    """Bytes that processes hold for themselves, without what they share."""

    seconds: float
    driver: int
    workers: tuple[int, ...]


def _own_bytes(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has just ended
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return 0


def _worker_processes(driver: int) -> list[int]:
    """The processes of a run's workers, which descend from its own process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if re.match(r"ray::(RemoteWorker|worker \d+)", title):
            ancestor = process = int(path.parent.name)
            while ancestor not in (0, driver):
                ancestor = _parent(ancestor)
            found += [process] * (ancestor == driver)
    return sorted(found)


def _memory_change(samples: list[Memory]) -> dict[str, float]:
    """The means of the last tenth of the time over those of the second, in which everything is compiled."""
    samples = [sample for sample in samples if sample.driver and sum(sample.workers)]
    tenth = len(samples) // 10
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]

    def ratio(of: Callable[[Memory], float]) -> float:
        return round(float(np.mean([*map(of, late)]) / np.mean([*map(of, early)])), 4)

    return {"driver": ratio(lambda x: x.driver), "workers": ratio(lambda x: sum(x.workers))} if tenth else {}


def survive(options: argparse.Namespace) -> Iterator[Result]:
    """Kill workers, and the run's own process, at random moments of a run; also measure the memory of its processes.

    The moments are drawn from the minutes that are given, and those after the run's end are left out.  A run whose own
    process was killed is resumed.
    """
    draw = random.Random(options.seed)
    moments = sorted(
        (draw.uniform(20, 60 * options.minutes), whom)
        for whom, count in (("worker", options.kill_workers), ("driver", options.kill_drivers))
        for _ in range(count)
    )
    killed = {"worker": 0, "driver": 0}
    samples: list[Memory] = []
    run = Path(options.out)
    log = run.with_suffix(".log")
    process = runner.start_training([options.env, *options.settings, "--out", str(run)], log)
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(1.0)
        seconds, found = time.monotonic() - began, _worker_processes(process.pid)
        samples.append(Memory(seconds, _own_bytes(process.pid), tuple(map(_own_bytes, found))))
        if options.stop and seconds > 60 * options.minutes:
            process.terminate()  # the run saves and ends; a second signal would not let it
            process.wait()
        if not moments or seconds < moments[0][0] or not (run / "metrics.jsonl").exists():
            continue
        whom = moments.pop(0)[1]
        if whom == "driver":
            process.kill()
            process.wait()
            process = runner.start_training(["--resume", str(run)], log)
        elif found:
            os.kill(draw.choice(found), signal.SIGKILL)
        killed[whom] += whom == "driver" or bool(found)
    yield _survived(options, run, process.returncode, killed, samples, time.monotonic() - began)


def _survived(
    options: argparse.Namespace, run: Path, status: int, killed: dict[str, int], samples: list[Memory], seconds: float
) -> Result:
    settings = directory.read_config(run)
    last = metrics.read(run / "metrics.jsonl")[-1]
    rows = settings.env.num_envs * settings.loop.rollout_length
    iterations = last["learner_steps"] / (rows * settings.optimizer.updates_per_step)
    evaluations = [
        line["eval/return_mean"] for line in metrics.read(run / "metrics.jsonl") if "eval/return_mean" in line
    ]
    found = {
        "status": status, "killed": killed, "env_steps": last["env_steps"], "episodes": last["episodes"],
        "learner_steps": last["learner_steps"], "rows_learned_from": round(iterations * rows),
        "resets": round(iterations * rows) - last["env_steps"], "evaluations": evaluations,
        "memory_change": _memory_change(samples), "seconds": round(seconds, 1),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    return Result(found, options.env, settings.agent.name, (settings.seed,))


def _survive_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--out", required=True, help="the folder of the run, which must not exist")
    parser.add_argument("--minutes", type=float, default=15.0, help="the time in which the deaths are")
    parser.add_argument("--stop", action="store_true", help="end the run after this time")
    parser.add_argument("--kill-workers", type=int, default=0)
    parser.add_argument("--kill-drivers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")


if __name__ == "__main__":
    runner.main(
        __doc__,
        {
            "workers": Study(workers, _workers_arguments, "workers"),
            "nodes": Study(nodes, _nodes_arguments, "nodes"),
            "overhead": Study(overhead, _nodes_arguments),
            "survive": Study(survive, _survive_arguments, "survive"),
        },
    )
