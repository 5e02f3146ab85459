"""Muesli learns: toys in seconds, and CartPole-v1."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import bircher

SMALL = {
    "env.num_envs": 16,
    "loop.rollout_length": 8,
    "model": {"torso_widths": [32], "latent_width": 32, "dynamics_widths": [32], "num_atoms": 41, "support": 5.0,
              "unroll_steps": 3},
    "optimiser": {"learning_rate": 3e-3, "updates_per_step": 1 / 32, "batch_size": 16},
    "replay.capacity": 4096,
    "agent.discount": 0.95,
    "evaluation.count": 0,
}  # fmt: skip


def trained(tmp_path, env: str, steps: int, **overrides):
    """The agent of a short run."""
    return bircher.train(env, steps=steps, seed=0, out=tmp_path / "run", **{**SMALL, **overrides}).agent


def test_the_bandits_best_arm_and_its_worth(tmp_path):
    """Policy, value, reward and look-ahead, each known: the best of four arms is worth 1."""
    agent = trained(tmp_path, "toy/bandit", 6000)
    report = bircher.evaluate(agent, episodes=100)
    assert report.mean > 0.95
    model = agent.policy.params
    latent = model.represent(jnp.ones((1, 1)))
    assert float(model.value_support.mean(model.predict(latent).value_logits)[0]) == pytest.approx(1, abs=0.15)
    reward = model.reward_support.mean(model.reward_logits(model.step(latent, jnp.array([3]))))
    assert float(reward[0]) == pytest.approx(1, abs=0.15)


def test_the_chain_is_walked_to_its_end(tmp_path):
    """A reward after five right choices out of three each; acting at random finds it once in hundreds of steps."""
    report = bircher.evaluate(trained(tmp_path, "toy/chain", 30_000), episodes=100)
    assert report.mean == 1.0
    assert np.mean(report.lengths) < 8  # five at best


def test_cartpole_is_solved(tmp_path):
    """The preset's agent, over 100 fresh episodes, drawing its actions."""
    run = bircher.train("CartPole-v1", seed=0, out=tmp_path / "run", **{"evaluation.count": 0})
    report = bircher.evaluate(run.agent, episodes=100)
    assert report.mean >= 475
