"""No start of an evaluation occurs in training: environments never seen, each start different."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import bircher
import environments
from bircher.config.config import Config
from bircher.envs import registry
from bircher.envs.base import random_actions
from bircher.runs import build, directory
from bircher.training import checkpoint
from tiny import SETTINGS, Countdown

EVALUATED = 100


def starts(env, steps: int) -> set[bytes]:
    """The first observations that so many steps with random actions come to."""
    state, row = env.reset()
    step = jax.jit(env.step)
    found = []
    for key in jax.random.split(jax.random.key(0), steps + 1):
        rows = jax.tree.map(np.asarray, row)
        found += [observation.tobytes() for observation in rows.observation[rows.first]]
        state, row = step(state, random_actions(env.spec, key, row))
    jax.block_until_ready(row)
    env.close()
    return set(found)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["LunarLander-v3", "CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_no_first_observation_of_an_evaluation_occurs_in_training(env_id: str) -> None:
    seen = starts(environments.make(env_id, 64, 0, "train"), 300)
    fresh = starts(environments.make(env_id, EVALUATED, 0, "eval"), 0)
    assert len(seen) >= 64 and len(fresh) == EVALUATED
    assert not seen & fresh


def test_evaluations_start_where_no_training_did(tmp_path: Path) -> None:
    run = bircher.train("CartPole-v1", steps=200, out=tmp_path / "run", **SETTINGS)
    config = Config.from_yaml(run.path / directory.CONFIG)
    env = build.make_env(config, None, EVALUATED, 0, "eval")
    saved = directory.last_checkpoint(run.path)
    held = checkpoint.restore(saved, "replay", build.make_parts(config, env.spec).template.replay).experience
    first = np.asarray(held.first) & (np.arange(held.first.shape[1]) < 50)
    seen = {row.tobytes() for row in np.asarray(held.observation)[first]}
    fresh = {row.tobytes() for row in np.asarray(env.reset()[1].observation)}
    assert len(seen) >= 4 and len(fresh) == EVALUATED and not seen & fresh


def test_roles_seeds_and_generations_share_no_environment() -> None:
    groups = [
        registry.seeds(seed, role, 128, generation)
        for seed in range(6)
        for role in ("train", "monitor", "eval", "watch")
        for generation in range(2)
    ]
    everything = [seed for group in groups for seed in group]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**31 for seed in everything)


def test_an_evaluation_with_the_training_seed_has_other_episodes() -> None:
    trained = registry.seeds(0, "train", 4096)
    assert not {seed for s in range(50) for seed in registry.seeds(s, "eval", 128)} & set(trained)
    assert len({int(Countdown().reset(seed=seed)[0][0]) for seed in trained[:100]}) > 15
