"""Layers whose every leaf is an array, working on any leading axes; parameters are float32.

What comes in says in which precision a layer computes: bfloat16 multiplies in bfloat16 and gives bfloat16.  Equinox's
own MLP and Sequential keep functions as leaves: so ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher.types import Key


class Linear(eqx.Module):
    """y = x W + b over the last axis; weights from a truncated normal of variance scale / inputs."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, key: Key, scale: float = 1.0):
        # 0.8796 is the standard deviation of a unit normal truncated at 2.
        deviation = math.sqrt(scale / inputs) / 0.87962566103423978
        self.weight = deviation * jax.random.truncated_normal(key, -2.0, 2.0, (inputs, outputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)


class LayerNorm(eqx.Module):
    """Zero mean and unit variance over the last axis, then a learned scale and offset."""

    scale: Float[Array, " features"]
    offset: Float[Array, " features"]

    def __init__(self, features: int):
        self.scale = jnp.ones(features)
        self.offset = jnp.zeros(features)

    def __call__(self, x: Float[Array, "*B features"]) -> Float[Array, "*B features"]:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * self.scale + self.offset


class MLP(eqx.Module):
    """Linear layers with ReLU between them, and after the last where `activate_last`."""

    layers: tuple[Linear, ...]
    activate_last: bool = eqx.field(static=True)

    def __init__(
        self, inputs: int, widths: Sequence[int], key: Key, activate_last: bool = False, last_scale: float = 1.0
    ):
        sizes = (inputs, *widths)
        keys = jax.random.split(key, max(len(widths), 1))
        last = len(widths) - 1
        # Variance 2 / inputs keeps the scale through a ReLU.
        self.layers = tuple(
            Linear(sizes[i], sizes[i + 1], keys[i], 2.0 if i < last or activate_last else last_scale)
            for i in range(len(widths))
        )
        self.activate_last = activate_last

    def hidden(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B hidden"]:
        """All but the last layer."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return x

    def last(self, x: Float[Array, "*B hidden"]) -> Float[Array, "*B outputs"]:
        """The last layer."""
        x = self.layers[-1](x)
        return jax.nn.relu(x) if self.activate_last else x

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        return self.last(self.hidden(x)) if self.layers else x


def recur(
    gates: Float[Array, "*#B gates"], cell: Float[Array, "*#B width"]
) -> tuple[Float[Array, "*B width"], Float[Array, "*B width"]]:
    """(h', c') of an LSTM from the sums of its gates [i, f, g, o]: c' = s(f + 1) c + s(i) tanh(g), h' = s(o) tanh(c').

    "Long Short-Term Memory" by Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; the 1 keeps
    what is remembered at first (Jozefowicz et al. 2015).  All of it in float32: a cell is a sum over many steps.
    """
    take, forget, new, give = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
    cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(take) * jnp.tanh(new)
    return jax.nn.sigmoid(give) * jnp.tanh(cell), cell


@jax.custom_jvp
def least(x: Float[Array, "*B features"]) -> Float[Array, "*B 1"]:
    """The minimum; its gradient goes to all that are it, in equal parts, as JAX's own does.

    JAX's is NaN where a compiler computes `x` twice, and rounds it so that no entry equals the minimum.
    """
    return x.min(-1, keepdims=True)


@least.defjvp
def _least_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    low = least(x)
    where = (x <= low).astype(x.dtype)
    return low, (tangent * where).sum(-1, keepdims=True) / jnp.maximum(where.sum(-1, keepdims=True), 1.0)


def scale_latent(latent: Float[Array, "*B features"]) -> Float[Array, "*B features"]:
    """Each latent vector scaled to [-1, 1] by its own minimum and maximum, in float32 (MuZero, appendix G, [0, 1])."""
    latent = latent.astype(jnp.float32)
    low, high = least(latent), -least(-latent)
    return 2.0 * (latent - low) / jnp.maximum(high - low, 1e-5) - 1.0
