"""Layers whose every leaf is an array, working on any leading axes; images are NHWC.

Equinox's own MLP and Sequential keep functions as leaves and its convolution is NCHW, slower on a CPU: so ours.
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
        return x @ self.weight + self.bias


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

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1 or self.activate_last:
                x = jax.nn.relu(x)
        return x


class Convolution(eqx.Module):
    """Stride-1 convolution as one matrix product over patches of [..., H, W, C]; `pad` keeps height and width.

    A CPU multiplies matrices far quicker than it convolves few channels.
    """

    weight: Float[Array, "patch outputs"]
    bias: Float[Array, " outputs"]
    size: int = eqx.field(static=True)
    pad: bool = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, size: int, key: Key, pad: bool = False, scale: float = 2.0):
        linear = Linear(size * size * inputs, outputs, key, scale)
        self.weight, self.bias, self.size, self.pad = linear.weight, linear.bias, size, pad

    def __call__(self, x: Float[Array, "*B H W inputs"]) -> Float[Array, "*B h w outputs"]:
        if self.pad:
            around = (self.size - 1) // 2, self.size // 2
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [around, around, (0, 0)])
        height, width = x.shape[-3] - self.size + 1, x.shape[-2] - self.size + 1
        patches = [x[..., i : i + height, j : j + width, :] for i in range(self.size) for j in range(self.size)]
        return jnp.concatenate(patches, axis=-1) @ self.weight + self.bias


class ResidualBlock(eqx.Module):
    """x + convolution(relu(convolution(relu(x)))), 3 × 3 each; begins near the identity."""

    first: Convolution
    second: Convolution

    def __init__(self, channels: int, key: Key):
        first_key, second_key = jax.random.split(key)
        self.first = Convolution(channels, channels, 3, first_key, pad=True)
        self.second = Convolution(channels, channels, 3, second_key, pad=True, scale=0.1)

    def __call__(self, x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return x + self.second(jax.nn.relu(self.first(jax.nn.relu(x))))


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
    """Each latent vector scaled to [-1, 1] by its own minimum and maximum (MuZero, appendix G, there [0, 1])."""
    low, high = least(latent), -least(-latent)
    return 2.0 * (latent - low) / jnp.maximum(high - low, 1e-5) - 1.0
