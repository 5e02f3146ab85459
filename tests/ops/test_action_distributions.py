"""Policies over actions of every kind, against SciPy, against enumeration, and against their own samples."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bircher.ops import distributions
from bircher.ops.distributions import Categorical, ClippedNormal, MultiCategorical, distribution_of
from bircher.types import Continuous, Discrete, MultiDiscrete
from builders import quick_jit

KEY = jax.random.key(0)
ALL = [Categorical(5), MultiCategorical((2, 3)), MultiCategorical((2, 2, 2)), ClippedNormal(1), ClippedNormal(3)]
kinds = pytest.mark.parametrize("kind", ALL, ids=str)
COUNTABLE = [kind for kind in ALL if kind.num_choices is not None]
parameters = arrays(np.float32, 6, elements=st.floats(-4, 4, width=32))


def params_of(kind, seed: int = 0, batch: tuple[int, ...] = ()) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*batch, kind.num_params)), jnp.float32)


@quick_jit
def measure_normal(p, q, action):
    kind = ClippedNormal(3)
    numbers = kind.log_prob(p, action), kind.entropy(p), kind.kl(p, q), kind.mode(p)
    return kind.moments(p), kind.moments(q), numbers


@given(parameters, parameters, arrays(np.float32, 3, elements=st.floats(-3, 3, width=32)))
def test_the_clipped_normal_is_scipys(p, q, action):
    moments, others, (log_prob, entropy, kl, mode) = measure_normal(p, q, action)
    mean, log_deviation = (np.asarray(x, float) for x in moments)
    other_mean, other_log_deviation = (np.asarray(x, float) for x in others)
    np.testing.assert_allclose(mean, np.tanh(p[:3].astype(float)), rtol=1e-5, atol=1e-6)
    assert (log_deviation > -3).all() and (log_deviation < 0.5).all()
    exact = stats.multivariate_normal(mean, np.diag(np.exp(2 * log_deviation)))
    assert float(log_prob) == pytest.approx(exact.logpdf(action), rel=1e-4, abs=1e-3)
    assert float(entropy) == pytest.approx(exact.entropy(), rel=1e-4, abs=1e-4)
    variance, other = np.exp(2 * log_deviation), np.exp(2 * other_log_deviation)
    expected = 0.5 * (np.log(other / variance) - 1 + (variance + (mean - other_mean) ** 2) / other).sum()
    assert float(kl) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    np.testing.assert_allclose(mode, mean, rtol=1e-6)


def test_a_new_networks_normal_covers_the_box():
    mean, log_deviation = ClippedNormal(2).moments(jnp.zeros(4))
    np.testing.assert_allclose(mean, 0.0)
    np.testing.assert_allclose(log_deviation, distributions.FIRST_LOG_DEVIATION, rtol=1e-5)


@pytest.mark.parametrize("kind", COUNTABLE, ids=str)
def test_countable_actions_by_enumeration(kind):
    """Probabilities sum to 1; entropy, divergence and mode are those of the listed probabilities."""
    p, q = params_of(kind, 1), params_of(kind, 2)
    actions = kind.all_actions()
    different = {tuple(np.atleast_1d(action)) for action in np.asarray(actions)}
    assert len(actions) == kind.num_choices == len(different)
    log_p, log_q = (np.asarray(kind.log_prob_many(x, actions), float) for x in (p, q))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
    assert float(kind.entropy(p)) == pytest.approx(stats.entropy(np.exp(log_p)), rel=1e-4)
    assert float(kind.kl(p, q)) == pytest.approx(stats.entropy(np.exp(log_p), np.exp(log_q)), rel=1e-4)
    np.testing.assert_array_equal(kind.mode(p), actions[log_p.argmax()])
    uniform = kind.uniform_log_prob(p, actions)
    np.testing.assert_allclose(uniform, -math.log(len(actions)), rtol=1e-5)


@kinds
def test_one_action_and_many_agree_over_any_axes(kind):
    params, key = params_of(kind, 3, (4, 2)), jax.random.key(1)
    actions = kind.sample_many(params, key, 7)
    assert actions.shape == (4, 2, 7, *kind.action_shape)
    many = kind.log_prob_many(params, actions)
    one = jnp.stack([kind.log_prob(params, actions[:, :, i]) for i in range(7)], axis=-1)
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
    # The element (b, t) alone gives what it gives within the batch.
    np.testing.assert_allclose(many[3, 1], kind.log_prob_many(params[3, 1], actions[3, 1]), rtol=1e-5, atol=1e-6)
    assert kind.sample(params, key).shape == kind.mode(params).shape == (4, 2, *kind.action_shape)
    assert kind.features(actions).shape == (4, 2, 7, kind.num_features)
    assert kind.uniform_many(params, key, 7).shape == actions.shape


@kinds
def test_samples_have_the_entropy_and_the_divergence(kind):
    """The means of -log p and of log p - log q over samples, within five standard errors."""
    p, q = params_of(kind, 4), params_of(kind, 5)
    drawn = kind.sample_many(p, KEY, 40_000)
    single = kind.sample(jnp.broadcast_to(p, (40_000, len(p))), jax.random.key(9))
    for actions in (drawn, single):
        log_p, log_q = (np.asarray(kind.log_prob_many(x, actions), float) for x in (p, q))
        for found, expected in ((-log_p, kind.entropy(p)), (log_p - log_q, kind.kl(p, q))):
            assert abs(found.mean() - float(expected)) < 5 * found.std() / math.sqrt(len(found)) + 1e-4


@kinds
def test_uniform_samples_and_the_mixture(kind):
    params = params_of(kind, 6)
    actions = kind.uniform_many(params, KEY, 5000)
    share = 0.1
    own, uniform = kind.log_prob_many(params, actions), kind.uniform_log_prob(params, actions)
    expected = np.log((1 - share) * np.exp(np.asarray(own, float)) + share * np.exp(np.asarray(uniform, float)))
    found = distributions.mixture_log_prob(kind, params, actions, share)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(distributions.mixture_log_prob(kind, params, actions, 0.0), own)
    features = np.asarray(kind.features(actions))
    middle = 0.0 if kind.num_choices is None else np.asarray(kind.features(kind.all_actions())).mean(0)
    np.testing.assert_allclose(features.mean(0), middle, atol=0.05)


def test_illegal_actions_are_never_drawn():
    kind, legal = Categorical(2000), np.zeros(2000, bool)
    legal[[0, 700, 1500]] = True
    params = kind.restrict(params_of(kind, 7, (50,)), jnp.broadcast_to(legal, (50, 2000)))
    for actions in (kind.sample_many(params, KEY, 200), kind.uniform_many(params, KEY, 200)):
        assert set(np.unique(actions)) == {0, 700, 1500}
    np.testing.assert_allclose(kind.uniform_log_prob(params, jnp.full((50, 1), 700)), -math.log(3), rtol=1e-5)


def test_a_normals_uniform_policy_lies_within_the_bounds():
    kind = ClippedNormal(2)
    actions = jnp.array([[0.3, -1.0], [1.01, 0.0]])
    np.testing.assert_allclose(kind.uniform_log_prob(jnp.zeros(4), actions), [-math.log(4), -math.inf], rtol=1e-6)
    np.testing.assert_allclose(kind.features(actions), [[0.3, -1.0], [1.0, 0.0]])
    assert (np.abs(kind.uniform_many(jnp.zeros(4), KEY, 100)) <= 1).all()


def test_each_space_has_its_distribution():
    assert distribution_of(Discrete(4, -1)) == Categorical(4)
    assert distribution_of(MultiDiscrete((2, 3), (2,), (0, 0))) == MultiCategorical((2, 3))
    assert distribution_of(Continuous((2, 3), (-1.0,) * 6, (1.0,) * 6)) == ClippedNormal(6)
    with pytest.raises(TypeError, match="cannot be listed"):
        ClippedNormal(1).all_actions()
