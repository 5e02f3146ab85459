"""The script that runs the README's commands in an installed package: what it covers, and how it reports a failure."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

import plain_install
from plain_install import SCENARIOS, Command, Scenario


def commands(lines: str) -> set[str]:
    """The subcommands of `bircher` in some lines."""
    return set(re.findall(r"^bircher +([a-z]+)", lines, re.MULTILINE))


def test_every_command_of_the_readme_is_run() -> None:
    readme = plain_install.README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    block = next(text for text in blocks if "bircher train" in text)
    listed, run = commands(block), commands("\n".join(one.line for scenario in SCENARIOS for one in scenario.commands))
    assert len(listed) >= 8 and listed <= run


def test_the_readme_example_is_shortened() -> None:
    code = plain_install.readme_snippet()
    assert "steps': 512" in code and "episodes=2" in code and "bircher.train(" in code


@pytest.mark.parametrize(
    ("script", "writes", "reason"),
    [
        ("print('the cause'); raise SystemExit(3)", (), "exit status 3"),
        ("print('the cause')", ("video.mp4",), "did not write video.mp4"),
    ],
)
def test_a_failure_prints_the_command_and_its_output(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    writes: tuple[str, ...],
    reason: str,
) -> None:
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}"
    never = Command(f"{shlex.quote(sys.executable)} -c 'print(1)'")
    broken, sound = Scenario("broken", (Command(line, writes), never)), Scenario("sound", (never,))
    monkeypatch.setattr(plain_install, "SCENARIOS", (broken, sound))
    assert plain_install.main() == 1
    report = capsys.readouterr().out
    assert f"== {line}\n== {reason}\nthe cause\n" in report and "1 of 2 scenarios passed" in report
    assert [row.split()[0] for row in sorted(report.splitlines()[:2])] == ["failed", "ok"]
    assert plain_install.main("sound") == 0


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_install.main("cartpoles") == 2
    assert "unknown scenarios cartpoles: expected check, lunarlander" in capsys.readouterr().err


def test_a_command_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plain_install, "TIMEOUT", 1)
    script = "import time; print(1, flush=True); time.sleep(60)"
    failed = plain_install.failure(Command(f"{sys.executable} -c '{script}'"), tmp_path, dict(os.environ))
    assert failed is not None and failed.reason == "not done after 1 s"
