"""Workers whose rows do not fit in Ray's shared memory."""

from __future__ import annotations

import time

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from bircher.config import config
from bircher.runs import build
from bircher.training import cluster, remote_worker
from tiny import SETTINGS

WIDTH = 500_000
"""Numbers in an observation: the part of a worker with one environment takes 16 MB."""


class Wide(gymnasium.Env):
    """Each observation repeats the number of the step."""

    observation_space = spaces.Box(0, 2**20, (WIDTH,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(WIDTH, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(WIDTH, self.time, np.float32), 1.0, False, False, {}


@pytest.mark.slow
def test_parts_that_do_not_fit_in_shared_memory_arrive_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve parts of 16 MB in flight, and 80 MB of shared memory, the least that Ray takes."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    monkeypatch.setattr(cluster, "_OBJECTS", 80 * 2**20)
    settings = {
        **SETTINGS, "env.num_envs": 2, "optimizer.batch_size": 2, "loop": "ray", "ray.workers": 2, "ray.max_lag": 6,
        "loop.rollout_length": 8, "model.torso_widths": [2], "replay.capacity": 64,
    }  # fmt: skip
    made = config.compose(Wide, settings)
    pool = build.make_training_env(made, Wide, 0)
    try:
        agent = build.make_agent(made, pool.spec)
        policy = jax.jit(lambda key: agent.init(key, pool.spec))(jax.random.key(0))
        observed = remote_worker.to_host((policy, jnp.zeros((), jnp.int32)))
        pool.launch()
        pool.begin(jax.random.key(0), observed)
        deadline = time.monotonic() + 300
        while any(len(worker.parts) < 6 for worker in pool._workers):
            assert time.monotonic() < deadline and pool._error is None
            time.sleep(0.05)
        for number in range(8):
            rollout, _ = pool.next_rollout()
            pool.publish(observed)
            expected = np.broadcast_to(np.arange(8 * number, 8 * number + 8, dtype=np.float32), (2, 8))
            np.testing.assert_array_equal(rollout.observation[:, :8, 0], expected)
            np.testing.assert_array_equal(rollout.observation[:, :8, -1], expected)
        assert pool.sentences() == []
    finally:
        pool.close()
