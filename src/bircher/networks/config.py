"""Settings of the network."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from bircher.networks.encoders import GRIDS, TorsoConfig
from bircher.ops.transforms import Bounded, Support, Unbounded


class ModelConfig(TorsoConfig):
    """The network and how far its model is unrolled."""

    dynamics: Literal["auto", "mlp", "lstm", "convolution"] = "auto"
    """How an action moves a latent: by convolutions over its grid, by an MLP, or as the input of an LSTM whose state
    [h, c] the latent is (Muesli). `auto` takes convolutions where the latent is a grid, and the MLP elsewhere."""
    dynamics_widths: tuple[int, ...] = (128,)
    """Hidden layers of that MLP; with `torso=identity` one, of so many channels, between two convolutions of 3 × 3."""
    prediction_channels: int = Field(0, ge=0)
    """Channels of a convolution that reads a grid's latent for all heads, with `latent_width` units behind it; 0: the
    heads see the grid's numbers as they are."""
    prediction_kernel: int = Field(3, ge=1)
    """Side of that convolution: for four in a row 4."""
    memory: Literal["none", "lstm"] = "none"
    """`lstm` puts one between an observation and its latent: what was seen before in the episode is remembered."""
    memory_width: int = Field(128, gt=0, le=2**20)
    """Units of that LSTM; each row that is kept holds twice as many numbers."""
    burn_in: int = Field(0, ge=0)
    """First rows of each sequence that only bring the memory up to date: nothing is learned from them (R2D2)."""
    head_widths: tuple[int, ...] = ()
    """Hidden layers of each head."""
    unroll_steps: int = Field(5, ge=1, le=1000)
    """K, the steps that the model is unrolled in the loss (Muesli: 5)."""
    num_atoms: int = Field(601, ge=2)
    """Atoms of value and reward (papers: 601)."""
    support: float = Field(300.0, gt=0)
    """The atoms lie on [-support, support] of h(x) (papers: 300)."""
    transform: bool = True
    """Whether values and rewards pass the signed hyperbolic h before they become categories."""
    policy_horizon: int | None = Field(None, ge=1)
    """Steps over which the model's policies are learned, at most K; None: all K."""
    value_head: Literal["categorical", "tanh", "scalar"] = "categorical"
    """`tanh` learns a scalar in [-1, 1] by squared error, for games that are won or lost; `scalar` any (PPO)."""
    reward_head: bool = True
    """False: the model predicts no reward, and a game's outcome is the value of its last position (MuZero, boards)."""
    latent_gradient_scale: float = Field(0.5, ge=0.0, le=1.0)
    """Scale of the gradient into the latent that enters each dynamics step (MuZero: 1/2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network multiplies in. Parameters, latents, logits, losses and returns are float32 either way; on a CPU
    bfloat16 is slower."""

    @model_validator(mode="after")
    def _widths_positive(self) -> ModelConfig:
        for name in ("torso_widths", "dynamics_widths", "head_widths"):
            if any(width <= 0 for width in getattr(self, name)):
                raise ValueError(f"{name} must hold positive widths, not {list(getattr(self, name))}")
        if not self.dynamics_widths:
            raise ValueError("dynamics_widths must hold at least one width")
        if self.memory != "none" and self.torso in GRIDS:
            raise ValueError(f"memory={self.memory} needs a latent that is a vector, which torso={self.torso} has not")
        if self.burn_in and self.memory == "none":
            raise ValueError(f"burn_in={self.burn_in} warms a memory, and there is none: set memory=lstm")
        if self.policy_horizon is not None and self.policy_horizon > self.unroll_steps:
            raise ValueError(
                f"policy_horizon={self.policy_horizon} is more than the unroll_steps={self.unroll_steps} "
                "that the model is unrolled"
            )
        return self

    def start(self, batch_size: int) -> Float[Array, "B state"] | tuple:
        """The memory at the start of episodes; () without one."""
        return () if self.memory == "none" else jnp.zeros((batch_size, 2 * self.memory_width))

    def make_support(self) -> Support:
        """The atoms as an object."""
        return Support(-self.support, self.support, self.num_atoms, self.transform)

    def make_value_support(self) -> Support | Bounded | Unbounded:
        """How a value's logits become a scalar."""
        return {"categorical": self.make_support, "tanh": Bounded, "scalar": Unbounded}[self.value_head]()

    @property
    def dtype(self) -> jnp.dtype:
        """The precision as a type of array."""
        return jnp.dtype(self.precision)
