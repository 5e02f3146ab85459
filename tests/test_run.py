"""A run: its folder, what it writes, when it ends, and the agent that comes out of it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import bircher
from bircher import devices, metrics
from bircher.config import config
from bircher.envs import registry
from bircher.errors import NotEnoughMemory, RunFolderError
from bircher.runs import build, directory, launch
from bircher.runs.logger import RunLogger
from bircher.runs.trainer import ChunkScheduler
from bircher.training import checkpoint
from tiny import SETTINGS, Countdown


def tiny(env="toy/cliff", **settings) -> config.Config:
    return config.compose(env, {**SETTINGS, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """320 steps on CartPole with an evaluation after each half."""
    out = tmp_path_factory.mktemp("runs") / "cartpole"
    settings = {**SETTINGS, "evaluation.count": 2, "evaluation.episodes": 3, "evaluation.diagnose": True}
    settings["losses.value.weight"] = 0.25
    return bircher.train("CartPole-v1", steps=320, seed=4, out=out, **settings)


@pytest.mark.slow
def test_the_folder_holds_everything(run) -> None:
    names = {path.name.split(".")[0] for path in run.path.iterdir()}
    assert names == {"config", "metrics", "checkpoints", "events"}
    saved = config.Config.from_yaml(run.path / "config.yaml")
    assert (saved.env.id, saved.seed, saved.steps, saved.preset) == ("CartPole-v1", 4, 320, "cartpole")
    assert checkpoint.parts(directory.last_checkpoint(run.path)) == ("actor", "replay", "train")


def test_metrics_have_their_counters_and_the_glossarys_names(run) -> None:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert {"env_steps", "learner_steps", "episodes", "wall_seconds"} <= set(line)
        metrics.check(set(line) - set(metrics.COUNTERS))
    for name in ("env_steps", "learner_steps", "episodes", "wall_seconds"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    assert lines[-1]["env_steps"] == run.counters["env_steps"] and 320 <= run.counters["env_steps"] < 320 + 16
    assert any("act/episode_return" in line for line in lines)
    # CartPole's rewards are all 1.
    assert all(line.get("act/episode_return") == line.get("act/episode_length") for line in lines)
    trained = [line for line in lines if "loss/cmpo" in line]
    for name in ("policy_gradient", "cmpo", "model_policy", "value", "model_value", "model_reward"):
        assert f"weighted/{name}" in trained[-1] and f"loss/{name}" in trained[-1]
    evaluated = next(line for line in lines if "eval/return_mean" in line)
    assert "model/value_error_last" in evaluated and 0 <= evaluated["act/repeated_observations"] <= 1
    shares = [value for name, value in evaluated.items() if name.startswith("gradient/") and name.endswith("_share")]
    assert len(shares) == 6 and sum(shares) == pytest.approx(1.0)
    assert all(line["act/deaths_at_longest"] <= 1 for line in lines if "act/episode_return" in line)
    value = trained[-1]
    assert value["weighted/value"] == pytest.approx(0.25 * value["loss/value"])


def test_evaluations_have_fixed_steps_and_do_not_change_training(run) -> None:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["env_steps"] for line in lines if "eval/return_mean" in line]
    assert len(steps) == 2 and 160 <= steps[0] < 176 and 320 <= steps[1] < 336
    assert not any("loss/cmpo" in line for line in lines if "eval/return_mean" in line)


@pytest.mark.slow
def test_evaluations_of_a_run_have_a_limit_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training's episodes stay whole; the picture of an episode ends there too."""
    drawn = []
    monkeypatch.setattr(
        "bircher.viz.plots.render_episode", lambda *given: drawn.append(given[3]) or [np.zeros((2, 2, 3))]
    )
    settings = {**SETTINGS, "evaluation.count": 2, "evaluation.episodes": 3, "evaluation.max_steps": 3}
    limited = bircher.train("CartPole-v1", steps=320, out=tmp_path / "run", **settings)
    lines = [json.loads(line) for line in (limited.path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/return_mean" in line]
    assert [(line["eval/length_mean"], line["eval/cut_short"]) for line in evaluated] == [(3.0, 1.0)] * 2
    assert any(line.get("act/episode_return", 0) > 3 for line in lines) and drawn == [3]
    assert bircher.evaluate(limited.agent, episodes=2).mean > 3 == bircher.evaluate(limited.agent, 2, max_steps=3).mean


def test_tensorboard_has_the_scalars_and_a_picture(run) -> None:
    from tensorboardX.proto.event_pb2 import Event

    content, tags = next(run.path.glob("events.*")).read_bytes(), set()
    while content:
        # A record: its length in 8 bytes, 4 of checksum, the event, 4 of checksum.
        length = int.from_bytes(content[:8], "little")
        tags |= {value.tag for value in Event.FromString(content[12 : 12 + length]).summary.value}
        content = content[16 + length :]
    assert {"act/entropy", "eval/return_mean", "eval/episode"} <= tags


def test_the_agent_acts_on_one_observation_and_on_many(run) -> None:
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    action = run.agent.act(observation)
    assert env.action_space.contains(action)
    many = run.agent.act(np.stack([observation] * 64))
    assert isinstance(many, np.ndarray) and many.shape == (64,) and set(many.tolist()) == {0, 1}
    greedy = run.agent.act(np.stack([observation] * 64), greedy=True)
    assert len(set(greedy.tolist())) == 1
    only = run.agent.act(np.stack([observation] * 64), legal_actions=[False, True])
    assert set(only.tolist()) == {1}
    with pytest.raises(ValueError, match=r"CartPole-v1 has observations \(4,\), or \[B, …\] of them, not \(3,\)"):
        run.agent.act(observation[:3])


def test_a_loaded_agent_is_the_one_that_was_trained(run) -> None:
    agent = bircher.load(run.path)
    assert agent.env_steps == run.counters["env_steps"] and agent.name == "muesli"
    for ours, theirs in zip(jax.tree.leaves(agent.policy), jax.tree.leaves(run.agent.policy), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    report, again = (bircher.evaluate(agent, episodes=5, seed=9) for _ in range(2))
    assert report.returns == again.returns and report.episodes == 5 and report.env == "CartPole-v1"
    assert bircher.evaluate(agent, episodes=5, seed=9, greedy=True).mode == "greedy"


@pytest.mark.slow
def test_an_environment_may_be_a_callable(tmp_path: Path) -> None:
    run = bircher.train(Countdown, steps=64, out=tmp_path / "run", **SETTINGS)
    assert bircher.evaluate(run.agent, episodes=3).env == "Countdown"
    alone = bircher.load(run.path)
    assert alone.act(np.zeros(2)) in (0, 1)
    with pytest.raises(ValueError, match="the callable Countdown, which a file cannot contain.*env=Countdown"):
        bircher.evaluate(alone, episodes=3)
    assert bircher.evaluate(bircher.load(run.path, env=Countdown), episodes=3).episodes == 3


def test_an_environment_may_be_registered_and_settings_nested_or_dotted(tmp_path: Path) -> None:
    settings = {**SETTINGS, "agent.cmpo.clip_bound": 0.5, "losses": {"value": {"weight": 0.5}}, "steps": 64}
    gymnasium.register("bircher/Countdown-v0", Countdown)
    try:
        run = bircher.train("bircher/Countdown-v0", agent={"gamma": 0.9}, out=tmp_path / "run", **settings)
    finally:
        del gymnasium.registry["bircher/Countdown-v0"]
    assert run.counters["env_steps"] >= 64
    used = run.agent.config
    assert (used.agent.cmpo.clip_bound, used.agent.gamma, used.losses.value.weight) == (0.5, 0.9, 0.5)


def test_a_run_ends_after_its_episodes(tmp_path: Path) -> None:
    run = bircher.train("toy/bandit", steps=10_000, out=tmp_path / "run", **{**SETTINGS, "episodes": 20})
    # An iteration has 16 rows: of each pair one is an action that ends an episode, one the reset.
    assert 20 <= run.counters["episodes"] <= 28 and not run.stopped


def final_state(path: Path) -> list[np.ndarray]:
    saved = directory.last_checkpoint(path)
    composed = config.Config.from_yaml(path / "config.yaml")
    env = build.make_env(composed, None, composed.env.num_envs, composed.seed, "train")
    parts = build.make_parts(composed, env.spec)
    train = checkpoint.restore(saved, "train", parts.saved)
    replay = checkpoint.restore(saved, "replay", parts.template.replay)
    leaves = jax.tree.leaves((train, replay))
    return [np.asarray(jax.random.key_data(leaf) if hasattr(leaf, "_impl") else leaf) for leaf in leaves]


@pytest.mark.slow
def test_how_the_iterations_are_cut_into_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for size in (1, 7):
        monkeypatch.setattr(ChunkScheduler, "record", lambda self, *_, size=size: setattr(self, "_chunk", size))
        training = launch.start(tiny(steps=400, seed=2), out=tmp_path / str(size))
        states.append(final_state(training.run().path))
    assert len(states[0]) > 20
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_chunk_takes_a_second_and_never_passes_a_goal() -> None:
    pace = ChunkScheduler(num_envs=4, rollout_length=4)
    assert pace.chunk(10_000, None, nothing_pending=True) == 1
    pace.record(1, 0.001)
    assert pace.chunk(10_000, None, nothing_pending=True) == 8  # no more than eight times as many at once
    pace.record(8, 0.008)
    pace.record(64, 0.064)
    assert pace.chunk(10**6, None, nothing_pending=True) == 512
    pace.record(512, 4.0)
    assert pace.chunk(10**6, None, nothing_pending=True) == 128
    assert pace.chunk(160, None, nothing_pending=False) == 10 and pace.chunk(15, None, nothing_pending=False) == 0
    assert pace.chunk(15, None, nothing_pending=True) == 1
    assert pace.chunk(10**6, 31, nothing_pending=False) == 3 and pace.chunk(10**6, 7, nothing_pending=False) == 0


def test_a_replay_that_does_not_fit_is_refused_with_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda device: 2**20)
    with pytest.raises(NotEnoughMemory, match=r"takes .* MiB on the cpu.* but only 1\.0 MiB are left"):
        launch.start(tiny(**{"replay.capacity": 100_000}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_is_never_overwritten(run, tmp_path: Path) -> None:
    before = (run.path / "metrics.jsonl").read_text()
    with pytest.raises(RunFolderError, match="already contains a run"):
        launch.start(tiny(), out=run.path)
    assert (run.path / "metrics.jsonl").read_text() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert directory.create(tiny(), tmp_path) == tmp_path and (tmp_path / "notes.txt").read_text() == "mine"


def test_two_processes_do_not_train_one_run(run) -> None:
    training = launch.resume(run.path)
    with pytest.raises(RunFolderError, match="is being trained by another process"):
        launch.resume(run.path)
    training.run()
    launch.resume(run.path).run()


def test_a_new_folder_is_named_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(directory.time, "strftime", lambda form: "20260101-120000")
    first, second = (directory.create(tiny("toy/cliff", seed=3)) for _ in range(2))
    assert first == Path("runs/toy-cliff-muesli-3-20260101-120000") and second.name == first.name + "-2"


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(directory.time, "strftime", lambda form: "20260101-120000")
    composed, together = tiny("toy/cliff", seed=3), threading.Barrier(8)

    def create(out: Path | None) -> Path | RunFolderError:
        together.wait()
        try:
            return directory.create(composed, out)
        except RunFolderError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(create, [None] * 8))
        assert {path.name for path in found} == {
            "toy-cliff-muesli-3-20260101-120000" + (f"-{number}" if number > 1 else "") for number in range(1, 9)
        }
        assert all(directory.read_config(path) == composed for path in found)
        asked = list(pool.map(create, [tmp_path / "mine"] * 8))
    assert asked.count(tmp_path / "mine") == 1, "of those who ask for one folder one gets it"
    refused = [str(error) for error in asked if isinstance(error, RunFolderError)]
    assert len(refused) == 7 and all("mine already contains a run (config.yaml)" in text for text in refused)


def test_targets_beyond_the_support_are_warned_about_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = RunLogger(tmp_path, tiny(**{"model.support": 3, "model.value_unit": "fixed"}), None)
    counters = {"env_steps": 1, "learner_steps": 1, "episodes": 1, "wall_seconds": 0.1}
    for share in (0.0, 0.25, 0.5):
        journal.write(counters, {"target/support_overflow": share, "eval/return_mean": 0.0})
    journal.close()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("red flag 8")]
    assert len(said) == 1 and "25.0% of the value and reward targets" in said[0] and "model.support=3" in said[0]


def test_toys_have_the_presets_that_tests_rely_on() -> None:
    assert registry.preset_name("toy/cliff") == "default" and registry.preset_name(Countdown) == "default"


@pytest.mark.long
def test_chunks_are_timed_by_when_they_end_and_not_by_when_they_are_read(tmp_path: Path, monkeypatch) -> None:
    """A loop that holds Python up while it works still gets chunks of about a second."""
    real, asked = build.make_loop, []

    def slow(*arguments):
        programs = real(*arguments)

        def advance(train, state, progress, iterations):
            asked.append(iterations)
            time.sleep(0.01 * iterations)
            return programs.advance(train, state, progress, iterations)

        return programs._replace(advance=advance)

    monkeypatch.setattr(build, "make_loop", slow)
    settings = {**SETTINGS, "steps": 16 * 700, "model.unroll_steps": 1}
    run = launch.start(config.compose("CartPole-v1", settings), out=tmp_path / "run").run()
    assert run.counters["env_steps"] >= 16 * 700
    assert max(asked) <= 300, f"three seconds at most: {asked}"
