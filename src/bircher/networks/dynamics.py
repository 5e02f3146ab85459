"""Transitions of the latent under an action, and the projection of a self-consistency loss.

Latents are float32.  Products are computed in the network's precision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bircher.errors import ConfigError
from bircher.networks.config import ModelConfig
from bircher.networks.conv import Convolution, ResidualBlock
from bircher.networks.encoders import apply_blocks
from bircher.networks.layers import MLP, Linear, recur, scale_latent
from bircher.types import Key


class Dynamics(eqx.Module):
    """A transition that begins with the sum of a term of the latent and a term of the action.

    The result is that of a layer over the concatenation of both.  But a look-ahead over all actions multiplies the
    latent only once.  An action is given by its features (see `Distribution.features`), and its term is linear in them:
    a row of a table for a discrete action, a sum of rows for a multi-discrete one.
    """

    dtype: eqx.AbstractVar[jnp.dtype]

    @abstractmethod
    def action_terms(self) -> Float[Array, "A numbers"]:
        """Return the term of each feature of an action: a vector or, for a grid, a flattened plane for each channel.

        Those of discrete actions are the terms of the actions themselves.
        """

    @abstractmethod
    def latent_term(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B numbers"]:
        """Return the term of the latent."""

    @abstractmethod
    def next_latent(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B numbers"]
    ) -> Float[Array, "*B latent"]:
        """Return the next latent, given the latent and the sum of both terms."""

    def __call__(
        self, latent: Float[Array, "*B latent"], features: Shaped[Array, "*B features"]
    ) -> Float[Array, "*B latent"]:
        hidden = self.latent_term(latent.astype(self.dtype))
        hidden = hidden + features.astype(self.dtype) @ self.action_terms().astype(self.dtype)
        return self.next_latent(latent, hidden)

    def all_actions(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B A latent"]:
        """Return the next latent for every discrete action."""
        return self.next_latents(latent, self.latent_term(latent.astype(self.dtype)), self.action_terms())

    def next_latents(
        self,
        latent: Float[Array, "*B latent"],
        latent_term: Float[Array, "*B numbers"],
        action_terms: Shaped[Array, "*#B A numbers"],
    ) -> Float[Array, "*B A latent"]:
        """Return the next latent for each of some actions, given the terms of the latent and of these actions.

        The actions may be the same ones for every latent, or others for each.
        """
        return self.next_latent(latent[..., None, :], latent_term[..., None, :] + action_terms.astype(self.dtype))


class DynamicsMLP(Dynamics):
    """Next latent = scaled(latent + MLP(latent, action))."""

    from_latent: Linear
    from_action: Float[Array, "F width"]
    rest: MLP
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, latent_width: int, num_features: int, widths: Sequence[int], key: Key, dtype: jnp.dtype):
        latent_key, action_key, rest_key = jax.random.split(key, 3)
        self.from_latent = Linear(latent_width, widths[0], latent_key, scale=2.0)
        self.from_action = jax.random.normal(action_key, (num_features, widths[0])) * 0.5
        # The last layer is small, so that the transition is initially close to the identity.
        self.rest = MLP(widths[0], (*widths[1:], latent_width), rest_key, last_scale=0.1)
        self.dtype = dtype

    def action_terms(self) -> Float[Array, "A width"]:
        return self.from_action

    def latent_term(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B width"]:
        return self.from_latent(latent)

    def next_latent(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B width"]
    ) -> Float[Array, "*B latent"]:
        return scale_latent(latent + self.rest(jax.nn.relu(hidden)))


class LSTMDynamics(Dynamics):
    """Next (h, c) = LSTM(action, (h, c)).  The latent is [h, c], and the heads' input is h (Muesli's recurrent model).

    The torso's last projection gives c as well as h, so that a latent is one vector in a search tree, a look-ahead and
    an unroll.  An initial state from h alone would need a separate projection at every root, and with a c of zeros the
    forget gate would have nothing to keep.  Latents after the root are not scaled, because h lies in (-1, 1) anyway.
    """

    from_hidden: Linear
    from_action: Float[Array, "F gates"]
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, width: int, num_features: int, key: Key, dtype: jnp.dtype):
        hidden_key, action_key = jax.random.split(key)
        self.from_hidden = Linear(width, 4 * width, hidden_key)
        self.from_action = jax.random.normal(action_key, (num_features, 4 * width)) * 0.5
        self.dtype = dtype

    def action_terms(self) -> Float[Array, "A gates"]:
        return self.from_action

    def latent_term(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B gates"]:
        hidden, _ = jnp.split(latent, 2, axis=-1)
        return self.from_hidden(hidden)

    def next_latent(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B gates"]
    ) -> Float[Array, "*B latent"]:
        _, cell = jnp.split(latent, 2, axis=-1)
        return jnp.concatenate(recur(hidden, cell), axis=-1)


class GridDynamics(Dynamics):
    """Next latent = scaled(blocks(latent + convolution(relu(convolution(latent) + planes of the action)))) over a grid.

    The planes of an action are learned, one for each hidden channel.  MuZero's one-hot planes with a convolution are a
    special case.
    """

    from_latent: Convolution
    from_action: Float[Array, "F cells"]
    last: Convolution
    blocks: tuple[ResidualBlock, ...]
    shape: tuple[int, int, int] = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, int, int], num_features: int, hidden: int, num_blocks: int, key: Key, dtype: jnp.dtype
    ):
        latent_key, action_key, last_key, *keys = jax.random.split(key, num_blocks + 2)
        height, width, channels = shape
        self.from_latent = Convolution(channels, hidden, 3, latent_key, pad=True)
        self.from_action = jax.random.normal(action_key, (num_features, height * width * hidden)) * 0.5
        self.last = Convolution(hidden, channels, 3, last_key, pad=True, scale=0.1)
        self.blocks = tuple(ResidualBlock(channels, key) for key in keys)
        self.shape, self.dtype = shape, dtype

    def action_terms(self) -> Float[Array, "A cells"]:
        return self.from_action

    def _grid(self, x: Float[Array, "*B numbers"]) -> Float[Array, "*B H W C"]:
        return x.reshape(*x.shape[:-1], *self.shape[:2], -1)

    def latent_term(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B cells"]:
        hidden = self.from_latent(self._grid(latent))
        return hidden.reshape(*hidden.shape[:-3], -1)

    def next_latent(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B cells"]
    ) -> Float[Array, "*B latent"]:
        grid = self._grid(latent) + self.last(jax.nn.relu(self._grid(hidden)))
        if self.blocks:
            grid = apply_blocks(self.blocks, grid.astype(self.dtype))
        return scale_latent(grid.reshape(*grid.shape[:-3], -1))


def make_dynamics(
    config: ModelConfig, grid: tuple[int, int, int] | None, latent_width: int, num_features: int, key: Key
) -> Dynamics:
    """Return the transition that a configuration names, for latents of a grid or, where it is None, of a width.

    Raises:
      ConfigError: the torso's latent is not of the kind that the dynamics need, or there is more than one hidden layer
        for the convolutions over an observation.
    """
    name, dtype = config.dynamics, config.dtype
    if name == "auto":
        name = "mlp" if grid is None else "convolution"
    if name == "mlp":
        return DynamicsMLP(latent_width, num_features, config.dynamics_widths, key, dtype)
    if name == "lstm":
        if grid is not None:
            raise ConfigError(
                f"model.dynamics=lstm needs a torso that ends in a projection to [h, c]: one of mlp, small_cnn, "
                f"nature_cnn and impala, not model.torso={config.torso}"
            )
        return LSTMDynamics(latent_width // 2, num_features, key, dtype)
    if grid is None:
        raise ConfigError(
            f"model.dynamics=convolution needs a latent that is a grid, as with model.torso=grid, identity or "
            f"muzero_resnet, not {config.torso}"
        )
    if config.torso != "identity":
        return GridDynamics(grid, num_features, config.channels, config.num_blocks, key, dtype)
    hidden, *more = config.dynamics_widths
    if more:
        raise ConfigError(f"model.dynamics_widths must be one number with model.torso=identity, not {[hidden, *more]}")
    return GridDynamics(grid, num_features, hidden, 1, key, dtype)


class Projection(eqx.Module):
    """The projector and the predictor of the self-consistency loss.

    "Mastering Atari Games with Limited Data" by Ye et al. 2021 (https://arxiv.org/abs/2111.00210), section 4.1, after
    SimSiam by Chen and He 2021 (https://arxiv.org/abs/2011.10566).
    """

    projector: MLP
    predictor: MLP
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, latent_width: int, key: Key, dtype: jnp.dtype):
        projector_key, predictor_key = jax.random.split(key)
        self.projector = MLP(latent_width, (latent_width, latent_width), projector_key)
        self.predictor = MLP(latent_width, (latent_width // 2 or 1, latent_width), predictor_key)
        self.dtype = dtype

    def distance(self, imagined: Float[Array, "*B latent"], encoded: Float[Array, "*B latent"]) -> Float[Array, "*B"]:
        """Return 1 - cosine(predictor(projector(imagined)), projector(encoded)), which is 0 at its best.

        No gradient flows through `encoded`.
        """
        prediction = self.predictor(self.projector(imagined.astype(self.dtype)))
        goal = jax.lax.stop_gradient(self.projector(encoded.astype(self.dtype)))
        return 1.0 - (_unit(prediction) * _unit(goal)).sum(-1)


def _unit(x: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)
