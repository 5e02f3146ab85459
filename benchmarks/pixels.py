"""Frames a second of environments seen as pictures, by how many processes draw them.

    python benchmarks/pixels.py LunarLander-v3 --envs 16 --size 64 96
    python benchmarks/pixels.py Breakout-v5 Pong-v5 --envs 32

Rows: whole pictures in one process, shrunk at once in one process, a process an environment, a process a core; of Atari
games EnvPool's threads by both protocols, each with its own picture, and a frame here is what a decision shows.  Wall
time is what a run feels; processor time, of all processes together, says what a frame costs where others use the
machine too: cores divided by it is what there is to be had.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bircher.envs import atari, registry, rendering
from bircher.envs.config import ObservationConfig

WHOLE = "one process, whole pictures"
AT_ONCE = rendering.SHRUNK_SURFACES


def processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def play(env_id: str, envs: int, steps: int, settings: dict[str, Any]) -> tuple[float, float]:
    """Wall seconds of the steps alone, and processor seconds of everything, start and end included."""
    before = processor_seconds()
    env = registry.make(env_id, envs, seed=0, **settings)
    step = jax.jit(env.step)
    state, row = env.reset()
    actions = np.random.default_rng(0).integers(env.spec.num_actions, size=(steps + 1, envs), dtype=np.int32)
    state, row = jax.block_until_ready(step(state, actions[0]))
    began = time.perf_counter()
    for action in actions[1:]:
        state, row = step(state, action)
    jax.block_until_ready(row)
    wall = time.perf_counter() - began
    env.close()
    return wall, processor_seconds() - before


def ways(env_id: str, envs: int, size: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What is to be compared, by name."""
    if atari.canonical(env_id) is not None:
        return {f"protocol {name}": {"protocol": name} for name in atari.PROTOCOLS}
    cores = len(os.sched_getaffinity(0))
    observation = ObservationConfig.model_validate({"name": "pixels", "size": tuple(size), "gray": True})
    counts = {WHOLE: 0, "one process": 0, "a process an environment": envs, f"{cores} processes": cores}
    return {name: {"observation": observation, "num_workers": count} for name, count in counts.items()}


def measure(env_id: str, given: argparse.Namespace) -> None:
    """Each way in turn, some times over; prints the medians."""
    compared = ways(env_id, given.envs, given.size)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    for name in [*compared] * given.repeats:
        rendering.SHRUNK_SURFACES = () if name == WHOLE else AT_ONCE
        _, idle = play(env_id, given.envs, 1, compared[name])
        wall, used = play(env_id, given.envs, given.steps + 1, compared[name])
        frames = given.envs * given.steps
        found[name].append((frames / wall, 1e3 * (used - idle) / frames))
    for name, runs in found.items():
        rate, cost = (float(np.median(column)) for column in zip(*runs, strict=True))
        print(f"{env_id}, {name:28s} {rate:7.0f} frames/s, {cost:.2f} ms of processor a frame", flush=True)


def main() -> None:
    """Measure the environments that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", nargs="+")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for env_id in given.env:
        measure(env_id, given)


if __name__ == "__main__":
    main()
