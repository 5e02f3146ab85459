"""Memory and speed of pictures: environments that draw them, and replays that store them.

python benchmarks/pictures.py pixels LunarLander-v3 --envs 16 --size 64 96
python benchmarks/pictures.py frames Breakout-v5 env.protocol=dqn agent=muzero replay.capacity=1000000
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import programs
import runner
from runner import Result, Study

from bircher.config import config
from bircher.devices import used_bytes
from bircher.envs import atari, registry, rendering
from bircher.envs.config import EnvRequest, ObservationConfig
from bircher.runs import build
from bircher.training import learner
from bircher.training.rollout import collect_rollout

WHOLE = "one process, whole pictures"
AT_ONCE = rendering.SHRUNK_SURFACES


def processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def play(env_id: str, envs: int, steps: int, settings: dict[str, Any]) -> tuple[float, float]:
    """Wall seconds of the steps alone, and processor seconds of everything, start and end included."""
    before = processor_seconds()
    env = registry.make(EnvRequest.of(env_id, num_envs=envs, **settings), seed=0)
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


def pixels(options: argparse.Namespace) -> Iterator[Result]:
    """Measure frames a second of environments that draw pictures, by the number of processes that draw them.

    Rows: whole pictures in one process, shrunk at once in one process, a process an environment, a process a core; of
    Atari games the threads of EnvPool by both protocols, each with its own picture, where a frame is what a decision
    shows.  Processor time is that of all processes together.
    """
    for env_id in options.envs_seen:
        compared = ways(env_id, options.envs, options.size)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
        for name in [*compared] * options.repeats:
            rendering.SHRUNK_SURFACES = () if name == WHOLE else AT_ONCE
            _, idle = play(env_id, options.envs, 1, compared[name])
            wall, used = play(env_id, options.envs, options.steps + 1, compared[name])
            frames = options.envs * options.steps
            found[name].append((frames / wall, 1e3 * (used - idle) / frames))
        rows = {}
        for name, runs in found.items():
            rate, cost = (float(np.median(column)) for column in zip(*runs, strict=True))
            print(f"{env_id}, {name:28s} {rate:7.0f} frames/s, {cost:.2f} ms of processor a frame", flush=True)
            rows[name] = {"frames_per_second": round(rate, 1), "processor_ms": round(cost, 3)}
        yield Result({"environments": options.envs, "size": list(options.size), "rows": rows}, env_id)


def _pixels_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("envs_seen", nargs="+", metavar="env")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)


DRAWN = 32
"""Sequences in a draw."""


def frames(options: argparse.Namespace) -> Iterator[Result]:
    """Fill a replay of frames: its bytes, the memory of the process, and the time of a rollout and of a sample.

    One real rollout is stored again and again, until the replay has been filled one and a half times.  Nothing is
    learned.
    """
    settings = config.compose(options.env, options.settings)
    device = jax.devices()[0]
    env, parts, _, (train, state, _) = programs.start(settings)
    print(build.replay_sentence(settings, parts, device))
    length, num_envs = settings.loop.rollout_length, settings.env.num_envs
    roll = jax.jit(lambda policy, state: collect_rollout(parts.agent, env, policy, state, length, 0.0)[1])
    rows = jax.tree.map(lambda x: x[:, :-1], roll(learner.acting_policy(parts.agent, train), state))
    replay = learner.make_replay(settings.replay, env.spec.observation, num_envs, length, settings.env.stack)
    add = jax.jit(replay.add, donate_argnums=0)
    draw = jax.jit(lambda replay_state, key: replay.sample(replay_state, key, DRAWN).rows.observation)
    replay_state, lines = train.replay if not parts.learner.replay_on_host else train.replay.replay_state, []
    capacity, stored, due = replay.capacity, 0, 0.0
    adding = drawing = 0.0
    while stored < 1.5 * capacity:
        began = time.perf_counter()
        replay_state = jax.block_until_ready(add(replay_state, rows))
        adding = time.perf_counter() - began
        stored += num_envs * length
        if stored >= due * capacity:
            jax.block_until_ready(draw(replay_state, jax.random.key(0)))  # compiled the first time
            began = time.perf_counter()
            jax.block_until_ready(draw(replay_state, jax.random.key(stored)))
            drawing = time.perf_counter() - began
            memory = used_bytes(device) or 0
            held = int(2 * replay.age(replay_state)) + num_envs
            lines.append(
                {"stored": stored, "held": held, "memory": memory, "add_ms": 1e3 * adding, "draw_ms": 1e3 * drawing}
            )
            print(
                f"{stored:,} frames added, {held:,} held, process {memory / 1e9:.2f} GB, "
                f"a rollout stored in {1e3 * adding:.1f} ms, "
                f"{DRAWN} sequences of {length + 1} rows sampled in {1e3 * drawing:.1f} ms",
                flush=True,
            )
            due += 0.25
    env.close()
    size = build.num_bytes(parts.template.replay)
    print(f"{size / 1e9:.3f} GB for {capacity:,} frames")
    if settings.replay.compressed_bytes is not None:
        stored_bytes = float(replay_state.replay_state.replay_state.experience.observation.size.mean())
        print(f"{stored_bytes / length:,.0f} bytes a frame compressed")
    yield Result({"bytes": size, "capacity": capacity, "lines": lines}, options.env)


if __name__ == "__main__":
    runner.main(__doc__, {"pixels": Study(pixels, _pixels_arguments), "frames": Study(frames, runner.env_and_settings)})
