"""Suites: their environments, and what is said of runs on them, with invented numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import environments
from bircher.cli import app
from bircher.config.config import compose
from bircher.envs import small
from bircher.errors import ConfigError
from bircher.experiments import compare, grid, report, statistics
from bircher.runs import directory

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def run(tmp_path):
    """Makes a finished run with lines of (steps, episodes so far, mean return), and this mean of its evaluation."""

    def make(agent: str, env: str, seed: int, mean: float, lines, *settings: str) -> grid.Job:
        path = tmp_path / agent / env.replace("/", "-") / str(seed)
        path.mkdir(parents=True)
        words = (f"agent={agent}", "steps=1000", *settings, f"seed={seed}")
        (path / directory.CONFIG).write_text(compose(env, words).to_yaml())
        written = [
            {"env_steps": steps, "episodes": episodes, "act/episode_return": value, "wall_seconds": steps / 100}
            for steps, episodes, value in lines
        ]
        # Lines of evaluations have no returns of training.
        last = {"env_steps": 1040, "episodes": 5000, "wall_seconds": 20.0, "eval/return_mean": mean}
        text = "".join(json.dumps({"learner_steps": 0, **line}) + "\n" for line in [*written, last])
        (path / directory.METRICS).write_text(text)
        (path / grid.EVALUATION).write_text(json.dumps({"mean": mean, "episodes": 100}))
        return grid.Job(agent, env, seed, path, words)

    return make


@pytest.mark.parametrize(
    ("returns", "episodes", "expected"),
    [
        ([1.0, 5.0, 9.0], [100, 100, 100], 20),
        # The last 100 are 40 of the newest line and 60 of the one before it: (40 x 9 + 60 x 4) / 100 = 6.
        ([0.0, 4.0, 9.0], [500, 300, 40], 30),
        ([0.0, 2.0, 9.0], [500, 300, 40], None),
        # Too few, then the mean over all so far: (19 x 9 + 1 x 5) / 20 = 8.8.
        ([9.0, 5.0, 0.0], [19, 1, 100], 20),
        ([9.0, 9.0], [10, 9], None),
        # A line in which no episode ended changes nothing.
        ([4.0, 0.0, 6.0], [50, 0, 50], 30),
        ([], [], None),
    ],
)
def test_steps_to_a_threshold_of_five(returns, episodes, expected):
    steps = [10 * (n + 1) for n in range(len(returns))]
    assert statistics.steps_to_threshold(steps, returns, episodes, 5.0) == expected


def test_statistics_of_suites_by_hand():
    ours = {"a": [0.0, 1.0], "b": [2.0, 4.0], "c": [6.0, 6.0]}
    theirs = {"a": [1.0, 1.0], "b": [2.0, 2.0], "d": [50.0, 50.0]}
    assert statistics.mean(ours, GENERATOR).value == pytest.approx((0.5 + 3.0 + 6.0) / 3)
    found = statistics.difference(ours, theirs, GENERATOR)
    assert found.value == pytest.approx((0.5 + 3.0) / 2 - (1.0 + 2.0) / 2)
    # Of two seeds a resample has both with chance 1/2: a's mean is 0, 0.5 or 1, b's is 2, 3 or 4.
    assert (found.low, found.high) == pytest.approx((1.0 - 1.5, 2.5 - 1.5))
    mine, other = {"a": [1, 2, 30], "b": [8, 8, 8], "c": [9]}, {"a": [4, 4, 4], "b": [2, 2, 2], "c": [3]}
    assert statistics.ratio(mine, other, GENERATOR).value == 3.0  # the median of 2 / 4, 8 / 2 and 9 / 3
    with pytest.raises(ValueError, match="no environment"):
        statistics.difference({"a": [1.0]}, {"b": [1.0]}, GENERATOR)


@pytest.fixture
def findings(run):
    suite = grid.suite("small-choosing")
    gates, key = "small/gates", "small/key"
    assert suite.references[gates] == (0.2, 7.0, pytest.approx(5.64))
    assert suite.references[key] == (0.036, 1.0, pytest.approx(0.8072))
    climb = [(100, 200, 1.0), (400, 900, 6.0), (1040, 2000, 7.0)]
    late = [(100, 200, 1.0), (800, 900, 6.0), (1040, 2000, 6.0)]
    never = [(100, 200, 0.0), (1040, 2000, 0.1)]
    jobs = [
        run("muesli", gates, 0, 7.0, climb), run("muesli", gates, 1, 3.6, late),
        run("ppo", gates, 0, 3.6, never), run("ppo", gates, 1, 3.6, never),
        run("muesli", key, 0, 1.0, [(500, 150, 0.9)]), run("muesli", key, 1, 1.0, [(500, 150, 0.9)]),
        run("ppo", key, 0, 0.518, [(250, 150, 0.9)]), run("ppo", key, 1, 0.518, [(250, 150, 0.9)]),
    ]  # fmt: skip
    return compare.findings(jobs, "title", (), suite)


def test_findings_of_a_suite_by_hand(findings):
    progress = findings.progress
    assert [(row.env, row.agent, row.steps, row.solved) for row in progress.rows] == [
        ("small/gates", "muesli", (400, 800), 2),
        ("small/gates", "ppo", (1000, 1000), 0),  # the whole budget, not the 1,040 steps with the last iteration
        ("small/key", "muesli", (500, 500), 2),
        ("small/key", "ppo", (250, 250), 2),
    ]
    assert [row.score.value for row in progress.rows] == pytest.approx([0.75, 0.5, 1.0, 0.5])
    means = {agent: estimate.value for agent, estimate in findings.aggregates["mean of normalized scores"].items()}
    assert means == {"muesli": pytest.approx(0.875), "ppo": pytest.approx(0.5)}
    assert findings.aggregates["median of normalized scores"]["muesli"].value == pytest.approx(0.875)
    # The middle half of 0.5, 1, 1 and 1.
    assert findings.aggregates["IQM of normalized scores"]["muesli"].value == pytest.approx(1.0)
    difference = progress.difference["muesli", "ppo"]
    assert difference == (pytest.approx(0.375), pytest.approx(0.25), pytest.approx(0.5))
    ratio = progress.ratio["muesli", "ppo"]
    assert ratio == (pytest.approx((0.6 + 2.0) / 2), pytest.approx(1.2), pytest.approx(1.4))
    notes = " ".join(findings.notes)
    assert "1 that of the best player" in notes and "No agent has a run on small/inventory" in notes
    assert "resamples the seeds of both agents within each environment" in notes


def test_the_page_of_a_suite_has_its_numbers(findings):
    text, page, numbers = report.markdown(findings), report.html(findings), report.as_json(findings)
    assert "| small/gates | muesli | 0.75 (0.50 to 1.00) | 0.2 | 7 | 5.64 | 600 | 2 of 2 | 400, 800 |" in text
    assert "| muesli | ppo | all | 0.38 (0.25 to 0.50) | 1.30 (1.20 to 1.40) | 1.00 |" in text
    assert "| muesli | ppo | small/key | 0.50 | 2.00 | 1.00 |" in text
    assert "| small/key | ppo | 0.518 |" in text, "small returns are not rounded away"
    assert "<td>1.30 (1.20 to 1.40)</td>" in page and "Normalized scores" in page
    assert numbers["suite"]["difference"][0]["value"] == pytest.approx(0.375)
    assert numbers["suite"]["ratio_of_steps"][0] == {
        "agent": "muesli", "against": "ppo", "value": pytest.approx(1.3), "low": pytest.approx(1.2),
        "high": pytest.approx(1.4),
    }  # fmt: skip
    assert numbers["suite"]["rows"][0]["steps"] == [400, 800]
    json.dumps(numbers)


def test_clipped_returns_of_training_are_not_compared_with_a_threshold(run):
    game = "Breakout-MinAtar"
    lines = [(100, 200, 90.0), (1040, 2000, 90.0)]
    jobs = [run("ppo", game, 0, 40.0, lines, "env.reward_clip=1"), run("muesli", game, 0, 100.0, lines)]
    progress = compare.findings(jobs, "title", (), grid.suite("minatar")).progress
    assert progress is not None
    found = [(row.agent, row.steps, row.solved) for row in progress.rows]
    assert found == [("ppo", (1000,), 0), ("muesli", (1040,), 1)]


def test_a_comparison_without_a_suite_has_none(run):
    jobs = [run(agent, "small/key", 0, 0.5, [(100, 200, 0.1), (1000, 900, 0.2)]) for agent in ("muesli", "ppo")]
    found = compare.findings(jobs, "title")
    assert found.progress is None and "suite" not in report.as_json(found)
    assert set(found.aggregates) == {"IQM of runs, return", "median over environments of mean return"}


def test_suites_have_environments_that_exist():
    assert tuple(grid.suite("small").steps) == small.REPORTING
    assert tuple(grid.suite("small-choosing").steps) == small.CHOOSING
    assert len(grid.suite("minatar").steps) == len(grid.suite("atari5").steps) == 5
    assert len(grid.suite("atari57").steps) == 57
    for name in grid.SUITES:
        suite = grid.suite(name)
        assert suite.steps.keys() == suite.references.keys()
        for env, reference in suite.references.items():
            environments.resolve(env)
            assert (reference.scale(reference.zero), reference.scale(reference.one)) == (0.0, 1.0)
            solved = 1.0 if name.startswith("atari") else 0.8
            assert reference.scale(reference.threshold) == pytest.approx(solved)
    with pytest.raises(ConfigError, match="unknown suite 'smal'; did you mean small"):
        grid.suite("smal")


def test_a_plan_has_the_steps_of_the_suite_unless_others_are_set(tmp_path):
    steps = {"small/key": 80_000, "small/gates": 40_000, "toy/cliff": None}
    words = ["ppo", "ppo,steps=500"]
    made = grid.plan(compare.variants(words), steps, range(20, 22), [], tmp_path)
    planned = {(job.env, job.variant): compose(job.env, job.settings).steps for job in made}
    default = compose("toy/cliff", ["agent=ppo"]).steps
    assert [planned[env, "ppo"] for env in steps] == [80_000, 40_000, default]
    assert [planned[env, "ppo,steps=500"] for env in steps] == [500] * 3
    assert {job.seed for job in made} == {20, 21}
    shared = grid.plan(compare.variants(words[:1]), steps, range(1), ["steps=64"], tmp_path)
    assert {compose(job.env, job.settings).steps for job in shared} == {64}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["muesli", "--suite", "smal"], "unknown suite 'smal'; did you mean small"),
        (["muesli", "--suite", "small", "--env", "toy/cliff"], "--suite small has environments already"),
        (["--suite", "small", "steps=5"], "nothing to compare"),
        (["muesli", "--suite", "small", "--first-seed", "-1"], "--first-seed"),
        (["muesli", "--suite", "small", "seed=3"], "seed=3 cannot be a setting of all runs"),
        (
            ["muesli", "--suite", "small", "--together", "loop.name=pipeline"],
            "--together trains all runs in one program",
        ),
    ],
)
def test_settings_that_no_suite_supports_are_refused(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["compare", *words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert told.exit_code == 2 and sentence in " ".join(told.stderr.split())
    assert not list(tmp_path.iterdir()), "refused before anything is made"


def test_a_run_outside_the_suite_is_refused(run, tmp_path, monkeypatch):
    inside, outside = (run("ppo", env, 0, 0.5, [(1040, 900, 0.2)]) for env in ("small/key", "toy/cliff"))
    folders = [str(inside.path), str(outside.path), "--out", str(tmp_path / "out")]
    words = ["compare", "--suite", "small-choosing", *folders]
    monkeypatch.setattr(directory, "counters", lambda path: {"env_steps": 1040, "episodes": 5000})
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2 and "is a run on toy/cliff, which is not in the suite small-choosing" in told.stderr


def test_seeds_and_programs_of_a_suite(tmp_path, monkeypatch):
    """One program for each agent and environment; the runs are those of a plan with the same seeds."""
    from bircher.experiments import replicas

    programs, jobs = [], []

    def stop(program, log):
        programs.append([(job.env, job.variant, job.seed) for job in program])
        return True

    def none(every, *_):
        jobs.extend(every)
        return [], []

    monkeypatch.setattr(replicas, "configs", lambda jobs: [])
    monkeypatch.setattr(replicas, "run", stop)
    monkeypatch.setattr(grid, "run", none)
    words = ["compare", "muesli", "ppo", "--suite", "small", "--seeds", "2", "--first-seed", "40", "--together"]
    CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert programs == [
        [(env, agent, seed) for seed in (40, 41)] for env in small.REPORTING for agent in ("muesli", "ppo")
    ]
    assert len(jobs) == 24 and all(f"steps={small.TASKS[job.env].steps}" in job.settings for job in jobs)
