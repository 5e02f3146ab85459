"""The tables that benchmarks/table.py makes of the ledger."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("table")


def line(variant: str, seed: int, mean: float, *words: str) -> dict:
    settings = " ".join(["agent=muesli", *words, f"seed={seed}"])
    return {"variant": variant, "env": "Lander", "seed": seed, "mean": mean, "command": f"bircher train X {settings}"}


def test_ablations_of_other_steps_or_settings_are_not_taken_for_one_another(table, monkeypatch):
    lines = [
        line("whole", 0, 1.0, "evaluation.diagnose=false", "steps=1000000"),
        line("whole", 0, 2.0, "steps=1000000"),  # newer, of the same
        line("whole", 1, 4.0, "steps=1000000"),
        line("whole", 1, 50.0, "steps=2000000"),
        line("whole", 1, 60.0, "steps=1000000", "agent.gamma=0.5"),
        line("without cmpo", 1, 7.0, "losses.cmpo.weight=0", "steps=1000000"),
        line("unroll 1", 1, 8.0, "model.unroll_steps=1", "steps=64"),
        line("gone", 1, 9.0, "steps=1000000"),
    ]
    monkeypatch.setattr(table, "entries", lambda name: lines)
    assert table.ablations(1_000_000)[2:] == [
        "| whole |  | 2.0, 4.0: 3.0 ± 12.7 |",
        "| whole, `agent.gamma=0.5` |  | 60.0: one seed |",
        "| without cmpo | a plain policy gradient: clearly worse | 7.0: one seed |",
    ]


def test_the_summary_has_one_row_an_environment_with_other_steps_in_parentheses(table, monkeypatch):
    def run(agent: str, seed: int, mean: float, env_steps: int, name: str = "learning") -> dict:
        command = f"bircher train Lander seed={seed} agent={agent}" if name == "learning" else "python peer.py"
        return {
            "name": name, "env": "Lander", "agent": agent, "seed": seed, "mean": mean, "env_steps": env_steps,
            "wall_seconds": 60.0 * (seed + 1), "command": command,
        }  # fmt: skip

    lines = [
        run("muesli", 0, 2.0, 1_400_099),
        run("muesli", 1, 4.0, 1_400_200),
        run("gumbel_muzero", 0, 7.0, 300_144),
        run("ppo", 0, 5.0, 1_400_339),
        run("ppo (Stable-Baselines3 2.9.2)", 0, 1.0, 1_015_808, "peer-ppo"),
    ]
    monkeypatch.setattr(table, "entries", lambda name=None: lines)
    cells = [
        "Lander",
        "3.0 ± 12.7",
        "7.0 (Gumbel, 300 k, one seed)",
        "5.0 (one seed)",
        "1.0 (SB3, 1 M, one seed)",
        "1.4 M",
        "1.0–2.0",
    ]
    assert table.summary(3_000_000)[2:] == [f"| {' | '.join(cells)} |"]
