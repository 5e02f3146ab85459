"""Runs that are one program: they are the runs that they would be alone, and what cannot be one program is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from bircher.config.config import compose
from bircher.errors import ConfigError, UnsupportedEnvironment
from bircher.experiments import grid, replicas
from bircher.experiments.grid import Variant
from bircher.runs import directory, launch
from bircher.runs.directory import read_config
from tiny import WORDS

SETTINGS = [*WORDS, "steps=90", "evaluation.gradients=false"]


def planned(tmp_path, *variants: str, env: str = "toy/chain", settings=SETTINGS, seeds=(0, 1)):
    each = [Variant(words or "whole", ("agent=pg", *words.split())) for words in variants]
    return grid.plan(each, [env], seeds, settings, tmp_path)


@pytest.mark.long
def test_runs_of_one_program_are_the_runs_that_they_are_alone(tmp_path):
    every = planned(tmp_path / "together", "", "losses.policy_gradient.weight=0.5 agent.advantage.factor=0.5")
    jobs = [every[0], every[3]]
    assert replicas.run(jobs, lambda text: None)
    for job in jobs:
        alone = launch.start(read_config(job.path), None, tmp_path / "alone" / str(job.seed)).run()
        assert directory.counters(job.path) == {name: alone.counters[name] for name in directory.counters(job.path)}
        ours = jax.tree.leaves(launch.load_for_playing(job.path).policy.params)
        for array, expected in zip(ours, jax.tree.leaves(alone.agent.policy.params), strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-3, atol=1e-4)
    lines = [json.loads(line) for line in (jobs[0].path / directory.METRICS).read_text().splitlines()]
    assert lines[-1]["env_steps"] >= 90 > lines[-2]["env_steps"]
    assert replicas.run(jobs, lambda text: pytest.fail(text))  # nothing is left to be done


@pytest.mark.parametrize(
    ("env", "second", "settings", "error", "sentence"),
    [
        ("toy/chain", "optimizer.learning_rate=0.5", (), ConfigError, "optimizer.learning_rate=0.5"),
        ("toy/chain", "", ("loop.name=pipeline",), ConfigError, "loop.name=pipeline"),
        ("CartPole-v1", "", ("env.backend=gymnasium",), UnsupportedEnvironment, "pure JAX"),
    ],
)
def test_runs_that_cannot_be_one_program_are_refused(tmp_path, env, second, settings, error, sentence):
    jobs = planned(tmp_path, *dict.fromkeys(("", second)), env=env, settings=[*SETTINGS, *settings])
    with pytest.raises(error, match=sentence):
        replicas.run(jobs)
    assert not any(job.path.exists() for job in jobs)


def test_several_devices_are_refused():
    config = compose("toy/chain", [*SETTINGS, "devices=2"])
    with pytest.raises(ConfigError, match="not possible with devices=2"):
        replicas._require_one_program(config, config)
