"""`bircher compare`, `protocol` and `doctor` as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config.config import compose
from bircher.errors import UnsupportedEnvironment
from bircher.experiments import commands, compare, grid
from tiny import WORDS

SHORT = ["--steps", "64", "--seeds", "1", "--episodes", "4", "optimizer.minibatches=1", "optimizer.epochs=1"]


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


@pytest.mark.slow
def test_a_comparison_holds_every_run_and_its_command(compared):
    out, _, found = compared
    assert [row["agent"] for row in found["rows"]] == ["muesli", "ppo"]
    for row in found["rows"]:
        run = out / "toy-cliff" / row["agent"] / "0"
        report = json.loads((run / grid.EVALUATION).read_text())
        assert row["runs"] == [report["mean"]] and report["episodes"] == 4
        assert row["env_steps"] >= 64 and row["wall_seconds"] > 0
    assert found["commands"][0].startswith("bircher train toy/cliff agent=muesli")
    assert (out / compare.PAGE).read_text().count("<svg") >= 2
    assert json.loads((out / compare.NUMBERS).read_text()) == found


def test_asked_again_it_trains_nothing_anew(compared):
    out, words, found = compared
    told = invoke(*words, "--json")
    assert told.exit_code == 0 and "2 of 2 runs are done already" in told.stderr
    assert json.loads(told.stdout) == found


@pytest.mark.slow
def test_another_number_of_episodes_evaluates_anew(compared, tmp_path):
    out, words, _ = compared
    copy = tmp_path / "both"
    shutil.copytree(out, copy)
    again = [str(copy) if word == str(out) else "5" if word == "4" else word for word in words]
    told = invoke(*again, "--json")
    assert told.exit_code == 0, told.output
    reports = [json.loads(path.read_text()) for path in copy.glob(f"*/*/*/{grid.EVALUATION}")]
    assert [report["episodes"] for report in reports] == [5, 5]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--steps", "128"], "has a run with steps=64, not 128: set another --out"),
        (["losses.entropy.weight=0.3"], "losses.entropy.weight="),
        (["--env", "toy/cliff"], "the runs of muesli on toy/cliff and of muesli on toy/cliff would both be written to"),
        (["agent=muesli"], "agent=muesli cannot be a setting of all runs"),
        (["seed=7"], "seed=7 cannot be a setting of all runs"),
    ],
)
def test_results_of_another_comparison_are_not_reused(compared, more, sentence):
    out, words, found = compared
    told = invoke(*words, *more)
    assert told.exit_code == 2 and sentence in told.stderr
    assert json.loads((out / compare.NUMBERS).read_text()) == found


def test_a_comparison_needs_a_folder_and_runs_that_can_be_read(compared, tmp_path):
    out, words, _ = compared
    (tmp_path / "file").write_text("mine")
    told = invoke(*[str(tmp_path / "file") if word == str(out) else word for word in words])
    assert told.exit_code == 2 and "file cannot be created" in told.stderr
    run = tmp_path / "run"
    shutil.copytree(out / "toy-cliff" / "ppo" / "0", run)
    for name, sentence in (
        ("metrics.jsonl", "has logged nothing yet"),
        (grid.EVALUATION, "cannot be read"),
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
time.sleep(1.0)  # what is learned is saved
print("saved", flush=True)
"""


def test_who_stops_a_comparison_waits_for_its_runs_to_save(tmp_path, monkeypatch):
    """One signal each, however often the waiting looks: a second would end a run in the middle of its save."""
    log = tmp_path / "log"

    def start(*_):
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, "-c", SAVES], stdout=file, start_new_session=True)
        threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return commands.LocalCommand(process)

    place = commands.LocalCommands(1)
    monkeypatch.setattr(place, "start", start)
    (cell,) = grid.plan([grid.Variant("ppo", ("agent=ppo",))], ["toy/cliff"], range(1), [], tmp_path)
    assert grid.run([cell], place, 4, lambda _: None) == ([], [])
    assert log.read_text().split() == ["ready", "saved"]


@pytest.mark.slow
def test_runs_that_are_there_can_be_compared(compared, tmp_path):
    out, _, found = compared
    runs = [str(out / "toy-cliff" / agent / "0") for agent in ("muesli", "ppo")]
    told = invoke("compare", *runs, "--out", str(tmp_path / "again"))
    assert told.exit_code == 0, told.output
    assert (tmp_path / "again" / compare.TABLE).read_text().splitlines()[2] in told.stdout


@pytest.mark.slow
def test_an_equal_run_replaces_a_planned_one(compared, tmp_path):
    run = str(compared[0] / "toy-cliff" / "ppo" / "0")
    own = ["optimizer.minibatches=1", "optimizer.epochs=1", "steps=64"]
    planned = ",".join(["ppo", *WORDS, *own])
    words = ["compare", run, planned, "--env", "toy/cliff", "--seeds", "1", "--episodes", "4"]
    told = invoke(*words, "--out", str(tmp_path / "page"), "--json")
    assert told.exit_code == 0 and "training" not in told.stderr and "going on" not in told.stderr, told.stderr
    assert [row["agent"] for row in json.loads(told.stdout)["rows"]] == [planned]


@pytest.mark.slow
def test_a_finished_run_is_evaluated_and_else_left_as_it_is(compared, tmp_path):
    run = tmp_path / "old" / "mine"
    shutil.copytree(compared[0] / "toy-cliff" / "ppo" / "0", run)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = invoke("compare", str(run), "--episodes", "3", "--out", str(tmp_path / "page"))
    assert told.exit_code == 0, told.output
    assert "toy/cliff, ppo, seed 0: evaluating" in told.stderr
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path.name for path in files.keys() | after.keys() if files.get(path) != after.get(path)}
    assert changed == {grid.EVALUATION} and after[run / grid.EVALUATION] != files[run / grid.EVALUATION]
    assert {path.name for path in (tmp_path / "old").iterdir()} == {"mine", "mine.log.txt"}
    assert (tmp_path / "page" / compare.TABLE).read_text().count("| one run |") == 1


def test_a_run_that_is_not_finished_is_not_trained_on(compared, tmp_path):
    run, out = tmp_path / "a run", tmp_path / "page"
    shutil.copytree(compared[0] / "toy-cliff" / "ppo" / "0", run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("steps: 64", "steps: 6400", 1))
    told = invoke("compare", str(run), "--out", str(out))
    assert told.exit_code == 2 and told.stderr.count("\n") == 1
    assert re.search(rf"{run} is not finished \(\d+ of 6,400 environment steps\)", told.stderr)
    assert f"bircher train --resume '{run}'" in told.stderr
    shutil.rmtree(run / "checkpoints")
    assert "(0 of 6,400" in invoke("compare", str(run), "--out", str(out)).stderr and not out.exists()


@pytest.mark.slow
def test_a_page_of_something_else_is_not_overwritten(compared, tmp_path):
    out, words, found = compared
    page = tmp_path / "page"
    runs = {agent: str(out / "toy-cliff" / agent / "0") for agent in ("muesli", "ppo")}
    assert invoke("compare", runs["ppo"], "--out", str(page)).exit_code == 0
    grown = invoke("compare", *runs.values(), "--out", str(page), "--json")
    assert grown.exit_code == 0, "the same one, grown"
    told = invoke("compare", runs["ppo"], "--out", str(page))
    assert told.exit_code == 2 and "comparison.html is from another comparison (muesli against ppo)" in told.stderr
    assert json.loads((page / compare.NUMBERS).read_text()) == json.loads(grown.stdout)
    for name, content in ((compare.NUMBERS, "[1]"), (compare.TABLE, "my notes")):
        other = tmp_path / name
        other.mkdir()
        (other / name).write_text(content)
        told = invoke("compare", runs["ppo"], "--out", str(other))
        assert told.exit_code == 2 and f"{other / name} is not from this comparison" in told.stderr
        assert [path.read_text() for path in other.iterdir()] == [content]
    told = invoke("protocol", "toy/cliff", *WORDS, *SHORT, "--out", str(out))
    assert told.exit_code == 2 and "is from another comparison" in told.stderr
    assert json.loads((out / compare.NUMBERS).read_text()) == found


def test_the_median_of_one_environment_is_not_taken_for_that_of_runs(compared):
    """rliable's: over environments, of the means of their runs."""
    out, _, found = compared
    assert set(found["aggregates"]) == {"IQM of runs, return", "median over environments of mean return"}
    assert any("with one environment it equals that mean" in note for note in found["notes"])


@pytest.mark.parametrize(("names", "pairs"), [("ab", {"ab", "ba"}), ("abcd", {"ba", "ca", "da"})])
def test_of_many_agents_each_is_compared_with_the_first(compared, names, pairs):
    path = compared[0] / "toy-cliff" / "ppo" / "0"
    found = compare.findings([grid.Job(name, "toy/cliff", 0, path, ()) for name in names], "title")
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
        (["compare", "ppo,model.head_widths=[0,64]", "--env", "toy/cliff"], "head_widths must contain positive widths"),
        (["compare", "muesli,agent.cmpo.samples=16", "--env", "Pendulum-v1"], "set agent.num_candidates instead"),
        (["compare", "ppo", "muesli", "--env", "CartPole-v1", "model.torso=grid"], "needs an observation of height"),
        (["compare", "no/run", "--env", "toy/cliff"], "no/run is not a run directory: it does not exist"),
        (["protocol", "toy/clif"], "toy/clif"),
        (["doctor", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_impossible_comparisons_are_refused(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = invoke(*words)
    assert told.exit_code == 2 and sentence in told.stderr
    assert not list(tmp_path.iterdir()), "refused before anything is made"


def test_an_agent_of_many_settings_has_a_folder_like_any_other(tmp_path):
    long = ",".join(["ppo", *(f"env.options.{letter * 40}=1" for letter in "abcdefgh")])
    both = compare.variants([f"{long},steps=64", f"{long},steps=65"])
    with pytest.raises(UnsupportedEnvironment, match="does not take the options"):
        grid.plan(both, ["toy/cliff"], range(1), [], tmp_path)
    names = {grid.folder_name(variant.name) for variant in both}
    assert len(names) == 2 and all(len(name) < 255 for name in names)
    for name in names:
        (tmp_path / name).mkdir()


def test_the_protocol_has_five_steps_that_can_be_run(tmp_path):
    made = grid.plan(compare.steps("toy/cliff"), ["toy/cliff"], range(2), ["steps=64"], tmp_path)
    assert len(made) == 10 and len({cell.path for cell in made}) == 10
    assert [cell.seed for cell in made] == [0] * 5 + [1] * 5, "seeds come first"


@pytest.mark.parametrize(
    ("env", "settings", "segment_length"),
    [("CartPole-v1", (), 16), ("LunarLander-v3", (), 16), ("toy/cliff", ("loop.rollout_length=36",), 12),
     ("toy/cliff", ("optimizer.segment_length=8",), 8)],
)  # fmt: skip
def test_steps_of_the_protocol_add_one_thing_each(env, settings, segment_length):
    configs = [compose(env, [*step.settings, *settings]) for step in compare.steps(env, settings)]
    second, third, fourth = configs[1:4]
    assert [config.optimizer.segment_length for config in configs[1:4]] == [segment_length] * 3
    assert set(grid.differences(third, fourth)) == {"model.unroll_steps"}
    assert set(grid.differences(second, third)) == {
        f"losses.{name}.weight" for name in ("cmpo", "model_value", "model_reward")
    }


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


def test_the_doctor_answers_the_usual_questions(compared):
    run = compared[0] / "toy-cliff" / "ppo" / "0"
    told = invoke("doctor", str(run))
    assert told.exit_code in (0, 3), told.output
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [line["model/gradient_norm"] for line in lines if "model/gradient_norm" in line]
    for question in ("too slow?", "out of memory?", "the loss explodes?", "nothing is learned?"):
        assert question in told.stdout
    assert f"at most {max(norms):.3g}:" in told.stdout and "nan" not in told.stdout
    # The run was given one epoch, and no evaluations while it learned.
    assert "fewer optimizer.updates_per_step, loop=pipeline, a smaller network\n" in told.stdout
    assert "optimizer.gradient_clip_bound (now 0.5)" in told.stdout and "(now norm)" not in told.stdout
