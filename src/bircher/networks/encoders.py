"""Encoders (torsos): from an observation to its features, and from features to a latent vector in [-1, 1].

There are torsos for vectors, for small grids and for images: those of DQN, IMPALA and MuZero, and a spatial softmax,
whose features are positions in the image.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher import spaces
from bircher.errors import ConfigError
from bircher.networks.conv import Convolution, ResidualBlock, average_pool, max_pool, positions
from bircher.networks.layers import MLP, names_states, scale_latent
from bircher.spaces import Layout
from bircher.types import EnvSpec, Key


class Torso(eqx.Module):
    """A representation in two parts, with a place for a memory between them."""

    grid: eqx.AbstractVar[tuple[int, int, int] | None]
    """Height, width and channels of the latent; None where it is not a grid."""

    @abstractmethod
    def encode(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B features"]:
        """Return the observation's features as a vector, before the last projection."""

    @abstractmethod
    def project(self, features: Float[Array, "*B features"]) -> Float[Array, "*B latent"]:
        """Return the latent of features, in [-1, 1]."""

    def __call__(self, observation: PyTree[Array]) -> Float[Array, "*B latent"]:
        return self.project(self.encode(observation))


class FlatTorso(Torso):
    """A torso that ends in an MLP, whose hidden layers give the features and whose last layer is the projection."""

    mlp: eqx.AbstractVar[MLP]

    @abstractmethod
    def flat(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B flat"]:
        """Return the input of the MLP."""

    @property
    def num_features(self) -> int:
        """Return the length of the features."""
        return len(self.mlp.layers[-1].weight)

    def encode(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B features"]:
        return self.mlp.hidden(self.flat(observation))

    def project(self, features: Float[Array, "*B features"]) -> Float[Array, "*B latent"]:
        return scale_latent(self.mlp.last(features))


class MLPTorso(FlatTorso):
    """An MLP over the flattened observation."""

    mlp: MLP
    axes: int = eqx.field(static=True)
    grid: None = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], widths: Sequence[int], latent_width: int, key: Key):
        self.mlp = MLP(math.prod(shape), (*widths, latent_width), key)
        self.axes, self.grid = len(shape), None

    def flat(self, observation: Float[Array, "*observation"]) -> Float[Array, "*B flat"]:
        """Return the flattened observation."""
        return observation.reshape(*observation.shape[: observation.ndim - self.axes], -1)


class IndexTorso(FlatTorso):
    """An MLP over the one-hot vectors of whole numbers that are only names of states.

    The product of the weights with a one-hot vector is a row of the weights.  So the first layer looks up rows, and no
    one-hot vector is computed where there is a hidden layer.
    """

    mlp: MLP
    num_values: int = eqx.field(static=True)
    grid: None = eqx.field(static=True)

    def __init__(self, count: int, num_values: int, widths: Sequence[int], latent_width: int, key: Key):
        self.mlp = MLP(count * num_values, (*widths, latent_width), key)
        self.num_values, self.grid = num_values, None

    def flat(self, observation: Int[Array, "*B count"]) -> Float[Array, "*B flat"]:
        """Return the concatenated one-hot vectors."""
        one_hot = jax.nn.one_hot(observation, self.num_values)
        return one_hot.reshape(*observation.shape[:-1], -1)

    def encode(
        self, observation: Int[Array, "*B count"], dtype: jnp.dtype | None = None
    ) -> Float[Array, "*B features"]:
        """Return the observation's features, computed in `dtype`, by default float32."""
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
    """One convolution, followed by an MLP, for small grids.

    With a kernel of 3 × 3 it is the network of MinAtar's paper (Young and Tian 2019).
    """

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
        """Return the convolution's output after a ReLU, flattened."""
        return flatten_image(jax.nn.relu(self.convolution(observation)))


class GridTorso(Torso):
    """A convolution and residual blocks of 3 × 3.  The latent is a flattened grid of the observation's size."""

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
        return flatten_image(apply_blocks(self.blocks, self.convolution(observation)))

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return scale_latent(features)


class IdentityTorso(Torso):
    """The latent is the flattened observation, scaled from [0, 1] to [-1, 1].

    This is for board games, where the cells of the board are the whole state.
    """

    grid: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: Sequence[int]):
        height, width, channels = shape
        self.grid = (height, width, channels)

    def encode(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B features"]:
        return flatten_image(observation)

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return 2.0 * features - 1.0


def flatten_image(x: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
    """Return an image flattened to a vector."""
    return x.reshape(*x.shape[:-3], -1)


def apply_blocks(blocks: Sequence[ResidualBlock], x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    """Apply residual blocks one after the other."""
    for block in blocks:
        x = block(x)
    return x


STRIDED = {"dqn_cnn": ((16, 8, 4), (32, 4, 2)), "nature_cnn": ((32, 8, 4), (64, 4, 2), (64, 3, 1))}
"""Channels, kernel size and stride of the convolutions of `StridedTorso`."""
POINTED = ((16, 6, 3), (32, 3, 1))
"""Channels, kernel size and stride of the convolutions of `PointsTorso`."""
LEAST = {"dqn_cnn": 20, "nature_cnn": 36, "spatial_softmax": 2, "impala": 1, "muzero_resnet": 2}
"""Smallest height and width.  Kernels without padding must fit, and a position needs at least two cells."""
DENSE = {"dqn_cnn": 256, "nature_cnn": 512, "impala": 256, "spatial_softmax": 256}
"""Units of the layer after the convolutions."""
SMALL = 8
"""Height and width up to which `MuZeroTorso` halves the image where the number of halvings is not set."""
BLOCKS_AFTER = (2, 3, 3)
"""Residual blocks after its first halvings.  After the last halving there are `num_blocks`."""


class StridedTorso(FlatTorso):
    """DQN's networks: two convolutions and a layer of 256 units, or three convolutions and a layer of 512 units.

    "Playing Atari with Deep Reinforcement Learning" by Mnih et al. 2013 (https://arxiv.org/abs/1312.5602), section 4.1;
    "Human-level control through deep reinforcement learning" by Mnih et al. 2015 (Nature 518), methods.
    """

    convolutions: tuple[Convolution, ...]
    mlp: MLP
    grid: None = eqx.field(static=True)

    def __init__(
        self, shape: Sequence[int], layers: Sequence[tuple[int, int, int]], dense: int, latent_width: int, key: Key
    ):
        height, width, inputs = shape
        *keys, mlp_key = jax.random.split(key, len(layers) + 1)
        convolutions = []
        for (channels, size, stride), key in zip(layers, keys, strict=True):
            convolutions.append(Convolution(inputs, channels, size, key, stride=stride))
            height, width, inputs = (*(positions(length, size, stride, False) for length in (height, width)), channels)
        self.convolutions = tuple(convolutions)
        self.mlp = MLP(height * width * inputs, (dense, latent_width), mlp_key)
        self.grid = None

    def flat(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
        """Return the last convolution's output after a ReLU, flattened."""
        for convolution in self.convolutions:
            observation = jax.nn.relu(convolution(observation))
        return flatten_image(observation)


class PointsTorso(FlatTorso):
    """Convolutions with a spatial softmax, which reduces every channel to a position in the image.

    The position is the mean row and the mean column under a softmax over the image.  It is accurate to a fraction of a
    cell everywhere, and its difference between stacked pictures is a velocity.  A dense layer after convolutions has to
    learn both for each part of the image separately.  The mean value of the channel at this position is added, because
    an object may be absent.

    "End-to-End Training of Deep Visuomotor Policies" by Levine et al. 2016 (https://arxiv.org/abs/1504.00702), with its
    spatial softmax and expected positions.  The convolutions here are fewer and smaller, and the mean value is an
    addition.
    """

    convolutions: tuple[Convolution, ...]
    mlp: MLP
    grid: None = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], dense: int, latent_width: int, key: Key):
        *keys, mlp_key = jax.random.split(key, len(POINTED) + 1)
        inputs, convolutions = shape[-1], []
        for (channels, size, stride), key in zip(POINTED, keys, strict=True):
            convolutions.append(Convolution(inputs, channels, size, key, pad=True, stride=stride))
            inputs = channels
        self.convolutions = tuple(convolutions)
        self.mlp = MLP(3 * inputs, (dense, latent_width), mlp_key)
        self.grid = None

    def flat(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
        """Return the rows, the columns and the mean values, each of all channels."""
        *earlier, last = self.convolutions
        for convolution in earlier:
            observation = jax.nn.relu(convolution(observation))
        return jnp.concatenate(spatial_softmax(last(observation)), axis=-1)


def spatial_softmax(x: Float[Array, "*B H W C"]) -> tuple[Float[Array, "*B C"], ...]:
    """Return mean row and column (in [-1, 1]) and mean value of each channel under its own softmax over the image."""
    share = jax.nn.softmax(x.astype(jnp.float32), axis=(-3, -2))
    rows, columns = (jnp.linspace(-1.0, 1.0, length) for length in x.shape[-3:-1])
    row = jnp.einsum("...hwc,h->...c", share, rows)
    column = jnp.einsum("...hwc,w->...c", share, columns)
    points = row, column, (share * x).sum((-3, -2))
    return tuple(point.astype(x.dtype) for point in points)


class Section(eqx.Module):
    """A convolution of 3 × 3, a max pooling of 3 × 3 at stride 2, and residual blocks."""

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, inputs: int, channels: int, num_blocks: int, key: Key):
        convolution_key, *keys = jax.random.split(key, num_blocks + 1)
        # The scale is 1 because no ReLU follows, which would halve the variance.
        self.convolution = Convolution(inputs, channels, 3, convolution_key, pad=True, scale=1.0)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys)

    def __call__(self, x: Float[Array, "*B H W inputs"]) -> Float[Array, "*B h w channels"]:
        return apply_blocks(self.blocks, max_pool(self.convolution(x)))


class ImpalaTorso(FlatTorso):
    """IMPALA's deep network without its LSTM: sections that halve the image, and a layer of 256 units.

    "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures" by Espeholt et al. 2018
    (https://arxiv.org/abs/1802.01561), figure 3, right.
    """

    sections: tuple[Section, ...]
    mlp: MLP
    grid: None = eqx.field(static=True)

    def __init__(
        self, shape: Sequence[int], channels: Sequence[int], num_blocks: int, dense: int, latent_width: int, key: Key
    ):
        height, width, inputs = shape
        *keys, mlp_key = jax.random.split(key, len(channels) + 1)
        sizes = (inputs, *channels)
        self.sections = tuple(
            Section(before, after, num_blocks, key) for before, after, key in zip(sizes, channels, keys, strict=False)
        )
        for _ in channels:
            height, width = _half(height), _half(width)
        self.mlp = MLP(height * width * sizes[-1], (dense, latent_width), mlp_key)
        self.grid = None

    def flat(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B flat"]:
        """Return the last section's output after a ReLU, flattened."""
        for section in self.sections:
            observation = section(observation)
        return flatten_image(jax.nn.relu(observation))


class MuZeroTorso(Torso):
    """Two convolutions of stride 2 and average poolings, with residual blocks after each.  The latent is a small image.

    "Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
    (https://arxiv.org/abs/1911.08265), appendix F: four halvings from 96 × 96 to 6 × 6, and half the channels in the
    first convolution.  There is no batch normalization, because residual blocks are initially close to the identity.
    """

    convolutions: tuple[Convolution, ...]
    stages: tuple[tuple[ResidualBlock, ...], ...]
    """The residual blocks after each halving."""
    grid: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], channels: int, halvings: int | None, num_blocks: int, key: Key):
        height, width, inputs = shape
        halvings = halvings_of(height, width) if halvings is None else halvings
        convolution_keys, stage_keys = (jax.random.split(k, halvings) for k in jax.random.split(key))
        planes = [max(channels // 2, 1)] + [channels] * (halvings - 1) if halvings > 1 else [channels]
        self.convolutions = tuple(
            Convolution(before, after, 3, key, pad=True, stride=2)
            for before, after, key in zip((inputs, *planes), planes[:2], convolution_keys, strict=False)
        )
        blocks = [*BLOCKS_AFTER, *[BLOCKS_AFTER[-1]] * halvings][: halvings - 1] + [num_blocks]
        self.stages = tuple(
            tuple(ResidualBlock(wide, key) for key in jax.random.split(stage_key, count))
            for wide, count, stage_key in zip(planes, blocks, stage_keys, strict=True)
        )
        for _ in range(halvings):
            height, width = _half(height), _half(width)
        self.grid = (height, width, channels)

    def encode(self, observation: Float[Array, "*B H W C"]) -> Float[Array, "*B features"]:
        x = observation
        for i, blocks in enumerate(self.stages):
            x = jax.nn.relu(self.convolutions[i](x)) if i < len(self.convolutions) else average_pool(x)
            x = apply_blocks(blocks, x)
        return flatten_image(x)

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return scale_latent(features)


def halvings_of(height: int, width: int) -> int:
    """Return the number of halvings, at least one, after which height and width are at most 8."""
    count = 0
    while count == 0 or max(height, width) > SMALL:
        height, width, count = _half(height), _half(width), count + 1
    return count


def _half(length: int) -> int:
    return positions(length, 1, 2, True)


IMAGE = 32
"""Smallest height and width for which `auto` uses a torso for images."""


GRIDS = ("grid", "identity", "muzero_resnet")
"""Torsos whose latent is a grid."""


class TorsoConfig(BaseModel):
    """Settings of the torso, which computes the latent of an observation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    torso: Literal[
        "auto", "mlp", "small_cnn", "grid", "identity", "dqn_cnn", "nature_cnn", "spatial_softmax", "impala",
        "muzero_resnet",
    ] = "auto"  # fmt: skip
    """The network from the observation to the latent. `auto` takes `impala` for images of at least 32 × 32, `small_cnn`
    for smaller ones and `mlp` for the rest. With `grid` the latent is a grid too and dynamics are convolutions, for
    board games. With `identity` that grid is the observation. With `muzero_resnet` it is an image, halved until it is
    small."""
    torso_widths: tuple[int, ...] = (128,)
    """Widths of the hidden layers between the observation, or the convolution of `small_cnn`, and the latent."""
    latent_width: int = Field(128, gt=0)
    """Length of a latent that is not a grid. With `dynamics=lstm` it is the length of h alone, and c has the same."""
    channels: int = Field(16, gt=0)
    """Channels of the convolution of `small_cnn`, or of a latent that is a grid (`muzero_resnet`: 256)."""
    kernel: int = Field(3, ge=1)
    """Height and width of the kernel of the first convolution, in `small_cnn` and `grid` (4 for four in a row)."""
    num_blocks: int = Field(1, ge=1, le=200)
    """Number of residual blocks of a grid's representation; for `muzero_resnet`, of those after the last halving (16).
    Its dynamics have one less."""
    sections: tuple[int, ...] = (16, 32, 32)
    """Channels of each section of `impala`; each section halves the image."""
    section_blocks: int = Field(2, ge=1, le=200)
    """Number of residual blocks of each section of `impala`."""
    dense_width: int | None = Field(None, gt=0)
    """Units between the convolutions of `dqn_cnn`, `nature_cnn`, `spatial_softmax` or `impala` and the latent; null:
    512 for `nature_cnn`, else 256."""
    halvings: int | None = Field(None, ge=1, le=16)
    """Number of times that `muzero_resnet` halves height and width; null: until both are at most 8, so that 96 × 96
    becomes 6 × 6."""

    @model_validator(mode="after")
    def _sections_positive(self) -> TorsoConfig:
        if not self.sections or any(channels <= 0 for channels in self.sections):
            raise ValueError(f"sections must contain one or more positive numbers, not {list(self.sections)}")
        return self


def make_torso(config: TorsoConfig, spec: EnvSpec, key: Key, latent_width: int | None = None) -> Torso:
    """Return the representation that a configuration names; `auto` chooses it by the axes of the observation.

    Its input has the axes height, width and channels.  Where the specification has another layout, `Model` transposes
    the observations.  `latent_width` is by default that of the configuration, and ignored where the latent is a grid.

    Raises:
      ConfigError: a convolution is configured, and the observation is not a grid or is smaller than the kernel.
    """
    shape = spaces.channels_last_shape(spec.observation.shape, layout_without_encoding(spec))
    name, width = config.torso, latent_width or config.latent_width
    num_values = spec.encoding.num_values if names_states(spec) else 0
    if name == "auto":
        name = _automatic_torso(config, shape)
    if name == "mlp" and num_values:
        return IndexTorso(shape[-1], num_values, config.torso_widths, width, key)
    if name == "mlp":
        return MLPTorso(shape, config.torso_widths, width, key)
    return make_picture_torso(config, name, shape, width, key)


def make_picture_torso(config: TorsoConfig, name: str, shape: tuple[int, ...], width: int, key: Key) -> Any:
    """Return the torso of this name for a picture or a grid [height, width, channels].

    Raises:
      ConfigError: the observation has other axes, or is smaller than the kernel.
    """
    least = {"identity": 1, **LEAST}.get(name, config.kernel)
    if len(shape) != 3 or min(shape[:2]) < least:
        raise ConfigError(
            f"model.torso {name} needs an observation of height, width and channels, at least {least} × {least}, "
            f"not {shape}"
        )
    match name:
        case "identity":
            return IdentityTorso(shape)
        case "grid":
            return GridTorso(shape, config.channels, config.kernel, config.num_blocks, key)
        case "dqn_cnn" | "nature_cnn":
            dense = config.dense_width or DENSE[name]
            return StridedTorso(shape, STRIDED[name], dense, width, key)
        case "spatial_softmax":
            return PointsTorso(shape, config.dense_width or DENSE[name], width, key)
        case "impala":
            dense = config.dense_width or DENSE[name]
            return ImpalaTorso(shape, config.sections, config.section_blocks, dense, width, key)
        case "muzero_resnet":
            return MuZeroTorso(shape, config.channels, config.halvings, config.num_blocks, key)
    return SmallCNNTorso(shape, config.channels, config.kernel, config.torso_widths, width, key)


def _automatic_torso(config: TorsoConfig, shape: tuple[int, ...]) -> str:
    if len(shape) != 3 or min(shape[:2]) < config.kernel:
        return "mlp"
    return "impala" if min(shape[:2]) >= IMAGE else "small_cnn"


def layout_without_encoding(spec: EnvSpec) -> Layout:
    """Return the layout of observations that no adapter has encoded, or `as_given` where one has."""
    if spec.encoding is not None:
        return "as_given"
    return spaces.layout_of(spec.observation.shape, spec.observation.dtype == np.uint8)
