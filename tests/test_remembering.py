"""Agents with memory: what they act on is what they learn from, in training, search and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bircher
from bircher.agents.base import initial_memory
from bircher.analysis import model_error
from bircher.config.config import compose
from bircher.errors import ConfigError
from bircher.replay.batching import split_sequences
from bircher.runs import build
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Batch, Policy
from builders import quick_jit

RECALL = {
    "model.memory": "lstm", "model.memory_width": 8, "model.torso_widths": [8], "model.latent_width": 8,
    "model.dynamics_widths": [8], "model.head_widths": [], "model.unroll_steps": 2, "env.num_envs": 4,
    "loop.rollout_length": 12, "env.options": {"length": 3, "spread": 0}, "optimizer.batch_size": 4,
    "optimizer.updates_per_step": 1 / 12, "replay.capacity": 512, "evaluation.count": 0,
}  # fmt: skip
AGENTS = {
    "muesli": {}, "gumbel_muzero": {"search.num_simulations": 3, "agent.reanalyze_fraction": 0.5},
    "ppo": {"optimizer.minibatches": 2, "optimizer.batch_size": 2, "optimizer.updates_per_step": 1 / 6},
}  # fmt: skip


def parts_of(agent, **settings):
    """Agent, environments and a policy whose every parameter is away from zero."""
    config = compose("toy/recall", {**RECALL, "agent": agent, **AGENTS[agent], **settings})
    env = build.make_env(config, None, config.env.num_envs, 0, "train")
    parts = build.make_parts(config, env.spec)
    policy = parts.agent.init(jax.random.key(1), env.spec)
    leaves, structure = jax.tree.flatten(policy.params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return parts.agent, env, Policy(jax.tree.unflatten(structure, noisy), policy.state)


def played(agent, env, policy, length=12):
    state = start_actors(agent, env, jax.random.key(3))
    play = quick_jit(lambda state: collect_rollout(agent, env, policy, state, length, 0.0))
    for _ in range(2):  # the second rollout begins within episodes
        state, rows, _ = play(state)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("agent_name", AGENTS)
def test_rows_hold_the_memory_that_acted(agent_name):
    """From what stands in the first row, the latents of a whole rollout are those that acted, ends and all."""
    agent, env, policy = parts_of(agent_name)
    rows = played(agent, env, policy)
    assert rows.first[:, 1:].any() and not rows.first[:, 0].all()
    latents = quick_jit(agent.encode)(policy, rows)
    one = quick_jit(agent.encode)
    for t in range(rows.first.shape[1]):
        alone = one(policy, jax.tree.map(lambda x, t=t: x[:, t : t + 1], rows))
        np.testing.assert_allclose(latents[:, t], alone[:, 0], rtol=1e-4, atol=1e-5)
    value = policy.params.value(latents)
    if agent_name == "gumbel_muzero":
        assert np.isfinite(rows.extras.per_row["search_value"]).all()
    else:
        logits = policy.params.predict(latents).policy_logits
        np.testing.assert_allclose(rows.extras.per_action["behavior_logits"], logits, rtol=1e-4, atol=1e-5)
    assert float(value.std()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("agent_name", AGENTS)
def test_the_memory_gets_a_gradient_and_burn_in_rows_are_not_roots(agent_name):
    agent, env, policy = parts_of(agent_name, **({} if agent_name == "ppo" else {"model.burn_in": 3}))
    rows = played(agent, env, policy)
    batch = Batch(rows, jnp.full(4, -1), jnp.ones(4))
    targets, state = quick_jit(agent.targets)(policy, batch, jax.random.key(4))
    burned = 0 if agent_name == "ppo" else 3
    ends = np.asarray(rows.last[:, :-1] | rows.first[:, 1:])
    np.testing.assert_array_equal(targets.mask, ~ends & (np.arange(12) >= burned))

    def total(params):
        terms, _ = agent.loss(params, state, batch, targets, jax.random.key(5), with_metrics=False)
        return sum(jnp.where(targets.mask, term, 0.0).sum() for term in terms.values())

    gradients = quick_jit(jax.grad(total))(policy.params)
    for leaf in jax.tree.leaves(gradients.memory):
        assert float(jnp.abs(leaf).max()) > 0


@pytest.mark.slow
def test_segments_begin_with_the_memory_of_their_first_row():
    agent, env, policy = parts_of("muesli")
    rows = played(agent, env, policy)
    targets, _ = quick_jit(agent.targets)(policy, Batch(rows, jnp.full(4, -1), jnp.ones(4)), jax.random.key(4))
    cut, _ = split_sequences(Batch(rows, jnp.full(4, -1), jnp.ones(4)), targets, 4)
    np.testing.assert_array_equal(initial_memory(cut.trajectory)[1], rows.memory[0, 4])
    whole, parts = quick_jit(agent.encode)(policy, rows), quick_jit(agent.encode)(policy, cut.trajectory)
    np.testing.assert_allclose(parts[2, :5], whole[0, 8:13], rtol=1e-4, atol=1e-5)


def test_diagnosis_unrolls_from_the_stored_memory():
    agent, env, policy = parts_of("muesli")
    rows = played(agent, env, policy)
    forgetful = rows._replace(memory=jnp.zeros_like(rows.memory))
    measure = quick_jit(lambda rows: model_error.diagnose(agent, policy, rows, 2, jax.random.key(0)))
    assert float(measure(rows).policy_kl[0]) != float(measure(forgetful).policy_kl[0])


@pytest.mark.slow
@pytest.mark.parametrize("agent_name", ["muesli", pytest.param("gumbel_muzero", marks=pytest.mark.long)])
def test_a_loaded_agent_remembers_until_it_is_reset(tmp_path, agent_name):
    """By hand, row by row, an agent says what an evaluation's own loop would; a reset begins anew."""
    settings = {**RECALL, "agent": agent_name, **AGENTS[agent_name], "steps": 300}
    run = bircher.train("toy/recall", seed=0, out=tmp_path / "run", **settings)
    agent = bircher.load(run.path)
    env = build.make_env(agent.config, None, 5, 7, "eval")
    rows = []
    state, row = env.reset()
    for _ in range(4):
        rows.append(row)
        agent.act(np.asarray(row.observation), greedy=True)
        state, row = env.step(state, jnp.zeros(5, jnp.int32))
    held = agent._carry
    assert held is not None and float(jnp.abs(held.memory).max()) > 0
    with pytest.raises(ValueError, match=r"5 episodes are in memory, but 2 observations were given: call reset\(\)"):
        agent.act(np.asarray(row.observation)[:2])
    carry = agent.agent.start(5)
    act = quick_jit(lambda carry, row: agent.agent.act(agent.policy, carry, row, jax.random.key(0), "greedy", 1.0)[1])
    for one in rows:
        carry = act(carry, one)
    np.testing.assert_allclose(held.memory, carry.memory, rtol=1e-4, atol=1e-5)
    agent.reset(np.array([True, False, False, False, True]))
    agent.act(np.asarray(rows[0].observation), greedy=True)
    again = np.asarray(agent._carry.memory)
    agent.reset()
    agent.act(np.asarray(rows[0].observation), greedy=True)
    anew = np.asarray(agent._carry.memory)
    same = np.isclose(again, anew, rtol=1e-4, atol=1e-5).all(-1)
    np.testing.assert_array_equal(same, [True, False, False, False, True])
    with pytest.raises(
        ValueError, match="`where` has the shape .*: expected one True or False for each of the 5 episodes"
    ):
        agent.reset(np.zeros(3, bool))
    thought = agent.think
    agent.reset()
    assert thought(np.asarray(rows[0].observation)[:1], greedy=True).action in (0, 1)


def test_settings_that_a_memory_cannot_learn_from_are_refused_by_name():
    for settings, sentence in (
        ({"agent": "ppo", "optimizer.segment_length": 1}, "optimizer.segment_length=1 cuts sequences into single rows"),
        ({"model.burn_in": 12}, "model.burn_in=12 leaves no row of a sequence's 12 rows"),
        ({"model.burn_in": 2, "optimizer.crop_length": 4}, "model.burn_in=2 counts the first rows of whole sequences"),
        ({"replay.symmetries": True}, "replay.symmetries=true transforms observations, but cannot"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            compose("toy/recall", {**RECALL, **AGENTS.get(settings.get("agent", "muesli"), {}), **settings})
    assert compose("toy/recall", {**RECALL, "agent": "ppo", **AGENTS["ppo"]}).optimizer.segment_length is None
