"""Prediction: policy, value and categorical reward, and the convolution that may read a grid for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Float

from bircher.models.convolutions import Convolution
from bircher.models.layers import MLP, Linear
from bircher.types import Key


class Heads(eqx.Module):
    """One MLP each.  Last layers begin at zero: a uniform policy, and values and rewards of exactly 0."""

    policy: MLP
    value: MLP
    reward: MLP | None

    def __init__(
        self, inputs: int, num_actions: int, value_size: int, reward_size: int, widths: Sequence[int], key: Key
    ):
        policy_key, value_key, reward_key = jax.random.split(key, 3)
        self.policy = MLP(inputs, (*widths, num_actions), policy_key, last_scale=0.0)
        self.value = MLP(inputs, (*widths, value_size), value_key, last_scale=0.0)
        self.reward = MLP(inputs, (*widths, reward_size), reward_key, last_scale=0.0) if reward_size else None


class GridReader(eqx.Module):
    """What the heads see of a grid's latent: relu(linear(relu(convolution))), once for all of them."""

    convolution: Convolution
    linear: Linear
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, int, int], channels: int, kernel: int, width: int, key: Key):
        convolution_key, linear_key = jax.random.split(key)
        height, wide, inputs = shape
        self.convolution = Convolution(inputs, channels, kernel, convolution_key)
        cells = (height - kernel + 1) * (wide - kernel + 1)
        self.linear = Linear(cells * channels, width, linear_key, scale=2.0)
        self.shape = shape

    def __call__(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B width"]:
        x = jax.nn.relu(self.convolution(latent.reshape(*latent.shape[:-1], *self.shape)))
        return jax.nn.relu(self.linear(x.reshape(*x.shape[:-3], -1)))
