"""The learned model: represent, step and predict, the papers' h, g and f."""

from __future__ import annotations

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field, model_validator

from bircher.models.dynamics import DynamicsMLP, GridDynamics
from bircher.models.heads import GridReader, Heads
from bircher.models.memory import Memory
from bircher.models.projection import Projection
from bircher.models.torsos import GRIDS, GridTorso, IdentityTorso, TorsoConfig, make_torso
from bircher.ops.transforms import Bounded, Support, Unbounded, scale_gradient
from bircher.settings import ConfigError
from bircher.types import EnvSpec, Key, Prediction


class ModelConfig(TorsoConfig):
    """The network and how far its model is unrolled."""

    dynamics_widths: tuple[int, ...] = (128,)
    """Hidden layers of the transition from a latent and an action to the next latent; with `torso=identity` one, of so
    many channels, between two convolutions of 3 × 3."""
    prediction_channels: int = Field(0, ge=0)
    """Channels of a convolution that reads a grid's latent for all heads, with `latent_width` units behind it; 0: the
    heads see the grid's numbers as they are."""
    prediction_kernel: int = Field(3, ge=1)
    """Side of that convolution: for four in a row 4."""
    memory: Literal["none", "lstm"] = "none"
    """`lstm` puts one between an observation and its latent: what was seen before in the episode is remembered."""
    memory_width: int = Field(128, gt=0)
    """Units of that LSTM; each row that is kept holds twice as many numbers."""
    burn_in: int = Field(0, ge=0)
    """First rows of each sequence that only bring the memory up to date: nothing is learnt from them (R2D2)."""
    head_widths: tuple[int, ...] = ()
    """Hidden layers of each head."""
    unroll_steps: int = Field(5, ge=1)
    """K, the steps that the model is unrolled in the loss (Muesli: 5)."""
    num_atoms: int = Field(601, ge=2)
    """Atoms of value and reward (papers: 601)."""
    support: float = Field(300.0, gt=0)
    """The atoms lie on [-support, support] of h(x) (papers: 300)."""
    transform: bool = True
    """Whether values and rewards pass the signed hyperbolic h before they become categories."""
    policy_horizon: int | None = Field(None, ge=1)
    """Steps over which the model's policies are learnt, at most K; None: all K."""
    value_head: Literal["categorical", "tanh", "scalar"] = "categorical"
    """`tanh` learns a scalar in [-1, 1] by squared error, for games that are won or lost; `scalar` any (PPO)."""
    reward_head: bool = True
    """False: the model predicts no reward, and a game's outcome is the value of its last position (MuZero, boards)."""
    latent_gradient_scale: float = Field(0.5, ge=0.0, le=1.0)
    """Scale of the gradient into the latent that enters each dynamics step (MuZero: 1/2)."""

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


class Model(eqx.Module):
    """Parameters of representation, dynamics and prediction; every leaf is an array."""

    representation: eqx.Module
    memory: Memory | None
    """Between what the representation shows and the latent."""
    dynamics: DynamicsMLP | GridDynamics | None
    """None where nothing is imagined: an agent without a term of the model has no part that never learns."""
    reader: GridReader | None
    """Between a latent and the heads, where a grid is read by a convolution."""
    heads: Heads
    projection: Projection | None
    """Only where latents that are learnt are held against encoded ones: the `consistency` term."""
    value_support: Support | Bounded | Unbounded
    reward_support: Support
    latent_gradient_scale: float = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, config: ModelConfig, key: Key, project: bool = False, imagine: bool = True):
        torso_key, dynamics_key, heads_key = jax.random.split(key, 3)
        self.representation = make_torso(config, spec, torso_key)
        grid = latent_grid(config, self.representation, spec)
        latent_width = math.prod(grid) if grid else config.latent_width
        self.dynamics = make_dynamics(config, grid, latent_width, spec.num_actions, dynamics_key) if imagine else None
        self.memory = None
        if config.memory == "lstm":
            memory_key = jax.random.fold_in(key, 5)
            self.memory = Memory(latent_width, config.memory_width, latent_width, memory_key)
        self.reader = make_reader(config, grid, jax.random.fold_in(key, 4)) if config.prediction_channels else None
        self.value_support, self.reward_support = config.make_value_support(), config.make_support()
        self.heads = Heads(
            config.latent_width if self.reader else latent_width, spec.num_actions, self.value_support.num_atoms,
            config.num_atoms if config.reward_head and imagine else 0, config.head_widths, heads_key,
        )  # fmt: skip
        learnt = not isinstance(self.representation, IdentityTorso)
        self.projection = Projection(latent_width, jax.random.fold_in(key, 3)) if project and learnt else None
        self.latent_gradient_scale = config.latent_gradient_scale

    def represent(self, observation: Float[Array, ...]) -> Float[Array, "*B latent"]:
        """h: the latent of an observation, in [-1, 1]; what a memory adds to it, `encode` and `encode_rows` know."""
        return self.representation(observation)  # type: ignore[operator]

    def encode(
        self, observation: Float[Array, ...], state: Float[Array, "B state"] | tuple, first: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B latent"], Float[Array, "B state"] | tuple]:
        """The latents of one row, and the memory after it."""
        shown = self.represent(observation)
        return (shown, state) if self.memory is None else self.memory(shown, state, first)

    def encode_rows(
        self, observation: Float[Array, ...], state: Float[Array, "B state"] | tuple, first: Bool[Array, "B R"],
        burn_in: int = 0,
    ) -> Float[Array, "B R latent"]:  # fmt: skip
        """The latents of sequences of rows, from the memory before their first ones."""
        shown = self.represent(observation)
        return shown if self.memory is None else self.memory.rows(shown, state, first, burn_in)

    def step(self, latent: Float[Array, "*B latent"], action: Int[Array, "*B"]) -> Float[Array, "*B latent"]:
        """g: the latent after an action; its reward is `reward_logits` of the result."""
        assert self.dynamics is not None
        return self.dynamics(scale_gradient(latent, self.latent_gradient_scale), action)

    def read(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B features"]:
        """What the heads look at: the latent itself, or a convolution's reading of its grid."""
        return latent if self.reader is None else self.reader(latent)

    def reward_logits(self, features: Float[Array, "*B features"]) -> Float[Array, "*B atoms"]:
        """Categorical reward got on arriving in a latent, of its features; no atoms where none is predicted."""
        if self.heads.reward is None:
            return jnp.zeros((*features.shape[:-1], 0))
        return self.heads.reward(features)

    def reward(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """The reward got on arriving in a latent that `step` returned; 0 where none is predicted."""
        if self.heads.reward is None:
            return jnp.zeros(latent.shape[:-1])
        return self.reward_support.mean(self.heads.reward(self.read(latent)))

    def value(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """The value of a latent."""
        return self.value_support.mean(self.heads.value(self.read(latent)))

    def prediction(self, features: Float[Array, "*B features"]) -> Prediction:
        """Logits of policy and value, of a latent's features."""
        return Prediction(self.heads.policy(features), self.heads.value(features))

    def predict(self, latent: Float[Array, "*B latent"]) -> Prediction:
        """f: logits of policy and value in a latent."""
        return self.prediction(self.read(latent))

    def unroll(self, latent: Float[Array, "*B latent"], actions: Int[Array, " K *B"]) -> Float[Array, "K *B latent"]:
        """The latents after each of K actions, from a latent onwards."""

        def step(latent, action):
            latent = self.step(latent, action)
            return latent, latent

        if not len(actions):
            return jnp.zeros((0, *latent.shape), latent.dtype)
        # K is small: unrolled, the steps' weight gradients are summed without passing through a loop's carry.
        return jax.lax.scan(step, latent, actions, unroll=max(len(actions), 1))[1]

    def look_ahead(self, latent: Float[Array, "*B latent"], discount: float) -> Float[Array, "*B A"]:
        """q^(s, a) = r^_1(s, a) + gamma v^_1(s, a) for every action (Muesli, equation 14).

        `discount` is gamma, negative where the next value is the opponent's.
        """
        assert self.dynamics is not None
        following = self.dynamics.all_actions(latent)
        return self.reward(following) + discount * self.value(following)


def latent_grid(config: ModelConfig, torso: eqx.Module, spec: EnvSpec) -> tuple[int, int, int] | None:
    """Height, width and channels of the latent, where it is a grid."""
    if isinstance(torso, IdentityTorso):
        return spec.observation.shape
    return (*spec.observation.shape[:2], config.channels) if isinstance(torso, GridTorso) else None


def make_dynamics(
    config: ModelConfig, grid: tuple[int, int, int] | None, latent_width: int, num_actions: int, key: Key
) -> DynamicsMLP | GridDynamics:
    """Convolutions for a grid, an MLP for the rest.

    Raises:
      ConfigError: more than one hidden layer for the convolutions over an observation.
    """
    if grid is None:
        return DynamicsMLP(latent_width, num_actions, config.dynamics_widths, key)
    if config.torso == "grid":
        return GridDynamics(grid, num_actions, config.channels, config.num_blocks, key)
    hidden, *more = config.dynamics_widths
    if more:
        raise ConfigError(f"model.dynamics_widths must be one number with model.torso=identity, not {[hidden, *more]}")
    return GridDynamics(grid, num_actions, hidden, 1, key)


def make_reader(config: ModelConfig, grid: tuple[int, int, int] | None, key: Key) -> GridReader:
    """The convolution between a grid's latent and the heads.

    Raises:
      ConfigError: the latent is no grid, or one smaller than the kernel.
    """
    kernel = config.prediction_kernel
    if grid is None:
        raise ConfigError(
            f"model.prediction_channels={config.prediction_channels} reads a latent that is a grid, "
            f"as with model.torso=grid or identity, not {config.torso}"
        )
    if min(grid[:2]) < kernel:
        raise ConfigError(
            f"model.prediction_kernel={kernel} needs a grid of at least {kernel} × {kernel}, not {grid[0]} × {grid[1]}"
        )
    return GridReader(grid, config.prediction_channels, kernel, config.latent_width, key)
