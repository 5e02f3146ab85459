"""Torsos for vectors and small grids, and what every torso is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bircher.models.convolutions import Convolution, ResidualBlock, positions
from bircher.models.layers import MLP, scale_latent
from bircher.types import Key


class Torso(eqx.Module):
    """A representation in two halves, between which a memory can stand."""

    grid: eqx.AbstractVar[tuple[int, int, int] | None]
    """Height, width and channels of the latent, where it is a grid."""

    @abstractmethod
    def encode(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B features"]:
        """The observation's features as a vector, all that is known before the last projection."""

    @abstractmethod
    def project(self, features: Float[Array, "*B features"]) -> Float[Array, "*B latent"]:
        """The latent of features, in [-1, 1]."""

    def __call__(self, observation: Shaped[Array, "*observation"]) -> Float[Array, "*B latent"]:
        return self.project(self.encode(observation))


class FlatTorso(Torso):
    """A torso that ends in an MLP: its hidden layers belong to the features, its last layer is the projection."""

    mlp: eqx.AbstractVar[MLP]

    @abstractmethod
    def flat(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B flat"]:
        """What the MLP is given."""

    @property
    def num_features(self) -> int:
        """Length of the features."""
        return len(self.mlp.layers[-1].weight)

    def encode(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B features"]:
        return self.mlp.hidden(self.flat(observation))

    def project(self, features: Float[Array, "*B features"]) -> Float[Array, "*B latent"]:
        return scale_latent(self.mlp.last(features))


class MLPTorso(FlatTorso):
    """Flattened observation, hidden layers, latent."""

    mlp: MLP
    axes: int = eqx.field(static=True)
    grid: None = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], widths: Sequence[int], latent_width: int, key: Key):
        self.mlp = MLP(math.prod(shape), (*widths, latent_width), key)
        self.axes, self.grid = len(shape), None

    def flat(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B flat"]:
        """The observation's numbers in a row."""
        return observation.reshape(*observation.shape[: observation.ndim - self.axes], -1)


class IndexTorso(FlatTorso):
    """Numbers that only name states: an MLP over their one-hot vectors, which looks up rows of its first layer.

    A row of the weights is what the product with a one-hot vector gives; no such vector is made where there is a hidden
    layer.
    """

    mlp: MLP
    num_values: int = eqx.field(static=True)
    grid: None = eqx.field(static=True)

    def __init__(self, count: int, num_values: int, widths: Sequence[int], latent_width: int, key: Key):
        self.mlp = MLP(count * num_values, (*widths, latent_width), key)
        self.num_values, self.grid = num_values, None

    def flat(self, observation: Int[Array, "*B count"]) -> Float[Array, "*B flat"]:
        """The one-hot vectors in a row."""
        one_hot = jax.nn.one_hot(observation, self.num_values)
        return one_hot.reshape(*observation.shape[:-1], -1)

    def encode(
        self, observation: Int[Array, "*B count"], dtype: jnp.dtype | None = None
    ) -> Float[Array, "*B features"]:
        """The observation's features, computed in `dtype`, by default float32."""
        first, *rest = self.mlp.layers
        dtype = dtype or jnp.dtype(jnp.float32)
        if not rest:
            return self.flat(observation).astype(dtype)
        rows = observation + self.num_values * jnp.arange(observation.shape[-1])
        x = first.weight[rows].astype(dtype).sum(-2) + first.bias.astype(dtype)
        for layer in rest[:-1]:
            x = layer(jax.nn.relu(x))
        return jax.nn.relu(x)


class SmallCNNTorso(FlatTorso):
    """One convolution, then an MLP: with 3 × 3 the network of MinAtar's paper (Young and Tian 2019) for small grids."""

    convolution: Convolution
    mlp: MLP
    grid: None = eqx.field(static=True)

    def __init__(
        self, shape: Sequence[int], channels: int, kernel: int, widths: Sequence[int], latent_width: int, key: Key
    ):
        convolution_key, mlp_key = jax.random.split(key)
        height, width, inputs = shape
        self.convolution = Convolution(inputs, channels, kernel, convolution_key)
        cells = positions(height, kernel, 1, False) * positions(width, kernel, 1, False)
        self.mlp = MLP(cells * channels, (*widths, latent_width), mlp_key)
        self.grid = None

    def flat(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
        """The convolution's positive part."""
        return in_a_row(jax.nn.relu(self.convolution(observation)))


class GridTorso(Torso):
    """A convolution and residual blocks of 3 × 3: the latent is a grid as large as the observation's, flattened."""

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]
    grid: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], channels: int, kernel: int, num_blocks: int, key: Key):
        keys = jax.random.split(key, num_blocks + 1)
        height, width, inputs = shape
        self.convolution = Convolution(inputs, channels, kernel, keys[0], pad=True)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys[1:])
        self.grid = (height, width, channels)

    def encode(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B features"]:
        return in_a_row(through(self.blocks, self.convolution(observation)))

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return scale_latent(features)


class IdentityTorso(Torso):
    """The latent is the observation itself, flattened and taken from [0, 1] to [-1, 1]: boards, whose cells are all."""

    grid: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: Sequence[int]):
        height, width, channels = shape
        self.grid = (height, width, channels)

    def encode(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B features"]:
        return in_a_row(observation)

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return 2.0 * features - 1.0


def in_a_row(x: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
    """An image's numbers as a vector."""
    return x.reshape(*x.shape[:-3], -1)


def through(blocks: Sequence[ResidualBlock], x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    """What comes out behind residual blocks."""
    for block in blocks:
        x = block(x)
    return x
