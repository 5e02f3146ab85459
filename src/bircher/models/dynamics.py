"""Transitions of the latent under an action."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from bircher.models.layers import MLP, Convolution, Linear, ResidualBlock, scale_latent
from bircher.types import Key


class DynamicsMLP(eqx.Module):
    """Next latent = scaled(latent + MLP(latent, action)).

    The first layer is split in a part of the latent and a row for each action: the same numbers as a layer
    over [latent, one-hot action], but a look-ahead over all actions multiplies the latent once.
    """

    from_latent: Linear
    from_action: Float[Array, "A width"]
    rest: MLP

    def __init__(self, latent_width: int, num_actions: int, widths: Sequence[int], key: Key):
        latent_key, action_key, rest_key = jax.random.split(key, 3)
        self.from_latent = Linear(latent_width, widths[0], latent_key, scale=2.0)
        self.from_action = jax.random.normal(action_key, (num_actions, widths[0])) * 0.5
        # Small last layer: a transition begins near the identity.
        self.rest = MLP(widths[0], (*widths[1:], latent_width), rest_key, last_scale=0.1)

    def _finish(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B width"]
    ) -> Float[Array, "*#B latent"]:
        return scale_latent(latent + self.rest(jax.nn.relu(hidden)))

    def __call__(self, latent: Float[Array, "*B latent"], action: Int[Array, "*B"]) -> Float[Array, "*B latent"]:
        one_hot = jax.nn.one_hot(action, len(self.from_action), dtype=latent.dtype)
        return self._finish(latent, self.from_latent(latent) + one_hot @ self.from_action)

    def all_actions(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B A latent"]:
        """The next latent for every action."""
        hidden = self.from_latent(latent)[..., None, :] + self.from_action
        return self._finish(latent[..., None, :], hidden)


class GridDynamics(eqx.Module):
    """Next latent = scaled(latent + convolutions(latent, action)) over a grid of cells; an action is a grid as well."""

    from_latent: Convolution
    from_action: Float[Array, "A cells"]
    last: Convolution
    blocks: tuple[ResidualBlock, ...]
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, int, int], num_actions: int, hidden: int, num_blocks: int, key: Key):
        latent_key, action_key, last_key, *keys = jax.random.split(key, num_blocks + 2)
        height, width, channels = shape
        self.from_latent = Convolution(channels, hidden, 3, latent_key, pad=True)
        self.from_action = jax.random.normal(action_key, (num_actions, height * width * hidden)) * 0.5
        self.last = Convolution(hidden, channels, 3, last_key, pad=True, scale=0.1)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys)
        self.shape = shape

    def _finish(
        self, grid: Float[Array, "*#B H W C"], hidden: Float[Array, "*#B H W hidden"]
    ) -> Float[Array, "*B latent"]:
        following = grid + self.last(jax.nn.relu(hidden))
        for block in self.blocks:
            following = block(following)
        return scale_latent(following.reshape(*following.shape[:-3], -1))

    def __call__(self, latent: Float[Array, "*B latent"], action: Int[Array, "*B"]) -> Float[Array, "*B latent"]:
        grid = latent.reshape(*latent.shape[:-1], *self.shape)
        one_hot = jax.nn.one_hot(action, len(self.from_action), dtype=latent.dtype)
        hidden = self.from_latent(grid)
        return self._finish(grid, hidden + (one_hot @ self.from_action).reshape(hidden.shape))

    def all_actions(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B A latent"]:
        """The next latent for every action."""
        grid = latent.reshape(*latent.shape[:-1], *self.shape)
        hidden = self.from_latent(grid)
        actions = self.from_action.reshape(-1, *hidden.shape[-3:])
        return self._finish(grid[..., None, :, :, :], hidden[..., None, :, :, :] + actions)
