"""Projections that hold imagined latents against encoded ones."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher.models.layers import MLP
from bircher.types import Key


class Projection(eqx.Module):
    """Projector and predictor of the self-consistency loss.

    "Mastering Atari Games with Limited Data" by Ye et al. 2021 (https://arxiv.org/abs/2111.00210), section 4.1, after
    SimSiam by Chen and He 2021 (https://arxiv.org/abs/2011.10566).
    """

    projector: MLP
    predictor: MLP
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, latent_width: int, key: Key, dtype: jnp.dtype):
        projector_key, predictor_key = jax.random.split(key)
        self.projector = MLP(latent_width, (latent_width, latent_width), projector_key)
        self.predictor = MLP(latent_width, (latent_width // 2 or 1, latent_width), predictor_key)
        self.dtype = dtype

    def distance(self, imagined: Float[Array, "*B latent"], encoded: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """1 - cosine(predictor(projector(imagined)), projector(encoded)); no gradient through `encoded`, 0 is best."""
        prediction = self.predictor(self.projector(imagined.astype(self.dtype)))
        goal = jax.lax.stop_gradient(self.projector(encoded.astype(self.dtype)))
        return 1.0 - (_unit(prediction) * _unit(goal)).sum(-1)


def _unit(x: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)
