"""`bircher compare`, `protocol` and `doctor` as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.run import cells, comparing, protocol
from tiny import WORDS

SHORT = ["--steps", "64", "--seeds", "1", "--episodes", "4", "optimiser.minibatches=1", "optimiser.epochs=1"]


def invoke(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two agents, a process each: trained, evaluated, and a page of both."""
    out = tmp_path_factory.mktemp("compare") / "both"
    words = ["compare", "muesli", "ppo", *WORDS, "--env", "toy/cliff", *SHORT, "--processes", "2", "--out", str(out)]
    told = invoke(*words, "--json")
    assert told.exit_code == 0, told.output
    return out, words, json.loads(told.stdout)


def test_a_comparison_holds_every_run_and_its_command(compared):
    out, _, found = compared
    assert [row["agent"] for row in found["rows"]] == ["muesli", "ppo"]
    for row in found["rows"]:
        run = out / "toy-cliff" / row["agent"] / "0"
        report = json.loads((run / cells.EVALUATION).read_text())
        assert row["runs"] == [report["mean"]] and report["episodes"] == 4
        assert row["env_steps"] >= 64 and row["wall_seconds"] > 0
    assert found["commands"][0].startswith("bircher train toy/cliff agent=muesli")
    assert (out / comparing.PAGE).read_text().count("<svg") >= 2
    assert json.loads((out / comparing.NUMBERS).read_text()) == found


def test_asked_again_it_trains_nothing_anew(compared):
    out, words, found = compared
    told = invoke(*words, "--json")
    assert told.exit_code == 0 and "2 of 2 runs are done already" in told.stderr
    assert json.loads(told.stdout) == found


def test_another_number_of_episodes_evaluates_anew(compared, tmp_path):
    out, words, _ = compared
    copy = tmp_path / "both"
    shutil.copytree(out, copy)
    again = [str(copy) if word == str(out) else "5" if word == "4" else word for word in words]
    told = invoke(*again, "--json")
    assert told.exit_code == 0, told.output
    reports = [json.loads(path.read_text()) for path in copy.glob(f"*/*/*/{cells.EVALUATION}")]
    assert [report["episodes"] for report in reports] == [5, 5]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--steps", "128"], "holds a run with steps=64, not 128: give another --out"),
        (["losses.entropy.weight=0.3"], "losses.entropy.weight="),
        (["--env", "toy/cliff"], "toy/cliff, muesli and toy/cliff, muesli would both be"),
        (["agent=muesli"], "agent=muesli is not for all runs to share"),
        (["seed=7"], "seed=7 is not for all runs to share"),
    ],
)
def test_what_another_comparison_made_is_not_taken_for_this_one(compared, more, sentence):
    out, words, found = compared
    told = invoke(*words, *more)
    assert told.exit_code == 2 and sentence in told.stderr
    assert json.loads((out / comparing.NUMBERS).read_text()) == found


def test_a_comparison_needs_a_folder_and_runs_that_can_be_read(compared, tmp_path):
    out, words, _ = compared
    (tmp_path / "file").write_text("mine")
    told = invoke(*[str(tmp_path / "file") if word == str(out) else word for word in words])
    assert told.exit_code == 2 and "file cannot be made" in told.stderr
    run = tmp_path / "run"
    shutil.copytree(out / "toy-cliff" / "ppo" / "0", run)
    for name, sentence in (
        ("metrics.jsonl", "has logged nothing yet"),
        (cells.EVALUATION, "cannot be read"),
    ):
        (run / name).write_text("{")
        told = invoke("compare", str(run), "--episodes", "4", "--out", str(tmp_path / "page"))
        assert told.exit_code == 1 and sentence in told.stderr and "Traceback" not in told.stderr


SAVES = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (signal.signal(signal.SIGINT, signal.SIG_DFL), asked.append(1)))
asked = []
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(1.0)  # what is learnt is saved
print("saved", flush=True)
"""


def test_who_stops_a_comparison_waits_for_its_runs_to_save(tmp_path, monkeypatch):
    """One signal each, however often the waiting looks: a second would end a run in the middle of its save."""
    log = tmp_path / "log"

    def spawn(*_):
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, "-c", SAVES], stdout=file, start_new_session=True)
        threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return process

    monkeypatch.setattr(cells, "_spawn", spawn)
    (cell,) = cells.plan([cells.Variant("ppo", ("agent=ppo",))], ["toy/cliff"], range(1), [], tmp_path)
    assert cells.run([cell], 1, 4, lambda _: None) == ([], [])
    assert log.read_text().split() == ["ready", "saved"]


def test_runs_that_are_there_can_be_compared(compared, tmp_path):
    out, _, found = compared
    runs = [str(out / "toy-cliff" / agent / "0") for agent in ("muesli", "ppo")]
    told = invoke("compare", *runs, "--out", str(tmp_path / "again"))
    assert told.exit_code == 0, told.output
    assert (tmp_path / "again" / comparing.TABLE).read_text().splitlines()[2] in told.stdout


@pytest.mark.parametrize(("names", "pairs"), [("ab", {"ab", "ba"}), ("abcd", {"ba", "ca", "da"})])
def test_of_many_agents_each_is_held_against_the_first(compared, names, pairs):
    path = compared[0] / "toy-cliff" / "ppo" / "0"
    found = comparing.findings([cells.Cell(name, "toy/cliff", 0, path, ()) for name in names], "title")
    assert {ours + theirs for ours, theirs in found.improvement} == pairs


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compare", "muesly", "--env", "toy/cliff"], "unknown agent 'muesly'; did you mean muesli"),
        (["compare", "muesli"], "muesli needs an environment"),
        (["compare", "steps=5", "--env", "toy/cliff"], "nothing to compare"),
        (["compare", "muesli", "muesli", "--env", "toy/cliff"], "muesli is given twice"),
        (["compare", "muesli", "--env", "toy/clif"], "toy/clif"),
        (["compare", "ppo,losses.cmpo.wight=1", "--env", "toy/cliff"], "losses.cmpo.wight"),
        (["protocol", "toy/clif"], "toy/clif"),
        (["doctor", "nowhere"], "nowhere is no run"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = invoke(*words)
    assert told.exit_code == 2 and sentence in told.stderr
    assert not list(tmp_path.iterdir()), "refused before anything is made"


def test_the_protocol_has_five_steps_that_can_be_run(tmp_path):
    made = cells.plan(protocol.STEPS, ["toy/cliff"], range(2), ["steps=64"], tmp_path)
    assert len(made) == 10 and len({cell.path for cell in made}) == 10
    assert [cell.seed for cell in made] == [0] * 5 + [1] * 5, "seeds come first"


def test_the_doctor_of_a_short_run(compared):
    out, _, _ = compared
    told = invoke("doctor", str(out / "toy-cliff" / "muesli" / "0"), "--json")
    assert told.exit_code in (0, 3), told.output
    flags = json.loads(told.stdout)["flags"]
    assert (told.exit_code == 3) == bool(flags)
    assert all(set(flag) == {"number", "name", "evidence", "cause", "advice"} for flag in flags)


def test_the_doctor_of_a_run_that_logged_nothing(compared, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(compared[0] / "toy-cliff" / "ppo" / "0", run)
    (run / "metrics.jsonl").write_text("")
    told = invoke("doctor", str(run))
    assert told.exit_code == 2 and "has logged nothing yet" in told.stderr


def test_the_doctor_answers_what_is_usually_asked(compared):
    run = compared[0] / "toy-cliff" / "ppo" / "0"
    told = invoke("doctor", str(run))
    assert told.exit_code in (0, 3), told.output
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [line["model/gradient_norm"] for line in lines if "model/gradient_norm" in line]
    for question in ("too slow?", "out of memory?", "the loss explodes?", "nothing is learnt?"):
        assert question in told.stdout
    assert f"at most {max(norms):.3g}:" in told.stdout and "nan" not in told.stdout
