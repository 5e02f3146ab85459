"""Representations: from an observation to a latent vector in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher.models.layers import MLP, Convolution, ResidualBlock, scale_latent
from bircher.types import EnvSpec, Key


class MLPTorso(eqx.Module):
    """Flattened observation, hidden layers, latent."""

    mlp: MLP
    axes: int = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], widths: Sequence[int], latent_width: int, key: Key):
        size = 1
        for length in shape:
            size *= length
        self.mlp = MLP(size, (*widths, latent_width), key)
        self.axes = len(shape)

    def __call__(self, observation: Float[Array, ...]) -> Float[Array, "*B latent"]:
        leading = observation.shape[: observation.ndim - self.axes]
        return scale_latent(self.mlp(observation.reshape(*leading, -1)))


class SmallCNNTorso(eqx.Module):
    """One 3 × 3 convolution, then an MLP: the network of MinAtar's paper (Young and Tian 2019) for small grids."""

    convolution: Convolution
    mlp: MLP

    def __init__(self, shape: Sequence[int], channels: int, widths: Sequence[int], latent_width: int, key: Key):
        convolution_key, mlp_key = jax.random.split(key)
        height, width, inputs = shape
        self.convolution = Convolution(inputs, channels, 3, convolution_key)
        flat = (height - 2) * (width - 2) * channels
        self.mlp = MLP(flat, (*widths, latent_width), mlp_key)

    def __call__(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B latent"]:
        x = jax.nn.relu(self.convolution(observation.astype(jnp.float32)))
        return scale_latent(self.mlp(x.reshape(*x.shape[:-3], -1)))


class GridTorso(eqx.Module):
    """A 3 × 3 convolution and residual blocks: the latent is a grid as large as the observation's, flattened."""

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, shape: Sequence[int], channels: int, num_blocks: int, key: Key):
        keys = jax.random.split(key, num_blocks + 1)
        self.convolution = Convolution(shape[-1], channels, 3, keys[0], pad=True)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys[1:])

    def __call__(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B latent"]:
        x = self.convolution(observation.astype(jnp.float32))
        for block in self.blocks:
            x = block(x)
        return scale_latent(x.reshape(*x.shape[:-3], -1))


def make_torso(
    spec: EnvSpec, name: str, widths: Sequence[int], latent_width: int, channels: int, num_blocks: int, key: Key
) -> MLPTorso | SmallCNNTorso | GridTorso:
    """The representation called `name`, fitted to the observation; `auto` chooses by its number of axes."""
    shape = spec.observation.shape
    if name == "auto":
        name = "small_cnn" if len(shape) == 3 and min(shape[:2]) >= 3 else "mlp"
    if name in ("small_cnn", "grid") and (len(shape) != 3 or min(shape[:2]) < 3):
        raise ValueError(f"model.torso {name} needs an observation of height, width and channels, not {shape}")
    if name == "grid":
        return GridTorso(shape, channels, num_blocks, key)
    if name == "small_cnn":
        return SmallCNNTorso(shape, channels, widths, latent_width, key)
    return MLPTorso(shape, widths, latent_width, key)
