"""A replay of frames, filled and filled again: its bytes, the process's memory, and the time of a rollout and a draw.

    python benchmarks/frames.py Breakout-v5 env.protocol=dqn agent=muzero replay.capacity=1000000

One real rollout is stored over and over, until the ring has been filled one and a half times; its frames are as many as
those of a run would be, and nothing is learned.
"""

from __future__ import annotations

import argparse
import time

import bare
import jax
from ledger import append, commit, machine

from bircher.config import config
from bircher.devices import used_bytes
from bircher.runs import build
from bircher.training import learner
from bircher.training.rollout import collect_rollout

DRAWN = 32
"""Sequences in a draw."""


def main() -> None:
    """Fill, print a line now and then, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as for bircher train")
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args()
    settings = config.compose(options.env, options.settings)
    device = jax.devices()[0]
    env, parts, _, (train, state, _) = bare.start(settings)
    print(build.replay_sentence(settings, parts, device))
    length, num_envs = settings.loop.rollout_length, settings.env.num_envs
    roll = jax.jit(lambda policy, state: collect_rollout(parts.agent, env, policy, state, length, 0.0)[1])
    rows = jax.tree.map(lambda x: x[:, :-1], roll(learner.acting_policy(parts.agent, train), state))
    ring = learner.make_replay(settings.replay, env.spec.observation, num_envs, length, settings.env.stack)
    add = jax.jit(ring.add, donate_argnums=0)
    draw = jax.jit(lambda held, key: ring.sample(held, key, DRAWN).rows.observation)
    held, lines = train.replay if not parts.learner.replay_on_host else train.replay.ring, []
    capacity, stored, due = ring.capacity, 0, 0.0
    adding = drawing = 0.0
    while stored < 1.5 * capacity:
        began = time.perf_counter()
        held = jax.block_until_ready(add(held, rows))
        adding = time.perf_counter() - began
        stored += num_envs * length
        if stored >= due * capacity:
            jax.block_until_ready(draw(held, jax.random.key(0)))  # compiled the first time
            began = time.perf_counter()
            jax.block_until_ready(draw(held, jax.random.key(stored)))
            drawing = time.perf_counter() - began
            memory = used_bytes(device) or 0
            kept = int(2 * ring.age(held)) + num_envs
            lines.append(
                {"stored": stored, "held": kept, "memory": memory, "add_ms": 1e3 * adding, "draw_ms": 1e3 * drawing}
            )
            print(
                f"{stored:,} frames given, {kept:,} held, process {memory / 1e9:.2f} GB, "
                f"a rollout stored in {1e3 * adding:.1f} ms, "
                f"{DRAWN} sequences of {length + 1} rows drawn in {1e3 * drawing:.1f} ms",
                flush=True,
            )
            due += 0.25
    env.close()
    size = build.num_bytes(parts.template.replay)
    print(f"{size / 1e9:.3f} GB for {capacity:,} frames")
    if settings.replay.compressed_bytes is not None:
        print(f"{float(held.ring.ring.experience.observation.size.mean()) / length:,.0f} bytes a frame compressed")
    if not options.dry:
        append({
            "name": "frames", "command": "python benchmarks/frames.py " + " ".join([options.env, *options.settings]),
            "commit": commit(), "machine": machine(), "env": options.env, "bytes": size, "capacity": capacity,
            "lines": lines,
        })  # fmt: skip


if __name__ == "__main__":
    main()
