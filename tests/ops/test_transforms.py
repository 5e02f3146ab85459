"""Scalars as categories: h and its inverse, two-hot targets, and the way back."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from bircher.ops.transforms import (
    FILL,
    Bounded,
    Support,
    Unbounded,
    scale_gradient,
    signed_hyperbolic,
    signed_parabolic,
)

PAPER = Support(-300.0, 300.0, 601)
SUPPORTS = (PAPER, Support(-20.0, 20.0, 101), Support(-7.3, 7.3, 37, False), Support(-2.0, 10.0, 64, False))
TWO_HOT = {support: jax.jit(support.two_hot) for support in SUPPORTS}
MEAN = {support: jax.jit(support.mean) for support in SUPPORTS}

scalars = st.floats(-58_000, 58_000, width=32)


def h(x: float) -> float:
    """The transform in double precision, by its formula."""
    return math.copysign(math.sqrt(abs(x) + 1) - 1, x) + 1e-3 * x


def log_weights(weights) -> jax.Array:
    """Logits whose softmax is the weights."""
    return jnp.log(jnp.maximum(weights, 1e-30))


@given(scalars)
def test_signed_hyperbolic_is_its_formula(x):
    assert float(signed_hyperbolic(jnp.float32(x))) == pytest.approx(h(x), rel=2e-6, abs=1e-9)


@given(scalars)
def test_signed_parabolic_is_the_inverse(x):
    assert float(signed_parabolic(jnp.float32(h(x)))) == pytest.approx(x, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_the_pair_equals_rlax():
    x = jnp.concatenate([-jnp.logspace(-3, 4.7, 200)[::-1], jnp.zeros(1), jnp.logspace(-3, 4.7, 200)])
    np.testing.assert_allclose(signed_hyperbolic(x), rlax.signed_hyperbolic(x), rtol=1e-4, atol=1e-6)
    y = jnp.linspace(-290, 290, 401)
    np.testing.assert_allclose(signed_parabolic(y), rlax.signed_parabolic(y), rtol=3e-3, atol=1e-3)
    np.testing.assert_allclose(signed_parabolic(signed_hyperbolic(x, 0.0), 0.0), x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("support", "reach"), [(300.0, 58_706), (30.0, 905), (15.0, 247)])
def test_ranges_of_the_papers_supports(support, reach):
    assert float(signed_parabolic(jnp.float32(support))) == pytest.approx(reach, abs=1)


@pytest.mark.parametrize("support", SUPPORTS)
@given(st.floats(-1.2, 1.2))
def test_two_hot_round_trip_over_the_whole_support_and_beyond(support, share):
    """Two neighbors at most, mass 1, and h(x) as expectation; beyond the ends all of it lies on the end."""
    middle, half = (support.high + support.low) / 2, (support.high - support.low) / 2
    scaled = middle + share * half
    x = float(signed_parabolic(jnp.float32(scaled))) if support.transform else scaled
    weights = np.asarray(TWO_HOT[support](jnp.float32(x)), np.float64)
    used = np.flatnonzero(weights)
    assert 1 <= len(used) <= 2 and used[-1] - used[0] <= 1 and (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    clipped = min(max(scaled, support.low), support.high)
    assert weights @ np.asarray(support.atoms, np.float64) == pytest.approx(clipped, abs=1e-4 * half)
    if abs(share) > 1.001:
        assert weights[0 if share < 0 else -1] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("support", SUPPORTS)
@given(st.floats(-0.999, 0.999))
def test_the_mean_of_a_two_hot_prediction_is_the_scalar(support, share):
    middle, half = (support.high + support.low) / 2, (support.high - support.low) / 2
    scaled = middle + share * half
    x = float(signed_parabolic(jnp.float32(scaled))) if support.transform else scaled
    assert float(MEAN[support](log_weights(TWO_HOT[support](jnp.float32(x))))) == pytest.approx(x, rel=1e-4, abs=2e-3)


def test_every_atom_is_its_own_two_hot():
    support = Support(-3.0, 3.0, 7, False)
    np.testing.assert_array_equal(support.two_hot(jnp.arange(-3.0, 4.0)), np.eye(7))
    np.testing.assert_allclose(support.two_hot(jnp.float32(1.25)), [0, 0, 0, 0, 0.75, 0.25, 0])


@pytest.mark.parametrize("support", [*SUPPORTS[:3], Unbounded()])
def test_a_unit_that_follows_returns_takes_any_scale_of_them(support):
    """A thousand times the returns have the same targets and losses, and a thousand times the predictions."""
    x, logits = jnp.linspace(-3.0, 2.5, 23), jax.random.normal(jax.random.key(0), (23, support.num_atoms))
    small, large = support.following(jnp.float32(3.0)), support.following(jnp.float32(3000.0))
    np.testing.assert_allclose(large.mean(logits), 1000 * small.mean(logits), rtol=1e-5)
    np.testing.assert_allclose(large.loss(1000 * x, logits), small.loss(x, logits), rtol=1e-4, atol=1e-5)
    assert not large.overflow(1000 * x).any() and not small.overflow(x).any()
    unknown = support.following(jnp.float32(0.0))
    np.testing.assert_array_equal(unknown.mean(logits), support.mean(logits))
    np.testing.assert_array_equal(unknown.loss(x, logits), support.loss(x, logits))


@pytest.mark.parametrize("support", SUPPORTS[:3])
def test_the_largest_return_is_near_the_end_of_the_support(support):
    following = support.following(jnp.float32(7.0))
    assert float(following.scale(jnp.float32(7.0))) == pytest.approx(FILL * support.high, rel=1e-4)
    assert float(following.scale(jnp.float32(-7.0))) == pytest.approx(-FILL * support.high, rel=1e-4)


def test_the_outcome_of_a_game_has_one_unit():
    assert Bounded().following(jnp.float32(0.5)) == Bounded()


@pytest.mark.slow
def test_two_hot_equals_rlax():
    x = jnp.linspace(-25.0, 25.0, 203)
    ours = Support(-20.0, 20.0, 101, False).two_hot(x)
    np.testing.assert_allclose(ours, rlax.transform_to_2hot(x, -20.0, 20.0, 101), atol=1e-4)
    both = rlax.transform_to_2hot(rlax.signed_hyperbolic(40 * x), -20.0, 20.0, 101)
    np.testing.assert_allclose(Support(-20.0, 20.0, 101).two_hot(40 * x), both, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "atoms"), [(300.0, 601), (30.0, 61), (20.0, 101), (15.0, 51), (7.3, 64)])
@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_equal_logits_are_exactly_zero(limit, atoms, transform, shape):
    """Not nearly: with no reward seen, advantages are divided by a scale of 1e-6."""
    support = Support(-limit, limit, atoms, transform)
    logits = jnp.full((*shape, atoms), 0.7)
    np.testing.assert_array_equal(jax.jit(support.mean)(logits), np.zeros(shape))
    np.testing.assert_array_equal(support.mean(logits), np.zeros(shape))


def test_the_inverse_is_taken_after_the_expectation():
    """Trap 7: half the mass on h = 0 and half on h = 10 is h^-1(5), not the mean of the two scalars."""
    support = Support(-10.0, 10.0, 21)
    weights = jnp.zeros(21).at[10].set(0.5).at[20].set(0.5)
    after, before = float(signed_parabolic(jnp.float32(5.0))), float(signed_parabolic(jnp.float32(10.0))) / 2
    assert before > after + 20
    assert float(support.mean(log_weights(weights))) == pytest.approx(after, rel=1e-5)


def test_overflow_marks_clipped_targets():
    support = Support(-15.0, 15.0, 51)
    x = jnp.array([-1e4, -248.0, -246.0, 0.0, 246.0, 248.0, 1e4])
    np.testing.assert_array_equal(support.overflow(x), [True, True, False, False, False, True, True])


@given(st.floats(-10, 10, width=32), st.floats(0, 1, width=32))
def test_scale_gradient_keeps_the_value(x, scale):
    value, gradient = jax.value_and_grad(lambda x: scale_gradient(x, scale))(jnp.float32(x))
    assert float(value) == pytest.approx(x, rel=1e-6, abs=1e-6)
    assert float(gradient) == pytest.approx(scale)
