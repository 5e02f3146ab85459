"""Categorical policies: masks, entropies, divergences and the mixture prior."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bircher.ops import distributions

ACTIONS = 5
mixture = jax.jit(distributions.mixture_prior, static_argnums=(3, 4))

logits = arrays(np.float32, ACTIONS, elements=st.floats(-30, 30, width=32))
some_legal = arrays(np.bool_, ACTIONS).filter(lambda legal: legal.any())


def softmax(x) -> np.ndarray:
    e = np.exp(np.asarray(x, float) - np.max(x))
    return e / e.sum()


def masked_softmax(x, legal) -> np.ndarray:
    result = np.zeros(len(x))
    result[legal] = softmax(np.asarray(x, float)[legal])
    return result


@given(logits, logits, some_legal, st.sampled_from([(0.03, 0.003), (0.0, 0.0), (0.5, 0.5)]))
def test_the_mixture_prior(target, behavior, legal, shares):
    """A policy over the legal actions, each of its three parts with its share."""
    prior = np.asarray(mixture(target, behavior, legal, *shares))
    uniform = legal / legal.sum()
    rest = 1 - sum(shares)
    expected = rest * masked_softmax(target, legal) + shares[0] * masked_softmax(behavior, legal) + shares[1] * uniform
    np.testing.assert_allclose(prior, expected, rtol=1e-4, atol=1e-6)
    assert prior.sum() == pytest.approx(1, abs=1e-5)
    assert (prior[~legal] == 0).all()
    assert (prior[legal] >= 0.999 * shares[1] / legal.sum()).all()


@given(logits, st.integers(0, ACTIONS - 1))
def test_log_probability_and_entropy(x, action):
    p, shifted = softmax(x), x.astype(float) - x.max()
    expected = shifted[action] - math.log(np.exp(shifted).sum())
    ours = float(distributions.log_probability(jnp.asarray(x), jnp.int32(action)))
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)
    entropy = -sum(q * math.log(q) for q in p if q > 0)
    assert float(distributions.entropy(jnp.asarray(x))) == pytest.approx(entropy, rel=1e-3, abs=1e-5)


def test_masked_logits_have_no_probability_and_no_bad_gradient():
    legal = jnp.array([True, False, True])
    x = jnp.array([0.3, 5.0, -0.2])
    probabilities = jax.nn.softmax(distributions.mask_logits(x, legal))
    assert float(probabilities[1]) == 0.0
    gradient = jax.grad(lambda x: distributions.entropy(distributions.mask_logits(x, legal)))(x)
    assert np.isfinite(gradient).all() and float(gradient[1]) == 0.0 and float(jnp.abs(gradient[0])) > 0


def test_select_takes_the_entry_of_the_action_past_infinities():
    values = jnp.array([[1.0, -jnp.inf, 3.0], [4.0, 5.0, jnp.nan]])
    np.testing.assert_array_equal(distributions.select(values, jnp.array([2, 0])), [3.0, 4.0])


def test_kl_divergence():
    p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])
    assert float(distributions.kl_divergence(p, q)) == pytest.approx(0.5 * math.log(2))
    assert float(distributions.kl_divergence(p, p)) == 0.0
    assert float(distributions.kl_divergence(q, p)) > 10  # no mass where q has some
