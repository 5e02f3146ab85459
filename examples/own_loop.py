"""Muesli's `init`, `act`, `targets` and `loss` in a loop of one's own: CartPole, without a replay."""

import jax
import jax.numpy as jnp
import optax

from bircher.agents import actor_critic
from bircher.envs import registry
from bircher.envs.config import EnvRequest
from bircher.networks.model import ModelConfig
from bircher.ops.losses import combine
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Batch, Policy


def main(iterations: int = 200) -> list[float]:
    """Train for so many rollouts of 64 environments and 16 steps; returns each one's mean episode length."""
    env = registry.make(EnvRequest.of("CartPole-v1", num_envs=64), seed=0)
    model = ModelConfig(num_atoms=51, support=20)
    agent = actor_critic.make(actor_critic.MuesliConfig(), model, actor_critic.MuesliLosses())
    (params, state), optimizer = agent.init(jax.random.key(0), env.spec), optax.adam(1e-3)
    learned = (params, params, state, optimizer.init(params))  # online, target, agent's state, moments

    @jax.jit
    def iteration(learned, acting, key):
        params, target, state, moments = learned
        acting, rows, tally = collect_rollout(agent, env, Policy(target, state), acting, 16, 0.0)  # calls agent.act
        batch = Batch(rows, jnp.full(64, -1), jnp.ones(64))
        targets, state = agent.targets(Policy(target, state), batch, key)

        def objective(params):
            terms, _ = agent.loss(params, state, batch, targets, key)
            return combine(terms, agent.weights, targets.mask, batch.importance)[0]

        step, moments = optimizer.update(jax.grad(objective)(params), moments)
        params = optax.apply_updates(params, step)
        target = optax.incremental_update(params, target, 0.1)
        return (params, target, state, moments), acting, tally.length_sum / jnp.maximum(tally.episodes, 1)

    acting, lengths = start_actors(agent, env, jax.random.key(1)), []
    for key in jax.random.split(jax.random.key(2), iterations):
        learned, acting, length = iteration(learned, acting, key)
        lengths.append(float(length))
    return lengths


if __name__ == "__main__":
    print(main())
