"""Torsos for images, NHWC: those of DQN, IMPALA and MuZero, and one that says where things are."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher.models.convolutions import Convolution, ResidualBlock, average_pool, max_pool, positions
from bircher.models.grids import FlatTorso, Torso, in_a_row, through
from bircher.models.layers import MLP, scale_latent
from bircher.types import Key

STRIDED = {"dqn_cnn": ((16, 8, 4), (32, 4, 2)), "nature_cnn": ((32, 8, 4), (64, 4, 2), (64, 3, 1))}
"""Channels, side and stride of the convolutions of `StridedTorso`."""
POINTED = ((16, 6, 3), (32, 3, 1))
"""The same of `PointsTorso`."""
LEAST = {"dqn_cnn": 20, "nature_cnn": 36, "feature_points": 2, "impala": 1, "muzero_resnet": 2}
"""Least height and width: what kernels without padding fit into, and two places where there is something to tell."""
DENSE = {"dqn_cnn": 256, "nature_cnn": 512, "impala": 256, "feature_points": 256}
"""Units of the layer behind the convolutions."""
SMALL = 8
"""Height and width at which `MuZeroTorso` halves no more, where nobody says how often."""
BLOCKS_AFTER = (2, 3, 3)
"""Residual blocks behind its first halvings; behind the last of all stand those that were asked for."""


class StridedTorso(FlatTorso):
    """Two convolutions and a layer of 256, or three and one of 512: DQN's networks.

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
        """The last convolution's positive part."""
        for convolution in self.convolutions:
            observation = jax.nn.relu(convolution(observation))
        return in_a_row(observation)


class PointsTorso(FlatTorso):
    """Convolutions whose every channel answers with a place: of a softmax over the image its mean row and column.

    A place is known to a fraction of a cell wherever it is, and its difference between stacked pictures is a speed;
    a layer behind convolutions has to learn either for each part of the image anew.  With it comes how strong the
    channel is there, for what may be absent.

    "End-to-End Training of Deep Visuomotor Policies" by Levine et al. 2016 (https://arxiv.org/abs/1504.00702), its
    spatial softmax and expected positions; with fewer and smaller convolutions here, and the strength.
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
        """Rows, columns and strengths, each of all channels."""
        *before, last = self.convolutions
        for convolution in before:
            observation = jax.nn.relu(convolution(observation))
        return jnp.concatenate(feature_points(last(observation)), axis=-1)


def feature_points(x: Float[Array, "*B H W C"]) -> tuple[Float[Array, "*B C"], ...]:
    """Mean row, mean column, both in [-1, 1], and mean value, of each channel under its own softmax over the image."""
    share = jax.nn.softmax(x.astype(jnp.float32), axis=(-3, -2))
    rows, columns = (jnp.linspace(-1.0, 1.0, length) for length in x.shape[-3:-1])
    row = jnp.einsum("...hwc,h->...c", share, rows)
    column = jnp.einsum("...hwc,w->...c", share, columns)
    points = row, column, (share * x).sum((-3, -2))
    return tuple(point.astype(x.dtype) for point in points)


class Section(eqx.Module):
    """A convolution of 3 × 3, maxima of 3 × 3 at stride 2, residual blocks."""

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, inputs: int, channels: int, num_blocks: int, key: Key):
        convolution_key, *keys = jax.random.split(key, num_blocks + 1)
        # No ReLU follows, which would halve the variance.
        self.convolution = Convolution(inputs, channels, 3, convolution_key, pad=True, scale=1.0)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys)

    def __call__(self, x: Float[Array, "*B H W inputs"]) -> Float[Array, "*B h w channels"]:
        return through(self.blocks, max_pool(self.convolution(x)))


class ImpalaTorso(FlatTorso):
    """Sections that halve the image, and a layer of 256: the deep network without its LSTM.

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
        """The last section's positive part."""
        for section in self.sections:
            observation = section(observation)
        return in_a_row(jax.nn.relu(observation))


class MuZeroTorso(Torso):
    """Two convolutions of stride 2, then averages, with residual blocks between: the latent is a small image.

    "Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
    (https://arxiv.org/abs/1911.08265), appendix F: from 96 × 96 by four halvings to 6 × 6, the first convolution with
    half the channels.  Without its batch normalisation: here residual blocks begin near the identity.
    """

    convolutions: tuple[Convolution, ...]
    stages: tuple[tuple[ResidualBlock, ...], ...]
    """The blocks behind each halving."""
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
            x = through(blocks, x)
        return in_a_row(x)

    def project(self, features: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
        return scale_latent(features)


def halvings_of(height: int, width: int) -> int:
    """How often an image is halved until neither side is above 8; at least once."""
    count = 0
    while count == 0 or max(height, width) > SMALL:
        height, width, count = _half(height), _half(width), count + 1
    return count


def _half(length: int) -> int:
    return positions(length, 1, 2, True)
