"""Which sequences of a learner's minibatches are searched anew."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents import muzero
from bircher.replay.base import ReplayConfig
from bircher.search import SearchConfig
from bircher.training import learner
from bircher.training.optimizer import OptimizerConfig
from bircher.types import Extras, Tally, TimeStep
from builders import ACTIONS, SMALL, SPEC, quick_jit, random_rows

ENVS, LENGTH = 8, 4


def rollout_of(iteration):
    """A rollout whose rows carry its number as reward, and a blank policy where a search would have stored its own."""
    rows = random_rows(iteration, ENVS, LENGTH, all_legal=True)
    shape = rows.reward.shape
    blank = Extras({"search_value": jnp.zeros(shape)}, {"search_policy": jnp.zeros((*shape, ACTIONS))})
    return rows._replace(reward=jnp.full(shape, float(iteration)), extras=blank)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_each_minibatch_has_its_replayed_sequences_searched_and_no_fresh_one(minibatches):
    """Half of each minibatch is replayed, and half is searched: the same half."""
    config = muzero.MuZeroConfig(gamma=0.9, reanalyze_fraction=0.5)
    agent = muzero.make(config, SMALL, muzero.MuZeroLosses(), SearchConfig(num_simulations=2))

    def loss(params, state, batch, target, key, with_metrics):
        terms, _ = agent.loss(params, state, batch, target, key, with_metrics=False)
        newest = batch.trajectory.reward.max()
        fresh = batch.trajectory.reward[:, 0] == newest
        searched = (target.policy.weights.sum(-1) > 0.5).all(1)
        return terms, {"fresh": fresh.sum(), "searched": searched.sum(), "both": (fresh & searched).sum()}

    optimizer = OptimizerConfig(batch_size=4, updates_per_step=minibatches / 32, minibatches=minibatches)
    replay = ReplayConfig(capacity=256, fraction=0.5)
    made = learner.Learner(
        agent._replace(loss=loss), SPEC, learner.LearnerConfig(optimizer, replay, ENVS, LENGTH, 1000, 0.1)
    )
    no, zero = jnp.zeros(ENVS, bool), jnp.zeros(ENVS)
    first = TimeStep(jnp.zeros((ENVS, 4)), zero, zero + 1, ~no, no, no, jnp.ones((ENVS, ACTIONS), bool), no)
    state, learn = quick_jit(made.init)(jax.random.key(0), first), quick_jit(made.update)
    for iteration in range(1, 4):
        state, metrics = learn(state, rollout_of(iteration), Tally.zero())
    # The probe tells of every update, and what arrives is the sum over them.
    found = np.array([metrics[name] for name in ("fresh", "searched", "both")])
    np.testing.assert_array_equal(found, [2 * minibatches, 2 * minibatches, 0])
