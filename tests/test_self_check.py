"""`bircher check`: what it examines, and what it reports where a part of an installation is broken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import environments
from bircher.analysis.term_gradients import TermGradients
from bircher.cli import app
from bircher.config.config import AGENTS
from bircher.envs import registry
from bircher.errors import CheckFailed
from bircher.runs import self_check
from bircher.training import checkpoint

TOY = "environment toy/chain (toys)"
TRAINING = f"training CartPole-v1, {self_check.STEPS} steps"


def select(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Reduce the checks to those with these names."""
    every = {check.name: check for check in self_check.checks()}
    monkeypatch.setattr(self_check, "checks", lambda: [every[name] for name in names])


def invoke(*words: str, expect: int) -> str:
    result = CliRunner().invoke(app, ["check", *words], catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.stdout


def raise_import_error(*arguments: object, **options: object) -> None:
    raise ModuleNotFoundError("No module\nnamed 'six'")


def test_every_adapter_and_every_agent_is_examined() -> None:
    names = [check.name for check in self_check.checks()]
    installed = [name for name in registry.BACKENDS if name != "jaxmarl" or importlib.util.find_spec(name)]
    for backend in installed:
        assert f"environment {self_check.ADAPTERS[backend]} ({backend})" in names
        assert environments.resolve(self_check.ADAPTERS[backend]) == backend
    assert names[-2 - len(AGENTS) :] == [*(f"agent {name}" for name in AGENTS), "checkpoint", TRAINING]


def test_a_sound_installation_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    select(monkeypatch, TOY, "agent pg", "checkpoint")
    lines = invoke(expect=0).splitlines()
    assert lines[0].startswith("bircher ") and "jaxlib " in lines[2] and lines[3].startswith("devices: cpu:0")
    assert [line.split("  ")[0] for line in lines[-4:-1]] == [TOY, "agent pg", "checkpoint"]
    assert all(line.endswith(" s  ok") for line in lines[-4:-1]) and lines[-1] == "3 of 3 checks passed"


def test_a_broken_part_is_reported_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    select(monkeypatch, TRAINING, TOY)
    monkeypatch.setattr(self_check.launch, "start", raise_import_error)
    lines = invoke(expect=1).splitlines()
    assert lines[-3].endswith(" s  failed: ModuleNotFoundError: No module named 'six'")
    assert lines[-2].startswith(TOY) and lines[-1] == "1 of 2 checks passed"
    assert json.loads(invoke("--json", expect=1))["checks"][0]["error"] == "ModuleNotFoundError: No module named 'six'"


def test_the_report_as_json_has_the_contents_of_a_bug_report(monkeypatch: pytest.MonkeyPatch) -> None:
    select(monkeypatch, TOY)
    report = json.loads(invoke("--json", expect=0))
    assert {"bircher", "python", "platform", "libc", "devices", "memory_bytes"} <= set(report)
    assert {"jax", "jaxlib", "envpool", "gymnax", "pgx", "gymnasium"} <= set(report["packages"])
    assert report["checks"][0]["name"] == TOY and report["checks"][0]["error"] is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ([0.0, 0.0], "no loss term has a gradient in the model"),
        ([1.0, np.nan], "the gradient of value in the model is not finite"),
    ],
)
def test_gradients_that_are_missing_or_not_finite_are_refused(model: list[float], reason: str) -> None:
    shared = np.ones(2, np.float32)
    norms = {"encoder": shared, "model": np.asarray(model, np.float32)}
    with pytest.raises(CheckFailed, match=reason):
        self_check._require_gradients(TermGradients(norms, shared, np.eye(2, dtype=np.float32)), ("policy", "value"))
    self_check._require_gradients(
        TermGradients({"encoder": shared}, shared, np.eye(2, dtype=np.float32)), ("policy", "value")
    )


def test_a_checkpoint_that_is_read_back_differently_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = checkpoint.restore

    def restore_changed(path: Path, name: str, template: object) -> object:
        leaves, structure = jax.tree.flatten(restore(path, name, template))
        return jax.tree.unflatten(structure, [*leaves[:-1], leaves[-1] + (name == "replay")])

    monkeypatch.setattr(checkpoint, "restore", restore_changed)
    with pytest.raises(CheckFailed, match="the part replay of a checkpoint was not read back as it was written"):
        self_check._save_and_restore()
