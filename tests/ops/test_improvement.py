"""CMPO, exact and sampled, and the scale of advantages."""

from __future__ import annotations

import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bircher.ops import distributions, improvement
from bircher.ops.improvement import AdvantageNormalizer
from bircher.types import PolicyTarget

ACTIONS = 6
# Six actions whose z is 1.69 for c = 1; found by search to agree with the published sums of item 4.
PRIOR = np.array([0.058, 0.036, 0.055, 0.327, 0.077, 0.447])
ADVANTAGE = np.array([-1.0, -0.904, -0.184, -0.042, -0.003, 1.0])

cmpo = jax.jit(improvement.cmpo_policy, static_argnums=2)
sampled_weights = jax.jit(improvement.sampled_cmpo_weights, static_argnums=1)

priors = arrays(np.float64, ACTIONS, elements=st.floats(1e-6, 1)).map(lambda x: (x / x.sum()).astype(np.float32))
advantages = arrays(np.float32, ACTIONS, elements=st.floats(-20, 20, width=32))


def total_variation(p, q) -> float:
    return 0.5 * float(np.abs(np.asarray(p, float) - np.asarray(q, float)).sum())


@given(priors, advantages, st.sampled_from([0.5, 1.0, 2.0]))
def test_cmpo_is_its_formula_and_never_passes_its_bound(prior, advantage, clip_bound):
    policy = np.asarray(cmpo(prior, advantage, clip_bound))
    raw = [p * math.exp(min(max(a, -clip_bound), clip_bound)) for p, a in zip(prior, advantage, strict=True)]
    np.testing.assert_allclose(policy, np.array(raw) / sum(raw), rtol=1e-4, atol=1e-6)
    assert policy.sum() == pytest.approx(1, abs=1e-5)
    assert total_variation(policy, prior) <= math.tanh(clip_bound / 2) + 1e-5


@pytest.mark.parametrize(("clip_bound", "bound"), [(0.5, 0.24492), (1.0, 0.46212), (2.0, 0.76159)])
@pytest.mark.parametrize("excess", [1.0, 50.0])
def test_cmpo_reaches_its_bound_with_two_actions(clip_bound, bound, excess):
    """Advantages +c and -c, or far beyond them on both sides: the clip is symmetric."""
    p = 1 / (1 + math.exp(clip_bound))
    prior = jnp.array([p, 1 - p])
    policy = improvement.cmpo_policy(prior, excess * jnp.array([clip_bound, -clip_bound]), clip_bound)
    assert total_variation(policy, prior) == pytest.approx(math.tanh(clip_bound / 2), abs=1e-5)
    assert total_variation(policy, prior) == pytest.approx(bound, abs=1.5e-5)


@given(priors, advantages)
def test_cmpo_changes_the_policy(prior, advantage):
    """Trap 1: where advantages differ inside the clip, the policy moves; where they do not, it stays."""
    clipped = np.clip(advantage, -1, 1)
    divergence = float(distributions.kl_divergence(cmpo(prior, advantage, 1.0), jnp.asarray(prior)))
    mean = (prior * clipped).sum()
    if (prior * (clipped - mean) ** 2).sum() > 1e-4:
        assert divergence > 1e-6
    same = cmpo(prior, np.full(ACTIONS, advantage[0]), 1.0)
    np.testing.assert_allclose(same, prior, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_an_advantage_for_each_state_is_refused(shape):
    """Trap 1: broadcast over the actions it would cancel in silence."""
    prior = jnp.full((4, ACTIONS), 1 / ACTIONS)
    unchecked = inspect.unwrap(improvement.cmpo_policy)  # as users run it, without the checker of types
    with pytest.raises(ValueError, match="one advantage per action"):
        unchecked(prior, jnp.ones(shape), 1.0)


def expected_sum(num_samples: int) -> float:
    """The expectation of the weights' sum for N samples, over every outcome or by many draws, in plain NumPy."""
    exponentials = np.exp(np.clip(ADVANTAGE, -1, 1))
    if num_samples <= 4:
        total = 0.0
        for outcome in itertools.product(range(ACTIONS), repeat=num_samples):
            e = exponentials[list(outcome)]
            z = [(1 + e.sum() - e[i]) / num_samples for i in range(num_samples)]
            total += PRIOR[list(outcome)].prod() * sum(e[i] / z[i] for i in range(num_samples)) / num_samples
        return total
    e = exponentials[np.random.default_rng(0).choice(ACTIONS, p=PRIOR, size=(40_000, num_samples))]
    z = (1 + e.sum(1, keepdims=True) - e) / num_samples
    return float((e / z / num_samples).sum(1).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("num_samples", "published"), [(1, 1.69), (2, 1.43), (4, 1.21), (16, 1.047), (64, 1.011)])
def test_sampled_weights_sum_as_published(num_samples, published):
    """Consistent, not unbiased: z is 1.69, and the sums fall toward 1 (1.68 is a sampled 1.69)."""
    assert (PRIOR * np.exp(np.clip(ADVANTAGE, -1, 1))).sum() == pytest.approx(1.69, abs=0.005)
    assert expected_sum(num_samples) == pytest.approx(published, abs=0.02)
    actions = np.random.default_rng(1).choice(ACTIONS, p=PRIOR, size=(40_000, num_samples))
    weights = sampled_weights(jnp.asarray(ADVANTAGE, jnp.float32)[actions], 1.0)
    assert float(weights.sum(1).mean()) == pytest.approx(expected_sum(num_samples), abs=0.02)


@given(arrays(np.float32, 5, elements=st.floats(-3, 3, width=32)))
def test_sampled_weights_leave_their_own_sample_out(advantage):
    e = [math.exp(min(max(a, -0.5), 0.5)) for a in advantage]
    expected = [e[i] / (5 * ((1 + sum(e[k] for k in range(5) if k != i)) / 5)) for i in range(5)]
    np.testing.assert_allclose(sampled_weights(advantage, 0.5), expected, rtol=1e-4)


@pytest.mark.slow
def test_the_sampled_target_tends_to_the_exact_policy():
    prior, advantage = jnp.asarray(PRIOR, jnp.float32), jnp.asarray(ADVANTAGE, jnp.float32)
    exact = improvement.cmpo_policy(prior, advantage, 1.0)
    errors = []
    for num_samples in (16, 256, 4096):
        target = improvement.sampled_cmpo_target(jax.random.key(0), prior, advantage, 1.0, num_samples)
        errors.append(total_variation(improvement.dense(target, ACTIONS), exact))
    assert errors[0] > errors[2] and errors[2] < 0.02


def test_the_sampled_target_draws_for_each_row_from_its_own_prior():
    """Illegal actions, of probability 0, are never drawn; weights belong to the actions that were."""
    prior = jnp.array([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0], [0.2, 0.0, 0.8]]])
    advantage = jnp.array([[[1.0, -1.0, 9.0], [9.0, 9.0, 0.5]], [[9.0, 0.0, 9.0], [0.5, 9.0, -0.5]]])
    target = improvement.sampled_cmpo_target(jax.random.key(1), prior, advantage, 2.0, 8)
    assert target.actions.shape == target.weights.shape == (2, 2, 8)
    for row in np.ndindex(2, 2):
        actions = np.asarray(target.actions[row])
        assert (np.asarray(prior[row])[actions] > 0).all()
        expected = improvement.sampled_cmpo_weights(advantage[row][actions], 2.0)
        np.testing.assert_allclose(target.weights[row], expected, rtol=1e-6)
    assert len(set(np.asarray(target.actions[0, 0]).tolist())) == 2


def test_dense_adds_the_weights_of_repeated_actions():
    target = improvement.exact_target(jnp.array([[0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(improvement.dense(target, 3), [[0.2, 0.3, 0.5]])
    twice = type(target)(jnp.array([[1, 1, 0]]), jnp.array([[0.25, 0.5, 0.125]]))
    np.testing.assert_allclose(improvement.dense(twice, 3), [[0.125, 0.75, 0.0]])


def test_dense_of_many_actions_gives_the_same_without_a_table_of_pairs(monkeypatch):
    key, few = jax.random.key(0), (3, 5, 40)
    target = PolicyTarget(jax.random.randint(key, few, 0, 7), jax.random.uniform(key, few))
    expected = improvement.dense(target, 7)
    monkeypatch.setattr(improvement, "DENSE_PAIRS", 40 * 7 - 1)
    np.testing.assert_allclose(improvement.dense(target, 7), expected, rtol=1e-5)
    monkeypatch.undo()
    # The targets of twelve sequences over 2,000 actions: a table of pairs would take 3 GiB.
    shape = jax.ShapeDtypeStruct((12, 16, 2000), jnp.float32)
    program = jax.jit(lambda p: improvement.dense(improvement.exact_target(p), 2000)).lower(shape).compile()
    assert program.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_the_normalizer_is_a_bias_corrected_second_moment():
    """Against a plain loop: no mean subtracted, masked rows left out (trap 14), the correction as Adam's."""
    rng = np.random.default_rng(0)
    state, moment, decay = AdvantageNormalizer.zero(), 0.0, 0.9
    assert float(state.scale(1e-12)) == 1.0
    for n in range(1, 8):
        advantage = rng.normal(5.0, 2.0, size=(3, 4)).astype(np.float32)
        mask = rng.uniform(size=(3, 4)) > 0.4
        garbage = np.where(mask, advantage, 1e6 * rng.normal(size=(3, 4))).astype(np.float32)
        garbage[0, 0] = garbage[0, 0] if mask[0, 0] else np.nan
        state = state.update(jnp.asarray(garbage), jnp.asarray(mask), decay)
        moment = decay * moment + (1 - decay) * (advantage[mask].astype(float) ** 2).mean()
        assert float(state.scale(1e-12)) == pytest.approx(math.sqrt(moment / (1 - decay**n)), rel=1e-4)
    assert float(state.scale(7.0)) == pytest.approx(math.sqrt(moment / (1 - decay**n) + 7.0), rel=1e-4)


def test_an_update_without_a_valid_row_changes_nothing():
    state = AdvantageNormalizer.zero().update(jnp.array([3.0]), jnp.array([True]), 0.9)
    after = state.update(jnp.array([1e9]), jnp.array([False]), 0.9)
    assert float(after.scale(1e-12)) == float(state.scale(1e-12)) == pytest.approx(3.0)
    untouched = AdvantageNormalizer.zero().update(jnp.array([1e9]), jnp.array([False]), 0.9)
    assert float(untouched.scale(1e-12)) == 1.0
