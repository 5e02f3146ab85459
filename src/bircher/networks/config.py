"""Settings of the network."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from bircher.networks.encoders import GRIDS
from bircher.networks.observations import RepresentationConfig
from bircher.ops.transforms import Bounded, Support, Unbounded


class ModelConfig(RepresentationConfig):
    """Settings of the network, and the number of steps for which its model is unrolled."""

    dynamics: Literal["auto", "mlp", "lstm", "convolution"] = "auto"
    """The transition from a latent and an action to the next latent: convolutions over the latent's grid, an MLP, or an
    LSTM. The LSTM's input is the action, and its state [h, c] is the latent (Muesli). `auto` takes convolutions where
    the latent is a grid, and the MLP otherwise."""
    dynamics_widths: tuple[int, ...] = (128,)
    """Widths of the hidden layers of that MLP. With `torso=identity` it is one number, the channels between two
    convolutions of 3 × 3."""
    prediction_channels: int = Field(0, ge=0)
    """Channels of a convolution over a latent that is a grid, followed by a layer of `latent_width` units, for all
    heads together. With 0 the heads' input is the grid itself."""
    prediction_kernel: int = Field(3, ge=1)
    """Height and width of that convolution's kernel (4 for four in a row)."""
    memory: Literal["none", "lstm"] = "none"
    """`lstm` puts an LSTM between an observation and its latent, so that the agent remembers earlier observations of
    the episode."""
    memory_width: int = Field(128, gt=0, le=2**20)
    """Units of that LSTM; each stored row has twice as many numbers."""
    burn_in: int = Field(0, ge=0)
    """Number of first rows of each sequence that only update the memory; they have no loss (R2D2)."""
    head_widths: tuple[int, ...] = ()
    """Widths of the hidden layers of each head."""
    unroll_steps: int = Field(5, ge=1, le=1000)
    """K, the number of steps for which the model is unrolled in the loss (Muesli: 5)."""
    num_atoms: int = Field(601, ge=2)
    """Number of atoms of value and reward (papers: 601)."""
    support: float = Field(300.0, gt=0)
    """The atoms lie on [-support, support] of h(x) (papers: 300)."""
    value_unit: Literal["fixed", "returns"] = "fixed"
    """Unit of values and rewards within the network: the environment's own, or one that follows the largest discounted
    return of training so far, so that returns of any scale fill the support."""
    transform: bool = True
    """Whether the signed hyperbolic h is applied to values and rewards before they become categories."""
    policy_horizon: int | None = Field(None, ge=1)
    """Number of model steps over which the policies are learned, at most K; null: all K."""
    value_head: Literal["categorical", "tanh", "scalar"] = "categorical"
    """Form of the value: `categorical` over the atoms, `tanh` for a scalar in [-1, 1] by squared error (games that are
    won or lost), or `scalar` for any number by squared error (PPO)."""
    reward_head: bool = True
    """Whether the model predicts rewards. Without them, the outcome of a game is the value of its last position
    (MuZero, boards)."""
    latent_gradient_scale: float = Field(0.5, ge=0.0, le=1.0)
    """Scale of the gradient into the latent that enters each dynamics step (MuZero: 1/2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's products. Parameters, latents, logits, losses and returns are float32 with either. On
    a CPU bfloat16 is slower."""

    @model_validator(mode="after")
    def _widths_positive(self) -> ModelConfig:
        for name in ("torso_widths", "dynamics_widths", "head_widths"):
            if any(width <= 0 for width in getattr(self, name)):
                raise ValueError(f"{name} must contain positive widths, not {list(getattr(self, name))}")
        if not self.dynamics_widths:
            raise ValueError("dynamics_widths must contain at least one width")
        if self.memory != "none" and self.torso in GRIDS:
            raise ValueError(
                f"memory={self.memory} needs a latent that is a vector, but the latent of torso={self.torso} is a grid"
            )
        if self.burn_in and self.memory == "none":
            raise ValueError(f"burn_in={self.burn_in} needs a memory: set memory=lstm")
        if self.policy_horizon is not None and self.policy_horizon > self.unroll_steps:
            raise ValueError(
                f"policy_horizon={self.policy_horizon} is more than the unroll_steps={self.unroll_steps} "
                "that the model is unrolled"
            )
        return self

    def start(self, batch_size: int) -> Float[Array, "B state"] | None:
        """Return the memory at the start of episodes, or None without a memory."""
        return None if self.memory == "none" else jnp.zeros((batch_size, 2 * self.memory_width))

    def no_return(self) -> Float[Array, ""] | None:
        """Return the largest return before training, or None where the unit of values does not follow it."""
        return jnp.zeros(()) if self.value_unit == "returns" else None

    def make_support(self) -> Support:
        """Return the support of the categorical reward, and of a categorical value."""
        return Support(-self.support, self.support, self.num_atoms, self.transform)

    def make_value_support(self) -> Support | Bounded | Unbounded:
        """Return the object that converts the logits of a value to a scalar."""
        return {"categorical": self.make_support, "tanh": Bounded, "scalar": Unbounded}[self.value_head]()

    @property
    def dtype(self) -> jnp.dtype:
        """Return the precision as a type of arrays."""
        return jnp.dtype(self.precision)
