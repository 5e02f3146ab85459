"""Updates and runs of one learner or of several, compared in tests/test_learners.py, which starts them as programs.

A learner joins the others before JAX computes anything, so that each of these needs a new process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bircher.config import config
from bircher.runs import build, launch
from bircher.runs.logger import RunLogger
from bircher.training import learners
from bircher.training.learner import Learner
from bircher.training.loops import DeviceUpdate, Progress
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Policy, Tally, Trajectory
from test_resume import state_of
from tiny import SETTINGS

SETTINGS = {
    **SETTINGS, "agent.normalize_observations": True, "optimizer.learning_rate": 1e-3, "seed": 3, "device": "cpu",
    "replay.priority_exponent": 0.6,
}  # fmt: skip
ROLLOUTS = 6


def named(tree) -> dict[str, np.ndarray]:
    """Return arrays by their place in a tree, with random keys as numbers."""

    def plain(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {jax.tree_util.keystr(where): plain(leaf) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def rollouts(learner: Learner, env) -> list[tuple[Trajectory, Tally]]:
    """Return the rollouts of a policy that does not change; they are the same in every process."""
    agent = learner.agent
    policy: Policy = agent.init(jax.random.key(2), env.spec)
    collect = jax.jit(lambda actor: collect_rollout(agent, env, policy, actor, learner.config.rollout_length, 0.0))
    actor, found = start_actors(agent, env, jax.random.key(0)), []
    for _ in range(ROLLOUTS):
        actor, rollout, tally = collect(actor)
        found.append(jax.device_get((rollout, tally)))
    return found


def updates(index: int, count: int, port: int, path: Path) -> None:
    """Learn from some rollouts as one of `count` learners, and write losses and the last state to a file."""
    if count > 1:
        learners.join_processes(f"127.0.0.1:{port}", count, index)
    composed = config.compose("CartPole-v1", SETTINGS)
    with contextlib.closing(build.make_env(composed, None, 4, 3, "train")) as env:
        learner = build.make_learner(composed, env.spec, count)
        given = rollouts(learner, env)
        layout = learner.layout
        first = env.reset()[1]
        init = jax.jit(learner.init) if layout is None else learners.make_init(learner)
        train = init(jax.random.key(1), first)
        update = DeviceUpdate(learner, partial(learners.observe, learner.agent))
        zero = update.zero_progress(train, *given[0])
        update.compile(train, zero, *given[0])
        metrics = {}
        for number, (rollout, tally) in enumerate(given):
            progress: Progress = jax.tree.map(jnp.copy, zero)
            if layout is not None:
                rollout = jax.tree.map(lambda x: x[layout.rows(index)], rollout)
            train, progress, _ = jax.block_until_ready(update(train, progress, rollout, tally))
            metrics[f"rollout {number}"] = jax.device_get(progress.metrics)
        if layout is not None:
            assert not train.replay.replay_state.experience.reward.is_fully_replicated
            share = train.replay.replay_state.experience.reward.addressable_shards
            assert [each.data.shape[0] for each in share] == [4 // count]
            train = layout.whole(train)
    if index == 0:
        np.savez(path, **named({"metrics": metrics, "train": train}))
        sys.stdin.read()  # until the others have left: they cannot leave a group whose first process has ended


def whole_run(learner_count: int, path: Path, steps: int, ends_at: int | None = None) -> None:
    """Begin or continue a run, and write its last checkpoint to a file next to it.

    Learner 1 is killed when `ends_at` steps are logged.
    """
    write = RunLogger.write
    if path.exists():
        training = launch.resume(path, [f"ray.learners={learner_count}", f"steps={steps}"])
    else:
        made = config.compose("CartPole-v1", {
            **SETTINGS, "steps": steps, "loop": "ray", "ray.learners": learner_count, "evaluation.count": 1,
            "evaluation.episodes": 1, "checkpoint.every_seconds": 0.5,
        })  # fmt: skip
        training = launch.start(made, out=path)

    def write_and_kill(self, counters, measured):
        write(self, counters, measured)
        group = training._env.learners
        if ends_at is not None and counters["env_steps"] >= ends_at and group._actors:
            import ray

            process = ray.get(group._actors[0].__ray_call__.remote(lambda self: os.getpid()))
            os.kill(process, signal.SIGKILL)

    RunLogger.write = write_and_kill  # type: ignore[method-assign]
    training.run()
    np.savez(path.with_suffix(f".{learner_count}.{steps}.npz"), **state_of(path))


if __name__ == "__main__":
    program, *words = sys.argv[1:]
    if program == "updates":
        updates(int(words[0]), int(words[1]), int(words[2]), Path(words[3]))
    else:
        whole_run(int(words[0]), Path(words[1]), *map(int, words[2:]))
