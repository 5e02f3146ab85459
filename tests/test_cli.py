"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import bircher
from bircher.cli import _complete, app, type_checked
from bircher.config import config
from bircher.training.evaluator import Report
from tiny import SETTINGS, WORDS, Countdown

ROOT = Path(__file__).parents[1]


def invoke(*words: str, expect: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line."""
    path = tmp_path_factory.mktemp("runs") / "run"
    said = invoke("train", "CartPole-v1", *WORDS, "steps=200", "--out", str(path))
    assert said.startswith("the replay of 256 steps takes") and "environment steps" in said.splitlines()[-1]
    return path


def test_version_and_help() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert invoke("--version") == f"bircher {version}\n" and bircher.__version__ == version
    for command in ("train", "eval", "watch", "plot", "config", "envs"):
        assert f"bircher {command} " in invoke(command, "--help"), "an example"


def test_it_starts_quickly_without_unneeded_imports() -> None:
    script = "import sys, bircher.cli; print([name for name in ('jax', 'numpy', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_configuration_is_printed_and_taken_back(tmp_path: Path) -> None:
    text = invoke("config", "CartPole-v1", "agent.gamma=0.5", "steps=2e6")
    assert yaml.safe_load(text)["steps"] == 2_000_000
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert invoke("config", "--config", str(file)) == text
    assert invoke("config", "CartPole-v1", "--config", str(file), "seed=3") == text.replace("seed: 0", "seed: 3")
    assert config.Config.from_yaml(file).agent.gamma == 0.5


def test_environments_are_listed_with_all_that_matters() -> None:
    lines = invoke("envs", "minatar").splitlines()
    assert lines[0].split() == ["environment", "adapter", "observation", "actions", "preset"]
    assert len(lines) == 6
    (breakout,) = (line for line in lines if "Breakout-MinAtar" in line)
    assert "(10, 10, 4)" in breakout and breakout.endswith("minatar: muesli, muzero, ppo")
    assert invoke("envs", "tic_tac").rstrip().endswith("board_games: muzero"), "only MuZero has one of its own"
    assert invoke("envs", "no such thing", expect=2) == ""


@pytest.mark.slow
def test_an_evaluation_as_json_is_one_object_and_nothing_else(run: Path) -> None:
    report = json.loads(invoke("eval", str(run), "--episodes", "3", "--seed", "5", "--json"))
    left_out = {"human_normalized", "agents"}  # Atari has the first, several agents have the second
    named = [field for field in Report._fields if field not in left_out]
    assert list(report) == named and report["mode"] == "sample"
    assert (report["env"], report["agent"], report["episodes"], report["seed"]) == ("CartPole-v1", "muesli", 3, 5)
    assert report["returns"] == [float(length) for length in report["lengths"]]
    assert report["env_steps"] == sum(report["lengths"]) and report["iqm_low"] <= report["iqm"] <= report["iqm_high"]
    again = json.loads(invoke("eval", str(run), "--episodes", "3", "--seed", "5", "--json"))
    assert again["returns"] == report["returns"]
    other = json.loads(invoke("eval", str(run), "--episodes", "3", "--seed", "6", "--json", "--greedy"))
    assert other["mode"] == "greedy" and other["returns"] != report["returns"]


@pytest.mark.slow
def test_muesli_may_search_after_training(run: Path) -> None:
    plain = json.loads(invoke("eval", str(run), "--episodes", "3", "--json", "--greedy"))
    searched = json.loads(invoke("eval", str(run), "search.num_simulations=8", "--episodes", "3", "--json", "--greedy"))
    assert searched["agent"] == "muesli" and searched["returns"] != plain["returns"]
    invoke("eval", str(run), "agent.gamma=0.5", "--episodes", "3", expect=2)


@pytest.mark.slow
def test_an_evaluation_in_words(run: Path) -> None:
    said = invoke("eval", str(run), "--episodes", "2")
    assert "CartPole-v1, muesli, 2 episodes, mode sample" in said and "95 % interval" in said
    assert "cut short" not in said
    said = invoke("eval", str(run), "--episodes", "2", "--max-steps", "3")
    assert "mean 3.00" in said and "cut short: 2 of 2 episodes" in said, "no pole falls in three steps"


@pytest.mark.slow
def test_a_learning_curve_and_a_video(run: Path, tmp_path: Path) -> None:
    assert invoke("plot", str(run)).strip() == str(run / "learning_curve.png")
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    video = tmp_path / "videos" / "episode.mp4"
    assert invoke("watch", str(run), "--video", str(video)).strip() == str(video)
    assert video.read_bytes()[4:8] == b"ftyp"


def test_a_window_shows_an_episode(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert invoke("watch", str(run), "--fps", "1000") == ""


def test_the_shell_completes_environments_and_settings() -> None:
    assert "LunarLander-v3" in _complete("Lunar") and _complete("agent.cmpo.c") == ["agent.cmpo.clip_bound="]
    assert "#compdef" in subprocess.run(
        [sys.executable, "-m", "bircher", "--show-completion", "zsh"], capture_output=True, text=True, check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    ).stdout  # fmt: skip


@pytest.mark.long  # a thousand small compilations; the one below covers debug mode in the quick tests
def test_debug_mode_runs_under_the_debugger_and_ends_soon(tmp_path: Path) -> None:
    """One iteration, each operation by itself: a second run finds most of them in the cache."""
    sizes = ["env.num_envs=2", "loop.rollout_length=4", "optimizer.batch_size=2", "optimizer.updates_per_step=0.125"]
    words = ["train", "toy/cliff", "debug=true", *WORDS, *sizes, "model.unroll_steps=1", "steps=4", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "-c", "continue", "-m", "bircher", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
        env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )  # fmt: skip
    assert "environment steps" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert bircher.load(tmp_path / "run").env_steps >= 4


def test_debug_mode_takes_an_int_for_a_float_and_refuses_text() -> None:
    def half(number: float) -> float:
        return number / 2

    assert type_checked(half)(3) == 1.5
    with pytest.raises(Exception, match="violates type hint"):
        type_checked(half)("3")


@pytest.mark.long
def test_debug_mode_stops_where_a_number_is_not_finite(tmp_path: Path) -> None:
    class Overflows(Countdown):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 3e38, *rest

    with pytest.raises(FloatingPointError, match="nan"):
        bircher.train(Overflows, out=tmp_path / "run", **{**SETTINGS, "debug": True})


@pytest.mark.slow
def test_the_example_of_a_loop_of_ones_own_learns() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import own_loop
    finally:
        sys.path.pop(0)
    lengths = own_loop.main(60)
    assert max(lengths[-5:]) > 1.5 * lengths[0], lengths
    source = (ROOT / "examples" / "own_loop.py").read_text()
    assert all(f"agent.{name}(" in source for name in ("init", "targets", "loss"))


@pytest.mark.long
def test_a_run_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, scores, goes on, and is drawn, below a folder with all that libraries take for something else."""
    monkeypatch.chdir(tmp_path)
    run = os.fsdecode(b"gs:/try [1]\n%20 *\\{~} \xff/run")
    words = [*WORDS, "steps=64", "evaluation.count=1", "evaluation.episodes=2"]
    invoke("train", "CartPole-v1", *words, "--out", run)
    assert json.loads(invoke("eval", run, "--episodes", "2", "--max-steps", "5", "--json"))["episodes"] == 2
    invoke("train", "--resume", run, "steps=96")
    invoke("plot", run)
    assert (tmp_path / run / "learning_curve.png").stat().st_size > 1000
    invoke("watch", run, "--plain", "--video", "-a:b %03d [1].mp4")
    assert (tmp_path / "-a:b %03d [1].mp4").stat().st_size > 1000
    kinds = {path.name.split(".")[0] for path in (tmp_path / run).iterdir()}
    assert kinds == {"checkpoints", "config", "events", "learning_curve", "metrics"}
    assert {path.name for path in tmp_path.iterdir()} == {"gs:", "-a:b %03d [1].mp4"}, "nothing is anywhere else"
