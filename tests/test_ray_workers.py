"""`loop=ray`: what is divided and joined, and with a real Ray what workers collect, what a death costs, who waits."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import time
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from typer.testing import CliRunner

from bircher import metrics
from bircher.cli import app
from bircher.config import config
from bircher.envs.config import EnvRequest
from bircher.envs.toys import make_toy
from bircher.errors import ConfigError, RunFailed, UnsupportedEnvironment
from bircher.runs import bench, build, launch
from bircher.runs.logger import RunLogger
from bircher.training import cluster, remote_worker, workers
from bircher.training.remote_worker import HostTree, Part, Recipe, Share
from bircher.training.rollout import describe_failure, start_actors
from bircher.types import Tally
from builders import SMALL, assert_trees_equal, muesli_agent, random_rows
from test_resume import run_to, state_of
from tiny import SETTINGS, WORDS, BadReward, Countdown, Raises

SPREAD = "pettingzoo/mpe/simple_spread_v3"
AGENT = muesli_agent(SMALL.model_copy(update={"unroll_steps": 1}))


def composed(env="CartPole-v1", **settings) -> config.Config:
    return config.compose(env, {**SETTINGS, "loop": "ray", **settings})


# Without Ray.


def test_every_environment_is_in_one_share() -> None:
    assert remote_worker.shares(7, 3) == [Share(0, 0, 3), Share(1, 3, 2), Share(2, 5, 2)]
    assert remote_worker.shares(4, 1) == [Share(0, 0, 4)]


def test_shares_have_the_seeds_of_the_whole() -> None:
    made = composed("toy/cliff")
    whole = build.make_env(made, None, 4, 3, "train", 1).reset()[0]
    one, two = (build.make_env(made, None, 2, 3, "train", 1, first).reset()[0] for first in (0, 2))
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), one, two)
    assert_trees_equal(joined, whole)


def part(count: int, seed: int, **tally: float) -> Part:
    """A part of random rows, with these sums."""
    rows = jax.tree.map(np.asarray, random_rows(seed, count, 3))
    zero = jax.device_get(Tally.zero()._replace(largest_return=jnp.zeros(())))
    return Part(
        rows, zero._replace(**{name: np.asarray(x, getattr(zero, name).dtype) for name, x in tally.items()}), None, None
    )


def test_parts_join_to_the_rollout_of_all_environments() -> None:
    one = part(2, 0, env_steps=5, episodes=1, return_sum=1.5, longest=7, died_at_longest=1, largest_return=2.0)
    two = part(3, 1, env_steps=8, episodes=2, return_sum=0.25, longest=9, died_at_longest=2, largest_return=1.0)
    rollout, tally = remote_worker.join([one, two], 5)
    for joined, first, second in zip(*map(jax.tree.leaves, (rollout, one.rollout, two.rollout)), strict=True):
        np.testing.assert_array_equal(joined, np.concatenate([first, second]))
    numbers = {name: float(value) for name, value in tally._asdict().items() if value is not None}
    assert numbers == {
        "env_steps": 13, "episodes": 3, "return_sum": 1.75, "length_sum": 0, "last_reward_sum": 0, "failed": -1,
        "longest": 9, "died_at_longest": 2, "largest_return": 2,
    }  # fmt: skip
    assert [leaf.dtype for leaf in jax.tree.leaves(tally)] == [leaf.dtype for leaf in jax.tree.leaves(one.tally)]


@pytest.mark.parametrize(("code", "expected"), [(1, "environment 3 gave a reward"), (4, "environment 3 gave a mask")])
def test_a_failure_is_that_of_the_environment_in_the_run(code: int, expected: str) -> None:
    _, tally = remote_worker.join([part(2, 0), part(3, 1, failed=code)], 5)
    assert describe_failure(int(tally.failed), 5).startswith(expected)


def policy() -> HostTree:
    """A policy on its way to a worker."""
    spec = make_toy(EnvRequest.of("toy/cliff"), [1]).spec
    return remote_worker.to_host((AGENT.init(jax.random.key(0), spec), jnp.ones(())))


@pytest.mark.parametrize("made", [policy, lambda: part(2, 0, env_steps=5)], ids=["policy", "part"])
def test_what_arrives_is_freed(made) -> None:
    """Equinox keeps each module that pickle makes, with its arrays, so that modules are not sent."""
    sent = made()
    arrived = pickle.loads(pickle.dumps(sent))
    leaves = [jax.tree.leaves(tree.tree if isinstance(tree, HostTree) else tree) for tree in (sent, arrived)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)
    arrays = [weakref.ref(leaf) for leaf in leaves[1] if isinstance(leaf, np.ndarray)]
    assert len(arrays) > 5
    del arrived, leaves, other
    for _ in range(50):
        gc.collect()
        alive = [array().shape for array in arrays if array() is not None]  # type: ignore[union-attr]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def test_a_state_survives_the_way_through_the_host() -> None:
    env = make_toy(EnvRequest.of("toy/cliff"), [1, 2])
    state = start_actors(AGENT, env, jax.random.key(5))
    host = remote_worker.to_host(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host.tree))
    assert_trees_equal(remote_worker.from_host(host), state)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("ray.workers=5", "ray.workers=5 are more than env.num_envs=4"),
        ("ray.address=ray://there:10001", "ray.address=ray://there:10001 is not valid: expected auto, or HOST:PORT"),
        ("debug=true", "debug=true checks one process"),
        ("ray.max_lag=0", "ray.max_lag=0 is not possible: expected a whole number, at least 1"),
        ("loop=pipeline ray.failed_environments=replace", "ray.failed_environments=replace needs loop=ray, whose"),
    ],
)
def test_what_workers_cannot_do_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.compose("toy/cliff", [*WORDS, "loop=ray", "ray.workers=2", *word.split()])


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", "toy/cliff", *WORDS, "loop=ray", "--out", str(out)])
    assert result.exit_code == 2 and not out.exists()
    assert result.stderr == "bircher: loop=ray needs the package ray: pip install 'bircher[ray]'\n"


def test_a_cluster_that_does_not_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at ray.address={address}: .*refused"):
            cluster._require_answer(address)
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {address} \(ray.address=auto\)"):
            cluster._require_answer("auto")
        with pytest.raises(ConfigError, match=f"at --ray {address}: .* or give --ray local to use this machine"):
            cluster._require_answer(address, "--ray ")


# With Ray.


@pytest.fixture(scope="module")
def local_ray():
    """A Ray on this machine with four places, for all tests of this file."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    disconnect = cluster.connect(cluster.RayConfig(workers=4))
    yield
    disconnect()


def saved(path: Path) -> dict[str, np.ndarray]:
    """What the last checkpoint of a run with one worker holds, by the names of the pipeline."""
    return {name.replace("['actor'][0]", "['actor']"): value for name, value in state_of(path).items()}


def kill(worker: workers._Worker) -> None:
    """End a worker's process as the system would."""
    import ray

    os.kill(ray.get(worker.actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)


def killing(env_steps: list[int], training) -> pytest.MonkeyPatch:
    """Kill the run's workers in turn, each once so many steps are logged."""
    write, patch, left = RunLogger.write, pytest.MonkeyPatch(), list(env_steps)

    def write_and_kill(self, counters, measured):
        write(self, counters, measured)
        if left and counters["env_steps"] >= left[0]:
            left.pop(0)
            kill(training._env._workers[len(left) % 2])

    patch.setattr(RunLogger, "write", write_and_kill)
    return patch


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param(SPREAD, marks=pytest.mark.long)])
def test_one_worker_equals_the_pipeline_to_the_digit(local_ray, tmp_path: Path, env: str) -> None:
    """With an evaluation between, so that the loop pauses; also for an environment of three agents."""
    settings = {"steps": 600, "seed": 1, "evaluation.count": 2, "evaluation.episodes": 2, "ray.workers": 1}
    paths = [
        launch.start(composed(env, **settings, loop=loop), out=tmp_path / loop).run().path
        for loop in ("pipeline", "ray")
    ]
    expected, found = map(saved, paths)
    if env != SPREAD:  # the state of PettingZoo's environments cannot be saved
        assert int(found.pop("['actor'].lag")) == 1
    assert expected.keys() == found.keys() and len(found) > 40
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    local_ray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers with unequal shares; the parts in flight are in the checkpoint, and none is lost or used twice."""
    made = composed(**{"steps": 800, "seed": 1, "env.num_envs": 3, "optimizer.batch_size": 3})
    whole = launch.start(made, out=tmp_path / "whole").run()
    half = run_to(launch.start(made, out=tmp_path / "half"), 300)
    assert half.stopped and 300 <= half.counters["env_steps"] < 800
    resumed = launch.resume(half.path).run()
    expected, found = map(state_of, (whole.path, resumed.path))
    assert expected.keys() == found.keys() and any("['actor'][1]" in name for name in found)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    lags = [line["act/policy_lag"] for line in metrics.read(whole.path / "metrics.jsonl") if "act/policy_lag" in line]
    assert lags and max(lags) <= 1 and lags[-1] == 1


@pytest.mark.slow
def test_killed_workers_are_replaced_and_the_counters_are_whole(
    local_ray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = launch.start(composed(steps=3_000), out=tmp_path / "run")
    patch = killing([16, 100], training)
    try:
        run = training.run()
    finally:
        patch.undo()
    told = capsys.readouterr().out
    assert told.count("ended, and the worker is replaced, with new episodes in its environments") == 2, told
    assert [worker.process for worker in training._env._workers] == [1, 1]
    assert 3_000 <= run.counters["env_steps"] <= 3_016
    # An update for each 16 rows: steps, and the resets after episodes, of which four may be yet to come.
    resets = run.counters["learner_steps"] * 16 - run.counters["env_steps"]
    assert 0 <= run.counters["episodes"] - resets <= 4 + 4


@pytest.mark.slow
def test_a_worker_whose_environment_raises_is_named(local_ray, tmp_path: Path) -> None:
    made = composed(Raises, **{"steps": 2_000})
    with pytest.raises(RunFailed, match=r"worker [01] \(environments [02] to [13]\): .*the wheel came off"):
        launch.start(made, Raises, tmp_path / "run").run()
    assert launch.resume(tmp_path / "run", source=Raises)._resume_point.env_steps > 0


@pytest.mark.slow
def test_a_worker_whose_environment_raises_is_replaced_where_that_is_set(
    local_ray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The part in which it raised is not learned from, and collected again."""
    made = composed(Raises, **{"steps": 400, "ray.failed_environments": "replace"})
    run = launch.start(made, Raises, tmp_path / "run").run()
    told = capsys.readouterr().out
    assert told.count("failed, and the worker is replaced, with new episodes") > 2 and "the wheel came off" in told
    resets = run.counters["learner_steps"] * 16 - run.counters["env_steps"]
    assert run.counters["env_steps"] >= 400 and 0 <= run.counters["episodes"] - resets <= 4 + 4


@pytest.mark.slow
def test_environments_that_raise_again_and_again_end_the_run(local_ray, tmp_path: Path) -> None:
    settings = {"loop.rollout_length": 64, "replay.capacity": 1024, "optimizer.updates_per_step": 1 / 64}
    made = composed(BadReward, **{"steps": 2_000, "ray.failed_environments": "replace", **settings})
    with pytest.raises(RunFailed, match=r"worker [01] .* failed, for the 4th time .* the reward is nan"):
        launch.start(made, BadReward, tmp_path / "run").run()


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["end_the_run", "replace"])
def test_environments_that_cannot_begin_in_a_worker_follow_the_setting(local_ray, choice) -> None:
    import ray

    env = make_toy(EnvRequest.of("toy/cliff"), [0, 1])
    config = cluster.RayConfig(workers=1, failed_environments=choice)
    pool = workers.Workers(env.spec, False, 2, config, Recipe(make_slow, 4, 100), 0)
    failed = ray.exceptions.RayTaskError("prepare", "", UnsupportedEnvironment("no licence"))
    worker = pool._workers[0]
    try:
        pool.launch()
        with pool._changed:
            if choice == "end_the_run":
                with pytest.raises(RunFailed, match="failed in worker 0 .*: UnsupportedEnvironment: no licence"):
                    pool._replace(worker, failed)
                return
            pool._replace(worker, failed)
            assert worker.process == 1
            assert pool._news[0].startswith("an environment of worker 0 (environments 0 to 1) failed, and the worker")
            with pytest.raises(RunFailed, match="KeyError"):  # an error of another kind is not an environment's
                pool._replace(worker, ray.exceptions.RayTaskError("prepare", "", KeyError("x")))
    finally:
        pool.close()


@pytest.mark.slow
def test_environments_that_failed_before_a_checkpoint_begin_anew(local_ray) -> None:
    """A run that ended with an error is resumed with `replace`: its failed part is not learned from."""
    env = make_toy(EnvRequest.of("toy/cliff"), [0, 1])
    config = cluster.RayConfig(workers=1, failed_environments="replace")
    pool = workers.Workers(env.spec, True, 2, config, Recipe(make_slow, 4, 100), 0)
    failed = part(2, 0, failed=1)
    state = workers.WorkerState(start_actors(AGENT, env, jax.random.key(5)), failed.rollout, failed.tally, 1)
    observed = remote_worker.to_host((AGENT.init(jax.random.key(0), env.spec), jnp.zeros((), jnp.int32)))
    try:
        pool.launch()
        pool.begin(jax.random.key(0), observed, (state,))
        rollout, tally = pool.next_rollout()
        assert int(tally.failed) == -1 and rollout.reward.shape == (2, 5) and pool._workers[0].process == 0
    finally:
        pool.close()


class Broken(Countdown):
    """Raises at its first reset, in workers alone: the first instance of a process is asked for its spaces."""

    def reset(self, **_):
        raise RuntimeError("no licence on this machine")


@pytest.mark.slow
def test_an_environment_that_cannot_begin_ends_the_run(local_ray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "probe_env", lambda *_: ())
    with pytest.raises(
        RunFailed, match=r"failed in worker [01] \(.*\): .*no licence on this machine; what was learned in 0 steps"
    ):
        launch.start(composed(Broken), Broken, tmp_path / "run").run()


class Slow:
    """The cliff; in one worker every step takes a while."""

    pure = False

    def __init__(self, env, seconds: float):
        self.env, self.spec, self.num_envs, self.seconds = env, env.spec, env.num_envs, seconds

    def reset(self):
        return self.env.reset()

    def step(self, state, action):
        def wait(count):
            time.sleep(self.seconds)
            return count

        state, timestep = self.env.step(state, action)
        reward = io_callback(
            wait, jax.ShapeDtypeStruct(timestep.reward.shape, np.float32), timestep.reward, ordered=True
        )
        return state, timestep._replace(reward=reward)


def make_slow(share: Share, generation: int):
    env = make_toy(EnvRequest.of("toy/cliff"), list(range(share.count)))
    return AGENT, Slow(env, 0.5 if share.index else 0.0)


@pytest.mark.slow
def test_a_slow_worker_holds_no_other_up_until_the_lag(local_ray) -> None:
    env = make_toy(EnvRequest.of("toy/cliff"), [0, 1])
    config = cluster.RayConfig(workers=2, max_lag=3)
    pool = workers.Workers(env.spec, False, 2, config, Recipe(make_slow, 4, 100), 0)
    policy = AGENT.init(jax.random.key(0), env.spec)
    observed = remote_worker.to_host((policy, jnp.zeros((), jnp.int32)))
    try:
        pool.launch()
        pool.begin(jax.random.key(0), observed)
        quick, slow = pool._workers
        pool.next_rollout()
        pool.publish(observed)
        # The quick one is as far ahead as it may be, whatever the slow one does.
        deadline = time.monotonic() + 60
        while quick.number < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert quick.number == 5 and slow.number < 5 and [each.number for each in quick.parts] == [2, 3, 4, 5]
        time.sleep(0.2)
        assert quick.number == 5 and not quick.busy
        for _ in range(4):
            pool.next_rollout()
            pool.publish(observed)
        found = pool.metrics()
        assert 1 <= found["act/policy_lag"] <= 3 and found["speed/learner_waiting"] > 0.3
    finally:
        pool.close()


class Sleeps(Countdown):
    """Every step takes 20 ms."""

    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


@pytest.mark.slow
def test_speeds_are_predicted_from_a_worker_with_one_environment_and_with_all(local_ray) -> None:
    settings = {"env.num_envs": 4, "loop.rollout_length": 4, "ray.workers": 2}
    model = bench.measure(composed(Sleeps, **settings), 0.5, Sleeps).with_workers
    assert model is not None and (model.rows, model.num_envs) == (16, 4)
    # Environments of a worker take turns: up to 80 ms of sleep for each in a rollout, as resets do not sleep.
    assert model.each >= 0.06 and model.fixed < 2 * model.each
    assert model.steps_per_second(4) > 1.5 * model.steps_per_second(1)
