"""Policy improvement: a prior reweighted by advantages, and the scale of advantages.

"Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021 (https://arxiv.org/abs/2104.06159).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.types import Key, PolicyTarget


def cmpo_policy(
    prior: Float[Array, "*B A"], advantage: Float[Array, "*B A"], clip_bound: float | None
) -> Float[Array, "*B A"]:
    """Return the clipped MPO policy, pi_CMPO(a) = pi_prior(a) exp(clip(adv(a), -c, c)) / z (equation 7).

    Its total variation from the prior is at most tanh(c / 2), whatever the number of actions (theorem 4.1).

    Args:
      prior: probabilities.
      advantage: q^(s, a) - v^(s) *for each action*.  One advantage per state would cancel in z.
      clip_bound: c.  None leaves advantages unclipped, which gives MPO's policy, whose distance from the prior has no
        bound.

    Raises:
      ValueError: the shapes of `prior` and `advantage` differ.
    """
    if prior.shape != advantage.shape:
        raise ValueError(
            f"CMPO needs one advantage per action: the prior has shape {prior.shape}, the advantages {advantage.shape}"
        )
    clipped = advantage if clip_bound is None else jnp.clip(advantage, -clip_bound, clip_bound)
    # The greatest exponent cancels in z; without a bound it would overflow.
    weights = prior * jnp.exp(clipped - jnp.where(prior > 0, clipped, -jnp.inf).max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact_target(probabilities: Float[Array, "*B A"]) -> PolicyTarget:
    """Return the target that has every action with its probability as weight."""
    return PolicyTarget(None, probabilities)


def sampled_cmpo_weights(
    advantage: Float[Array, "*B N"], clip_bound: float, z_init: float = 1.0
) -> Float[Array, "*B N"]:
    """Return the weights of N actions sampled from the prior, exp(clip(adv_i)) / (N z_i) (equations 11 and 12).

    z_i = (z_init + sum over k != i of exp(clip(adv_k))) / N leaves the action's own sample out.  The estimate is
    consistent but biased: the sum of the weights tends to 1 as N grows.
    """
    exponentials = jnp.exp(jnp.clip(advantage, -clip_bound, clip_bound))
    num_samples = advantage.shape[-1]
    z = (z_init + exponentials.sum(-1, keepdims=True) - exponentials) / num_samples
    return exponentials / (num_samples * z)


def sampled_cmpo_target(
    key: Key,
    prior: Float[Array, "*B A"],
    advantage: Float[Array, "*B A"],
    clip_bound: float,
    num_samples: int,
) -> PolicyTarget:
    """Return CMPO's policy as `num_samples` weighted actions from the prior, for distillation (equation 11)."""
    shape = (num_samples, *prior.shape[:-1])
    actions = jnp.moveaxis(jax.random.categorical(key, jnp.log(prior), shape=shape), 0, -1)
    sampled = jnp.take_along_axis(advantage, actions, axis=-1)
    return PolicyTarget(actions, sampled_cmpo_weights(sampled, clip_bound))


def reweighted(target: PolicyTarget, weights: Float[Array, "*B N"]) -> PolicyTarget:
    """Return a target of sampled actions with other weights, and the densities that belong to them.

    A density changes by the ratio of the weights, each of them divided by their sum.
    """
    assert target.log_density is not None

    def log_share(x: Array) -> Array:
        return jnp.log(jnp.maximum(x / x.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny))

    gain = log_share(weights) - log_share(target.weights)
    return PolicyTarget(target.actions, weights, target.log_density + gain)


DENSE_PAIRS = 128 * 128
"""Largest number of pairs (target's action, action) for which `dense` compares each pair, which is faster for few."""


def dense(target: PolicyTarget, num_actions: int) -> Float[Array, "*B A"]:
    """Return the target's weight of each action; the weights of repeated samples are added.

    Those of an exact target are already the result.  Beyond `DENSE_PAIRS` the weights are added in place, because 2,000
    samples of 2,000 actions have 4 million pairs in each row.
    """
    if target.actions is None:
        return target.weights
    if target.actions.shape[-1] * num_actions > DENSE_PAIRS:
        actions = target.actions.reshape(-1, target.actions.shape[-1])
        rows, weights = jnp.arange(len(actions))[:, None], target.weights.reshape(actions.shape)
        zeros = jnp.zeros((len(actions), num_actions), weights.dtype)
        return zeros.at[rows, actions].add(weights).reshape(*target.actions.shape[:-1], num_actions)
    return (jax.nn.one_hot(target.actions, num_actions) * target.weights[..., None]).sum(-2)


class AdvantageNormalizer(eqx.Module):
    """The moving second moment of G^v - v^_prior; the advantages of both terms are divided by its root (section 4.5).

    No mean is subtracted.  The bias is corrected as in Adam.  All states and actions share one number.
    """

    second_moment: Float[Array, ""]
    decay_product: Float[Array, ""]
    """beta^n, for the bias correction."""

    @classmethod
    def zero(cls) -> AdvantageNormalizer:
        """Return the state before the first update."""
        return cls(jnp.zeros(()), jnp.ones(()))

    def update(self, advantage: Float[Array, "*B"], mask: Bool[Array, "*B"], decay: float) -> AdvantageNormalizer:
        """Return the state after one step of the moving average, or an equal state where `mask` has no row.

        Args:
          advantage: G^v - v^_prior of each row.
          mask: the rows that count.
          decay: beta, the factor of the moving average.
        """
        count = mask.sum()
        moment = jnp.where(mask, jnp.square(advantage), 0.0).sum() / jnp.maximum(count, 1)
        rate = jnp.where(count > 0, 1.0 - decay, 0.0)
        return AdvantageNormalizer(
            self.second_moment + rate * (moment - self.second_moment), self.decay_product * (1.0 - rate)
        )

    def scale(self, epsilon: float) -> Float[Array, ""]:
        """Return the divisor of advantages, sqrt(second moment + epsilon), which is 1 before the first update."""
        correction = 1.0 - self.decay_product
        corrected = self.second_moment / jnp.where(correction > 0, correction, 1.0)
        return jnp.where(correction > 0, jnp.sqrt(corrected + epsilon), 1.0)
