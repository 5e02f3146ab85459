"""Tokens with positions, such as mettagrid's, as a grid of numbers.

A token is three bytes: position, feature, value.  Positions and features are only names of places in the grid, so that
nothing has to be learned to put a token there, and the layer that follows has separate weights for each place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from bircher.envs.mettagrid import EVERYWHERE, PADDING
from bircher.networks.layers import Encoder, Linear
from bircher.types import Key


class TokenLayout(NamedTuple):
    """Where the numbers of tokens are in the flattened grid: a square of cells, then the agent as a whole."""

    side: int
    """Height and width of the square; tokens at other positions are left out."""
    features: int
    """Number of features; larger ones are taken as the last."""
    names: tuple[int, ...]
    """The features whose values are only names."""
    values: int
    """Number of these values; larger ones are taken as the last."""
    cell_features: tuple[int, ...] | None = None
    """The other features that a cell has a number for; None: all of them."""

    @property
    def channels(self) -> int:
        """Return the number of numbers of a cell: one for each feature, and one for each value of a name."""
        own = self.features if self.cell_features is None else len(self.cell_features)
        return own + len(self.names) * self.values

    @property
    def size(self) -> int:
        """Return the number of numbers of the whole grid."""
        return self.side**2 * self.channels + self.features + len(self.names) * self.values

    def channel_table(self) -> Int[np.ndarray, " features"]:
        """Return the channel of each feature in a cell; -1 for those that cells have no number for."""
        if self.cell_features is None:
            return np.arange(self.features)
        table = np.full(self.features, -1)
        table[list(self.cell_features)] = np.arange(len(self.cell_features))
        return table


def grid_of_tokens(
    tokens: Integer[Array, "*B N 3"], layout: TokenLayout, dtype: jnp.dtype
) -> Float[Array, "*B flat"]:
    """Return the flattened grid.

    A value v of 0 to 255 becomes (1 + log2(1 + v)) / 9, between 1/9 and 1, so that a token of value 0 differs from
    none.  A value that is a name sets one of the name's numbers to 1.  Tokens of the same place add up.

    Args:
      tokens: the upper four bits of a position are the row, the lower four the column.
      layout: where their numbers are.
      dtype: type of the result.
    """
    side, size, cells = layout.side, layout.size, layout.side**2 * layout.channels
    lead = tokens.shape[:-2]
    tokens = tokens.reshape(-1, *tokens.shape[-2:]).astype(jnp.int32)
    position, feature, value = tokens[..., 0], tokens[..., 1], tokens[..., 2]
    row, column = position // 16, position % 16
    everywhere = position == EVERYWHERE
    is_there = (position != PADDING) & (everywhere | ((row < side) & (column < side)))
    known, number = jnp.minimum(feature, layout.features - 1), (1.0 + jnp.log2(1.0 + value)) / 9.0
    channel = jnp.where(everywhere, known, jnp.asarray(layout.channel_table())[known])
    for index, name in enumerate(layout.names):
        is_name = feature == name
        own = index * layout.values + jnp.minimum(value, layout.values - 1)
        before = layout.channels - len(layout.names) * layout.values
        channel = jnp.where(is_name, own + jnp.where(everywhere, layout.features, before), channel)
        number = jnp.where(is_name, 1.0, number)
    place = jnp.where(everywhere, cells, (row * side + column) * layout.channels) + channel
    place = jnp.where(is_there & (channel >= 0), place, size)  # beyond the end, where it is dropped
    grid = jnp.zeros((math.prod(lead), size), dtype)
    grid = grid.at[jnp.arange(len(grid))[:, None], place].add(number.astype(dtype), mode="drop")
    return grid.reshape(*lead, size)


class TokenGrid(Encoder):
    """Tokens of position, feature and value: a grid with a number for each feature, then a layer over all of it."""

    layer: Linear
    num_features: int = eqx.field(static=True)
    layout: TokenLayout = eqx.field(static=True)

    def __init__(self, num_tokens: int, layout: TokenLayout, width: int, key: Key):
        self.layout, self.num_features = layout, width
        # Most of the grid is 0: the variance is that of as many inputs as half of the tokens.
        self.layer = Linear(layout.size, width, key, scale=2.0 * layout.size / max(num_tokens / 2, 1.0))

    def __call__(self, x: Integer[Array, "*B N 3"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        return jax.nn.relu(self.layer(grid_of_tokens(x, self.layout, dtype)))
