"""Several learners: what is refused, and two processes with the numbers of one, alone and by Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bircher.config import config
from bircher.errors import ConfigError
from bircher.runs import directory
from bircher.training import cluster, learners
from bircher.training.cluster import RayConfig
from bircher.training.remote_worker import Part, Share
from bircher.training.sharding import Layout
from bircher.training.workers import Collected, Workers
from builders import random_rows
from sharded_runs import farthest
from tiny import WORDS

HERE = Path(__file__).parent
SEVERAL = ["loop=ray", "ray.workers=2", "ray.learners=2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            [*SEVERAL, "ray.learners=3"],
            "ray.learners=3 must divide optimizer.batch_size=4 and env.num_envs=4; possible here: 1, 2, 4",
        ),
        (
            [*SEVERAL, "optimizer.batch_size=5"],
            "ray.learners=2 must divide optimizer.batch_size=5 and env.num_envs=4; possible here: 1",
        ),
        (
            [*SEVERAL, "replay.device=host"],
            "ray.learners=2 divide the replay too, which replay.device=host keeps in one memory: "
            "set replay.device=device",
        ),
        (
            ["loop=pipeline", "ray.learners=2"],
            "ray.learners=2 need loop=ray, which places them, not loop=pipeline",
        ),
        (["ray.learners=0"], "ray.learners=0 is not possible: expected a whole number, at least 1"),
    ],
)  # fmt: skip
def test_what_learners_cannot_share_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.compose("toy/cliff", [*WORDS, *words])


def test_a_process_that_has_used_jax_is_refused_before_ray_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    learners.jax.devices()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="^ray.learners=2 join their processes before JAX .*: start the run in a new"):
        learners.Learners(RayConfig(learners=2), "cpu", None)


def test_each_row_is_that_of_one_learner() -> None:
    layout = Layout(None, 12, 3, 1)  # type: ignore[arg-type]
    assert [layout.rows(learner) for learner in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]


@pytest.mark.parametrize("num_learners", [1, 2, 3])
@pytest.mark.parametrize("counts", [(6,), (2, 2, 2), (4, 2), (1, 5)])
def test_a_learner_has_the_rows_of_its_environments(num_learners: int, counts: tuple[int, ...]) -> None:
    """By the parts of those workers alone that play them; two agents in each environment."""
    whole, agents = random_rows(0, 12, 3), 2
    rows = [2 * sum(counts[:index]) for index in range(len(counts) + 1)]
    parts = [
        Part(type(whole)(*(take(field, slice(start, stop)) for field in whole)), None, None, None)  # type: ignore[arg-type]
        for start, stop in zip(rows[:-1], rows[1:], strict=True)
    ]

    class Pool:
        spec = type("Spec", (), {"num_agents": agents})
        _workers = [type("Worker", (), {"share": Share(i, sum(counts[:i]), n)}) for i, n in enumerate(counts)]

    collected = [Collected(1, 0, part, part) for part in parts]
    layout = Layout(None, 12, num_learners)  # type: ignore[arg-type]
    for learner in range(num_learners):
        own = layout.rows(learner)
        start, *given = Workers.rows_of(Pool, collected, own)  # type: ignore[arg-type]
        found = learners.rows_between(given, start, start + own.stop - own.start)
        np.testing.assert_array_equal(found.reward, np.asarray(whole.reward[own]))
        played = [i for i, n in enumerate(counts) if rows[i] < own.stop and rows[i] + agents * n > own.start]
        assert [id(part) for part in given] == [id(parts[i]) for i in played]


def take(field, rows: slice):
    """Return rows of a field of a trajectory, in NumPy."""
    return learners.jax.tree.map(lambda x: np.asarray(x)[rows], field)


def program(*words: object) -> subprocess.Popen:
    """Start a program of tests/learner_programs.py."""
    variables = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # its programs run a few times
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, str(HERE / "learner_programs.py"), *map(str, words)],
        env={**os.environ, **variables}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> str:
    """Wait for a program, and return what it printed."""
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return out


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_learn_what_one_learns(tmp_path: Path, count: int) -> None:
    """Losses, gradients, networks, normalizers and priorities after several updates, to the rounding of sums."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended(program("updates", 0, 1, 0, tmp_path / "one.npz"))
    several = [program("updates", index, count, port, tmp_path / "several.npz") for index in range(count)]
    try:
        for process in reversed(several):  # the first waits for the end of its input
            ended(process)
    finally:
        for process in several:
            process.kill()
    one, other = (dict(np.load(tmp_path / name)) for name in ("one.npz", "several.npz"))
    for kind in ("gradient_norm", "loss/value", "weights.blocks", "greatest", "agent_state", "optimizer_state"):
        assert any(kind in name for name in one), kind
    assert one["['train'].counters.learner_steps"] == 6
    assert farthest(one, other) < 1e-5


@pytest.mark.long
def test_runs_of_one_and_two_learners_are_the_same_and_continue_each_other(tmp_path: Path) -> None:
    """With an evaluation between, a checkpoint of the replay that is divided, and workers' parts in flight."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")

    def state(learner_count: int, name: str, steps: int) -> dict[str, np.ndarray]:
        out = ended(program("run", learner_count, tmp_path / name, steps))
        assert out.count("each update is divided over 2 devices of 2 learners") == (learner_count == 2)
        return dict(np.load(tmp_path / f"{name}.{learner_count}.{steps}.npz"))

    assert farthest(state(1, "a", 300), state(2, "b", 300)) < 1e-5
    subprocess.run(["cp", "-r", tmp_path / "a", tmp_path / "c"], check=True)
    whole = state(1, "a", 500)
    assert farthest(whole, state(2, "c", 500)) < 1e-5  # from one learner to two
    assert farthest(whole, state(1, "b", 500)) < 1e-5  # and from two to one


@pytest.mark.long
def test_a_learner_that_ends_is_named_and_the_run_continues_from_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    process = program("run", 2, tmp_path / "run", 100_000, 400)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("bircher.errors.RunFailed: learner 1 (on ") and last.endswith(
        ") ended, and the others cannot continue without it; its last good checkpoint is kept"
    ), errors[-3000:]
    out = ended(program("run", 2, tmp_path / "run", 1_000))
    assert "continuing from checkpoint-" in out
    assert int(np.load(tmp_path / "run.2.1000.npz")["['train'].counters.env_steps"]) >= 1_000


@pytest.mark.long
def test_ctrl_c_saves_what_several_learners_learned(tmp_path: Path) -> None:
    """The signal reaches the whole group of processes, as in a terminal."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    run = tmp_path / "run"
    words = ["train", "toy/cliff", "steps=1e6", *WORDS, *SEVERAL, "device=cpu", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bircher", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    try:
        while not ((run / directory.METRICS).exists() and (run / directory.METRICS).stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 130, errors
    saved = directory.counters(run)["env_steps"]
    assert saved > 0
    more = [sys.executable, "-m", "bircher", "train", "--resume", str(run), f"steps={saved + 200}", "ray.learners=1"]
    done = subprocess.run(more, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"after {saved:,} environment steps" in done.stdout, done.stderr


@pytest.mark.slow
def test_learners_without_a_place_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(learners, "_require_unused", lambda count: None)
    monkeypatch.setattr(learners, "PLACE_SECONDS", 30.0)
    disconnect = cluster.connect(RayConfig(workers=1))  # a Ray with one core
    try:
        sentence = r"ray.learners=3 need a core each in addition .* had a place for 1 of them within 30 s"
        with pytest.raises(ConfigError, match=sentence):
            learners.Learners(RayConfig(learners=3), "cpu", None)
    finally:
        disconnect()
