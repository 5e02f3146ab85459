"""Representations: from an observation to a latent vector in [-1, 1], by way of its features.

Torsos for images are in `images.py`; here are their settings and the choice among all of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.envs import layouts
from bircher.envs.encoding import Encoding
from bircher.envs.layouts import Layout
from bircher.models import images
from bircher.models.grids import GridTorso, IdentityTorso, IndexTorso, MLPTorso, SmallCNNTorso, Torso
from bircher.models.images import ImpalaTorso, MuZeroTorso, PointsTorso, StridedTorso
from bircher.settings import ConfigError
from bircher.types import EnvSpec, Key

IMAGE = 32
"""Least height and width at which `auto` takes a torso for images."""


GRIDS = ("grid", "identity", "muzero_resnet")
"""Torsos whose latent is a grid."""


class TorsoConfig(BaseModel):
    """How an observation becomes a latent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    torso: Literal[
        "auto",
        "mlp",
        "small_cnn",
        "grid",
        "identity",
        "dqn_cnn",
        "nature_cnn",
        "feature_points",
        "impala",
        "muzero_resnet",
    ] = "auto"
    """`auto` takes `impala` for images of at least 32 × 32, the small convolution for smaller ones and the MLP for the
    rest; with `grid` the latent is a grid too, and dynamics are convolutions: for boards; with `identity` that grid is
    the observation; with `muzero_resnet` it is an image, halved until it is small."""
    torso_widths: tuple[int, ...] = (128,)
    """Hidden layers between the observation, or the small convolution, and the latent."""
    latent_width: int = Field(128, gt=0)
    """Numbers of a latent that is no grid; with `dynamics=lstm` those of h alone, and c has as many."""
    channels: int = Field(16, gt=0)
    """Channels of the small convolution, or of a grid's latent (`muzero_resnet`: 256)."""
    kernel: int = Field(3, ge=1)
    """Side of the convolution that sees the observation: for four in a row 4."""
    num_blocks: int = Field(1, ge=1, le=200)
    """Residual blocks of a grid's representation, of `muzero_resnet` those behind the last halving (16); its dynamics
    have one less."""
    sections: tuple[int, ...] = (16, 32, 32)
    """Channels of each section of `impala`; each halves the image."""
    section_blocks: int = Field(2, ge=1, le=200)
    """Residual blocks of each section of `impala`."""
    dense_width: int | None = Field(None, gt=0)
    """Units between the convolutions of `dqn_cnn`, `nature_cnn`, `feature_points` or `impala` and the latent; null: 512
    for `nature_cnn`, else 256."""
    halvings: int | None = Field(None, ge=1, le=16)
    """How often `muzero_resnet` halves height and width; null: until none is above 8, so that 96 × 96 becomes 6 × 6."""

    @model_validator(mode="after")
    def _sections_positive(self) -> TorsoConfig:
        if not self.sections or any(channels <= 0 for channels in self.sections):
            raise ValueError(f"sections must hold at least one number of channels, not {list(self.sections)}")
        return self


def make_torso(config: TorsoConfig, spec: EnvSpec, key: Key, latent_width: int | None = None) -> Torso:
    """The representation that a configuration names, fitted to the observation; `auto` chooses by its axes.

    It takes pictures as height, width and channels; where the specification has another layout, `Model` turns them.
    `latent_width` is the configuration's own where it is None; where the latent is a grid it plays no part.

    Raises:
      ConfigError: a convolution was asked for, and the observation is no grid, or one smaller than the kernel.
    """
    shape = layouts.turned_shape(spec.observation.shape, unturned_layout(spec))
    name, width = config.torso, latent_width or config.latent_width
    num_values = spec.encoding.num_values if names_states(spec) else 0
    if name == "auto":
        name = _fitting(config, shape)
    if name == "mlp" and num_values:
        return IndexTorso(shape[-1], num_values, config.torso_widths, width, key)
    if name == "mlp":
        return MLPTorso(shape, config.torso_widths, width, key)
    least = {"identity": 1, **images.LEAST}.get(name, config.kernel)
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
            dense = config.dense_width or images.DENSE[name]
            return StridedTorso(shape, images.STRIDED[name], dense, width, key)
        case "feature_points":
            return PointsTorso(shape, config.dense_width or images.DENSE[name], width, key)
        case "impala":
            dense = config.dense_width or images.DENSE[name]
            return ImpalaTorso(shape, config.sections, config.section_blocks, dense, width, key)
        case "muzero_resnet":
            return MuZeroTorso(shape, config.channels, config.halvings, config.num_blocks, key)
    return SmallCNNTorso(shape, config.channels, config.kernel, config.torso_widths, width, key)


def _fitting(config: TorsoConfig, shape: tuple[int, ...]) -> str:
    if len(shape) != 3 or min(shape[:2]) < config.kernel:
        return "mlp"
    return "impala" if min(shape[:2]) >= IMAGE else "small_cnn"


def unturned_layout(spec: EnvSpec) -> Layout:
    """How the axes of observations lie that no adapter has looked at; `as_given` where one has."""
    if spec.encoding is not None:
        return "as_given"
    return layouts.layout_of(spec.observation.shape, spec.observation.dtype == np.uint8)


def names_states(spec: EnvSpec) -> bool:
    """Whether the observation is a whole number, or several, that only name states."""
    return isinstance(spec.encoding, Encoding) and spec.encoding.kind == "index"
