"""Memory: an LSTM between an observation's features and its latent."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.models.layers import Linear, recur
from bircher.types import Key


class LSTM(eqx.Module):
    """A cell with input, forget and output gates, whose state is [h, c] side by side.

    i, f, g, o = x W_x + h W_h + b, and from these h', c' as `layers.recur` has it
    """

    from_input: Linear
    from_hidden: Float[Array, "width gates"]

    def __init__(self, inputs: int, width: int, key: Key):
        input_key, hidden_key = jax.random.split(key)
        self.from_input = Linear(inputs, 4 * width, input_key)
        self.from_hidden = Linear(width, 4 * width, hidden_key).weight

    @property
    def width(self) -> int:
        """Units; a state holds twice as many numbers."""
        return len(self.from_hidden)

    def driven(self, drive: Float[Array, "*B gates"], state: Float[Array, "*B state"]) -> Float[Array, "*B state"]:
        """The next state; `drive` is what `from_input` makes of the input, of a whole sequence at once."""
        hidden, cell = jnp.split(state, 2, axis=-1)
        gates = drive + hidden.astype(drive.dtype) @ self.from_hidden.astype(drive.dtype)
        return jnp.concatenate(recur(gates, cell), axis=-1)


class Memory(eqx.Module):
    """Features of what is seen now and of what is remembered, relu(linear(features, h)); forgets at a first row."""

    lstm: LSTM
    output: Linear

    def __init__(self, features: int, width: int, key: Key):
        lstm_key, output_key = jax.random.split(key)
        self.lstm = LSTM(features, width, lstm_key)
        self.output = Linear(features + width, features, output_key, scale=2.0)

    def __call__(
        self, features: Float[Array, "B F"], state: Float[Array, "B state"], first: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B F"], Float[Array, "B state"]]:
        """One row: its features, and the state for the row behind it."""
        state = self._stepped(state, self.lstm.from_input(features), first)
        return self._with(features, state), state

    def rows(
        self,
        features: Float[Array, "B R F"],
        state: Float[Array, "B state"],
        first: Bool[Array, "B R"],
        burn_in: int = 0,
    ) -> Float[Array, "B R F"]:
        """The features of whole sequences, from the state before their first row.

        No gradient passes from what follows the first `burn_in` rows to these: they only bring the state up to date,
        as in "Recurrent Experience Replay in Distributed Reinforcement Learning" by Kapturowski et al. 2019
        (https://openreview.net/forum?id=r1lyTjAqYX).
        """
        drive = self.lstm.from_input(features)

        def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            state = self._stepped(state, *inputs)
            return state, state

        parts = []
        for begin, end in ((0, burn_in), (burn_in, features.shape[1])):
            inputs = (drive[:, begin:end].swapaxes(0, 1), first[:, begin:end].swapaxes(0, 1))
            state, states = jax.lax.scan(step, jax.lax.stop_gradient(state), inputs)
            parts.append(states)
        return self._with(features, jnp.concatenate(parts).swapaxes(0, 1))

    def _stepped(self, state: Array, drive: Array, first: Array) -> Array:
        return self.lstm.driven(drive, jnp.where(first[:, None], 0.0, state))

    def _with(self, features: Array, state: Array) -> Array:
        hidden = state[..., : self.lstm.width].astype(features.dtype)
        return jax.nn.relu(self.output(jnp.concatenate([features, hidden], axis=-1)))
