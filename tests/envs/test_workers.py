"""Tests of environments in worker processes: equal rows, and no hang when a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium_twins import Indexed, Masked, Raises, Spaces
from rollouts import assert_same_rows, rollout

import environments
from bircher.envs import gymnasium as adapter
from bircher.envs import registry
from bircher.envs.config import ObservationConfig

PIXELS = ObservationConfig.model_validate({"name": "pixels", "size": (4, 6)})


def there(pid: int) -> bool:
    """Return whether a process runs; a process that has ended but was not waited for does not run."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("source", [Indexed, Masked, "CartPole-v1"])
def test_rows_do_not_depend_on_the_processes(source):
    drawn = None if source is Masked else PIXELS
    rows = []
    for workers in (0, 2):
        env = environments.make(source, 3, seed=1, backend="gymnasium", observation=drawn, num_workers=workers)
        rows.append(rollout(env, 12))
        env.close()
    assert_same_rows(*rows)
    assert isinstance(source, str) or rows[0].last.any()


def test_dictionaries_of_observations_are_concatenated():
    def make():
        return Spaces(spaces.Dict({"eye": spaces.Box(0, 255, (2, 2), np.uint8), "place": spaces.Discrete(3)}))

    rows = [rollout(environments.make(make, 3, seed=0, num_workers=workers), 5) for workers in (0, 3)]
    for name in ("eye", "place"):
        np.testing.assert_array_equal(rows[0].observation[name], rows[1].observation[name])


def test_default_number_of_processes(monkeypatch):
    monkeypatch.setattr(adapter.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    counts = [adapter._num_workers(num_envs, pictures=True) for num_envs in (1, 4, 8, 12, 64)]
    assert counts == [0, 0, 2, 3, 4]
    assert adapter._num_workers(64, pictures=False) == 0


def test_an_exception_in_a_worker_has_the_index_of_the_environment():
    class Second(Raises):
        def __init__(self):
            super().__init__(index=0)

        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.index = int(seed == registry.seeds(0, "train", 3)[2])
            return super().reset(seed=seed, options=options)

    env = environments.make(Second, 3, seed=0, num_workers=2)
    rows = rollout(env, 12, np.zeros((12, 3)))
    np.testing.assert_array_equal(rows.failed.all(-1), np.arange(13) >= 9)
    assert "environment 2 raised ZeroDivisionError in step after 8 steps: the mill is broken" == env.failure()
    env.close()


def test_a_killed_worker_is_a_failure_and_ends_the_others():
    env = environments.make(Indexed, 4, seed=0, num_workers=2)
    workers = env._pool._workers
    assert not rollout(env, 2).failed.any()
    state, _ = env.reset()
    workers[1].kill()
    workers[1].wait()
    began = time.monotonic()
    for _ in range(2):
        state, row = env.step(state, jnp.zeros(4, jnp.int32))
    assert row.failed.all() and time.monotonic() - began < 5
    assert env.failure() == "the worker process of environments 2 to 3 ended by itself, with status -9"
    env.close()
    assert not any(there(worker.pid) for worker in workers)


def test_printing_environments_do_not_disturb_the_answers():
    class Talks(Indexed):
        def step(self, action):
            print("a step", flush=True)
            return super().step(action)

    env = environments.make(Talks, 2, seed=0, num_workers=1)
    assert not rollout(env, 7).failed.any()
    env.close()


def test_workers_end_when_the_training_is_killed():
    """This needs no guard in the script, because a worker does not run the script."""
    script = (
        "import os, signal\n"
        "from bircher.envs import registry\n"
        "from bircher.envs.config import EnvRequest\n"
        "request = EnvRequest.of('CartPole-v1', num_envs=2, backend='gymnasium', num_workers=2)\n"
        "env = registry.make(request, seed=0)\n"
        "env.reset()\n"
        "print(*(worker.pid for worker in env._pool._workers), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    pids = [int(word) for word in result.stdout.split()]
    assert len(pids) == 2 and os.getpid() not in pids
    deadline = time.monotonic() + 10
    while any(there(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(there(pid) for pid in pids)
