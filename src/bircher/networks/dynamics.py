"""Transitions of the latent under an action, and the projection of a self-consistency loss.

Latents are float32.  Products are computed in the network's precision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bircher.errors import ConfigError
from bircher.networks.config import ModelConfig
from bircher.networks.conv import Convolution, ResidualBlock
from bircher.networks.encoders import through
from bircher.networks.layers import MLP, Linear, recur, scale_latent
from bircher.types import Key


class Dynamics(eqx.Module):
    """A transition whose first step is a sum of the latent's part and the action's.

    The same numbers as a layer over both side by side, but a look-ahead over all actions multiplies the latent once.
    """

    dtype: eqx.AbstractVar[jnp.dtype]

    @abstractmethod
    def action_terms(self) -> Float[Array, "A numbers"]:
        """What each action adds: a row, for a grid a plane for each of its channels."""

    @abstractmethod
    def latent_term(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B numbers"]:
        """What the latent adds."""

    @abstractmethod
    def next_latent(
        self, latent: Float[Array, "*#B latent"], hidden: Float[Array, "*#B numbers"]
    ) -> Float[Array, "*B latent"]:
        """The next latent, of the latent and both sums together."""

    def __call__(self, latent: Float[Array, "*B latent"], action: Int[Array, "*B"]) -> Float[Array, "*B latent"]:
        added = self.action_terms().astype(self.dtype)
        hidden = self.latent_term(latent.astype(self.dtype))
        hidden = hidden + jax.nn.one_hot(action, len(added), dtype=self.dtype) @ added
        return self.next_latent(latent, hidden)

    def all_actions(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B A latent"]:
        """The next latent for every action."""
        return self.next_latents(latent, self.latent_term(latent.astype(self.dtype)), self.action_terms())

    def next_latents(
        self, latent: Float[Array, "*B latent"], seen: Float[Array, "*B numbers"], added: Float[Array, "A numbers"]
    ) -> Float[Array, "*B A latent"]:
        """The next latent for each of some actions, of what the latent and what each of them adds."""
        return self.next_latent(latent[..., None, :], seen[..., None, :] + added.astype(self.dtype))


class DynamicsMLP(Dynamics):
    """Next latent = scaled(latent + MLP(latent, action))."""

    from_latent: Linear
    from_action: Float[Array, "A width"]
    rest: MLP
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, latent_width: int, num_actions: int, widths: Sequence[int], key: Key, dtype: jnp.dtype):
        latent_key, action_key, rest_key = jax.random.split(key, 3)
        self.from_latent = Linear(latent_width, widths[0], latent_key, scale=2.0)
        self.from_action = jax.random.normal(action_key, (num_actions, widths[0])) * 0.5
        # Small last layer: a transition begins near the identity.
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
    """Next (h, c) = LSTM(action, (h, c)); the latent is [h, c], and heads see h (Muesli's recurrent model).

    The torso's last projection makes c as well as h, so that a latent is one vector wherever it is held: in a search
    tree, a look-ahead, an unroll.  An initial state from h alone would need a map of its own at every root, and a c of
    zeros would leave the forget gate nothing to keep.  No latent is scaled after the root: h lies in (-1, 1) by itself.
    """

    from_hidden: Linear
    from_action: Float[Array, "A gates"]
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, width: int, num_actions: int, key: Key, dtype: jnp.dtype):
        hidden_key, action_key = jax.random.split(key)
        self.from_hidden = Linear(width, 4 * width, hidden_key)
        self.from_action = jax.random.normal(action_key, (num_actions, 4 * width)) * 0.5
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

    An action's planes are learned, one for each hidden channel: MuZero's one-hot planes under a convolution are a case.
    """

    from_latent: Convolution
    from_action: Float[Array, "A cells"]
    last: Convolution
    blocks: tuple[ResidualBlock, ...]
    shape: tuple[int, int, int] = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, int, int], num_actions: int, hidden: int, num_blocks: int, key: Key, dtype: jnp.dtype
    ):
        latent_key, action_key, last_key, *keys = jax.random.split(key, num_blocks + 2)
        height, width, channels = shape
        self.from_latent = Convolution(channels, hidden, 3, latent_key, pad=True)
        self.from_action = jax.random.normal(action_key, (num_actions, height * width * hidden)) * 0.5
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
            grid = through(self.blocks, grid.astype(self.dtype))
        return scale_latent(grid.reshape(*grid.shape[:-3], -1))


def make_dynamics(
    config: ModelConfig, grid: tuple[int, int, int] | None, latent_width: int, num_actions: int, key: Key
) -> Dynamics:
    """The transition that a configuration names, for latents of this width, or of this grid.

    Raises:
      ConfigError: the torso's latent is not of the kind that the dynamics move, or there is more than one hidden layer
        for the convolutions over an observation.
    """
    name, dtype = config.dynamics, config.dtype
    if name == "auto":
        name = "mlp" if grid is None else "convolution"
    if name == "mlp":
        return DynamicsMLP(latent_width, num_actions, config.dynamics_widths, key, dtype)
    if name == "lstm":
        if grid is not None:
            raise ConfigError(
                f"model.dynamics=lstm needs a torso that ends in a projection, which makes [h, c]: one of mlp, "
                f"small_cnn, nature_cnn and impala, not model.torso={config.torso}"
            )
        return LSTMDynamics(latent_width // 2, num_actions, key, dtype)
    if grid is None:
        raise ConfigError(
            f"model.dynamics=convolution moves a latent that is a grid, as with model.torso=grid, identity or "
            f"muzero_resnet, not {config.torso}"
        )
    if config.torso != "identity":
        return GridDynamics(grid, num_actions, config.channels, config.num_blocks, key, dtype)
    hidden, *more = config.dynamics_widths
    if more:
        raise ConfigError(f"model.dynamics_widths must be one number with model.torso=identity, not {[hidden, *more]}")
    return GridDynamics(grid, num_actions, hidden, 1, key, dtype)


class Projection(eqx.Module):
    """Projector and predictor of the self-consistency loss.

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
        """1 - cosine(predictor(projector(imagined)), projector(encoded)); no gradient through `encoded`, 0 is best."""
        prediction = self.predictor(self.projector(imagined.astype(self.dtype)))
        goal = jax.lax.stop_gradient(self.projector(encoded.astype(self.dtype)))
        return 1.0 - (_unit(prediction) * _unit(goal)).sum(-1)


def _unit(x: Float[Array, "*B latent"]) -> Float[Array, "*B latent"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)
