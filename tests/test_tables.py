"""The ledger of the benchmarks, the tables made from it, and which of their rows are stale."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from bircher.config.config import compose

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def read(module, **entry):
    return module("ledger").parse(json.dumps({"commit": "abc1234", "machine": "CPU", **entry}))


def ablated(module, variant: str, seed: int, mean: float, *words: str):
    settings = " ".join(["agent=muesli", *words, f"seed={seed}"])
    command = f"bircher train X {settings}"
    return read(module, name="ablation", variant=variant, env="Lander", seed=seed, mean=mean, command=command)


def test_ablations_of_other_steps_or_settings_are_not_taken_for_one_another(module, monkeypatch):
    lines = [
        ablated(module, "whole", 0, 1.0, "evaluation.diagnose=false", "steps=1000000"),
        ablated(module, "whole", 0, 2.0, "steps=1000000"),  # newer, of the same
        ablated(module, "whole", 1, 4.0, "steps=1000000"),
        ablated(module, "whole", 1, 50.0, "steps=2000000"),
        ablated(module, "whole", 1, 60.0, "steps=1000000", "agent.gamma=0.5"),
        ablated(module, "without cmpo", 1, 7.0, "losses.cmpo.weight=0", "steps=1000000"),
        ablated(module, "unroll 1", 1, 8.0, "model.unroll_steps=1", "steps=64"),
        ablated(module, "gone", 1, 9.0, "steps=1000000"),
    ]
    tables = module("tables")
    monkeypatch.setattr(tables, "entries", lambda name: lines)
    assert tables.ablations(1_000_000)[2:] == [
        "| whole |  | 2.00, 4.00: 3.00 ± 12.71 |",
        "| whole, `agent.gamma=0.5` |  | 60.0: one seed |",
        "| without cmpo | a plain policy gradient: clearly worse | 7.00: one seed |",
    ]


def test_the_summary_has_one_row_an_environment_with_other_steps_in_parentheses(module, monkeypatch):
    def run(agent: str, seed: int, mean: float, env_steps: int, name: str = "learning"):
        command = f"bircher train Lander seed={seed} agent={agent}" if name == "learning" else "python peer.py"
        return read(
            module, name=name, env="Lander", agent=agent, seed=seed, mean=mean, env_steps=env_steps, command=command,
            wall_seconds=60.0 * (seed + 1),
        )  # fmt: skip

    lines = [
        run("muesli", 0, 2.0, 1_400_099),
        run("muesli", 1, 4.0, 1_400_200),
        run("gumbel_muzero", 0, 7.0, 300_144),
        run("ppo", 0, 5.0, 1_400_339),
        run("ppo (Stable-Baselines3 2.9.2)", 0, 1.0, 1_015_808, "peer-ppo"),
    ]
    tables = module("tables")
    monkeypatch.setattr(tables, "entries", lambda *names: lines)
    cells = [
        "Lander",
        "3.00 ± 12.71",
        "7.00 (Gumbel, 300 k, one seed)",
        "5.00 (one seed)",
        "1.00 (SB3, 1 M, one seed)",
        "1.4 M",
        "1.0–2.0",
    ]
    assert tables.summary()[2:] == [f"| {' | '.join(cells)} |"]
    cells[3] += " †"
    marked = tables.summary({("abc1234", "bircher train Lander seed=0 agent=ppo")})
    assert marked[2:] == [f"| {' | '.join(cells)} |", "", tables.FOOTNOTE]


def test_rows_leave_out_stale_runs_where_there_are_newer_ones_and_count_frames(module, monkeypatch):
    def run(seed: int, mean: float, words: str = "", **results):
        command = f"bircher train Lander seed={seed}{words}"
        return read(
            module, name="learning", env="Lander", agent="muesli", seed=seed, mean=mean, command=command,
            wall_seconds=60.0, mode="sample", **results,
        )  # fmt: skip

    named, other = " preset=lander_one_frame", " agent.gamma=0.5"
    lines = [
        run(0, 1.0, env_steps=500),
        run(1, 2.0, env_steps=500),
        run(7, 8.0, env_steps=100, env_frames=300),
        run(1, 4.0, named, env_steps=500),
        run(7, 50.0, other, env_steps=100),
    ]
    tables = module("tables")
    monkeypatch.setattr(tables, "entries", lambda *names: lines)
    old = {("abc1234", lines[0].command), ("abc1234", lines[1].command)}
    table = [row.split(" | ") for row in tables.results(old)[2:]]
    assert [(row[0], row[1], row[2], row[4]) for row in table] == [
        ("| Lander", "muesli", "300", "8.00"),
        ("| Lander, preset=lander_one_frame", "muesli", "500", "4.00"),
    ]
    everything = tables.newest(("learning",), old | {("abc1234", lines[2].command)})
    assert set(everything["Lander", "muesli"]) == {0, 1, 7}, "stale runs are shown where there are no others"


def test_old_and_new_lines_of_the_ledger_read_alike(module, tmp_path):
    ledger = module("ledger")
    machine = {"cpu": "CPU", "cores": 2, "cores_used": 1, "python": "3.11.7", "jax": "0.10"}
    old = read(
        module, name="learning", command="c", machine=machine, env="E", agent="a", seed=3, returns=[1.0], mean=1.0,
        wall_seconds=2.5,
    )  # fmt: skip
    assert old.machine == "CPU, 2 cores (1 used), Python 3.11.7, jax 0.10"
    assert (old.seeds, old.returns, old.wall_seconds, old.results) == ((3,), (1.0,), 2.5, {"mean": 1.0})
    path = tmp_path / "ledger.jsonl"
    ledger.record(old, path)
    assert ledger.entries("learning", path=path) == [old]
    turns = read(module, name="in_turn", command="c", wall_seconds=[[1.0], [2.0]])
    assert (turns.wall_seconds, turns.results) == (None, {"wall_seconds": [[1.0], [2.0]]})
    assert {line.name for line in ledger.entries()} >= {"learning", "ablation", "peer-ppo", "planted", "search"}


def test_a_line_is_stale_by_settings_that_changed_and_not_by_names(module):
    changes = module("stale").changes
    command = "bircher train CartPole-v1 seed=1 agent=ppo"
    now = compose("CartPole-v1", ["seed=1", "agent=ppo"]).model_dump(mode="json", by_alias=True)
    old_names = {**now, "optimiser": now["optimizer"], "evaluation": {**now["evaluation"], "episodes": 7}}
    del old_names["optimizer"]
    assert changes(command, old_names) == []
    now["agent"]["gamma"] = 0.5
    assert changes(command, now) == ["agent.gamma: 0.5 then, 0.98 now"]
    now["agent"]["unheard_of"] = 1
    assert "unheard_of" in changes(command, now)[0]


def test_the_runner_records_a_result_with_the_command_that_was_typed(module, monkeypatch, tmp_path):
    runner, ledger = module("runner"), module("ledger")
    recorded = []
    monkeypatch.setattr(runner, "record", recorded.append)

    def measure(options):
        yield runner.Result({"size": options.size}, "CartPole-v1", seeds=(1,))

    def arguments(parser):
        parser.add_argument("--size", type=int)
        parser.add_argument("--out", type=Path)

    studies = {"one": runner.Study(measure, arguments, "name"), "two": runner.Study(measure, arguments)}
    typed = ["/x/benchmarks/thing.py", "one", "--size", "3", "--out", "there"]
    for words in (typed, [*typed, "--dry"]):
        monkeypatch.setattr("sys.argv", words)
        runner.main("Text.", studies)
    (line,) = recorded
    assert (line.name, line.command) == ("name", "python benchmarks/thing.py one --size 3")
    assert (line.env, line.seeds, line.results) == ("CartPole-v1", (1,), {"size": 3})
    assert isinstance(line, ledger.Line) and line.commit and line.machine and line.wall_seconds is not None
    monkeypatch.setattr("sys.argv", ["thing.py", "three"])
    with pytest.raises(SystemExit) as stopped:
        runner.main("Text.", studies)
    assert stopped.value.code == 2


def test_steps_that_are_the_preset_s_own_change_nothing(module):
    changed = module("tables").changed
    steps = compose("CartPole-v1").steps
    assert not changed(f"bircher train CartPole-v1 seed=3 steps={steps}")
    assert changed(f"bircher train CartPole-v1 seed=3 steps={steps + 1}")
    assert changed(f"bircher train CartPole-v1 seed=3 steps={steps} agent.gamma=0.5")
