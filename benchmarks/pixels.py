"""Frames a second of environments seen as pictures, by how many processes draw them.

    python benchmarks/pixels.py LunarLander-v3 --envs 16 --size 64 96

Rows: whole pictures in one process, shrunk at once in one process, a process an environment, a process a core.  Wall
time is what a run feels; processor time, of all processes together, says what a frame costs where others use the
machine too: cores divided by it is what there is to be had.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import jax
import numpy as np

from bircher.envs import pixels, registry
from bircher.envs.observation import ObservationConfig


def processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def play(env_id: str, observation: ObservationConfig, envs: int, workers: int, steps: int) -> tuple[float, float]:
    """Wall seconds of the steps alone, and processor seconds of everything, start and end included."""
    before = processor_seconds()
    env = registry.make(env_id, envs, seed=0, observation=observation, num_workers=workers)
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


def main() -> None:
    """Measure each way in turn, some times over, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    observation = ObservationConfig.model_validate({"name": "pixels", "size": tuple(given.size), "grey": True})
    cores = len(os.sched_getaffinity(0))
    at_once = pixels.SHRUNK_AT_ONCE
    ways = {
        "one process, whole pictures": (0, ()),
        "one process": (0, at_once),
        "a process an environment": (given.envs, at_once),
        f"{cores} processes": (cores, at_once),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, (workers, modules) in ways.items():
            pixels.SHRUNK_AT_ONCE = modules  # of this process alone: the ways with workers take what is quickest
            _, idle = play(given.env, observation, given.envs, workers, 1)
            wall, used = play(given.env, observation, given.envs, workers, given.steps + 1)
            frames = given.envs * given.steps
            found[name].append((frames / wall, 1e3 * (used - idle) / frames))
    for name, runs in found.items():
        rate, cost = (float(np.median(column)) for column in zip(*runs, strict=True))
        print(f"{name:28s} {rate:7.0f} frames/s, {cost:.2f} ms of processor a frame")


if __name__ == "__main__":
    main()
