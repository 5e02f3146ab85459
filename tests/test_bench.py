"""`bircher bench`: what a run waits for, from the seconds of its parts, and the whole command once."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config import config
from bircher.runs import bench, logger
from bircher.runs.bench import Bench, Speed
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
