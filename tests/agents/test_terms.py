"""Single loss terms, and the unroll's windows, masks and targets by a triple loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import muesli_reference as reference
import numpy as np
import pytest

from bircher.agents import loss_terms
from bircher.agents.unroll import episode_ends, unroll, windows
from bircher.ops.distributions import log_probability
from builders import ACTIONS, batch_of, muesli_agent, policy_of, quick_jit, random_model, random_rows


@pytest.mark.parametrize(("depths", "length"), [(1, 4), (3, 4), (5, 4), (2, 5)])
def test_windows(depths, length):
    x = np.arange(2 * 5 * 3).reshape(2, 5, 3) + 1
    shifted = np.asarray(windows(jnp.asarray(x), depths, length))
    assert shifted.shape == (depths, 2, length, 3)
    for k, b, t in np.ndindex(depths, 2, length):
        np.testing.assert_array_equal(shifted[k, b, t], x[b, t + k] if t + k < 5 else 0)


def test_episode_ends_are_last_rows_and_rows_before_a_seam():
    rows = random_rows(0, 20, 8)
    expected = [[reference.leads_nowhere(rows, b, t) for t in range(9)] for b in range(20)]
    np.testing.assert_array_equal(episode_ends(rows), expected)
    seams = np.asarray(rows.first[:, 1:] & ~rows.last[:, :-1])
    assert seams.sum() > 3  # the rows do hold the rare kind


@pytest.mark.parametrize("unroll_steps", [1, 3, 7])
def test_unroll_targets_and_masks_by_a_triple_loop(unroll_steps):
    batch, length = 8, 6
    model, agent = random_model(1), muesli_agent()
    rows = random_rows(3, batch, length, all_legal=True)

    def program(rows):
        target, _ = agent.targets(policy_of(agent, model), batch_of(rows), jax.random.key(0))
        latent = model.represent(rows.observation[:, :-1])
        return target, latent, unroll(model, latent, rows, target, unroll_steps)

    target, latent, unrolled = jax.tree.map(np.asarray, quick_jit(program)(rows))
    rows = jax.tree.map(np.asarray, rows)
    policy = np.asarray(target.policy.weights)
    seen = {"policy": 0, "value": 0, "terminal": 0, "reward": 0, "latent": 0}
    for b, t in np.ndindex(batch, length):
        here, reachable = latent[b, t], True
        for k in range(unroll_steps + 1):
            row = t + k
            if k:
                reachable = reachable and row <= length and not reference.leads_nowhere(rows, b, row - 1)
                assert unrolled.reward_mask[k - 1, b, t] == reachable
            acts = reachable and not reference.leads_nowhere(rows, b, row)
            if k:
                assert unrolled.policy_mask[k, b, t] == acts
                dead = reachable and bool(rows.terminal[b, row])
                assert unrolled.value_mask[k, b, t] == (dead or (acts and row < length))
            if k and reachable:
                seen["reward"] += 1
                assert unrolled.reward[k - 1, b, t] == float(rows.reward[b, row])
                if dead:
                    seen["terminal"] += 1
                    assert unrolled.value[k, b, t] == 0.0
                if (b + t) % 3 == 0 and k <= 2:
                    seen["latent"] += 1
                    here = reference.step(model, here, rows.action[b, row - 1])
                    expected = reference.predict(model, here)
                    np.testing.assert_allclose(
                        unrolled.prediction.policy_logits[k, b, t], expected.policy_logits, rtol=1e-3, atol=1e-3
                    )
                    np.testing.assert_allclose(
                        unrolled.reward_logits[k - 1, b, t], reference.reward_logits(model, here), rtol=1e-3, atol=1e-3
                    )
            if acts:
                seen["policy"] += 1
                np.testing.assert_array_equal(unrolled.policy.weights[k, b, t], policy[b, row])
                if row < length:
                    seen["value"] += 1
                    assert unrolled.value[k, b, t] == float(target.value[b, row])
    assert all(count > 0 for count in seen.values()), seen


def policy_gradient_of(ratio: float, advantage: float) -> tuple[float, np.ndarray]:
    """The term and its gradient at a row where pi / pi_b of the action is `ratio`."""
    logits = jnp.array([[[0.4, -0.3, 0.1]]])
    log_pi = jax.nn.log_softmax(logits)[0, 0]
    share = jnp.exp(log_pi[1]) / ratio
    behavior = jnp.log(jnp.array([[[0.3 * (1 - share), share, 0.7 * (1 - share)]]]))
    value, gradient = jax.value_and_grad(
        lambda x: loss_terms.policy_gradient(
            *(log_probability(y, jnp.array([[1]])) for y in (x, behavior)), jnp.full((1, 1), advantage)
        )[0, 0]
    )(logits)
    return float(value), np.asarray(gradient)[0, 0]


@pytest.mark.parametrize("advantage", [2.0, -0.7])
@pytest.mark.parametrize("ratio", [0.5, 1.6])
def test_the_policy_gradient_is_clipped_importance_times_score(ratio, advantage):
    """-min(1, ratio) adv grad log pi(a), also where pi exceeds pi_b: the clip removes weight, not the gradient."""
    value, gradient = policy_gradient_of(ratio, advantage)
    pi = np.exp([0.4, -0.3, 0.1]) / np.exp([0.4, -0.3, 0.1]).sum()
    weight = min(1.0, ratio)
    assert value == pytest.approx(-weight * advantage * np.log(pi[1]), rel=1e-4)
    np.testing.assert_allclose(gradient, -weight * advantage * (np.eye(ACTIONS)[1] - pi), rtol=1e-3, atol=1e-5)
    assert np.abs(gradient).max() > 0.1
