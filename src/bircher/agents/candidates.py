"""Candidates: the actions of a state that an improvement of the policy weighs, with the prior policy's weights.

Few actions are all candidates.  Of many actions, and of continuous ones, the candidates are N samples of the prior.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bircher.agents.config import PolicyAgentConfig, PriorConfig
from bircher.ops import improvement
from bircher.ops.distributions import Categorical, Distribution, mixture_log_prob
from bircher.types import Key, PolicyTarget


class Candidates(NamedTuple):
    """N actions of each state."""

    actions: Shaped[Array, "*B N ..."]
    weights: Float[Array, "*B N"]
    """The prior's weights, whose sum is 1: its probabilities where all actions are listed, and 1 / N for samples."""
    log_prior: Float[Array, "*B N"]
    """The logarithm of the prior's probability or density at each action."""
    listed: bool
    """Whether the candidates are all actions."""

    def expectation(self, values: Float[Array, "*B N"]) -> Float[Array, "*B"]:
        """Return the mean of a function of the action under the prior."""
        return (self.weights * values).sum(-1)


def lists_probabilities(distribution: Distribution, config: PolicyAgentConfig) -> bool:
    """Return whether policies are handled as a probability for each action: those of few discrete actions."""
    return isinstance(distribution, Categorical) and distribution.num_actions <= config.enumerate_actions


def choose_candidates(
    distribution: Distribution,
    config: PolicyAgentConfig,
    params: Float[Array, "*B P"],
    taken: Shaped[Array, "*B ..."] | None,
    key: Key,
) -> Candidates:
    """Return all actions, if they are at most `config.enumerate_actions`, or `config.num_candidates` of the prior.

    The prior is a mixture, as in `mixture_prior`.  Of the policy that acted only the action is stored, which is a
    sample of it: it stands for that policy, and `taken` is a candidate with the probability `behavior_share`.

    Args:
      distribution: the kind of policy.
      config: settings of the prior and of the candidates.
      params: parameters of the target network's policy, restricted to legal actions.
      taken: the action that was taken in each state; None where the network's policy itself is taken to have acted.
      key: consumed.
    """
    behavior_share, uniform_share = _shares(config.prior, taken is not None)
    count = distribution.num_choices
    if count is not None and count <= config.enumerate_actions:
        every = distribution.all_actions()
        actions = jnp.broadcast_to(every, (*params.shape[:-1], *every.shape))
        weights = jnp.exp(mixture_log_prob(distribution, params, actions, uniform_share))
        if taken is not None and behavior_share:
            weights = (1 - behavior_share) * weights + behavior_share * _equals(actions, taken, distribution)
        return Candidates(actions, weights, jnp.log(jnp.maximum(weights, jnp.finfo(jnp.float32).tiny)), True)
    keys = jax.random.split(key, 4)
    number = config.num_candidates
    shape = (*params.shape[:-1], number)

    def replace(actions: Array, others: Array, share: float, key: Key) -> Array:
        """Replace a share of the actions by others."""
        chosen = jax.random.bernoulli(key, share, shape)
        return jnp.where(chosen.reshape(*shape, *[1] * len(distribution.action_shape)), others, actions)

    actions = distribution.sample_many(params, keys[0], number)
    if uniform_share:
        actions = replace(actions, distribution.uniform_many(params, keys[1], number), uniform_share, keys[2])
    if taken is not None and behavior_share:
        repeated = jnp.broadcast_to(_with_axis(taken, distribution), actions.shape)
        actions = replace(actions, repeated, behavior_share, keys[3])
    log_prior = mixture_log_prob(distribution, params, actions, uniform_share)
    return Candidates(actions, jnp.full(shape, 1 / number), log_prior, False)


def prior_ratio(
    distribution: Distribution,
    config: PriorConfig,
    params: Float[Array, "*B P"],
    taken: Shaped[Array, "*B ..."],
    behavior_log_prob: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    """Return pi_prior(a|s) / pi_b(a|s) of the actions that were taken; of densities where actions are continuous."""
    behavior_share, uniform_share = _shares(config, True)
    log_prob = mixture_log_prob(distribution, params, _with_axis(taken, distribution), uniform_share)[..., 0]
    return (1 - behavior_share) * jnp.exp(log_prob - behavior_log_prob) + behavior_share


def cmpo_target(candidates: Candidates, advantage: Float[Array, "*B N"], clip_bound: float | None) -> PolicyTarget:
    """Return the CMPO policy over candidates: equation 7 where they are all actions, else equations 11 and 12."""
    if candidates.listed or clip_bound is None:
        weights = improvement.cmpo_policy(candidates.weights, advantage, clip_bound)
    else:
        weights = improvement.sampled_cmpo_weights(advantage, clip_bound)
    return target_of(candidates, weights)


def target_of(candidates: Candidates, weights: Float[Array, "*B N"]) -> PolicyTarget:
    """Return candidates with weights as the target of a policy."""
    return improvement.reweighted(PolicyTarget(candidates.actions, candidates.weights, candidates.log_prior), weights)


def _shares(config: PriorConfig, has_acted: bool) -> tuple[float, float]:
    """Return the share of the policy that acted, and that of the uniform policy in the rest of the mixture."""
    behavior_share = config.behavior_share if has_acted else 0.0
    rest = 1.0 - behavior_share
    return behavior_share, min(config.uniform_share / rest, 1.0) if rest > 0 else 0.0


def _with_axis(taken: Array, distribution: Distribution) -> Array:
    """Return actions with an axis of one candidate."""
    return jnp.expand_dims(taken, -1 - len(distribution.action_shape))


def _equals(actions: Array, taken: Array, distribution: Distribution) -> Float[Array, "*B N"]:
    """Return 1 where a candidate is the action that was taken, else 0."""
    same = actions == _with_axis(taken, distribution)
    return (same.all(-1) if distribution.action_shape else same).astype(jnp.float32)
