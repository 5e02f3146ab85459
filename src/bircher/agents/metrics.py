"""Metrics of updates and of their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from bircher.agents.loss_terms import LossInputs
from bircher.networks.encoders import IndexTorso
from bircher.ops import distributions, losses


class UpdateMetrics(NamedTuple):
    """What updates tell."""

    always: dict[str, Array]
    """Of every update: losses, rate, the gradient's norm."""
    seen: dict[str, Array]
    """Of those that are measured; 0 of the others.  All of it at every update took 4 % of a run."""

    def metrics(self) -> dict[str, Array]:
        """Both as one."""
        return self.always | self.seen


class Packing:
    """Trees of numbers as one vector each, and back: thirty arrays of one number cost a loop thirty writes a turn."""

    def __init__(self) -> None:
        self._unpack: Callable[[Array], PyTree] = lambda vector: vector

    def __call__(self, tree: PyTree) -> Array:
        """One vector; how it is taken apart is remembered."""
        vector, self._unpack = ravel_pytree(tree)
        return vector

    def one(self, vector: Array) -> PyTree:
        """The tree of a vector."""
        return self._unpack(vector)


class Packings(NamedTuple):
    """What updates tell, each kind in a vector, while they stand in a loop."""

    always: Packing
    seen: Packing

    @classmethod
    def fresh(cls) -> Packings:
        """To pack with, and then to unpack."""
        return cls(Packing(), Packing())

    def pack(self, told: UpdateMetrics) -> tuple[Array, Array]:
        """Two vectors."""
        return self.always(told.always), self.seen(told.seen)

    def over(self, vectors: tuple[Array, Array], measured: Array) -> UpdateMetrics:
        """What some updates told, as one: means, of what is measured over those that measure."""
        always, seen = vectors
        count = jnp.maximum(measured.sum(), 1)
        return UpdateMetrics(self.always.one(always.mean(0)), self.seen.one(seen.sum(0) / count))


def compute_if(measured: Array | bool, build: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The metrics that `build` makes, without gradient; zeros in their places where nobody measures."""
    packing = Packing()
    nothing = jax.eval_shape(lambda: packing(build()))
    vector = jax.lax.cond(measured, lambda: packing(build()), lambda: jnp.zeros(nothing.shape, nothing.dtype))
    return packing.one(jax.lax.stop_gradient(vector))


def common_metrics(held: LossInputs) -> dict[str, Array]:
    """Entropy at the roots, how values compare with their targets, and how latents differ; means over valid rows."""
    model, unrolled, target, rows = held.model, held.unrolled, held.target, held.rows
    valued = target.mask & unrolled.value_mask[0]

    def mean(values: Array) -> Array:
        return losses.masked_mean(values, valued)

    # What was foretold before these updates, where that is known: after some epochs anything is explained.
    value = target.extras.get("old_value", model.value_support.mean(unrolled.prediction.value_logits[0]))
    error = mean(jnp.square(target.value - value)) - jnp.square(mean(target.value - value))
    spread = mean(jnp.square(target.value)) - jnp.square(mean(target.value))
    overflow = model.value_support.overflow(target.value)
    if model.heads.reward is not None:
        overflow |= model.reward_support.overflow(target.reward)
    names_states = isinstance(model.representation, IndexTorso)  # such numbers have no scale
    entropy = distributions.entropy(unrolled.acting_logits[0])
    legal = rows.legal_actions[:, : entropy.shape[1]].sum(-1)
    chooses = target.mask & (legal > 1)
    return {
        "act/entropy": losses.masked_mean(entropy, target.mask),
        "act/entropy_share": losses.masked_mean(entropy / jnp.log(jnp.maximum(legal, 2)), chooses),
        "act/choice_share": losses.masked_mean(chooses.astype(jnp.float32), target.mask),
        "target/value_mean": mean(target.value),
        "target/value_size": mean(jnp.abs(target.value)),
        "target/value_square": mean(jnp.square(target.value)),
        "target/support_overflow": losses.masked_mean(overflow.astype(jnp.float32), target.mask),
        "target/explained_variance": jnp.maximum(1.0 - error / jnp.maximum(spread, 1e-8), -1.0),
        "target/valid_share": target.mask.mean(),
        "model/latent_deviation": _deviation(held.encoded[:, : entropy.shape[1]], target.mask),
        **({} if names_states else observation_scale(rows.observation[:, : entropy.shape[1]], target.mask)),
    }


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
    """How much a latent's numbers differ between rows: their standard deviations' mean."""
    means = jax.vmap(losses.masked_mean, (-1, None))
    return jnp.sqrt(means(jnp.square(latent - means(latent, mask)), mask)).mean()


def policy_metrics(clip_bound: float | None, ratio_clip: float, held: LossInputs) -> dict[str, Array]:
    """The same of an agent without a search: distances between its policies, its advantages, and what is clipped."""
    unrolled, target = held.unrolled, held.target

    def mean(values: Array) -> Array:
        return losses.masked_mean(values, target.mask)

    length = target.mask.shape[1]
    prior = target.extras["prior"][:, :length]
    policy = jax.nn.softmax(held.logits)
    log_ratio = distributions.log_probability(held.logits, held.action) - distributions.log_probability(
        held.behavior_logits, held.action
    )
    metrics = common_metrics(held) | {
        "act/kl_to_behavior": mean(distributions.kl_divergence(jax.nn.softmax(held.behavior_logits), policy)),
        "act/kl_to_prior": mean(distributions.kl_divergence(policy, prior)),
        "act/clipped_ratios": mean((jnp.abs(jnp.exp(log_ratio) - 1.0) > ratio_clip).astype(jnp.float32)),
        "target/advantage_mean": mean(target.advantage),
        "target/advantage_scale": target.extras["advantage_scale"],
        "target/advantage_deviation": jnp.sqrt(mean(jnp.square(target.advantage))),
    }
    if "q_advantage" in target.extras:
        clipped = jnp.abs(target.extras["q_advantage"][:, :length]) > (jnp.inf if clip_bound is None else clip_bound)
        metrics |= {
            "target/clipped_advantages": mean(clipped.mean(-1)),
            "target/cmpo_kl": mean(distributions.kl_divergence(unrolled.policy[0], prior)),
        }
    return metrics


def search_metrics(held: LossInputs) -> dict[str, Array]:
    """The same of an agent that improves by search, with how much the searches ask for."""
    unrolled, target = held.unrolled, held.target
    improved = unrolled.policy[0]
    network = jax.nn.softmax(unrolled.acting_logits[0])
    entropy = -(improved * jnp.log(jnp.maximum(improved, 1e-30))).sum(-1)
    return common_metrics(held) | {
        "target/search_kl": losses.masked_mean(distributions.kl_divergence(improved, network), target.mask),
        "target/search_entropy": losses.masked_mean(entropy, target.mask),
        "target/value_change": losses.masked_mean(jnp.abs(target.advantage), target.extras["value_mask"]),
    }
