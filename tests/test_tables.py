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
        line("whole", 1, 60.0, "steps=1000000", "agent.discount=0.5"),
        line("without cmpo", 1, 7.0, "losses.cmpo.weight=0", "steps=1000000"),
        line("unroll 1", 1, 8.0, "model.unroll_steps=1", "steps=64"),
        line("gone", 1, 9.0, "steps=1000000"),
    ]
    monkeypatch.setattr(table, "entries", lambda name: lines)
    assert table.ablations(1_000_000)[2:] == [
        "| whole |  | 2.0, 4.0: 3.0 ± 12.7 |",
        "| whole, `agent.discount=0.5` |  | 60.0: one seed |",
        "| without cmpo | a plain policy gradient: clearly worse | 7.0: one seed |",
    ]
