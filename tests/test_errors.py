"""Bad input gets one sentence and status 2; what fails while running gets one sentence, status 1 and a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import bircher
from bircher.cli import app
from bircher.envs import registry
from bircher.errors import EvaluationFailed, RunFailed, UnsupportedEnvironment
from bircher.runs import directory, loaded_agent
from bircher.training import learner
from tiny import SETTINGS, WORDS, BadReward, Countdown, Raises


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return bircher.train("toy/cliff", steps=32, out=tmp_path_factory.mktemp("runs") / "run", **SETTINGS)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def assert_refused(result: Any, sentence: str) -> None:
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("bircher: ") and result.stderr.count("\n") == 1
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["NoSuchEnv-v0"], "unknown environment 'NoSuchEnv-v0'"),
        (["CartPole-v2"], "did you mean CartPole-v1"),
        (["CartPole-v1", "agent.cmpo.clip_bond=1"], "did you mean agent.cmpo.clip_bound?"),
        (["CartPole-v1", "agent=musli"], "unknown agent 'musli'; did you mean muesli?"),
        (["CartPole-v1", "preset=cartpol"], "unknown preset 'cartpol'; did you mean cartpole"),
        (["CartPole-v1", "device=gpu"], "device=gpu is not available: JAX finds only cpu"),
        (["CartPole-v1", "device=tpu"], "device=tpu is not possible: expected one of cpu, gpu or null"),
        (["CartPole-v1", "steps=soon"], "steps=soon is not possible: expected a whole number"),
        (["CartPole-v1", "replay.fraction=2"], "replay.fraction=2 is not possible: expected a number, at least 0.0"),
        (["CartPole-v1", "replay.capacity=1e15"], "lower replay.capacity="),
        (["CartPole-v1", "model.latent_width=1e9"], "are left: lower model.latent_width=1,000,000,000"),
        (["CartPole-v1", "model.head_widths=[64, 2147483647]"], "lower model.head_widths=2,147,483,647"),
        (["CartPole-v1", "optimizer.batch_size=16777216", "optimizer.minibatches=16"], "lower optimizer.batch_size="),
        (["CartPole-v1", "search.num_simulations=1e9"], "expected a whole number, at least 0, at most 100,000"),
        (
            ["CartPole-v1", "env.num_envs=131072", "loop.rollout_length=16384", "replay.capacity=1e15"],
            "is 2,147,483,648 steps a rollout: expected at most 2,147,483,647",
        ),
        (["CartPole-v1", "replay={device: host, capacity: 512, compressed_bytes: 9}"], "compressed_bytes=24 or more"),
        (["CartPole-v1", "replay.compressed_bytes=9"], "set replay.device=host, or leave compressed_bytes at null"),
        (
            ["CartPole-v1", "replay.device=host", "replay.compressed_bytes=9", "replay.fraction=0"],
            "set replay.fraction",
        ),
        (["CartPole-v1", "agent=gumbel_muzero", "optimizer.target_kl=0.01"], "which gumbel_muzero does not store"),
        (["CartPole-v1", "model.torso=small_cnn"], "needs an observation of height, width and channels"),
        (["CartPole-v1", "model.prediction_channels=4"], "needs a latent that is a grid"),
        (["CartPole-v1", "--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["CartPole-v1", "--out", "/dev/null/run"], "/dev/null/run cannot be written"),
        (["Pendulum-v1", "agent.cmpo.samples=16"], "set agent.num_candidates instead"),
        (
            ["Blackjack-v1", "model.encoders.3=index"],
            "model.encoders.3 is not a part of the observation of Blackjack-v1: it has 0, 1, 2",
        ),
        (["Blackjack-v1", "model.torso=grid"], "model.torso=grid needs an observation of one array"),
        (["Blackjack-v1", "model.torso=impala"], "no part of the observation of Blackjack-v1 is a picture"),
        (["Blackjack-v1", "model.encoders.0=symbols"], "model.encoders.0.kind=symbols needs a grid of whole numbers"),
        (["Blackjack-v1", "model.encoders={0: ignore, 1: ignore, 2: ignore}"], "nothing of the observation"),
        (
            ["CartPole-v1", "model.encoders.observation.kind=text"],
            "needs one axis of whole numbers, and observation is float32 (4,)",
        ),
        (
            ["CartPole-v1", "model.encoders.observation.wdth=3", "model.encoders.observation.kind=tokens"],
            "did you mean model.encoders.observation.width?",
        ),
        (["CartPole-v1", "env.options.wheels=4"], "CartPole-v1 cannot be made"),
        (["CartPole-v1", "backend"], "invalid override 'backend': expected KEY=VALUE"),
        (["CartPole-v1", "--out", "x" * 5000], "cannot be written: File name too long"),
        (["--resume", "x" * 5000], "is not a run directory: it does not exist"),
        (["--resume", "nowhere"], "nowhere is not a run directory: it does not exist"),
        (["--resume", "nowhere", "--out", "run"], "--out cannot be given with it"),
        ([], "no environment was given"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], sentence: str, tmp_path: Path) -> None:
    assert_refused(invoke("train", *words), sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["eval", "watch", "plot"])
def test_a_folder_without_a_run_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(invoke(command, "nowhere"), "nowhere is not a run directory: it does not exist")
    assert_refused(invoke(command, "empty"), "empty is not a run directory: it has no config.yaml")


@pytest.mark.slow
def test_a_run_is_not_overwritten(run) -> None:
    result = invoke("train", "toy/cliff", *WORDS, "--out", str(run.path))
    assert_refused(
        result, "already contains a run (config.yaml): choose another folder, or continue the run with --resume"
    )


def copied(run, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run.path, tmp_path / "copy"))


@pytest.mark.parametrize("words", [["eval", "copy"], ["train", "--resume", "copy"]])
def test_a_damaged_checkpoint_is_refused(run, words: list[str], tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    saved = directory.last_checkpoint(path)
    files = [file for file in (saved / "train").rglob("*") if file.is_file()]
    victim = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert_refused(invoke(*words), f"{victim.name} is damaged: its content differs from the manifest")


@pytest.mark.parametrize("words", ["eval copy", "train --resume copy", "watch copy --video a.mp4"])
def test_a_checkpoint_of_another_architecture_is_refused(run, words: str, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    settings = yaml.safe_load((path / "config.yaml").read_text())
    settings["model"]["latent_width"] = 9
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert_refused(invoke(*words.split()), "is of another architecture: its leaf")


def test_a_damaged_configuration_is_refused(run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    (path / "config.yaml").write_text("steps: soon\n")
    assert_refused(invoke("eval", "copy"), "steps=soon is not possible")


def test_videos_that_cannot_be_made_are_refused(run) -> None:
    assert_refused(invoke("watch", str(run.path), "--video", "a.mp4"), "only a grid")
    assert_refused(invoke("watch", str(run.path), "--video", "/dev/null/a.mp4"), "cannot be written")


def test_a_window_needs_a_display(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert_refused(invoke("watch", str(run.path)), "there is no display to open a window on: write a video instead")


@pytest.fixture
def registered():
    ids = {"bircher/BadReward-v0": BadReward, "bircher/Raises-v0": Raises}
    for env_id, source in ids.items():
        gymnasium.register(env_id, source)
    yield
    for env_id in ids:
        del gymnasium.registry[env_id]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BadReward", "environment 0, step 40: the reward is nan, expected a finite number"),
        ("Raises", "the wheel came off"),
    ],
)
def test_an_environment_that_fails_ends_the_run_and_loses_nothing(registered, name: str, sentence: str) -> None:
    env_id = f"bircher/{name}-v0"
    result = invoke("train", env_id, *WORDS, "steps=4000", "--out", "run")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    # The 40th row of an environment lies in the tenth iteration; the resets are no steps.
    assert f"{env_id} failed by environment step 1" in result.stderr and sentence in result.stderr
    assert "what was learned" in result.stderr
    agent = bircher.load("run")
    assert 100 < agent.env_steps < 400
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agent.policy))
    assert agent.act(np.zeros(2)) in (0, 1)
    lines = [json.loads(line) for line in (Path("run") / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["env_steps"] == agent.env_steps


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a float holds, and whose square it does not."""

    class Huge(BadReward):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 1e30, *rest

    with pytest.raises(RunFailed, match="updates in Huge was not finite by environment step"):
        bircher.train(Huge, steps=300, out="run", **SETTINGS)
    assert bool(learner.all_finite(loaded_agent.load("run").policy))


def test_an_environment_that_cannot_be_reset_is_refused_before_anything_is_made() -> None:
    class Locked(BadReward):
        def reset(self, **kwargs):
            raise OSError("the door is locked")

    with pytest.raises(UnsupportedEnvironment, match="its first reset raised OSError: the door is locked"):
        bircher.train(Locked, steps=300, out="run", **SETTINGS)
    assert not Path("run").exists()


def test_an_environment_that_fails_at_the_first_reset_of_its_seed_ends_the_run() -> None:
    class Locked(BadReward):
        def reset(self, *, seed=None, options=None):
            if seed == registry.seeds(0, "train", 4)[2]:
                raise OSError("the door is locked")
            return super().reset(seed=seed)

    with pytest.raises(RunFailed, match="Locked failed at its first reset: environment 2 raised OSError .*is locked"):
        bircher.train(Locked, steps=300, out="run", **SETTINGS)


class NoWayOut(BadReward):
    """Allows no action on its fifth row, at the seeds of evaluations alone where `only_there`."""

    only_there = False

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.wrong = not self.only_there or seed % 2 == 1
        observation, _ = super().reset(seed=seed)
        self.left = self.start = 9
        return observation, {}

    def step(self, action):
        observation, _, terminated, truncated, _ = super().step(action)
        mask = np.full(2, not self.wrong or self.left != 5)
        return observation, 1.0, terminated, truncated, {"action_mask": mask}


@pytest.mark.slow
def test_a_mask_that_allows_nothing_ends_the_run_and_says_where() -> None:
    sentence = r'NoWayOut failed by environment step \d+: environment 0, step 4: info\["action_mask"\] allows no action'
    with pytest.raises(RunFailed, match=sentence + ".*what was learned in .* is saved in run"):
        bircher.train(NoWayOut, steps=300, out="run", **SETTINGS)
    assert bircher.load("run").env_steps > 0


@pytest.mark.slow
def test_errors_of_an_evaluation_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoWayOut, "only_there", True)
    run = bircher.train(NoWayOut, steps=16, out="run", **SETTINGS)
    with pytest.raises(EvaluationFailed, match=r"in an evaluation: environment 0, step 4: info\["):
        bircher.evaluate(run.agent, episodes=2)

    def reset(self, **kwargs):
        return Countdown.reset(self, **kwargs)[0]

    monkeypatch.setattr(NoWayOut, "reset", reset)
    with pytest.raises(EvaluationFailed, match="in an evaluation: environment 0, reset after 0 steps: reset returned"):
        bircher.evaluate(run.agent, episodes=2)


@pytest.mark.slow
def test_a_run_that_cannot_be_repeated_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Global(BadReward):
        def reset(self, **kwargs):
            return np.random.rand(2).astype(np.float32), super().reset(**kwargs)[1]

    bircher.train(Global, steps=16, out="run", **SETTINGS)
    assert capsys.readouterr().out.count("Global returns two different first observations for one seed") == 1
