"""Names of version 0.1.0 are read under the names of today, with one line that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bircher import errors, metrics, renamed
from bircher.config import settings
from bircher.config.config import AGENTS, compose
from bircher.errors import ConfigError

NAMES = {name for model in AGENTS.values() for name in settings.names(model)}
GROUPS = {name.rsplit(".", count)[0] for name in NAMES for count in range(1, name.count(".") + 1)}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_printed", set())


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_new_names_exist_and_old_ones_do_not(old: str, new: str) -> None:
    assert new in NAMES | GROUPS and old not in NAMES | GROUPS


def test_values_and_metrics_exist_under_their_new_names() -> None:
    for name, values in renamed.VALUES.items():
        for old, new in values.items():
            with pytest.raises(ConfigError, match=f"{name}={old}X is not possible: expected one of .*{new}"):
                compose("Breakout-v5", {name: f"{old}X"})
    for new in renamed.METRICS.values():
        metrics.describe(new)


def test_old_names_are_read_and_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["optimiser.learning_rate=0.5", "optimiser={epochs: 1}", "replay.place=host", "agent.discount=0.25"]
    config = compose("toy/cliff", given)
    assert (config.optimizer.learning_rate, config.replay.device, config.agent.gamma) == (0.5, "host", 0.25)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("bircher: old names of settings: ")
    for note in (
        "optimiser is now optimizer",
        "replay.place is now replay.device",
        "agent.discount is now agent.gamma",
    ):
        assert note in line
    compose("toy/cliff", given)
    assert capsys.readouterr().err == "", "once is enough"


def test_a_file_with_old_names_and_values_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optimiser: {kl_stop: 0.01, epochs: 2}\nenv.protocol: usual\nagent: ppo\n")
    config = compose("Breakout-v5", file=file)
    assert config.optimizer.target_kl == 0.01 and config.env.protocol == "dqn"
    assert "env.protocol=usual is now env.protocol=dqn" in capsys.readouterr().err


def test_a_setting_under_both_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown setting replay.place; did you mean replay"):
        compose("toy/cliff", ["replay.place=host", "replay.device=device"])


def test_metrics_of_old_runs_have_their_new_names(tmp_path: Path) -> None:
    line = dict.fromkeys(metrics.COUNTERS, 1) | {"act/kl_to_behaviour": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert metrics.read(tmp_path / "metrics.jsonl")[0]["act/kl_to_behavior"] == 0.5


def test_paths_of_saved_arrays_have_their_new_names() -> None:
    assert renamed.leaf(".optimiser_state[0].mu") == ".optimizer_state[0].mu"
    assert renamed.leaf(".params.heads.policy") == ".params.heads.policy"


@pytest.mark.parametrize("old", [*renamed.SETTINGS, *renamed.METRICS])
def test_the_changelog_lists_every_rename(old: str) -> None:
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"| `{old}`" in changelog
