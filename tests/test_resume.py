"""Interrupted and gone on with: as if nothing had happened, where the environments allow it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

from bircher.config import config
from bircher.errors import ConfigError, RunFolderError
from bircher.runs import build, directory, launch, loaded_agent
from bircher.runs.logger import RunLogger
from bircher.runs.trainer import Run, StopRequest
from bircher.training import checkpoint
from tiny import SETTINGS, WORDS, Countdown


def state_of(path: Path) -> dict[str, np.ndarray]:
    """Everything that a run's last checkpoint holds, by where it stands."""
    saved, composed = directory.last_checkpoint(path), config.Config.from_yaml(path / "config.yaml")
    env = build.make_training_env(composed, None, 0)
    parts = build.make_parts(composed, env.spec)
    tree = {
        "train": checkpoint.restore(saved, "train", parts.saved),
        "replay": checkpoint.restore(saved, "replay", parts.template.replay),
    }
    if env.pure:
        tree["actor"] = launch._restored_actor(saved, composed, env, parts)
    env.close()

    def plain(leaf):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {jax.tree_util.keystr(where): plain(leaf) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def run_to(training, env_steps: int) -> Run:
    """Run until the first line of metrics at or beyond so many steps, then as if the user pressed Ctrl-C."""
    write, pressed = RunLogger.write, []

    def stopping(self, counters, measured):
        write(self, counters, measured)
        if counters["env_steps"] >= env_steps and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogger, "write", stopping)
        return training.run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "priority_exponent", "exploration"),
    [
        ("synchronous", 0.0, "none"),
        ("synchronous", 0.6, "none"),
        ("pipeline", 0.0, "none"),
        pytest.param("synchronous", 0.0, "e3b", marks=pytest.mark.long),
        pytest.param("pipeline", 0.0, "disagreement", marks=pytest.mark.long),
    ],
)
def test_on_a_pure_environment_it_equals_an_uninterrupted_run_bit_for_bit(
    tmp_path: Path, loop: str, priority_exponent: float, exploration: str
) -> None:
    settings = {
        **SETTINGS, "steps": 800, "seed": 1, "loop": loop, "replay.priority_exponent": priority_exponent,
        "exploration.kind": exploration, "exploration.final_weight": 0.0,
    }  # fmt: skip
    composed = config.compose("CartPole-v1", settings)
    whole = launch.start(composed, out=tmp_path / "whole").run()
    half = run_to(launch.start(composed, out=tmp_path / "half"), 300)
    assert half.stopped and 300 <= half.counters["env_steps"] < 800
    resumed = launch.resume(half.path).run()
    assert not resumed.stopped
    expected, found = state_of(whole.path), state_of(resumed.path)
    assert expected.keys() == found.keys() and len(found) > 40
    assert ("['replay'].weights.blocks" in found) == bool(priority_exponent)
    for where, value in expected.items():
        np.testing.assert_array_equal(value, found[where], err_msg=where)
    assert {k: v for k, v in resumed.counters.items() if k != "wall_seconds"} == {
        k: v for k, v in whole.counters.items() if k != "wall_seconds"
    }
    assert resumed.counters["wall_seconds"] > half.counters["wall_seconds"]
    lines = [json.loads(line) for line in (half.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["env_steps"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == whole.counters["env_steps"]


@pytest.mark.slow
def test_elsewhere_fresh_episodes_begin_with_other_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gymnasium.register("bircher/Countdown-v0", Countdown)
    try:
        composed = config.compose("bircher/Countdown-v0", {**SETTINGS, "steps": 600})
        half = run_to(launch.start(composed, out=tmp_path / "run"), 100)
        before = state_of(half.path)
        training = launch.resume(half.path)
        assert training._env._seeds != launch.start(composed, out=tmp_path / "other")._env._seeds
        resumed = training.run()
    finally:
        del gymnasium.registry["bircher/Countdown-v0"]
    assert "bircher/Countdown-v0 begins new episodes with new seeds" in capsys.readouterr().out
    assert resumed.counters["env_steps"] >= 600 and "['train'].optimizer_state[1].count" in before
    lines = [json.loads(line) for line in (half.path / "metrics.jsonl").read_text().splitlines()]
    updates = [line["learner_steps"] for line in lines]
    assert updates == sorted(updates) and updates[-1] == resumed.counters["learner_steps"]


def test_without_a_checkpoint_it_starts_from_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    composed = config.compose("toy/cliff", {**SETTINGS, "steps": 64})
    path = directory.create(composed, tmp_path / "run")
    line = '{"env_steps": 16, "learner_steps": 1, "episodes": 0, "wall_seconds": 1}'
    (path / "metrics.jsonl").write_text(line + '\n{"env')
    with pytest.raises(RunFolderError, match="no checkpoint yet"):
        loaded_agent.load(path)
    run = launch.resume(path).run()
    assert "has no checkpoint yet: it starts from the beginning" in capsys.readouterr().out
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["env_steps"] == run.counters["env_steps"] >= 64
    assert not any(line["wall_seconds"] == 1 for line in lines)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is_and_may_be_made_longer(tmp_path: Path) -> None:
    composed = config.compose("toy/cliff", {**SETTINGS, "steps": 64})
    run = launch.start(composed, out=tmp_path / "run").run()
    saved = directory.last_checkpoint(run.path)
    again = launch.resume(run.path).run()
    assert again.counters["env_steps"] == run.counters["env_steps"] and directory.last_checkpoint(run.path) == saved
    longer = launch.resume(run.path, ["steps=128"]).run()
    assert longer.counters["env_steps"] >= 128
    assert config.Config.from_yaml(run.path / "config.yaml").steps == 128
    with pytest.raises(ConfigError, match="seed cannot be changed when a run is resumed; only steps, episodes"):
        launch.resume(run.path, ["seed=5"])
    with pytest.raises(ConfigError, match="unknown setting stepz; did you mean steps"):
        launch.resume(run.path, ["stepz=5"])


@pytest.mark.slow
def test_over_a_damaged_line_of_metrics_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    composed = config.compose("toy/cliff", {**SETTINGS, "steps": 64})
    path = launch.start(composed, out=tmp_path / "run").run().path
    lines = (path / "metrics.jsonl").read_text().splitlines()
    # A word where a number stands is one more line that cannot be read.
    lines[1:1] = ["a note of mine", json.dumps({**json.loads(lines[0]), "act/entropy": "good"})]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"env_st']) + "\n")
    capsys.readouterr()
    assert launch.resume(path, ["steps=128"]).run().counters["env_steps"] >= 128
    told = capsys.readouterr().out
    assert f"lines 2, 3 of {path / 'metrics.jsonl'} cannot be read, and were moved to metrics.jsonl.damaged" in told
    assert (path / "metrics.jsonl.damaged").read_text() == "\n".join(lines[1:3]) + "\n"
    del lines[1:3]
    after = directory.read_metrics(path)
    assert [line["env_steps"] for line in after][: len(lines)] == [json.loads(line)["env_steps"] for line in lines]
    assert after[-1]["env_steps"] >= 128


def start_endless(tmp_path: Path) -> subprocess.Popen[str]:
    """A run on the command line that does not end by itself, past its first checkpoint."""
    words = ["toy/chain", *WORDS, "steps=2e9", "checkpoint.every_seconds=0.2", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bircher", "train", *words],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while checkpoint.latest(tmp_path / "run" / "checkpoints") is None:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    process = start_endless(tmp_path)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    saved = checkpoint.read_meta(directory.last_checkpoint(tmp_path / "run"))["counters"]["env_steps"]
    assert saved > 0
    command = [sys.executable, "-m", "bircher", "train", "--resume", "run", f"steps={saved + 1000}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"continuing from checkpoint-\d+, after {saved:,} environment steps", done.stdout)
    assert loaded_agent.load(tmp_path / "run").env_steps >= saved + 1000
    assert not list((tmp_path / "run" / "checkpoints").glob(".unfinished*"))


def test_termination_is_asked_for_once_and_then_as_ever() -> None:
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.requested and signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is interrupt


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_ends_with_130(tmp_path: Path) -> None:
    process = start_endless(tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "to continue: bircher train --resume run" in output and "Traceback" not in output
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert loaded_agent.load(tmp_path / "run").env_steps == json.loads(lines[-1])["env_steps"]
