"""Returns against plain loops, hand values and rlax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from bircher.ops import returns

BATCH, LENGTH = 40, 7

retrace = jax.jit(jax.vmap(returns.retrace))
lambda_returns = jax.jit(jax.vmap(returns.lambda_returns))
generalized_advantages = jax.jit(jax.vmap(returns.generalized_advantages))
v_trace = jax.jit(jax.vmap(returns.v_trace))


def sequences(seed: int, *names: str) -> dict[str, np.ndarray]:
    """[B, T] numbers: rewards and values any, ratios and lambdas in [0, 1], discounts sometimes 0, ends marked by 0."""
    rng = np.random.default_rng(seed)
    kinds = {
        "r": lambda: rng.normal(size=(BATCH, LENGTH)),
        "v": lambda: 3 * rng.normal(size=(BATCH, LENGTH)),
        "v_tm1": lambda: 3 * rng.normal(size=(BATCH, LENGTH)),
        "q": lambda: 3 * rng.normal(size=(BATCH, LENGTH)),
        "c": lambda: rng.uniform(size=(BATCH, LENGTH)),
        "rho": lambda: rng.uniform(0, 2, size=(BATCH, LENGTH)),
        "discount": lambda: 0.97 * (rng.uniform(size=(BATCH, LENGTH)) > 0.2),
        "goes_on": lambda: (rng.uniform(size=(BATCH, LENGTH)) > 0.25).astype(float),
    }
    return {name: kinds[name]().astype(np.float32) for name in names}


def test_retrace_is_the_sum_of_corrected_errors():
    """Munos' own form: q at the start plus the sum of discounted, trace-weighted one-step errors."""
    x = sequences(0, "r", "discount", "q", "v", "c")
    r, discount, q, v, c = (x[name].astype(float) for name in ("r", "discount", "q", "v", "c"))
    expected = np.zeros((BATCH, LENGTH))
    for b in range(BATCH):
        for start in range(LENGTH):
            total, weight = 0.0, 1.0
            for t in range(start, LENGTH):
                # q at the start cancels in q + (r + discount v - q): take 0 there.
                before = q[b, t - 1] if t > start else 0.0
                total += weight * (r[b, t] + discount[b, t] * v[b, t] - before)
                weight *= discount[b, t] * c[b, t]
            expected[b, start] = total
    np.testing.assert_allclose(retrace(*x.values()), expected, rtol=1e-4, atol=1e-4)


def test_retrace_equals_rlax():
    x = sequences(1, "r", "discount", "q", "v", "c")
    oracle = jax.vmap(lambda r, d, q, v, c: rlax.general_off_policy_returns_from_q_and_v(q[:-1], v, r, d, c[:-1]))
    np.testing.assert_allclose(retrace(*x.values()), oracle(*x.values()), rtol=1e-5, atol=1e-5)


def test_retrace_of_policies_equals_rlax():
    """With the ratios and the expectation made from policies, as Muesli does."""
    rng = np.random.default_rng(2)
    q = rng.normal(size=(LENGTH, 3)).astype(np.float32)
    pi, mu = (rng.dirichlet(np.ones(3), size=LENGTH).astype(np.float32) for _ in range(2))
    a = rng.integers(3, size=LENGTH)
    r, discount = rng.normal(size=LENGTH).astype(np.float32), np.full(LENGTH, 0.9, np.float32)
    rows = np.arange(LENGTH)
    c = 0.95 * np.minimum(1, pi[rows, a] / mu[rows, a])
    q_tm1 = np.zeros((LENGTH, 3), np.float32)
    errors = rlax.retrace(
        q_tm1, jnp.asarray(q), jnp.asarray(a), jnp.asarray(a), r, discount, pi, mu[rows, a], 0.95, eps=0.0
    )
    ours = returns.retrace(*map(jnp.asarray, (r, discount, q[rows, a], (pi * q).sum(-1), c)))
    np.testing.assert_allclose(ours, errors, rtol=1e-5, atol=1e-5)


def test_retrace_by_hand():
    """Three steps, gamma 0.5; the episode is cut after the second, so its trace stops and its value bootstraps."""
    r = jnp.array([1.0, 2.0, 4.0])
    v, q = jnp.array([10.0, 20.0, 30.0]), jnp.array([12.0, 99.0, 99.0])
    third = 4 + 0.5 * 30
    second = 2 + 0.5 * 20
    first = 1 + 0.5 * (10 - 0.8 * 12 + 0.8 * second)
    ours = returns.retrace(r, jnp.full(3, 0.5), q, v, jnp.array([0.8, 0.0, 0.7]))
    np.testing.assert_allclose(ours, [first, second, third], rtol=1e-6)
    # A death instead: nothing after it counts, whatever the trace says.
    died = returns.retrace(r, jnp.array([0.5, 0.0, 0.5]), q, v, jnp.array([0.8, 0.9, 0.7]))
    np.testing.assert_allclose(died, [1 + 0.5 * (10 - 0.8 * 12 + 0.8 * 2), 2.0, third], rtol=1e-6)


@given(st.integers(0, 2**31))
def test_retrace_leaves_exact_values_alone(seed):
    """Where q already obeys its own Bellman equation, every trace coefficient gives q back."""
    x = sequences(seed, "discount", "q", "v", "c")
    q_tm1 = sequences(seed + 1, "q")["q"]
    q_t = np.roll(q_tm1, -1, axis=1)
    r = q_tm1 - x["discount"] * x["v"]
    np.testing.assert_allclose(retrace(r, x["discount"], q_t, x["v"], x["c"]), q_tm1, rtol=1e-4, atol=1e-4)


def test_lambda_returns_are_mixtures_of_n_step_returns():
    x = sequences(3, "r", "discount", "v", "c")
    r, discount, v, weight = (value.astype(float) for value in x.values())
    expected = np.zeros((BATCH, LENGTH))
    for b in range(BATCH):
        for start in range(LENGTH):
            mixture, going, earned, factor = 0.0, 1.0, 0.0, 1.0
            for t in range(start, LENGTH):
                earned += factor * r[b, t]
                factor *= discount[b, t]
                stop = 1.0 if t == LENGTH - 1 else 1 - weight[b, t]
                mixture += going * stop * (earned + factor * v[b, t])
                going *= weight[b, t]
            expected[b, start] = mixture
    np.testing.assert_allclose(lambda_returns(*x.values()), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lambda_returns(*x.values()), jax.vmap(rlax.lambda_returns)(*x.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_n_step_returns(n):
    """A plain loop that stops where the episode was cut, after n steps, or at the sequence's end."""
    x = sequences(4, "r", "discount", "v", "goes_on")
    ours = jax.vmap(lambda r, d, v, c: returns.n_step_returns(r, d, v, n, c))
    r, discount, v, goes_on = (value.astype(float) for value in x.values())
    expected = np.zeros((BATCH, LENGTH))
    for b in range(BATCH):
        for start in range(LENGTH):
            total, factor = 0.0, 1.0
            for t in range(start, min(start + n, LENGTH)):
                total += factor * r[b, t]
                factor *= discount[b, t]
                if goes_on[b, t] == 0:
                    break
            expected[b, start] = total + factor * v[b, t]
    np.testing.assert_allclose(ours(*x.values()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_n_step_returns_equal_rlax(n):
    x = sequences(5, "r", "discount", "v")
    ours = jax.vmap(lambda r, d, v: returns.n_step_returns(r, d, v, n))(*x.values())
    oracle = jax.vmap(lambda r, d, v: rlax.n_step_bootstrapped_returns(r, d, v, n))(*x.values())
    np.testing.assert_allclose(ours, oracle, rtol=1e-5, atol=1e-5)


def test_generalized_advantages():
    x = sequences(6, "r", "discount", "c", "v_tm1", "v")
    r, discount, weight, v_tm1, v = (value.astype(float) for value in x.values())
    expected = np.zeros((BATCH, LENGTH))
    for b in range(BATCH):
        for start in range(LENGTH):
            factor = 1.0
            for t in range(start, LENGTH):
                expected[b, start] += factor * (r[b, t] + discount[b, t] * v[b, t] - v_tm1[b, t])
                factor *= discount[b, t] * weight[b, t]
    np.testing.assert_allclose(generalized_advantages(*x.values()), expected, rtol=1e-4, atol=1e-4)


def test_generalized_advantages_equal_rlax():
    x = sequences(7, "r", "discount", "c", "v")
    values = np.concatenate([sequences(8, "v")["v"][:, :1], x["v"]], axis=1)
    oracle = jax.vmap(rlax.truncated_generalized_advantage_estimation)(x["r"], x["discount"], x["c"], values)
    ours = generalized_advantages(x["r"], x["discount"], x["c"], values[:, :-1], values[:, 1:])
    np.testing.assert_allclose(ours, oracle, rtol=1e-5, atol=1e-5)


def test_v_trace():
    """IMPALA's sum, with the trace cut where an episode was cut."""
    x = sequences(9, "r", "discount", "v_tm1", "v", "rho", "c", "goes_on")
    r, discount, v_tm1, v, rho, c, goes_on = (value.astype(float) for value in x.values())
    rho = np.minimum(rho, 1)
    values, qs = np.zeros((BATCH, LENGTH)), np.zeros((BATCH, LENGTH))
    for b in range(BATCH):
        for start in reversed(range(LENGTH)):
            error, factor = 0.0, 1.0
            for t in range(start, LENGTH):
                error += factor * rho[b, t] * (r[b, t] + discount[b, t] * v[b, t] - v_tm1[b, t])
                factor *= discount[b, t] * c[b, t] * goes_on[b, t]
            values[b, start] = v_tm1[b, start] + error
            after = 0.0
            if start < LENGTH - 1 and goes_on[b, start]:
                after = values[b, start + 1] - v_tm1[b, start + 1]
            qs[b, start] = r[b, start] + discount[b, start] * (v[b, start] + after)
    ours = v_trace(*map(jnp.asarray, (r, discount, v_tm1, v, rho, c, goes_on)))
    np.testing.assert_allclose(ours[0], values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], qs, rtol=1e-4, atol=1e-4)


def test_v_trace_equals_rlax():
    x = sequences(10, "r", "discount", "rho")
    values = np.concatenate([sequences(11, "v")["v"][:, :1], sequences(12, "v")["v"]], axis=1)
    oracle = jax.vmap(rlax.vtrace_td_error_and_advantage)(
        values[:, :-1], values[:, 1:], x["r"], x["discount"], x["rho"]
    )
    rho = np.minimum(x["rho"], 1)
    ours = v_trace(x["r"], x["discount"], values[:, :-1], values[:, 1:], rho, rho, np.ones_like(rho))
    np.testing.assert_allclose(ours[0] - values[:, :-1], oracle.errors, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], oracle.q_estimate, rtol=1e-4, atol=1e-4)


def test_a_batch_is_refused():
    """The functions take one sequence; a batch must be mapped over, never be taken for time."""
    batch = jnp.ones((2, 3))
    with pytest.raises(Exception, match="(?i)rank|type-check"):
        returns.retrace(batch, batch, batch, batch, batch)
