"""`bircher bench`: what a run waits for, from the seconds of its parts, and the whole command once."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config import config
from bircher.runs import bench, logger
from bircher.runs.bench import Bench, Speed, WorkerSpeeds
from tiny import SETTINGS, WORDS


def composed(**settings) -> config.Config:
    return config.compose("toy/cliff", {**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("settings", "seconds", "waits_for", "advice"),
    [
        ({}, (1.0, 2.0, 6.0, 1), "learning (75% of", "fewer optimizer.updates_per_step, loop=pipeline"),
        ({}, (5.0, 6.0, 2.0, 1), "its environments (75% is acting", "more env.num_envs or env.num_threads, loop=pip"),
        (
            {"loop": "pipeline"},
            (1.0, 6.0, 2.0, 1),
            "acting (75%, most of it in the network",
            "loop=ray, a smaller netw",
        ),
        (
            {"search.num_simulations": 8},
            (1.0, 6.0, 2.0, 1),
            "acting (75%",
            "fewer search.num_simulations (now 8), loop=",
        ),
        # Four workers take a quarter of the time, in which environments are most of the work.
        ({"loop": "ray", "ray.workers": 4}, (5.0, 1.5, 0.5, 4), "its environments (75%", "more ray.workers, a smaller"),
    ],
)
def test_the_slowest_part_is_named_with_its_settings(settings, seconds, waits_for: str, advice: str) -> None:
    found = bench._verdict(composed(**settings), *seconds)
    assert found[0].startswith(waits_for)
    assert found[1].startswith(advice)


def test_the_table_has_a_dash_where_no_limit_is_known() -> None:
    speeds = (
        Speed("environments", 1234.5, None, "none is known"),
        Speed("acting", 617.2, 0.5, "the environments alone"),
    )
    assert Bench(speeds, "acting", "loop=pipeline").lines() == [
        "              steps/s  share of its limit  the limit",
        "environments    1,234                   —  none is known",
        "acting            617                 50%  the environments alone",
        "this run waits for acting; try loop=pipeline",
    ]


def test_speeds_with_more_workers_follow_from_one_worker() -> None:
    # 0.1 s and 0.05 s for each environment: 0.15 s with one environment, 0.5 s with all eight.
    model = WorkerSpeeds.fitted(80, 8, one=0.15, every=0.5, learning=0.22)
    assert [round(model.steps_per_second(count), 1) for count in (1, 2, 3, 4, 8)] == [160, 266.7, 320, 363.6, 363.6]
    assert model.counts() == [1, 2, 4]
    assert model.line() == (
        "steps/s predicted by ray.workers, with a core for each: 1: 160, 2: 267, 4: 364 (then the learner is the limit)"
    )
    assert model._replace(learning=0.01).line().endswith("8: 533 (one environment each)")
    # Seven environments on four workers: the largest share has two.
    assert model._replace(rows=70, num_envs=7, learning=0.0).steps_per_second(4) == pytest.approx(70 / 0.2)


def test_the_time_of_all_environments_is_that_which_was_measured() -> None:
    model = WorkerSpeeds.fitted(80, 2, one=0.01, every=1.0, learning=0.0)
    assert model.steps_per_second(1) == pytest.approx(80) and model.steps_per_second(2) == pytest.approx(160)


@pytest.mark.parametrize(("one", "every"), [(0.2, 0.19), (0.1, 0.1)])
def test_a_worker_that_is_not_slower_with_more_environments_gains_nothing_from_others(one: float, every: float) -> None:
    model = WorkerSpeeds.fitted(40, 4, one, every, 0.0)
    assert model.steps_per_second(4) == pytest.approx(model.steps_per_second(1)) == pytest.approx(40 / one)


@pytest.mark.parametrize(
    ("loop", "acts", "first"), [("ray", True, "more ray.workers"), ("ray", False, "fewer optimizer")]
)
def test_advice_of_a_run_with_workers(loop: str, acts: bool, first: str) -> None:
    advice = logger.speed_advice(composed(loop=loop), acts)
    assert advice[0].startswith(first) and "loop=pipeline" not in advice


@pytest.mark.long
@pytest.mark.parametrize("more", [["loop=pipeline"], ["replay.device=host", "env.backend=gymnasium"]])
def test_the_command_measures_every_part(more: list[str]) -> None:
    env = "CartPole-v1" if "env.backend=gymnasium" in more else "toy/cliff"
    result = CliRunner().invoke(app, ["bench", env, *WORDS, *more, "--seconds", "0.05", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [part["name"] for part in found["parts"]] == ["environments", "acting", "learning", "the whole run"]
    assert all(part["steps_per_second"] > 0 for part in found["parts"])
    assert 0 < found["parts"][2]["share"] < 1 and found["waits_for"] and found["advice"]


def test_what_cannot_run_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "toy/clif"])
    assert result.exit_code == 2 and "did you mean toy/cliff" in result.stderr
