"""Values in a unit that follows the largest return: the same learning for rewards of any scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.agents.base import model_of
from bircher.config.config import compose
from bircher.envs.base import Env
from bircher.runs import build
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Policy
from builders import quick_jit
from tiny import SETTINGS

SCALES = (1.0, 1024.0, 1 / 1024)


class Scaled:
    """An environment whose rewards are multiplied by a number, which may be traced."""

    def __init__(self, env: Env, scale: jax.Array | float = 1.0):
        self.env, self.scale = env, scale
        self.spec, self.num_envs, self.pure = env.spec, env.num_envs, env.pure

    def reset(self):
        return self.env.reset()

    def step(self, state, action):
        state, timestep = self.env.step(state, action)
        return state, timestep._replace(reward=self.scale * timestep.reward)

    def close(self):
        self.env.close()


def trained(agent_name: str, iterations: int = 12, **settings):
    """Small runs with rewards of every scale: the agent, and for each scale its state, last rollout and metrics."""
    config = compose("toy/cliff", {**SETTINGS, "agent": agent_name, "model.value_unit": "returns", **settings})
    env = Scaled(environments.make("toy/cliff", 4, 0))
    agent, learner, *_ = build.make_parts(config, env.spec)

    @quick_jit
    def iteration(state, acting, scale):
        env.scale = scale  # one program for all scales
        policy = Policy(state.target_params if agent.acts_with_target else state.params, state.agent_state)
        acting, rollout, tally = collect_rollout(agent, env, policy, acting, 4, 0.0)
        state, metrics = learner.update(state, rollout, tally)
        return state, acting, rollout, tally, metrics

    results = []
    for scale in SCALES:
        acting = start_actors(agent, env, jax.random.key(1))
        state, largest = quick_jit(learner.init)(jax.random.key(0), acting.timestep), 0.0
        for _ in range(iterations):
            state, acting, rollout, tally, metrics = iteration(state, acting, jnp.float32(scale))
            largest = max(largest, float(tally.largest_return))
            assert float(state.agent_state.largest_return) == largest
        results.append((state, rollout, metrics))
    return agent, results


@pytest.mark.parametrize(
    "agent_name",
    [
        pytest.param("muesli", marks=pytest.mark.slow),
        pytest.param("gumbel_muzero", marks=pytest.mark.slow),
        pytest.param("ppo", marks=pytest.mark.long),
        pytest.param("muzero", marks=pytest.mark.long),
    ],
)
def test_agents_learn_alike_from_rewards_of_every_scale(agent_name):
    settings = {"search.num_simulations": 4} if "muzero" in agent_name else {}
    if agent_name == "ppo":
        settings = {"optimizer.batch_size": None, "optimizer.updates_per_step": None, "optimizer.minibatches": 2}
    agent, results = trained(agent_name, **settings)
    first, rollout, metrics = results[0]
    for (state, other, own), scale in zip(results[1:], SCALES[1:], strict=True):
        np.testing.assert_array_equal(other.action, rollout.action)
        for leaf, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(first.params), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)
        assert float(own["target/value_size"]) == pytest.approx(scale * float(metrics["target/value_size"]), rel=1e-3)
        assert float(own["loss/value"]) == pytest.approx(float(metrics["loss/value"]), rel=1e-2, abs=1e-4)
        policies = [Policy(one.params, one.agent_state) for one in (first, state)]
        latent = agent.encode(policies[0], rollout)
        values = [np.asarray(model_of(policy).value(latent)) for policy in policies]
        np.testing.assert_allclose(values[1], scale * values[0], rtol=1e-2, atol=1e-3 * scale)


def test_the_largest_return_is_that_of_a_plain_loop():
    """On the counter rewards are known; the sum of an episode goes on over the ends of rollouts."""
    gamma = 0.9
    config = compose("toy/counter", {**SETTINGS, "model.value_unit": "returns", "agent.gamma": gamma})
    env = environments.make("toy/counter", 3, 0, options={"length": 5})
    agent = build.make_parts(config, env.spec).agent
    policy = quick_jit(lambda: agent.init(jax.random.key(0), env.spec))()
    acting = start_actors(agent, env, jax.random.key(1))
    collect = quick_jit(lambda acting: collect_rollout(agent, env, policy, acting, 4, 0.0))
    sums, largest = np.zeros(3), 0.0
    for _ in range(4):
        acting, rollout, tally = collect(acting)
        largest = 0.0
        for t in range(1, 5):
            sums = np.where(rollout.first[:, t], 0.0, gamma * sums + np.asarray(rollout.reward[:, t]))
            largest = max(largest, np.abs(sums).max())
        assert float(tally.largest_return) == pytest.approx(largest, rel=1e-5)
    np.testing.assert_allclose(acting.discounted_return, sums, rtol=1e-5)


def test_nothing_is_tracked_where_the_unit_is_fixed():
    config = compose("toy/cliff", SETTINGS | {"model.value_unit": "fixed"})
    env = environments.make("toy/cliff", 2, 0)
    agent = build.make_parts(config, env.spec).agent
    assert not agent.follows_returns and start_actors(agent, env, jax.random.key(0)).discounted_return is None
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), env.spec).state)
    assert state.largest_return is None


def test_a_return_that_is_not_finite_is_not_followed():
    config = compose("toy/cliff", SETTINGS | {"model.value_unit": "returns"})
    env = Scaled(environments.make("toy/cliff", 2, 0), float("inf"))
    agent = build.make_parts(config, env.spec).agent
    policy = agent.init(jax.random.key(0), env.spec)
    _, _, tally = collect_rollout(agent, env, policy, start_actors(agent, env, jax.random.key(1)), 3, jnp.zeros(()))
    assert float(tally.largest_return) == 0.0 and int(tally.failed) >= 0
