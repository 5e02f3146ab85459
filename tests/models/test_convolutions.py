"""Every form of a convolution, and pooling, against JAX's own operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.networks import conv
from bircher.networks.conv import Convolution, average_pool, by_pairs, by_patches, convolve, directly, max_pool
from builders import quick_jit

KEY = jax.random.key(0)


def oracle(x, kernel, stride, pad):
    padding = "SAME" if pad else "VALID"
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def value_and_gradients(function, *arguments):
    """What the function gives, and the gradients of a weighted sum of it."""

    def total(*arguments):
        result = function(*arguments)
        return (result * jnp.cos(jnp.arange(result.size).reshape(result.shape))).sum(), result

    (_, result), gradients = quick_jit(jax.value_and_grad(total, argnums=tuple(range(len(arguments))), has_aux=True))(
        *arguments
    )
    return result, *gradients


def assert_alike(found, expected, **tolerance):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})


@pytest.mark.parametrize("form", [by_patches, by_pairs, lambda x, k, pad: directly(x, k, 1, pad)])
@pytest.mark.parametrize(("size", "width", "pad"), [(3, 7, True), (4, 8, False)])
def test_every_form_is_the_same_convolution(form, size, width, pad):
    x, kernel = jax.random.normal(KEY, (2, 6, width, 3)), jax.random.normal(KEY, (size, size, 3, 5))
    found = value_and_gradients(lambda x, k: form(x, k, pad), x, kernel)
    assert_alike(found, value_and_gradients(lambda x, k: oracle(x, k, 1, pad), x, kernel))


@pytest.mark.parametrize(("length", "size", "stride", "pad"), [(12, 3, 2, True), (13, 3, 2, True), (20, 8, 4, False)])
def test_strides_are_jaxs_own(length, size, stride, pad):
    convolution = Convolution(2, 4, size, KEY, pad, stride=stride)
    x = jax.random.normal(KEY, (2, 3, length, length, 2))
    expected = oracle(x.reshape(6, length, length, 2), convolution.weight.reshape(size, size, 2, 4), stride, pad)
    found = convolution(x)
    assert found.shape[-3] == conv.positions(length, size, stride, pad)
    np.testing.assert_allclose(found.reshape(expected.shape), expected + convolution.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "pad"),
    [(16, 20, 8, 4, False), (15, 23, 4, 2, False), (12, 13, 3, 2, True), (12, 13, 3, 1, True), (9, 8, 4, 1, True),
     (11, 10, 5, 3, False), (10, 9, 3, 2, False), (7, 6, 1, 2, True), (5, 4, 5, 2, True)],
)  # fmt: skip
def test_gradients_in_the_one_form_are_jaxs(height, width, size, stride, pad):
    """Also where rows and columns beyond the last patch take no part."""
    x, kernel = jax.random.normal(KEY, (3, height, width, 2)), jax.random.normal(KEY, (size, size, 2, 4))
    found = value_and_gradients(lambda x, k: directly(x, k, stride, pad), x, kernel)
    assert_alike(found, value_and_gradients(lambda x, k: oracle(x, k, stride, pad), x, kernel))


def test_gradients_of_many_terms_at_once_are_those_of_each():
    """The gauge maps a pullback over the loss terms."""
    x, kernel = jax.random.normal(KEY, (3, 12, 13, 2)), jax.random.normal(KEY, (8, 8, 2, 4))

    def terms(form):
        def both(x, kernel):
            result = form(x, kernel, 4, False)
            return jnp.stack([jnp.sin(result).sum(), jnp.square(result).mean()])

        return quick_jit(jax.jacrev(both, argnums=(0, 1)))(x, kernel)

    assert_alike(terms(directly), terms(oracle))


@pytest.mark.parametrize(
    ("side", "outputs", "size", "stride", "form"),
    [(10, 8, 3, 1, "by_patches"), (11, 8, 3, 1, "by_pairs"), (11, 32, 3, 1, "directly"), (40, 8, 1, 1, "by_patches"),
     (10, 8, 3, 2, "directly")],
)  # fmt: skip
def test_sizes_choose_the_form(monkeypatch, side, outputs, size, stride, form):
    called = []
    for name in ("by_patches", "by_pairs", "directly"):
        original = getattr(conv, name)
        monkeypatch.setattr(conv, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    jax.eval_shape(
        lambda x, k: convolve(x, k, stride), jnp.ones((1, side, side, 2)), jnp.ones((size, size, 2, outputs))
    )
    assert called == [form]


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (1, 2), (5, 4)])
def test_maxima_are_those_of_reduce_window_with_their_gradient(shape):
    def window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    x = jax.random.normal(KEY, (2, *shape, 3))
    assert_alike(value_and_gradients(max_pool, x), value_and_gradients(window, x), rtol=1e-6, atol=1e-6)


def test_equal_maxima_share_no_gradient_and_lose_none():
    """Screens have large areas of one color."""
    y, pullback = jax.vjp(max_pool, jnp.zeros((1, 6, 5, 1)))
    (gradient,) = pullback(jnp.ones_like(y))
    assert float(gradient.sum()) == y.size
    np.testing.assert_array_equal(gradient, gradient.round())


@pytest.mark.parametrize("shape", [(6, 4), (7, 5), (1, 3)])
def test_means_are_those_of_a_plain_loop(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    found = np.asarray(average_pool(jnp.asarray(x)))
    assert found.shape == (2, -(-shape[0] // 2), -(-shape[1] // 2), 3)
    for i, j in np.ndindex(found.shape[1:3]):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(found[:, i, j], window.mean((1, 2)), rtol=1e-5, atol=1e-6)
