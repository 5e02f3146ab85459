"""Layers for any leading axes: linear layers, an LSTM, running statistics of observations; the base of encoders.

Every leaf is an array, and parameters are float32.  A layer computes in the precision of its input: bfloat16 input
is multiplied in bfloat16 and gives bfloat16.  Equinox's own MLP and Sequential have functions as leaves, which a moving
average over parameters cannot use.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from bircher.spaces import Encoding
from bircher.types import SINGLE, EnvSpec, Key


class Linear(eqx.Module):
    """y = x W + b over the last axis.  Initial weights are from a truncated normal of variance scale / inputs."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, key: Key, scale: float = 1.0):
        # 0.8796 is the standard deviation of a unit normal truncated at 2.
        deviation = math.sqrt(scale / inputs) / 0.87962566103423978
        self.weight = deviation * jax.random.truncated_normal(key, -2.0, 2.0, (inputs, outputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)


class LayerNorm(eqx.Module):
    """Zero mean and unit variance over the last axis, then a learned scale and offset."""

    scale: Float[Array, " features"]
    offset: Float[Array, " features"]

    def __init__(self, features: int):
        self.scale = jnp.ones(features)
        self.offset = jnp.zeros(features)

    def __call__(self, x: Float[Array, "*B features"]) -> Float[Array, "*B features"]:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * self.scale + self.offset


class MLP(eqx.Module):
    """Linear layers with ReLU between them, and after the last where `activate_last`."""

    layers: tuple[Linear, ...]
    activate_last: bool = eqx.field(static=True)

    def __init__(
        self, inputs: int, widths: Sequence[int], key: Key, activate_last: bool = False, last_scale: float = 1.0
    ):
        sizes = (inputs, *widths)
        keys = jax.random.split(key, max(len(widths), 1))
        last = len(widths) - 1
        # Variance 2 / inputs keeps the scale through a ReLU.
        self.layers = tuple(
            Linear(sizes[i], sizes[i + 1], keys[i], 2.0 if i < last or activate_last else last_scale)
            for i in range(len(widths))
        )
        self.activate_last = activate_last

    def hidden(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B hidden"]:
        """Return the output of all layers but the last one."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return x

    def last(self, x: Float[Array, "*B hidden"]) -> Float[Array, "*B outputs"]:
        """Return the output of the last layer."""
        x = self.layers[-1](x)
        return jax.nn.relu(x) if self.activate_last else x

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        return self.last(self.hidden(x)) if self.layers else x


def recur(
    gates: Float[Array, "*#B gates"], cell: Float[Array, "*#B width"]
) -> tuple[Float[Array, "*B width"], Float[Array, "*B width"]]:
    """Return (h', c') of an LSTM, given the sums of its gates [i, f, g, o] and c.

    c' = s(f + 1) c + s(i) tanh(g) and h' = s(o) tanh(c'), where s is the sigmoid.  "Long Short-Term Memory" by
    Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.  The 1 makes the initial forget gate keep
    most of the cell (Jozefowicz et al. 2015).  The computation is in float32, because a cell is a sum over many steps.
    """
    input_gate, forget_gate, candidate, output_gate = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
    cell = jax.nn.sigmoid(forget_gate + 1.0) * cell + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
    return jax.nn.sigmoid(output_gate) * jnp.tanh(cell), cell


@jax.custom_jvp
def least(x: Float[Array, "*B features"]) -> Float[Array, "*B 1"]:
    """Return the minimum, whose gradient goes in equal parts to all entries that are equal to it, as in JAX.

    JAX's own gradient is NaN where a compiler computes `x` twice with different rounding, so that no entry equals the
    minimum.
    """
    return x.min(-1, keepdims=True)


@least.defjvp
def _least_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    low = least(x)
    where = (x <= low).astype(x.dtype)
    return low, (tangent * where).sum(-1, keepdims=True) / jnp.maximum(where.sum(-1, keepdims=True), 1.0)


def scale_latent(latent: Float[Array, "*B features"]) -> Float[Array, "*B features"]:
    """Scale each latent vector to [-1, 1] by its minimum and maximum, in float32 (MuZero, appendix G: to [0, 1])."""
    latent = latent.astype(jnp.float32)
    low, high = least(latent), -least(-latent)
    return 2.0 * (latent - low) / jnp.maximum(high - low, 1e-5) - 1.0


class LSTM(eqx.Module):
    """A cell with input, forget and output gates, whose state is the concatenation [h, c].

    i, f, g, o = x W_x + h W_h + b, and `recur` computes h' and c' from these.
    """

    from_input: Linear
    from_hidden: Float[Array, "width gates"]

    def __init__(self, inputs: int, width: int, key: Key):
        input_key, hidden_key = jax.random.split(key)
        self.from_input = Linear(inputs, 4 * width, input_key)
        self.from_hidden = Linear(width, 4 * width, hidden_key).weight

    @property
    def width(self) -> int:
        """Return the number of units.  A state has twice as many numbers."""
        return len(self.from_hidden)

    def next_state(self, drive: Float[Array, "*B gates"], state: Float[Array, "*B state"]) -> Float[Array, "*B state"]:
        """Return the next state.

        Args:
          drive: `from_input` of the input, which can be computed for a whole sequence together.
          state: [h, c].
        """
        hidden, cell = jnp.split(state, 2, axis=-1)
        gates = drive + hidden.astype(drive.dtype) @ self.from_hidden.astype(drive.dtype)
        return jnp.concatenate(recur(gates, cell), axis=-1)


class Memory(eqx.Module):
    """Features that depend on the current and on earlier observations, relu(linear(features, h)).

    The state is reset to zeros at the first row of an episode.
    """

    lstm: LSTM
    output: Linear

    def __init__(self, features: int, width: int, key: Key):
        lstm_key, output_key = jax.random.split(key)
        self.lstm = LSTM(features, width, lstm_key)
        self.output = Linear(features + width, features, output_key, scale=2.0)

    def __call__(
        self, features: Float[Array, "B F"], state: Float[Array, "B state"], first: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B F"], Float[Array, "B state"]]:
        """Return the features of one row, and the state for the next row."""
        state = self._next_state(state, self.lstm.from_input(features), first)
        return self._output(features, state), state

    def rows(
        self,
        features: Float[Array, "B R F"],
        state: Float[Array, "B state"],
        first: Bool[Array, "B R"],
        burn_in: int = 0,
    ) -> Float[Array, "B R F"]:
        """Return the features of whole sequences, given the state before their first row.

        No gradient flows from later rows to the first `burn_in` rows.  These only update the state, as in "Recurrent
        Experience Replay in Distributed Reinforcement Learning" by Kapturowski et al. 2019
        (https://openreview.net/forum?id=r1lyTjAqYX).
        """
        drive = self.lstm.from_input(features)

        def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            state = self._next_state(state, *inputs)
            return state, state

        parts = []
        for begin, end in ((0, burn_in), (burn_in, features.shape[1])):
            inputs = (drive[:, begin:end].swapaxes(0, 1), first[:, begin:end].swapaxes(0, 1))
            state, states = jax.lax.scan(step, jax.lax.stop_gradient(state), inputs)
            parts.append(states)
        return self._output(features, jnp.concatenate(parts).swapaxes(0, 1))

    def _next_state(self, state: Array, drive: Array, first: Array) -> Array:
        return self.lstm.next_state(drive, jnp.where(first[:, None], 0.0, state))

    def _output(self, features: Array, state: Array) -> Array:
        hidden = state[..., : self.lstm.width].astype(features.dtype)
        return jax.nn.relu(self.output(jnp.concatenate([features, hidden], axis=-1)))


FAINT = 16.0
"""A standard deviation of a pixel, out of 255.  Deviations far below it are negligible, and normalization does not
enlarge them to the size of others."""


def names_states(spec: EnvSpec) -> bool:
    """Return whether the observation is one or several whole numbers that are only names of states."""
    return isinstance(spec.encoding, Encoding) and spec.encoding.kind == "index"


class ObservationStatistics(eqx.Module):
    """Mean and second central moment of all observations so far, merged batch by batch (Chan et al. 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, "*observation"]
    variance: Float[Array, "*observation"]

    @classmethod
    def zero(cls, spec: EnvSpec) -> ObservationStatistics:
        """Return the statistics before the first update, which leave observations unchanged."""
        return cls.zero_of_shape(spec.observation.shape)

    @classmethod
    def zero_of_shape(cls, shape: tuple[int, ...]) -> ObservationStatistics:
        """Return `zero` of an array of this shape."""
        return cls(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))

    @classmethod
    def of(cls, spec: EnvSpec) -> ObservationStatistics | PartStatistics | None:
        """Return `zero`, or None for numbers that are only names of states, because their mean has no meaning.

        Of an observation of several arrays those of floating-point numbers have statistics.
        """
        if list(spec.parts) == [SINGLE]:
            return None if names_states(spec) else cls.zero(spec)
        parts = [
            cls.zero_of_shape(part.shape) if np.dtype(part.dtype).kind == "f" and math.prod(part.shape) else None
            for part in spec.parts.values()
        ]
        return PartStatistics(tuple(parts)) if any(parts) else None

    def update(self, observation: Shaped[Array, "B T *observation"], mask: Bool[Array, "B T"]) -> ObservationStatistics:
        """Return the statistics that include the rows in `mask`."""
        weight = mask.reshape(*mask.shape, *(1,) * (observation.ndim - 2)).astype(jnp.float32)
        count = mask.sum()
        safe = jnp.maximum(count, 1.0)
        x = observation.astype(jnp.float32)
        mean = (x * weight).sum((0, 1)) / safe
        variance = (jnp.square(x - mean) * weight).sum((0, 1)) / safe
        total = self.count + count
        share = count / jnp.maximum(total, 1.0)
        difference = mean - self.mean
        merged = self.variance * (1 - share) + variance * share + jnp.square(difference) * share * (1 - share)
        return ObservationStatistics(total, self.mean + difference * share, merged)

    def normalize(self, observation: Shaped[Array, "*B"]) -> Float[Array, "*B"]:
        """Return (x - mean) / deviation, clipped at 10 deviations.

        For the bytes of an image it is computed for each pixel, and `FAINT`² is added to the variance.
        """
        bytes_of_an_image = observation.dtype == jnp.uint8 and self.mean.ndim == 3
        least = FAINT**2 if bytes_of_an_image else 1e-8
        return jnp.clip((observation.astype(jnp.float32) - self.mean) / jnp.sqrt(self.variance + least), -10.0, 10.0)


class PartStatistics(eqx.Module):
    """The statistics of an observation of several arrays, None for arrays that are not normalized."""

    parts: tuple[ObservationStatistics | None, ...]

    def update(self, observation: PyTree[Array], mask: Bool[Array, "B T"]) -> PartStatistics:
        """Return the statistics that include the rows in `mask`."""
        pairs = zip(self.parts, jax.tree.leaves(observation), strict=True)
        return PartStatistics(tuple(part and part.update(x, mask) for part, x in pairs))

    def normalize(self, observation: PyTree[Array]) -> PyTree[Array]:
        """Return the observation with the arrays that have statistics normalized."""
        arrays, structure = jax.tree.flatten(observation)
        pairs = zip(self.parts, arrays, strict=True)
        return jax.tree.unflatten(structure, [x if part is None else part.normalize(x) for part, x in pairs])


class Encoder(eqx.Module):
    """A function from one array of an observation to features."""

    num_features: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, x: Shaped[Array, "*B_part"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        """Return the features of an array, computed in `dtype`."""

    @property
    def num_inputs(self) -> int:
        """Return how many of the features differ from 0 on average, for the scale of the first weights."""
        return self.num_features
