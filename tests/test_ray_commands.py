"""`--ray`: the runs of a comparison in processes on the nodes of a cluster."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config.config import compose
from bircher.errors import ConfigError, RunFolderError
from bircher.experiments import commands, compare, grid
from bircher.runs import directory, launch, remote_evaluation
from bircher.training import cluster
from bircher.training.evaluator import batches, report
from bircher.training.remote_worker import HostTree
from tiny import SETTINGS, WORDS


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not see .*folder that all nodes share"):
        commands.Runner(["--version"], tmp_path / "elsewhere" / "log.txt", None, str(tmp_path))


def test_a_command_writes_its_output_and_its_log_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log, output = tmp_path / "log.txt", tmp_path / "output.txt"
    log.touch()
    assert commands.Runner(["--version"], log, output, str(tmp_path)).wait() == 0
    assert "bircher" in output.read_text() and not log.read_text()
    assert commands.Runner(["trian"], log, None, str(tmp_path)).wait() == 2 and "train" in log.read_text()


def logged(run: Path) -> bool:
    """Return whether a run has logged a line."""
    file = run / directory.METRICS
    return file.exists() and file.stat().st_size > 0


@pytest.mark.slow
def test_a_run_is_saved_and_ends_with_the_process_beside_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.touch()
    words = ["train", "toy/cliff", "steps=1e9", *WORDS, "checkpoint.every_seconds=1000", "--out", str(tmp_path / "run")]
    runner = commands.Runner(words, log, None, str(tmp_path))
    while not logged(tmp_path / "run"):
        assert runner._process.poll() is None, log.read_text()
        time.sleep(0.1)
    assert directory.in_use(tmp_path / "run")
    runner._process.stdin.close()
    assert runner.wait() == 130, log.read_text()
    assert directory.counters(tmp_path / "run")["env_steps"] > 0 and not directory.in_use(tmp_path / "run")


def test_an_address_is_one_of_ray() -> None:
    with pytest.raises(ConfigError, match="--ray somewhere is not valid: expected auto, local, or HOST:PORT"):
        commands.RemoteCommands("somewhere")


# With Ray.


@pytest.mark.slow
def test_runs_and_evaluations_on_a_cluster_and_one_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at a time; one loses the actor beside it while it trains, as if its machine had gone, and goes on."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "page" / "toy-cliff" / "muesli" / str(seed) for seed in (0, 1)]
    start, poll, first = commands.RemoteCommands.start, commands.RemoteCommand.poll, []
    killed = []

    def remember(self, *arguments):
        command = start(self, *arguments)
        first.append(command)
        return command

    def kill_one(self):
        if self is first[0] and not killed and logged(runs[0]):
            killed.append(self)
            os.kill(ray.get(self._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        return poll(self)

    monkeypatch.setattr(commands.RemoteCommands, "start", remember)
    monkeypatch.setattr(commands.RemoteCommand, "poll", kill_one)
    words = ["muesli", "--env", "toy/cliff", "--seeds", "2", "--steps", "20000", "--episodes", "4", "--out", "page"]
    told = CliRunner().invoke(app, ["compare", *words, "--ray", "local", "--processes", "2", *WORDS])
    assert told.exit_code == 0, told.output
    assert told.stderr.count("its machine is gone, and the run goes on elsewhere") == 1
    assert all(directory.counters(run)["env_steps"] >= 20_000 for run in runs)
    assert all(json.loads((run / grid.EVALUATION).read_text())["episodes"] == 4 for run in runs)
    assert (tmp_path / "page" / compare.PAGE).exists()


@pytest.mark.slow
def test_an_evaluation_on_a_cluster_is_that_of_its_batches(tmp_path: Path) -> None:
    """Each process plays whole batches with their own seeds and keys, so that the same batches here give the same."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    run = launch.start(compose("toy/cliff", {**SETTINGS, "steps": 200}), out=tmp_path / "run").run().path
    disconnect = cluster.connect(cluster.RayConfig(workers=2))
    try:
        result = CliRunner().invoke(
            app, ["eval", str(run), "--episodes", "7", "--seed", "3", "--ray", "local", "--json"]
        )
        cores = int(cluster.ray_module().cluster_resources()["CPU"])
    finally:
        disconnect()
    assert result.exit_code == 0, result.output
    found, agent = json.loads(result.stdout), launch.load_for_playing(run)
    evaluator, (size, keys) = agent.evaluator(3, "sample"), batches(7, 3, cores)
    played = [evaluator.play(agent.policy, size, batch, key)[0] for batch, key in enumerate(keys)]
    evaluator.close()
    expected = report(agent.spec, agent.name, "sample", played, 7, 3, 0.0)
    assert len(keys) > 1 and found["returns"] == expected.returns and found["lengths"] == expected.lengths


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    player = remote_evaluation.BatchPlayer([], str(tmp_path))
    with pytest.raises(RunFolderError, match="does not see .*nowhere: `--ray` needs a folder that all nodes share"):
        player.load(tmp_path / "nowhere", (), HostTree([], None, ()), 0, "sample", None)


@pytest.mark.parametrize(
    ("episodes", "least", "expected"),
    [(100, 1, (100, 1)), (100, 3, (34, 3)), (300, 2, (100, 3)), (5, 4, (2, 3)), (2, 8, (1, 2))],
)
def test_batches_contain_all_episodes(episodes: int, least: int, expected: tuple[int, int]) -> None:
    size, keys = batches(episodes, 0, least)
    assert (size, len(keys)) == expected


@pytest.mark.slow
def test_an_evaluation_needs_one_free_core_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only free core plays all batches; before there is one, the user is told so."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bircher[ray]'")
    monkeypatch.setattr(remote_evaluation, "PATIENCE", 1.0)
    run = launch.start(compose("toy/cliff", {**SETTINGS, "steps": 200}), out=tmp_path / "run").run().path
    agent = launch.load_for_playing(run)

    class Idle:  # here, so that it is sent by value
        def ready(self) -> None: ...

    disconnect = cluster.connect(cluster.RayConfig(workers=2))
    try:
        ray = cluster.ray_module()
        cores = int(ray.cluster_resources()["CPU"])
        taken = [ray.remote(num_cpus=1)(Idle).remote() for _ in range(cores)]
        ray.get([each.ready.remote() for each in taken])
        threading.Timer(4.0, lambda: ray.kill(taken[0])).start()
        found = remote_evaluation.evaluate(agent, run, (), "local", 7, 3)
    finally:
        disconnect()
    assert found.episodes == 7 and "no core of the cluster is free" in capsys.readouterr().err
