"""Operations are counted as by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bircher.analysis import network_summary

SIZES = st.integers(1, 7)


@pytest.mark.slow
@given(SIZES, SIZES, SIZES)
def test_a_matrix_product_is_two_for_each_of_its_multiplications(rows, inner, columns):
    assert (
        network_summary.count(jnp.matmul, jnp.ones((rows, inner)), jnp.ones((inner, columns)))
        == 2 * rows * inner * columns
    )


@given(SIZES, SIZES, SIZES, st.integers(1, 9))
def test_batches_and_scans_multiply(batch, rows, inner, rounds):
    def scanned(x, y):
        return jax.lax.scan(lambda carry, _: (carry, jax.vmap(jnp.dot)(x, y)), 0.0, None, length=rounds)[1]

    found = network_summary.count(scanned, jnp.ones((batch, rows, inner)), jnp.ones((batch, inner)))
    assert found == rounds * batch * 2 * rows * inner


def test_a_convolution_is_counted_as_a_loop_over_its_outputs():
    image, kernel, stride = np.ones((2, 3, 10, 8)), np.ones((5, 3, 3, 2)), (2, 1)
    found = network_summary.count(lambda x, k: jax.lax.conv(x, k, stride, "VALID"), image, kernel)
    outputs = 2 * 5 * ((10 - 3) // 2 + 1) * (8 - 2 + 1)
    assert found == outputs * 2 * 3 * 3 * 2


def test_a_grouped_convolution_has_a_group_of_inputs_for_each_output():
    image, kernel = np.ones((1, 4, 6, 6)), np.ones((8, 2, 3, 3))

    def grouped(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", feature_group_count=2)

    assert network_summary.count(grouped, image, kernel) == 2 * 8 * 36 * 2 * 9


def test_the_dearest_branch_counts_and_a_while_loop_once():
    x = jnp.ones((4, 4))

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def looped(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    assert network_summary.count(chosen, x) == 2 * 2 * 4**3
    assert network_summary.count(looped, x) == 2 * 4**3


def test_a_gradient_costs_its_two_products_more_and_is_found_inside_jit():
    weight, x = jnp.ones((8, 5)), jnp.ones((3, 8))
    loss = jax.jit(lambda weight, x: jnp.tanh(x @ weight).sum())
    assert network_summary.count(loss, weight, x) == 2 * 3 * 8 * 5
    assert network_summary.count(jax.grad(loss, (0, 1)), weight, x) == 3 * 2 * 3 * 8 * 5
