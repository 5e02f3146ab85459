"""The learned model: represent, step and predict, the papers' h, g and f."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from pydantic import Field, model_validator

from bircher.models.dynamics import DynamicsMLP, GridDynamics
from bircher.models.heads import Heads
from bircher.models.projection import Projection
from bircher.models.torsos import GridTorso, TorsoConfig, make_torso
from bircher.ops.transforms import Bounded, Support, scale_gradient
from bircher.types import EnvSpec, Key, Prediction


class ModelConfig(TorsoConfig):
    """The network and how far its model is unrolled."""

    dynamics_widths: tuple[int, ...] = (128,)
    """Hidden layers of the transition from a latent and an action to the next latent."""
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
    value_head: Literal["categorical", "tanh"] = "categorical"
    """`tanh` learns a scalar in [-1, 1] by squared error, for games that are won or lost."""
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
        return self

    def make_support(self) -> Support:
        """The atoms as an object."""
        return Support(-self.support, self.support, self.num_atoms, self.transform)

    def make_value_support(self) -> Support | Bounded:
        """How a value's logits become a scalar."""
        return self.make_support() if self.value_head == "categorical" else Bounded()


class Model(eqx.Module):
    """Parameters of representation, dynamics and prediction; every leaf is an array."""

    representation: eqx.Module
    dynamics: DynamicsMLP | GridDynamics
    heads: Heads
    projection: Projection | None
    """Only where latents are held against encoded ones: the `consistency` term."""
    value_support: Support | Bounded
    reward_support: Support
    latent_gradient_scale: float = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, config: ModelConfig, key: Key, project: bool = False):
        torso_key, dynamics_key, heads_key = jax.random.split(key, 3)
        self.representation = make_torso(config, spec, torso_key)
        latent_width = config.latent_width
        if isinstance(self.representation, GridTorso):
            height, width, _ = spec.observation.shape
            latent_width = height * width * config.channels
            self.dynamics = GridDynamics(
                (height, width, config.channels), spec.num_actions, config.num_blocks, dynamics_key
            )
        else:
            self.dynamics = DynamicsMLP(latent_width, spec.num_actions, config.dynamics_widths, dynamics_key)
        self.value_support, self.reward_support = config.make_value_support(), config.make_support()
        self.heads = Heads(
            latent_width, spec.num_actions, self.value_support.num_atoms,
            config.num_atoms if config.reward_head else 0, config.head_widths, heads_key,
        )  # fmt: skip
        self.projection = Projection(latent_width, jax.random.fold_in(key, 3)) if project else None
        self.latent_gradient_scale = config.latent_gradient_scale

    def represent(self, observation: Float[Array, ...]) -> Float[Array, "*B latent"]:
        """h: the latent of an observation, in [-1, 1]."""
        return self.representation(observation)  # type: ignore[operator]

    def step(self, latent: Float[Array, "*B latent"], action: Int[Array, "*B"]) -> Float[Array, "*B latent"]:
        """g: the latent after an action; its reward is `reward_logits` of the result."""
        return self.dynamics(scale_gradient(latent, self.latent_gradient_scale), action)

    def reward_logits(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B atoms"]:
        """Categorical reward got on arriving in a latent that `step` returned; no atoms where none is predicted."""
        if self.heads.reward is None:
            return jnp.zeros((*latent.shape[:-1], 0))
        return self.heads.reward(latent)

    def reward(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """The reward got on arriving in a latent that `step` returned; 0 where none is predicted."""
        if self.heads.reward is None:
            return jnp.zeros(latent.shape[:-1])
        return self.reward_support.mean(self.heads.reward(latent))

    def value(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """The value of a latent."""
        return self.value_support.mean(self.heads.value(latent))

    def predict(self, latent: Float[Array, "*B latent"]) -> Prediction:
        """f: logits of policy and value in a latent."""
        return Prediction(self.heads.policy(latent), self.heads.value(latent))

    def unroll(self, latent: Float[Array, "*B latent"], actions: Int[Array, " K *B"]) -> Float[Array, "K *B latent"]:
        """The latents after each of K actions, from a latent onwards."""

        def step(latent, action):
            latent = self.step(latent, action)
            return latent, latent

        # K is small: unrolled, the steps' weight gradients are summed without passing through a loop's carry.
        return jax.lax.scan(step, latent, actions, unroll=max(len(actions), 1))[1]

    def look_ahead(self, latent: Float[Array, "*B latent"], discount: float) -> Float[Array, "*B A"]:
        """q^(s, a) = r^_1(s, a) + gamma v^_1(s, a) for every action (Muesli, equation 14).

        `discount` is gamma, negative where the next value is the opponent's.
        """
        following = self.dynamics.all_actions(latent)
        return self.reward(following) + discount * self.value(following)
