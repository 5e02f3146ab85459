"""Gradients by term and part against one backward pass for each term."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher import metrics
from bircher.agents.base import weights_at
from bircher.analysis import network_summary, term_gradients
from bircher.networks.config import ModelConfig
from bircher.networks.model import Model
from bircher.ops import losses
from builders import SPEC, batch_of, muesli_agent, policy_of, quick_jit, random_model, random_rows

BATCH, LENGTH, NOW = 4, 6, 0.3
PARTS = {
    "encoder": "representation",
    "dynamics": "dynamics",
    "policy_head": "heads.policy",
    "value_head": "heads.value",
}


@pytest.fixture(scope="module")
def measured():
    agent, model = muesli_agent(), random_model(1)
    batch = batch_of(random_rows(3, BATCH, LENGTH))
    policy = policy_of(agent, model)
    targets, state = quick_jit(agent.targets)(policy, batch, jax.random.key(0))
    key = jax.random.key(1)
    found = quick_jit(lambda model: term_gradients.measure(agent, model, state, batch, targets, key, NOW))(model)

    def alone(model, name):
        terms, _ = agent.loss(model, state, batch, targets, key)
        mean = losses.masked_mean(terms[name] * batch.importance[:, None], targets.mask)
        return mean * weights_at(agent.weights, NOW)[name]

    slow = {name: quick_jit(jax.grad(alone), static_argnums=1)(model, name) for name in agent.weights}
    return found, slow


def part_of(gradient, path):
    for name in path.split("."):
        gradient = getattr(gradient, name)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


@pytest.mark.slow
def test_norms_are_those_of_each_terms_own_gradient(measured):
    found, slow = measured
    for part, path in PARTS.items():
        norms = [np.linalg.norm(part_of(gradient, path)) for gradient in slow.values()]
        np.testing.assert_allclose(found.norms[part], norms, rtol=2e-3, atol=1e-6, err_msg=part)


def test_cosines_are_those_of_the_encoders_gradients(measured):
    found, slow = measured
    vectors = [part_of(gradient, "representation") for gradient in slow.values()]
    unit = np.stack([vector / max(np.linalg.norm(vector), 1e-30) for vector in vectors])
    np.testing.assert_allclose(found.cosines, unit @ unit.T, atol=5e-3)


def test_logged_metrics_are_in_the_glossary_and_add_up(measured):
    found, slow = measured
    told = term_gradients.as_metrics(found, tuple(slow))
    metrics.check(told)
    assert sum(told[f"gradient/{name}_share"] for name in slow) == pytest.approx(1.0)
    assert told["gradient/value_policy_head"] == 0.0, "the value says nothing about the policy's head"
    assert all(-1.001 <= value <= 1.001 for name, value in told.items() if "cosine" in name)


def test_without_any_gradient_shares_are_nothing():
    zeros = jnp.zeros(2)
    told = term_gradients.as_metrics(
        term_gradients.TermGradients({"encoder": zeros}, zeros, jnp.zeros((2, 2))), ("value", "cmpo")
    )
    assert told["gradient/value_share"] == 0.0 and not any("cosine" in name for name in told)


@pytest.mark.slow
def test_every_part_of_a_recurrent_model_is_in_the_glossary() -> None:
    """Every parameter belongs to a part; the reader of grids is the only part that this model does not have."""
    config = ModelConfig(memory="lstm", memory_width=4, latent_width=6)
    model = Model(SPEC, config, jax.random.key(0), project=True)
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array))
    assert {network_summary.part_of(path) for path, _ in leaves} == {
        "encoder",
        "memory",
        "dynamics",
        "policy_head",
        "value_head",
        "reward_head",
        "projection",
    }
    assert set(network_summary.PART_OF_FIELD.values()) == set(metrics.PARTS)
