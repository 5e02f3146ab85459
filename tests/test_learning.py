"""Agents learn: toys in seconds, and CartPole-v1."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import bircher
from tiny import Catch, Halves

SMALL = {
    "env.num_envs": 16,
    "loop.rollout_length": 8,
    "model": {"torso_widths": [32], "latent_width": 32, "dynamics_widths": [32], "num_atoms": 41, "support": 5.0,
              "unroll_steps": 3},
    "optimizer": {"learning_rate": 3e-3, "updates_per_step": 1 / 32, "batch_size": 16},
    "replay.capacity": 4096,
    "agent.gamma": 0.95,
    "evaluation.count": 0,
}  # fmt: skip


def trained(tmp_path, env, steps: int, **overrides):
    """The agent of a short run."""
    return bircher.train(env, steps=steps, seed=0, out=tmp_path / "run", **{**SMALL, **overrides}).agent


def test_the_bandits_best_arm_and_its_worth(tmp_path):
    """Policy, value, reward and look-ahead, each known: the best of four arms is worth 1."""
    agent = trained(tmp_path, "toy/bandit", 6000)
    report = bircher.evaluate(agent, episodes=100)
    assert report.mean > 0.95
    model = agent.model
    latent = model.represent(jnp.ones((1, 1)))
    assert float(model.value_support.mean(model.predict(latent).value_logits)[0]) == pytest.approx(1, abs=0.15)
    reward = model.reward_support.mean(model.reward_logits(model.step(latent, jnp.array([3]))))
    assert float(reward[0]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("agent", "env", "steps"), [
    ("muesli", "toy/dial", 5000), ("ppo", "toy/dial", 6000), ("muesli", "toy/lock", 4000),
])  # fmt: skip
def test_bandits_with_vectors_of_actions(tmp_path, agent, env, steps):
    """Asymmetric bounds and two dimensions: the best action is worth 1, and chance about 0.6 (dial) or 0.3 (lock)."""
    run = bircher.train(env, agent=agent, steps=steps, seed=0, out=tmp_path / "run", **{"evaluation.count": 0})
    assert bircher.evaluate(run.agent, episodes=100, greedy=True).mean > 0.95
    action = run.agent.act(np.ones(1, np.float32), greedy=True)
    best = np.array([2.0, 0.5]) if env == "toy/dial" else np.array([2, 1])
    np.testing.assert_allclose(action, best, atol=0.5)


def test_a_reacher_with_the_default_settings(tmp_path):
    """Chance costs about 10, and the straight way to the goal about 2.5."""
    run = bircher.train("toy/reacher", agent="ppo", steps=20_000, seed=0, out=tmp_path / "run")
    assert bircher.evaluate(run.agent, episodes=100, greedy=True).mean > -3.5


@pytest.mark.long
@pytest.mark.parametrize(("agent", "env", "steps", "least"), [
    ("gumbel_muzero", "toy/dial", 6000, 0.93), ("muesli", "toy/shop", 12_000, 0.9),
    ("muesli", "toy/reacher", 60_000, -3.0),
])  # fmt: skip
def test_many_actions_and_steps_with_the_default_settings(tmp_path, agent, env, steps, least):
    """A search over candidates, 2,000 discrete actions, and a reacher, where chance costs about 10."""
    run = bircher.train(env, agent=agent, steps=steps, seed=0, out=tmp_path / "run", **{"evaluation.count": 0})
    assert bircher.evaluate(run.agent, episodes=100, greedy=True).mean > least


@pytest.mark.slow
def test_the_chain_is_walked_to_its_end(tmp_path):
    """A reward after five right choices out of three each; acting at random finds it once in hundreds of steps."""
    report = bircher.evaluate(trained(tmp_path, "toy/chain", 30_000), episodes=100)
    assert report.mean == 1.0
    assert np.mean(report.lengths) < 8  # five at best


@pytest.mark.parametrize("shape", [
    pytest.param((9, 8, 2), id="grid", marks=pytest.mark.slow),
    pytest.param((32, 32, 1), id="image", marks=pytest.mark.long),
])  # fmt: skip
def test_pictures_with_the_default_settings(tmp_path, shape):
    """A small grid and an image, without a preset.  A guess is worth 0.5."""
    env, overrides = partial(Halves, shape), {"evaluation.count": 0, "env.num_workers": 0}
    run = bircher.train(env, steps=1000, seed=0, out=tmp_path / "run", **overrides)
    assert bircher.evaluate(run.agent, episodes=100, greedy=True).mean > 0.95


@pytest.mark.slow
def test_catch_is_learned_from_its_picture(tmp_path):
    """Drawn by Gymnasium, shrunk, in gray, through convolutions; a random paddle catches about one ball in five."""
    pictures = {"observation": "pixels", "observation.size": [24, 20], "env.stack": 1, "env.num_workers": 0}
    settings = {"model.torso": "dqn_cnn", "loop.rollout_length": 10, "optimizer.updates_per_step": 1 / 20}
    agent = trained(tmp_path, Catch, 16_000, **pictures, **settings)
    assert agent.spec.observation.shape == (24, 20, 1) and agent.spec.observation.dtype == np.uint8
    assert bircher.evaluate(agent, episodes=100).mean > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("agent", [pytest.param("muzero", marks=pytest.mark.long), "gumbel_muzero"])
def test_nim_is_played_perfectly_by_the_network_alone(tmp_path, agent):
    """Both seats by one network, values from the mover's side: who is to move loses where 3 divides the heap."""
    settings = {"preset": "board_muzero", "search.num_simulations": 8, "agent.random_action_share": 0.3}
    settings |= {"model.reward_head": False, "model.value_head": "tanh", "agent.gamma": 1.0}
    trained(tmp_path, "toy/nim", 12_000, agent=agent, **settings)
    loaded = bircher.load(tmp_path / "run", search={"num_simulations": 0})
    heaps = np.arange(1, 8)
    observation = np.eye(8, dtype=np.float32)[heaps]
    legal = np.arange(1, 3) <= heaps[:, None]
    won = heaps % 3 > 0
    actions = loaded.act(observation, greedy=True, legal_actions=legal)
    np.testing.assert_array_equal((actions + 1)[won], (heaps % 3)[won])
    model = loaded.model
    values = model.value(model.represent(jnp.asarray(observation)))
    assert (np.sign(values) == np.where(won, 1, -1)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent", ["muesli", *(pytest.param(agent, marks=pytest.mark.long) for agent in ("gumbel_muzero", "ppo"))]
)
def test_cartpole_is_solved(tmp_path, agent):
    """The preset's agent, over 100 fresh episodes: MuZero taking its best action, the others drawing."""
    run = bircher.train("CartPole-v1", agent=agent, seed=0, out=tmp_path / "run", **{"evaluation.count": 0})
    report = bircher.evaluate(run.agent, episodes=100, greedy=agent == "gumbel_muzero")
    assert report.mean >= 475
