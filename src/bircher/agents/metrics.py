"""Metrics of updates and of their targets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from bircher.agents.loss_terms import LossInputs, policy_distillation
from bircher.networks.encoders import IndexTorso
from bircher.networks.model import Model
from bircher.networks.observations import JoinedTorso
from bircher.ops import distributions, losses
from bircher.ops.turns import own


class UpdateMetrics(NamedTuple):
    """The metrics of one update, or means over several."""

    always: dict[str, Array]
    """Metrics of every update: losses, the learning rate, the norm of the gradient."""
    occasional: dict[str, Array]
    """Metrics that only some updates compute; 0 for the others.  Computing them at every update took 4 % of a run."""

    def metrics(self) -> dict[str, Array]:
        """Return both kinds in one dictionary."""
        return self.always | self.occasional

    def mean(self, with_metrics: Array) -> UpdateMetrics:
        """Return the means of metrics that are stacked along the first axis, one entry for each update.

        `with_metrics` is True for updates that computed the occasional metrics, whose means are over these updates.
        """
        count = jnp.maximum(with_metrics.sum(), 1)
        return UpdateMetrics(
            jax.tree.map(lambda x: x.mean(0), self.always),
            jax.tree.map(lambda x: x.sum(0) / count, self.occasional),
        )


def compute_if(with_metrics: Array | bool, build: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Return the metrics that `build` computes, without gradient, or zeros of the same shapes if not `with_metrics`."""
    zeros, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(build)))
    # One vector, because a conditional and a loop cost time for each array that they return.
    vector = jax.lax.cond(with_metrics, lambda: ravel_pytree(build())[0], lambda: zeros)
    return unravel(jax.lax.stop_gradient(vector))


def common_metrics(inputs: LossInputs) -> dict[str, Array]:
    """Return metrics of any agent, as means over valid rows.

    They are the entropy of the policy at the roots, statistics of value targets and of the errors of values, and how
    much latents differ.
    """
    model, unrolled, target, rows = inputs.model, inputs.unrolled, inputs.target, inputs.rows
    has_value = target.mask & unrolled.value_mask[0]

    def mean(values: Array) -> Array:
        return losses.masked_mean(values, has_value)

    # Values from before these updates, where they are available: after some epochs any target is explained.
    value = target.extras.per_transition.get("old_value", model.value_support.mean(unrolled.prediction.value_logits[0]))
    # In games of more than two players these are the values of the player to move.
    axes = target.mask.ndim
    value, value_target, reward_target = own(value, axes), own(target.value, axes), own(target.reward, axes)
    error = mean(jnp.square(value_target - value)) - jnp.square(mean(value_target - value))
    spread = mean(jnp.square(value_target)) - jnp.square(mean(value_target))
    overflow = model.value_support.overflow(value_target)
    if model.heads.reward is not None:
        overflow |= model.reward_support.overflow(reward_target)
    entropy = model.distribution.entropy(inputs.logits)
    legal = rows.legal_actions[:, : entropy.shape[1]].sum(-1)
    has_choice = target.mask & (legal > 1)
    return {
        "act/entropy": losses.masked_mean(entropy, target.mask),
        "act/entropy_share": losses.masked_mean(entropy / jnp.log(jnp.maximum(legal, 2)), has_choice),
        "act/choice_share": losses.masked_mean(has_choice.astype(jnp.float32), target.mask),
        "target/value_mean": mean(value_target),
        "target/value_size": mean(jnp.abs(value_target)),
        "target/value_square": mean(jnp.square(value_target)),
        "target/support_overflow": losses.masked_mean(overflow.astype(jnp.float32), target.mask),
        "target/explained_variance": jnp.maximum(1.0 - error / jnp.maximum(spread, 1e-8), -1.0),
        "target/valid_share": target.mask.mean(),
        "model/latent_deviation": _deviation(inputs.latent[:, : entropy.shape[1]], target.mask),
        **observation_scales(model, rows.observation, target.mask),
    }


def observation_scales(model: Model, observation: PyTree[Array], mask: Bool[Array, "B T"]) -> dict[str, Array]:
    """Return the scales of all arrays of an observation whose numbers the network takes as they are: the largest.

    Indices of states have no scale.
    """
    representation = model.representation
    if isinstance(representation, IndexTorso):
        return {}
    arrays = representation.numbers(observation) if isinstance(representation, JoinedTorso) else [observation]
    scales = [observation_scale(x[:, : mask.shape[1]], mask) for x in arrays]
    names = dict.fromkeys(name for scale in scales for name in scale)
    return {name: functools.reduce(jnp.maximum, [scale[name] for scale in scales if name in scale]) for name in names}


def observation_scale(observation: Shaped[Array, "B T *observation"], mask: Bool[Array, "B T"]) -> dict[str, Array]:
    """Compute how large the numbers of an observation are, and how much they vary between the rows in `mask`.

    Both are taken from the number of the observation for which they are largest.  Booleans and the bytes of an image
    have a known scale, and give no metric.
    """
    bytes_of_an_image = observation.dtype == jnp.uint8 and observation.ndim == 5
    if observation.dtype == jnp.bool_ or bytes_of_an_image:
        return {}
    rows = observation.reshape(*mask.shape, -1).astype(jnp.float32)
    weight = mask[..., None] / jnp.maximum(mask.sum(), 1)
    average = (rows * weight).sum((0, 1))
    variance = (jnp.square(rows - average) * weight).sum((0, 1))
    return {
        "act/observation_size": jnp.sqrt((jnp.square(average) + variance).max()),
        "act/observation_deviation": jnp.sqrt(variance.max()),
    }


def _deviation(latent: Float[Array, "B T latent"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Return the standard deviation between rows, averaged over the elements of a latent."""
    means = jax.vmap(losses.masked_mean, (-1, None))
    return jnp.sqrt(means(jnp.square(latent - means(latent, mask)), mask)).mean()


def policy_metrics(clip_bound: float | None, ratio_clip: float, inputs: LossInputs) -> dict[str, Array]:
    """Return metrics of an agent without a search.

    In addition to the common metrics, they are distances between policies, statistics of advantages, and the shares of
    ratios and advantages that are clipped.
    """
    target = inputs.target

    def mean(values: Array) -> Array:
        return losses.masked_mean(values, target.mask)

    length = target.mask.shape[1]
    log_ratio = inputs.log_probability - inputs.behavior_log_probability
    to_behavior, to_prior, of_cmpo = _divergences(inputs, log_ratio)
    metrics = common_metrics(inputs) | {
        "act/kl_to_behavior": mean(to_behavior),
        "act/kl_to_prior": mean(to_prior),
        "act/clipped_ratios": mean((jnp.abs(jnp.exp(log_ratio) - 1.0) > ratio_clip).astype(jnp.float32)),
        "target/advantage_mean": mean(target.advantage),
        "target/advantage_scale": target.extras.per_batch["advantage_scale"],
        "target/advantage_deviation": jnp.sqrt(mean(jnp.square(target.advantage))),
    }
    if "q_advantage" in target.extras.per_row:
        clipped = jnp.abs(target.extras.per_row["q_advantage"][:, :length]) > (
            jnp.inf if clip_bound is None else clip_bound
        )
        metrics |= {
            "target/clipped_advantages": mean(clipped.mean(-1)),
            "target/cmpo_kl": mean(of_cmpo),
        }
    return metrics


def _divergences(
    inputs: LossInputs, log_ratio: Float[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"]]:
    """Return KL(pi_b, pi), KL(pi, prior), and that of the policy's target from the prior.

    For candidates the first is r - 1 - log r of the ratio r = pi / pi_b, whose mean over the actions of pi_b it is; the
    second is that from the target network's own policy; and the last is a sum over the candidates.
    """
    length, extras = log_ratio.shape[1], inputs.target.extras.per_row
    target = jax.tree.map(lambda x: x[0], inputs.unrolled.policy)
    if inputs.behavior_logits is not None:
        prior, policy = extras["prior"][:, :length], jax.nn.softmax(inputs.logits)
        return (
            distributions.kl_divergence(jax.nn.softmax(inputs.behavior_logits), policy),
            distributions.kl_divergence(policy, prior),
            distributions.kl_divergence(target.weights, prior),
        )
    return (
        jnp.exp(log_ratio) - 1.0 - log_ratio,
        inputs.model.distribution.kl(inputs.logits, extras["prior_params"][:, :length]),
        (target.weights * (target.log_density - extras["candidate_log_prior"][:, :length])).sum(-1),
    )


def search_metrics(inputs: LossInputs) -> dict[str, Array]:
    """Return metrics of an agent with a search: the common ones, and how much the searches change policy and value."""
    unrolled, target = inputs.unrolled, inputs.target
    improved = unrolled.policy.weights[0]
    entropy = -(improved * jnp.log(jnp.maximum(improved, 1e-30))).sum(-1)
    if unrolled.policy.actions is None:
        distance = distributions.kl_divergence(improved, jax.nn.softmax(inputs.logits))
    else:
        roots = jax.tree.map(lambda x: x[0], unrolled.policy)
        distance = policy_distillation(roots, inputs.logits, inputs.model.distribution)
    return common_metrics(inputs) | {
        "target/search_kl": losses.masked_mean(distance, target.mask),
        "target/search_entropy": losses.masked_mean(entropy, target.mask),
        "target/value_change": losses.masked_mean(
            jnp.abs(target.advantage), target.extras.per_transition["value_mask"]
        ),
    }
