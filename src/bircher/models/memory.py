"""Memory: an LSTM between what an observation shows and its latent."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.models.layers import Linear, scale_latent
from bircher.types import Key


class LSTM(eqx.Module):
    """A cell with input, forget and output gates, whose state is [h, c] side by side.

        i, f, g, o = x W_x + h W_h + b,  c' = s(f + 1) c + s(i) tanh(g),  h' = s(o) tanh(c')

    "Long Short-Term Memory" by Hochreiter and Schmidhuber 1997 (https://doi.org/10.1162/neco.1997.9.8.1735); forget
    gates begin open, as in "An Empirical Exploration of Recurrent Network Architectures" by Jozefowicz et al. 2015.
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
        update, forget, candidate, output = jnp.split(drive + hidden @ self.from_hidden, 4, axis=-1)
        cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(update) * jnp.tanh(candidate)
        return jnp.concatenate([jax.nn.sigmoid(output) * jnp.tanh(cell), cell], axis=-1)


class Memory(eqx.Module):
    """Latent = scaled(linear(features, h)): what is seen now beside what is remembered; forgets at a first row."""

    lstm: LSTM
    output: Linear

    def __init__(self, features: int, width: int, latent_width: int, key: Key):
        lstm_key, output_key = jax.random.split(key)
        self.lstm = LSTM(features, width, lstm_key)
        self.output = Linear(features + width, latent_width, output_key)

    def __call__(
        self, features: Float[Array, "B F"], state: Float[Array, "B state"], first: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B latent"], Float[Array, "B state"]]:
        """One row: its latent, and the state for the row behind it."""
        state = self._stepped(state, self.lstm.from_input(features), first)
        return self._latent(features, state), state

    def rows(
        self,
        features: Float[Array, "B R F"],
        state: Float[Array, "B state"],
        first: Bool[Array, "B R"],
        burn_in: int = 0,
    ) -> Float[Array, "B R latent"]:
        """The latents of whole sequences, from the state before their first row.

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
        return self._latent(features, jnp.concatenate(parts).swapaxes(0, 1))

    def _stepped(self, state: Array, drive: Array, first: Array) -> Array:
        return self.lstm.driven(drive, jnp.where(first[:, None], 0.0, state))

    def _latent(self, features: Array, state: Array) -> Array:
        hidden = state[..., : self.lstm.width]
        return scale_latent(self.output(jnp.concatenate([features, hidden], axis=-1)))
