"""The learned model as what a search walks in."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bircher.models.model import Model
from bircher.ops.distributions import mask_logits
from bircher.search import Root, Simulate, Step


def signed_discount(discount: float, num_players: int) -> float:
    """gamma, negative where each next value is the opponent's."""
    return discount if num_players == 1 else -discount


def root(model: Model, latent: Float[Array, "B latent"], legal_actions: Bool[Array, "B A"]) -> Root:
    """The root of a search at encoded observations."""
    prediction = model.predict(latent)
    # A last row may have no legal action left; what is searched there is never used as a policy.
    legal = legal_actions | ~legal_actions.any(-1, keepdims=True)
    logits = mask_logits(prediction.policy_logits, legal)
    return Root(logits, model.value_support.mean(prediction.value_logits), latent, legal)


def simulator(model: Model, discount: float) -> Simulate:
    """One step of the model from a latent; `discount` as `signed_discount` gives it."""

    def simulate(latent: Float[Array, "B latent"], action: Int[Array, " B"]) -> Step:
        following = model.step(latent, action)
        prediction = model.predict(following)
        value = model.value_support.mean(prediction.value_logits)
        return Step(
            reward=model.reward(following),
            discount=jnp.full(value.shape, discount),
            logits=prediction.policy_logits,
            value=value,
            latent=following,
        )

    return simulate
