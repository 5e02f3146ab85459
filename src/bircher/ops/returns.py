"""Returns of one sequence, unbatched: ``[T]`` in, ``[T]`` out; callers vmap.

Subscripts are time as in rlax: ``r_t`` and ``discount_t`` belong to arriving at step t = 1 … T, the values
``*_tm1`` to t - 1.  ``discount_t`` already holds gamma, the 0 of a death and the sign of the mover.  A
sequence may hold several episodes: where row t ends one without dying, ``lambda_t = 0`` cuts the trace and the
value there bootstraps; what a reset step carries is masked by the caller.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _backwards(first: Array, offset_t: Float[Array, " T"], slope_t: Float[Array, " T"]) -> Float[Array, " T"]:
    """Return x_0 … x_{T-1} of the recursion x_{t-1} = offset_t + slope_t x_t, which begins at x_T = first."""

    def step(carry, inputs):
        offset, slope = inputs
        value = offset + slope * carry
        return value, value

    # Sequences are short.  When the scan is unrolled, XLA fuses the whole recursion into one loop over the batch.
    _, values = jax.lax.scan(step, first, (offset_t, slope_t), reverse=True, unroll=min(len(offset_t), 32))
    return values


def lambda_returns(
    r_t: Float[Array, " T"], discount_t: Float[Array, " T"], v_t: Float[Array, " T"], lambda_t: Float[Array, " T"]
) -> Float[Array, " T"]:
    """Return mixtures of n-step returns, G_{t-1} = r_t + discount_t ((1 - lambda_t) v_t + lambda_t G_t), G_T = v_T.

    lambda = 1 gives Monte-Carlo returns with a bootstrap at the end, and lambda = 0 gives one-step targets.  See
    "Reinforcement Learning: An Introduction" by Sutton and Barto, chapter 12
    (http://incompleteideas.net/book/the-book.html).
    """
    chex.assert_rank([r_t, discount_t, v_t, lambda_t], 1)
    chex.assert_equal_shape([r_t, discount_t, v_t, lambda_t])
    return _backwards(v_t[-1], r_t + discount_t * (1 - lambda_t) * v_t, discount_t * lambda_t)


def n_step_returns(
    r_t: Float[Array, " T"],
    discount_t: Float[Array, " T"],
    v_t: Float[Array, " T"],
    n: int,
    continue_t: Float[Array, " T"] | None = None,
) -> Float[Array, " T"]:
    """Return n-step bootstrapped returns, which are shorter at the end of the sequence.

    G_{t-1} = r_t + discount_t r_{t+1} + … + (product of n discounts) v_{t+n-1}.  `continue_t` is 0 on a row that
    ends an episode by truncation.  The return bootstraps from ``v_t`` there and includes no later row.
    """
    chex.assert_rank([r_t, discount_t, v_t], 1)
    chex.assert_equal_shape([r_t, discount_t, v_t])
    continue_t = jnp.ones_like(r_t) if continue_t is None else continue_t
    # Beyond the end, rewards are 0, discounts are 1 and the last value is repeated.
    v_padded = jnp.concatenate([v_t, jnp.full((n - 1,), v_t[-1])])
    r_padded = jnp.concatenate([r_t, jnp.zeros((n - 1,))])
    discount_padded = jnp.concatenate([discount_t, jnp.ones((n - 1,))])
    continue_padded = jnp.concatenate([continue_t, jnp.ones((n - 1,))])
    length = len(r_t)
    target = v_padded[n - 1 :]
    for i in reversed(range(n)):
        proceed = continue_padded[i : i + length]
        bootstrap = proceed * target + (1 - proceed) * v_padded[i : i + length] if i < n - 1 else target
        target = r_padded[i : i + length] + discount_padded[i : i + length] * bootstrap
    return target


def generalized_advantages(
    r_t: Float[Array, " T"],
    discount_t: Float[Array, " T"],
    lambda_t: Float[Array, " T"],
    v_tm1: Float[Array, " T"],
    v_t: Float[Array, " T"],
) -> Float[Array, " T"]:
    """Return generalized advantage estimates.

    A_{t-1} = delta_t + discount_t lambda_t A_t with delta_t = r_t + discount_t v_t - v_{t-1}.

    "High-Dimensional Continuous Control Using Generalized Advantage Estimation" by Schulman et al. 2016
    (https://arxiv.org/abs/1506.02438), equation 16.
    """
    chex.assert_rank([r_t, discount_t, lambda_t, v_tm1, v_t], 1)
    return _backwards(jnp.zeros(()), r_t + discount_t * v_t - v_tm1, discount_t * lambda_t)


def retrace(
    r_t: Float[Array, " T"],
    discount_t: Float[Array, " T"],
    q_t: Float[Array, " T"],
    v_t: Float[Array, " T"],
    c_t: Float[Array, " T"],
) -> Float[Array, " T"]:
    """Return Retrace returns of the actions taken, G_{t-1} = r_t + discount_t (v_t - c_t q_t + c_t G_t).

    "Safe and Efficient Off-Policy Reinforcement Learning" by Munos et al. 2016
    (https://arxiv.org/abs/1606.02647), equation 4, as the recursion that Muesli's G^v follows.

    Args:
      r_t: rewards of t = 1 … T.
      discount_t: discounts of t = 1 … T, with gamma.
      q_t: q^(s_t, a_t) of the action taken at t; unused where ``c_t`` is 0.
      v_t: the expectation of q^(s_t, a) under the target policy.
      c_t: lambda min(1, pi(a_t|s_t) / pi_b(a_t|s_t)); 0 on rows that end an episode.  ``c_T`` is taken as 0, because
        the action on the last row belongs to the next sequence.
    """
    chex.assert_rank([r_t, discount_t, q_t, v_t, c_t], 1)
    chex.assert_equal_shape([r_t, discount_t, q_t, v_t, c_t])
    c_t = c_t.at[-1].set(0.0)
    return _backwards(v_t[-1], r_t + discount_t * (v_t - c_t * q_t), discount_t * c_t)


def v_trace(
    r_t: Float[Array, " T"],
    discount_t: Float[Array, " T"],
    v_tm1: Float[Array, " T"],
    v_t: Float[Array, " T"],
    rho_tm1: Float[Array, " T"],
    c_tm1: Float[Array, " T"],
    continue_t: Float[Array, " T"],
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """Return V-trace value targets and the returns that its policy gradient uses.

    The targets are v^s_{t-1} = v_{t-1} + rho_{t-1} delta_t + discount_t continue_t c_{t-1} (v^s_t - v_t) and the
    returns are r_t + discount_t v^s_t.  "IMPALA" by Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561),
    equation 1.

    Args:
      rho_tm1: min(rho_bar, ratio) of the action at t - 1.
      c_tm1: lambda min(1, ratio) of the action at t - 1.
      continue_t: 0 on rows that end an episode by truncation, else 1.
    """
    chex.assert_rank([r_t, discount_t, v_tm1, v_t, rho_tm1, c_tm1, continue_t], 1)
    delta_t = rho_tm1 * (r_t + discount_t * v_t - v_tm1)
    errors = _backwards(jnp.zeros(()), delta_t, discount_t * continue_t * c_tm1)
    values_tm1 = v_tm1 + errors
    next_errors = jnp.append(errors[1:], 0.0) * continue_t
    return values_tm1, r_t + discount_t * (v_t + next_errors)
