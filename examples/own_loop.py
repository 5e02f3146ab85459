"""Muesli's parts in a loop of one's own: `init`, `act`, `targets` and `loss`, on CartPole without a replay."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import optax

from bircher import actor
from bircher.agents import muesli
from bircher.envs import registry
from bircher.models.model import ModelConfig
from bircher.ops.losses import combine
from bircher.types import Batch, Policy


def main(iterations: int) -> list[float]:
    """Train for so many rollouts of 64 environments and 16 steps; returns each one's mean episode length."""
    env = registry.make("CartPole-v1", num_envs=64, seed=0)
    model = ModelConfig(num_atoms=51, support=20)
    agent = muesli.make(muesli.MuesliConfig(discount=0.99), model, muesli.MuesliLosses())
    online = agent.init(jax.random.key(0), env.spec)
    target, optimiser = online.params, optax.adam(1e-3)
    moments, acting = optimiser.init(online.params), actor.start(agent, env, jax.random.key(1))

    @jax.jit
    def iteration(online, target, moments, acting, key):
        acting, rows, tally = actor.rollout(agent, env, Policy(target, online.state), acting, 16, 0.0)
        batch = Batch(rows, agent.start(64), jnp.full(64, -1), jnp.ones(64))
        targets, state = agent.targets(Policy(target, online.state), batch, key)

        def objective(params):
            terms, _ = agent.loss(params, state, batch, targets, key)
            return combine(terms, agent.weights, targets.mask, batch.importance)[0]

        step, moments = optimiser.update(jax.grad(objective)(online.params), moments)
        params = optax.apply_updates(online.params, step)
        target = optax.incremental_update(params, target, 0.1)
        return Policy(params, state), target, moments, acting, tally.length_sum / jnp.maximum(tally.episodes, 1)

    lengths = []
    for key in jax.random.split(jax.random.key(2), iterations):
        online, target, moments, acting, length = iteration(online, target, moments, acting, key)
        lengths.append(float(length))
    return lengths


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
