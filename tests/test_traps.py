"""The traps that public implementations of these agents fell into, each seen from outside.

Traps 8 and 12 are about search, which Muesli has none of; the others are numbered as the project counts them.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.agents.unroll import episode_ends
from bircher.envs.config import EnvRequest
from bircher.envs.toys import counter_reward, make_toy
from bircher.ops import distributions, improvement, losses
from bircher.replay.base import ReplayConfig
from bircher.training import learner
from bircher.training.optimizer import OptimizerConfig
from bircher.training.rollout import TimeStep, collect_rollout, start_actors
from bircher.types import Policy, Tally
from builders import ACTIONS, SPEC, batch_of, muesli_agent, policy_of, quick_jit, random_model, random_rows

MODEL = random_model(0)
NOW = jnp.zeros(())
AGENT = muesli_agent()


@quick_jit
def targets_of(rows):
    """Muesli's targets and state for rows, from the model above."""
    return AGENT.targets(policy_of(AGENT, MODEL), batch_of(rows), jax.random.key(0))


@functools.cache
def counted(name: str):
    """A rollout of three counters of three steps, its policy and the targets that Muesli makes of it."""
    env = make_toy(EnvRequest.of(name, options={"length": 3}), [0, 1, 2])
    agent = muesli_agent(gamma=0.5, returns={"lambda": 0.0})
    policy = Policy(random_model(2, spec=env.spec), agent.init(jax.random.key(0), env.spec).state)
    start = start_actors(agent, env, jax.random.key(1))
    rows = quick_jit(lambda state: collect_rollout(agent, env, policy, state, 9, NOW)[1])(start)
    target, _ = quick_jit(agent.targets)(policy, batch_of(rows), jax.random.key(0))
    return policy, jax.tree.map(np.asarray, rows), jax.tree.map(np.asarray, target)


def test_1_cmpo_moves_the_policy_wherever_actions_differ():
    target, _ = targets_of(random_rows(0, 6, 8))
    policy = improvement.dense(target.policy, ACTIONS)
    moved = np.asarray(distributions.kl_divergence(policy, target.extras.per_row["prior"]))
    clipped = np.clip(target.extras.per_row["q_advantage"], -1, 1)
    legal = np.asarray(target.extras.per_row["prior"]) > 0
    differ = np.where(legal, clipped, -9).max(-1) - np.where(legal, clipped, 9).min(-1) > 0.1
    assert differ.sum() > 20
    assert moved[differ].min() > 1e-5


@pytest.mark.slow
def test_2_after_one_update_every_part_has_a_gradient():
    """The last layers begin at zero, so the first update reaches the heads alone; the second must reach everything."""
    agent = AGENT
    config = OptimizerConfig(batch_size=4, updates_per_step=1 / 32, learning_rate=1e-2)
    made = learner.Learner(
        agent, SPEC, learner.LearnerConfig(config, ReplayConfig(capacity=256, fraction=0.0), 4, 8, 1000, 0.1)
    )
    rows = random_rows(1, 4, 8)
    begin = jax.tree.map(lambda x: x[:, 0], rows)
    timestep = TimeStep(
        begin.observation, begin.reward, begin.discount, begin.first, begin.last, begin.terminal,
        begin.legal_actions, begin.first & False,
    )  # fmt: skip
    state = quick_jit(made.init)(jax.random.key(0), timestep)
    state, _ = quick_jit(made.update)(state, rows, Tally.zero())
    assert int(state.counters.learner_steps) == 1
    batch = batch_of(random_rows(2, 4, 8))
    policy = Policy(state.target_params, state.agent_state)
    target, _ = quick_jit(agent.targets)(policy, batch, jax.random.key(0))

    def total(params):
        terms, _ = agent.loss(params, state.agent_state, batch, target, jax.random.key(0))
        return losses.combine(terms, agent.weights, target.mask, batch.importance)[0]

    gradient = quick_jit(jax.grad(total))(state.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy/counter", "toy/counter-truncated"])
def test_3_and_4_targets_are_of_their_environment_and_time_and_end_with_the_episode(name):
    """From the environment to the target: r(b, t + 1, a_t) + gamma E[q(s_{t+1})], the latter only where none died."""
    policy, rows, target = counted(name)
    model = policy.params
    latent = model.represent(jnp.asarray(rows.observation))
    bootstrap = np.asarray((target.extras.per_row["prior"] * model.look_ahead(latent, 0.5)).sum(-1))
    assert np.abs(bootstrap).min() > 1e-3
    trained = 0
    for b, t in np.ndindex(3, 9):
        time = t % 4
        assert target.mask[b, t] == (time < 3)  # the row of an end has no transition, the reset step teaches nothing
        if time == 3:
            continue
        trained += 1
        reward = counter_reward(b, time + 1, int(rows.action[b, t]))
        assert target.reward[b, t] == reward
        died = name == "toy/counter" and time == 2
        assert target.value[b, t] == pytest.approx(reward + (0 if died else 0.5 * bootstrap[b, t + 1]), rel=1e-4)
    assert trained == 3 * 7


def test_4_a_seam_in_the_replay_is_an_end():
    """An episode begins though none ended, as after a resume: nothing is learned from the step between."""
    rows = random_rows(3, 6, 8)
    rows = rows._replace(
        first=jnp.zeros_like(rows.first).at[:, 4].set(True), last=rows.last & False, terminal=rows.last & False
    )
    target, _ = targets_of(rows)
    np.testing.assert_array_equal(target.mask, np.arange(8) != 3 + 0 * np.arange(6)[:, None])
    np.testing.assert_array_equal(episode_ends(rows)[:, -1], False)
    other = rows._replace(reward=rows.reward.at[:, 4:].add(100.0))
    changed, _ = targets_of(other)
    np.testing.assert_allclose(changed.value[:, :3], target.value[:, :3], rtol=1e-6)


def test_6_the_value_is_trained_toward_the_return():
    """The value term is 0 where the prediction is the return, not where it is the target network's own value."""
    agent = muesli_agent(losses={name: {"enabled": False} for name in (
        "policy_gradient", "cmpo", "model_policy", "model_value", "model_reward")})  # fmt: skip
    rows = random_rows(4, 1, 2)
    rows = rows._replace(first=rows.first & False, last=rows.last & False, terminal=rows.last & False)
    policy = policy_of(agent, MODEL)
    target, _ = targets_of(rows)
    own = MODEL.value_support.mean(MODEL.predict(MODEL.represent(rows.observation[:, :-1])).value_logits)
    assert float(jnp.abs(own - target.value).min()) > 0.1

    key = jax.random.key(0)
    term = quick_jit(lambda model: agent.loss(model, policy.state, batch_of(rows), target, key)[0]["value"])

    def loss_where_the_value_is(scalar):
        # A last layer without weights, whose bias is the prediction.
        bias = jnp.log(MODEL.value_support.two_hot(scalar) + 1e-9)
        head = MODEL.heads.value.layers[-1]
        new = (0 * head.weight, bias)
        fixed = eqx.tree_at(lambda m: (m.heads.value.layers[-1].weight, m.heads.value.layers[-1].bias), MODEL, new)
        return float(term(fixed)[0, 0])

    assert loss_where_the_value_is(target.value[0, 0]) < 1e-3
    assert loss_where_the_value_is(own[0, 0]) > 0.05


def test_7_logits_of_either_sign_and_losses_without_a_double_logarithm():
    prediction = MODEL.predict(MODEL.represent(jax.random.normal(jax.random.key(0), (50, 4))))
    for logits in (*prediction, MODEL.reward_logits(MODEL.represent(jnp.ones((1, 4))))):
        assert float(logits.min()) < 0 < float(logits.max())
    target = jnp.eye(3)[0]
    assert float(losses.excess_cross_entropy(target, jnp.array([0.0, 60.0, 0.0]))) == pytest.approx(60, abs=1e-3)


def test_9_an_agent_without_memory_stores_none():
    assert jax.tree.leaves(muesli_agent().start(3)) == []


@functools.cache
def starts(seed: int, role: str, generation: int = 0) -> frozenset:
    """First observations of 40 environments."""
    env = environments.make("CartPole-v1", 40, seed, role, generation=generation)
    return frozenset(tuple(observation) for observation in np.asarray(env.reset()[1].observation).tolist())


def test_10_evaluations_begin_in_different_places():
    assert len(starts(0, "eval")) == 40
    assert not starts(0, "eval") & starts(0, "eval", 1)
    assert not starts(0, "eval") & starts(1, "eval")


def test_13_training_and_evaluation_share_no_start():
    assert len(starts(0, "train")) == 40
    for seed in range(3):
        assert not starts(0, "train") & starts(seed, "eval")


def test_11_targets_beyond_the_support_are_counted():
    measure = quick_jit(
        lambda rows, target: AGENT.loss(
            MODEL, policy_of(AGENT, MODEL).state, batch_of(rows), target, jax.random.key(0)
        )[1]["target/support_overflow"]
    )

    def overflow(rows):
        target, _ = targets_of(rows)
        return float(measure(rows, target)), target

    rows = random_rows(5, 6, 8)
    assert overflow(rows)[0] == 0.0
    ends = np.asarray(episode_ends(rows))
    b, t = np.argwhere(~ends[:, :-1])[0]
    share, target = overflow(rows._replace(reward=rows.reward.at[b, t + 1].set(1e5)))
    assert share >= 1 / float(target.mask.sum()) - 1e-6
    # On a row that teaches nothing it is no target.
    b, t = np.argwhere(ends[:, :-1])[0]
    assert overflow(rows._replace(reward=rows.reward.at[b, t + 1].set(1e5)))[0] == 0.0


def test_14_reset_rows_and_masked_rows_do_not_count_in_the_advantages_scale():
    rows = random_rows(6, 6, 8)
    ends = np.asarray(episode_ends(rows))

    def scale(rows):
        target, state = targets_of(rows)
        return float(state.normalizer.scale(1e-12)), float(target.extras.per_batch["advantage_scale"])

    reward = np.asarray(rows.reward).copy()
    reward[:, 1:][ends[:, :-1]] = 1e6  # what a step that leads nowhere brought
    assert scale(rows._replace(reward=jnp.asarray(reward))) == pytest.approx(scale(rows), rel=1e-6)
    reward[:, 1:][~ends[:, :-1]] += 10.0
    assert scale(rows._replace(reward=jnp.asarray(reward)))[0] > 1.5 * scale(rows)[0]
