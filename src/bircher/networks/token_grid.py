"""Tokens with positions, such as mettagrid's, as a grid of numbers.

A token is three bytes: position, feature, value.  Positions and features are only names of places in the grid, so that
nothing has to be learned to put a token there, and the layer that follows has separate weights for each place.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from bircher.envs.mettagrid import EVERYWHERE, PADDING


def num_channels(features: int, names: tuple[int, ...], values: int) -> int:
    """Return the number of numbers of a cell: one for each feature, and one for each value of those that are names."""
    return features + len(names) * values


def num_cells(side: int) -> int:
    """Return the number of cells: those of a square, and one for tokens about the agent as a whole."""
    return side * side + 1


def grid_of_tokens(
    tokens: Integer[Array, "*B N 3"], side: int, features: int, names: tuple[int, ...], values: int, dtype: jnp.dtype
) -> Float[Array, "*B flat"]:
    """Return the flattened grid, [cells * channels].

    A value v of 0 to 255 becomes (1 + log2(1 + v)) / 9, between 1/9 and 1, so that a token of value 0 differs from
    none.  A value that is a name sets one of `values` numbers to 1.  Tokens of the same place add up.

    Args:
      tokens: the upper four bits of a position are the row, the lower four the column.
      side: height and width of the square; tokens at other positions are left out.
      features: number of features; larger ones are taken as the last.
      names: the features whose values are only names.
      values: number of these values; larger ones are taken as the last.
      dtype: type of the result.
    """
    lead, count = tokens.shape[:-2], num_channels(features, names, values)
    tokens = tokens.reshape(-1, *tokens.shape[-2:]).astype(jnp.int32)
    position, feature, value = tokens[..., 0], tokens[..., 1], tokens[..., 2]
    row, column = position // 16, position % 16
    cell = jnp.where(position == EVERYWHERE, side * side, row * side + column)
    is_there = (position != PADDING) & ((position == EVERYWHERE) | ((row < side) & (column < side)))
    channel, number = jnp.minimum(feature, features - 1), (1.0 + jnp.log2(1.0 + value)) / 9.0
    for index, name in enumerate(names):
        is_name = feature == name
        channel = jnp.where(is_name, features + index * values + jnp.minimum(value, values - 1), channel)
        number = jnp.where(is_name, 1.0, number)
    size = num_cells(side) * count
    place = jnp.where(is_there, cell * count + channel, size)  # beyond the end, where it is dropped
    grid = jnp.zeros((math.prod(lead), size), dtype)
    grid = grid.at[jnp.arange(len(grid))[:, None], place].add(number.astype(dtype), mode="drop")
    return grid.reshape(*lead, size)
