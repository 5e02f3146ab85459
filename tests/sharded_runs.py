"""Runs over eight simulated devices and over one, compared; tests/test_sharding.py starts it as a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from bircher.config import config
from bircher.runs import build, launch
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Policy
from test_resume import run_to, state_of
from tiny import SETTINGS

SETTINGS = {
    **SETTINGS, "env.num_envs": 8, "optimizer.batch_size": 8, "optimizer.updates_per_step": 1 / 16, "seed": 3,
    "agent.normalize_observations": True, "optimizer.learning_rate": 1e-3,
}  # fmt: skip


def composed(env: str, **settings) -> config.Config:
    return config.compose(env, {**SETTINGS, **settings})


def one_update(devices: int) -> dict[str, np.ndarray]:
    """The metrics and the state after the updates of one rollout: losses, the gradient's norm and normalizers."""
    made = composed("CartPole-v1", devices=devices)
    env = build.make_env(made, None, 8, 3, "train")
    parts = build.make_parts(made, env.spec)
    assert (parts.learner.layout is None) == (devices == 1)
    actor = start_actors(parts.agent, env, jax.random.key(0))
    train = parts.init(jax.random.key(1), actor.timestep)
    policy = jax.device_get((train.params, train.agent_state))
    _, rollout, tally = jax.jit(lambda policy, actor: collect_rollout(parts.agent, env, policy, actor, 4, 0.0))(
        Policy(*policy), actor
    )
    if parts.learner.layout:
        rollout = jax.device_put(rollout, parts.learner.layout.divided)
        tally = jax.device_put(tally, parts.learner.layout.everywhere)
    train, metrics = jax.jit(parts.learner.update)(train, rollout, tally)
    if parts.learner.layout:
        assert len(train.replay.experience.reward.sharding.device_set) == devices
        assert train.replay.experience.reward.addressable_shards[0].data.shape[0] == 8 // devices
    tree = {"metrics": metrics, "params": train.params, "state": train.agent_state, "moments": train.optimizer_state}
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def farthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of two states, relative where numbers are above 1."""
    assert one.keys() == other.keys() and len(one) > 40
    pairs = [(x.astype(float), other[name].astype(float)) for name, x in one.items() if x.size]
    return max(float(np.max(np.abs(x - y) / np.maximum(np.abs(x), 1))) for x, y in pairs)


def main(folder: Path) -> None:
    """Print the largest differences as JSON."""

    def started(devices: int, name: str):
        return launch.start(composed("CartPole-v1", devices=devices, steps=200), out=folder / name)

    def changed(before: int, after: int) -> dict[str, np.ndarray]:
        half = run_to(started(before, f"from-{before}"), 100)
        assert half.stopped
        return state_of(launch.resume(half.path, [f"devices={after}"]).run().path)

    whole = state_of(started(1, "one").run().path)
    runs = {"run": state_of(started(8, "eight").run().path), "8 to 1": changed(8, 1), "1 to 8": changed(1, 8)}
    found = {"update": farthest(one_update(1), one_update(8))}
    print(json.dumps(found | {name: farthest(whole, state) for name, state in runs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
