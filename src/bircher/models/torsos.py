"""Representations: from an observation to a latent vector in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field

from bircher.models.layers import MLP, Convolution, ResidualBlock, scale_latent
from bircher.settings import ConfigError
from bircher.types import EnvSpec, Key


class TorsoConfig(BaseModel):
    """How an observation becomes a latent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    torso: Literal["auto", "mlp", "small_cnn", "grid", "identity"] = "auto"
    """`auto` takes the small convolution for three axes and the MLP for the rest; with `grid` the latent
    is a grid too, and dynamics are convolutions: for boards; with `identity` that grid is the observation."""
    torso_widths: tuple[int, ...] = (128,)
    """Hidden layers between the observation and the latent."""
    latent_width: int = Field(128, gt=0)
    channels: int = Field(16, gt=0)
    """Channels of the small convolution, or of a grid's latent."""
    kernel: int = Field(3, ge=1)
    """Side of the convolution that sees the observation: for four in a row 4."""
    num_blocks: int = Field(1, ge=1)
    """Residual blocks of a grid's representation; its dynamics have one less."""


GRIDS = ("grid", "identity")
"""Torsos whose latent is a grid."""


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
    """One convolution, then an MLP: with 3 × 3 the network of MinAtar's paper (Young and Tian 2019) for small grids."""

    convolution: Convolution
    mlp: MLP

    def __init__(
        self, shape: Sequence[int], channels: int, kernel: int, widths: Sequence[int], latent_width: int, key: Key
    ):
        convolution_key, mlp_key = jax.random.split(key)
        height, width, inputs = shape
        self.convolution = Convolution(inputs, channels, kernel, convolution_key)
        flat = (height - kernel + 1) * (width - kernel + 1) * channels
        self.mlp = MLP(flat, (*widths, latent_width), mlp_key)

    def __call__(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B latent"]:
        x = jax.nn.relu(self.convolution(observation.astype(jnp.float32)))
        return scale_latent(self.mlp(x.reshape(*x.shape[:-3], -1)))


class GridTorso(eqx.Module):
    """A convolution and residual blocks of 3 × 3: the latent is a grid as large as the observation's, flattened."""

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, shape: Sequence[int], channels: int, kernel: int, num_blocks: int, key: Key):
        keys = jax.random.split(key, num_blocks + 1)
        self.convolution = Convolution(shape[-1], channels, kernel, keys[0], pad=True)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys[1:])

    def __call__(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B latent"]:
        x = self.convolution(observation.astype(jnp.float32))
        for block in self.blocks:
            x = block(x)
        return scale_latent(x.reshape(*x.shape[:-3], -1))


class IdentityTorso(eqx.Module):
    """The latent is the observation itself, flattened and taken from [0, 1] to [-1, 1]: boards, whose cells are all."""

    def __call__(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B latent"]:
        return 2.0 * observation.reshape(*observation.shape[:-3], -1) - 1.0


def make_torso(config: TorsoConfig, spec: EnvSpec, key: Key) -> MLPTorso | SmallCNNTorso | GridTorso | IdentityTorso:
    """The representation that a configuration names, fitted to the observation; `auto` chooses by its axes.

    Raises:
      ConfigError: a convolution was asked for, and the observation is no grid, or one smaller than the kernel.
    """
    shape, name = spec.observation.shape, config.torso
    if name == "auto":
        name = "small_cnn" if len(shape) == 3 and min(shape[:2]) >= config.kernel else "mlp"
    if name == "mlp":
        return MLPTorso(shape, config.torso_widths, config.latent_width, key)
    if name == "identity" and len(shape) == 3:
        return IdentityTorso()
    if len(shape) != 3 or min(shape[:2]) < config.kernel:
        raise ConfigError(
            f"model.torso {name} needs an observation of height, width and channels, at least {config.kernel} × "
            f"{config.kernel}, not {shape}"
        )
    if name == "grid":
        return GridTorso(shape, config.channels, config.kernel, config.num_blocks, key)
    return SmallCNNTorso(shape, config.channels, config.kernel, config.torso_widths, config.latent_width, key)
