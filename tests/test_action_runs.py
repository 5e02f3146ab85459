"""Runs with vectors of actions from end to end: training, checkpoint, loading, acting, explaining, diagnosing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
from bircher.cli import app
from bircher.runs import inspect

TINY = {
    "env.num_envs": 4,
    "loop.rollout_length": 8,
    "model": {"torso_widths": [16], "head_widths": [], "latent_width": 16, "dynamics_widths": [16], "num_atoms": 11,
              "unroll_steps": 2},
    "optimizer": {"batch_size": 4},
    "replay.capacity": 512,
    "agent.num_candidates": 5,
    "evaluation": {"count": 1, "episodes": 2},
}  # fmt: skip
OBSERVATION = np.array([0.1, -0.2, 0.3, 0.9], np.float32)


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def train(env, path, **settings):
    return bircher.train(env, steps=160, seed=0, out=path, **{**TINY, **settings})


def test_a_run_with_continuous_actions(tmp_path, capsys):
    """What a run says, stores and shows; the loaded agent acts as the trained one, in the environment's units."""
    run = train("toy/reacher", tmp_path / "run", agent="muesli")
    said = capsys.readouterr()
    assert "muesli weighs 5 samples of its policy in each state (agent.num_candidates)" in said.err + said.out
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss/cmpo"]) for line in lines if "loss/cmpo" in line)
    agent = bircher.load(run.path)
    action = agent.act(OBSERVATION, greedy=True)
    assert action.shape == (2,) and action.dtype == np.float32
    np.testing.assert_allclose(action, run.agent.act(OBSERVATION, greedy=True), rtol=1e-5)
    many = agent.act(np.stack([OBSERVATION] * 200))
    assert many.shape == (200, 2) and (np.abs(many) <= 1).all() and len(np.unique(many)) > 200
    thought = agent.think(OBSERVATION)
    assert len(thought.names) == len(thought.prior) == len(thought.improved) == 6
    assert thought.names[thought.action] == agent.action_name(thought.taken)
    assert sum(thought.improved) == pytest.approx(1, abs=1e-4)
    found = inspect.diagnose(agent, steps=256)
    assert np.isfinite([found["gain"], *found["policy_kl"], found["advantage_correlation"]]).all()
    assert "policy_head" in inspect.describe(agent.config)
    moments = inspect.moments(agent, seed=1)
    assert len(moments) == 3 and moments[0].step == 0 and moments[1].step < moments[2].step
    samples = moments[2].thought.density.samples
    np.testing.assert_allclose(samples[moments[2].thought.action], agent.own_action(moments[2].thought.taken))
    without = inspect.draw(found, tmp_path / "without.png").stat().st_size
    assert inspect.draw(found, tmp_path / "with.png", moments).stat().st_size > 1.2 * without


@pytest.mark.long
def test_a_run_with_a_search_over_candidates(tmp_path):
    """The search's root has the agent's own candidates, in the picture, in JSON and in what the agent says."""
    settings = {"search.num_simulations": 3, "agent.enumerate_actions": 0}
    run = train("toy/lock", tmp_path / "run", agent="gumbel_muzero", **settings)
    agent = bircher.load(run.path)
    action = agent.act(np.ones(1, np.float32))
    assert action.shape == (2,) and 0 <= action[0] < 3 and 0 <= action[1] < 4
    thought = agent.think(np.ones(1, np.float32))
    assert len(thought.names) == len(thought.prior) == 5
    found = json.loads(invoke("search", str(run.path), "--json"))
    assert len(found["action"]) == 2 and found["children"]
    text = invoke("search", str(run.path))
    assert f"action {agent.action_name(np.array(found['action']))}" in text


@pytest.mark.long
def test_muesli_searches_over_candidates_when_it_acts(tmp_path):
    """It learns without a search; a loaded agent shows the candidates and weights of the search that acted."""
    run = train("toy/reacher", tmp_path / "run", agent="muesli")
    agent = bircher.load(run.path, search={"num_simulations": 4})
    plain = bircher.load(run.path)
    thought = agent.think(OBSERVATION, greedy=True)
    assert len(thought.names) == 5 and sum(thought.improved) == pytest.approx(1, abs=1e-4)
    again = bircher.load(run.path, search={"num_simulations": 4})
    np.testing.assert_array_equal(agent.own_action(thought.taken), again.act(OBSERVATION, greedy=True))
    assert thought.density.samples.shape == (5, 2) and (thought.density.deviation > 0).all()
    np.testing.assert_allclose(thought.density.mean, plain.act(OBSERVATION, greedy=True), rtol=1e-4, atol=1e-5)
    mode = agent.action_name(plain.think(OBSERVATION, greedy=True).taken)
    assert thought.names[0] == mode, "the first candidate of the best action is the most probable one"
    found = json.loads(invoke("search", str(run.path), "search.num_simulations=4", "--json"))
    assert found["action"] in found["candidates"] and len(found["candidates"]) == len(found["weights"]) == 5
    assert Path(found["picture"]).read_text().count("<polyline") == 2
    assert bircher.evaluate(agent, episodes=2).mean < 0
