"""Cross-entropies as excess, masked means, and how terms are combined."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bircher.ops import losses

CLASSES = 5
excess = jax.jit(losses.excess_cross_entropy)
excess_gradient = jax.jit(jax.grad(losses.excess_cross_entropy, argnums=1))
plain_gradient = jax.jit(jax.grad(lambda target, logits: -(target * jax.nn.log_softmax(logits)).sum(-1), argnums=1))

masses = arrays(np.float32, CLASSES, elements=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])).filter(lambda x: x.sum() > 0)
logits = arrays(np.float32, CLASSES, elements=st.floats(-20, 20, width=32))


@given(masses, logits)
def test_excess_cross_entropy(target, x):
    """Cross-entropy less the target's entropy; for a mass m, m times the divergence; the cross-entropy's gradient."""
    mass = target.astype(float).sum()
    p = target.astype(float) / mass
    log_q = x.astype(float) - x.max() - np.log(np.exp(x.astype(float) - x.max()).sum())
    divergence = sum(a * (np.log(a) - b) for a, b in zip(p, log_q, strict=True) if a > 0)
    assert float(excess(target, x)) == pytest.approx(mass * divergence, rel=1e-4, abs=1e-4)
    assert float(excess(target, x)) >= -1e-4
    np.testing.assert_allclose(excess_gradient(target, x), plain_gradient(target, x), rtol=1e-4, atol=1e-5)


@given(masses)
def test_excess_cross_entropy_is_zero_at_its_best(target):
    at_best = jnp.log(jnp.maximum(target, 1e-30))
    assert float(excess(target, at_best)) == pytest.approx(0, abs=1e-5)
    uniform = np.full(CLASSES, 1 / CLASSES, np.float32)
    assert float(excess(uniform, np.zeros(CLASSES, np.float32))) == pytest.approx(0, abs=1e-6)  # not log 5


def test_masked_mean_counts_valid_rows_only():
    values = jnp.array([[1.0, jnp.nan], [3.0, 100.0]])
    assert float(losses.masked_mean(values, jnp.array([[True, False], [True, False]]))) == 2.0
    assert float(losses.masked_mean(values, jnp.zeros((2, 2), bool))) == 0.0


def test_combine_weighs_each_term_and_reports_both():
    terms = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.full((2, 2), 10.0)}
    mask = jnp.array([[True, True], [True, False]])
    total, metrics = losses.combine(terms, {"a": 2.0, "b": 0.5}, mask, jnp.array([1.0, 0.5]))
    mean_a, mean_b = (1 + 2 + 0.5 * 3) / 3, (10 + 10 + 5) / 3
    assert float(total) == pytest.approx(2 * mean_a + 0.5 * mean_b)
    expected = {"loss/a": mean_a, "weighted/a": 2 * mean_a, "loss/b": mean_b, "weighted/b": 0.5 * mean_b}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}])
def test_combine_refuses_names_that_differ(weights):
    terms = {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 1))}
    with pytest.raises(ValueError, match="differ") as refusal:
        losses.combine(terms, weights, jnp.ones((1, 1), bool), jnp.ones(1))
    wrong = sorted(set(weights) ^ set(terms))
    assert all(repr(name) in str(refusal.value) for name in wrong)
