"""Rewards and values of players who take turns.

With one player they are numbers.  With two they are numbers of the player to move, and change their sign where the turn
passes.  With P > 2 players, who move in a fixed order, they are vectors [..., P] in the order of turns.  A value begins
with the player to move.  A reward begins with the player whose move was rewarded.  So the next player's vector is the
same one, rotated by one place.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

PAIR = 2
"""The largest number of players whose rewards and values are single numbers."""


def player_axis(num_players: int) -> tuple[int, ...]:
    """Return the shape of one reward or value: () for one or two players, else (P,)."""
    return () if num_players <= PAIR else (num_players,)


def own(x: Float[Array, ...], num_axes: int) -> Float[Array, ...]:
    """Return the numbers of the players from whose view these are, or x itself if it has no axis of players.

    Args:
      x: rewards or values.
      num_axes: the number of axes without that of the players.
    """
    return x if x.ndim == num_axes else x[..., 0]


def per_player(x: Array, like: Array) -> Array:
    """Return an array with an axis for the players of `like`, if that has one more axis."""
    return x if x.ndim == like.ndim else x[..., None]


def to_mover(value: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
    """Return the values of the player to move as those of the player who moved before."""
    return jnp.roll(value, 1, -1)


def to_next(value: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
    """Return the values or rewards of a player as those of the player who moves next."""
    return jnp.roll(value, -1, -1)


def passed_on(value: Float[Array, ...], num_players: int) -> Float[Array, ...]:
    """Return the values or rewards of a player as those of the player who moves next, for any number of players."""
    if num_players <= PAIR:
        return value if num_players == 1 else -value
    return to_next(value)


def from_first(x: Float[Array, "B R P"], before: int = 0) -> Float[Array, "B R P"]:
    """Return the values of consecutive rows as those of the player to move on the first row.

    Components are then the same player's on all rows, so that each is a sequence of numbers as with one player.

    Args:
      x: values of B sequences, each from the view of the player to move on its row.
      before: 1 if each row's vector is from the view of the player to move one row before, as rewards are.
    """
    return _rotated(x, jnp.arange(x.shape[1]) - before)


def from_each(x: Float[Array, "B R P"]) -> Float[Array, "B R P"]:
    """Return values from the view of the first row's player as those of the player to move on each row."""
    return _rotated(x, -jnp.arange(x.shape[1]))


def _rotated(x: Float[Array, "B R P"], places: Array) -> Float[Array, "B R P"]:
    """Return the vectors of each row, rotated to the right by a number of places."""
    players = x.shape[-1]
    index = (jnp.arange(players) - places[:, None]) % players
    return jnp.take_along_axis(x, jnp.broadcast_to(index, x.shape), -1)
