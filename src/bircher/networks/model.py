"""The learned model: represent, step and predict, the papers' h, g and f, with the heads that predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from bircher import spaces
from bircher.errors import ConfigError
from bircher.networks.config import ModelConfig
from bircher.networks.conv import Convolution
from bircher.networks.dynamics import Dynamics, Projection, make_dynamics
from bircher.networks.encoders import FlatTorso, IdentityTorso, IndexTorso, Torso, layout_without_encoding
from bircher.networks.layers import MLP, Linear, Memory
from bircher.networks.observations import JoinedTorso, make_representation, scale_bytes
from bircher.ops.distributions import Categorical, Distribution, distribution_of
from bircher.ops.transforms import Bounded, Support, Unbounded, scale_gradient
from bircher.ops.turns import player_axis
from bircher.spaces import Layout
from bircher.types import SINGLE, EnvSpec, Key, Prediction


class Heads(eqx.Module):
    """An MLP each for policy, value and reward.

    The last layers are initially zero, so that the policy over discrete actions is uniform, and values and rewards are
    exactly 0.
    """

    policy: MLP
    value: MLP
    reward: MLP | None

    def __init__(
        self, inputs: int, policy_size: int, value_size: int, reward_size: int, widths: Sequence[int], key: Key
    ):
        policy_key, value_key, reward_key = jax.random.split(key, 3)
        self.policy = MLP(inputs, (*widths, policy_size), policy_key, last_scale=0.0)
        self.value = MLP(inputs, (*widths, value_size), value_key, last_scale=0.0)
        self.reward = MLP(inputs, (*widths, reward_size), reward_key, last_scale=0.0) if reward_size else None


class GridReader(eqx.Module):
    """The common input of all heads from a latent that is a grid, relu(linear(relu(convolution)))."""

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


LOOK_AHEAD_BYTES = 2**28
"""A look-ahead over all actions whose latents would need more bytes is computed for some of the actions at a time."""


class Model(eqx.Module):
    """The parameters of representation, dynamics and prediction.  Every leaf is an array."""

    representation: Torso
    memory: Memory | None
    """The memory between an observation's features and its latent."""
    dynamics: Dynamics | None
    """None for agents whose loss has no term of the model, so that they have no parameters that never learn."""
    reader: GridReader | None
    """The convolution between a latent that is a grid and the heads, if there is one."""
    heads: Heads
    projection: Projection | None
    """For the `consistency` term, which compares predicted latents with encoded ones; None without that term."""
    value_support: Support | Bounded | Unbounded
    reward_support: Support
    distribution: Distribution = eqx.field(static=True)
    """The kind of policy, whose parameters are `Prediction.policy_logits`; it also gives the features of an action."""
    latent_gradient_scale: float = eqx.field(static=True)
    visible: int = eqx.field(static=True)
    """The number of a latent's first entries that are the heads' input.  An LSTM's c is used only in its next step."""
    is_image: bool = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)
    """The layout of pictures that no adapter has encoded."""
    dtype: jnp.dtype = eqx.field(static=True)
    players: tuple[int, ...] = eqx.field(static=True)
    """The shape of a value and of a reward: (P,) in games of P > 2 players, which begin with the player to move."""

    def __init__(self, spec: EnvSpec, config: ModelConfig, key: Key, project: bool = False, imagine: bool = True):
        torso_key, dynamics_key, heads_key = jax.random.split(key, 3)
        self.distribution = distribution_of(spec.action)
        num_features = self.distribution.num_features
        recurrent = imagine and config.dynamics == "lstm"
        vector_width = 2 * config.latent_width if recurrent else config.latent_width
        self.representation = make_representation(config, spec, torso_key, vector_width)
        grid = self.representation.grid
        latent_width = math.prod(grid) if grid else vector_width
        self.dynamics = make_dynamics(config, grid, latent_width, num_features, dynamics_key) if imagine else None
        self.memory = None
        if config.memory == "lstm":
            assert isinstance(self.representation, FlatTorso)
            self.memory = Memory(self.representation.num_features, config.memory_width, jax.random.fold_in(key, 5))
        self.visible = config.latent_width if recurrent else latent_width
        self.reader = make_reader(config, grid, jax.random.fold_in(key, 4)) if config.prediction_channels else None
        self.value_support, self.reward_support = config.make_value_support(), config.make_support()
        self.players = player_axis(spec.num_players)
        numbers = math.prod(self.players)
        self.heads = Heads(
            config.latent_width if self.reader else self.visible, self.distribution.num_params,
            numbers * self.value_support.num_atoms,
            numbers * config.num_atoms if config.reward_head and imagine else 0, config.head_widths, heads_key,
        )  # fmt: skip
        learned = project and not isinstance(self.representation, IdentityTorso)
        self.projection = Projection(latent_width, jax.random.fold_in(key, 3), config.dtype) if learned else None
        self.latent_gradient_scale, self.dtype = config.latent_gradient_scale, config.dtype
        part = spec.parts.get(SINGLE)
        self.layout = layout_without_encoding(spec) if part else "as_given"
        self.is_image = part is not None and len(spaces.channels_last_shape(part.shape, self.layout)) == 3

    def following(self, largest_return: Float[Array, ""] | None) -> Model:
        """Return the model whose values and rewards have a unit that follows the largest return, or itself for None.

        The unit is not a parameter: it is not learned, and averages of parameters do not contain it.
        """
        if largest_return is None:
            return self
        supports = (self.value_support.following(largest_return), self.reward_support.following(largest_return))
        return eqx.tree_at(lambda model: (model.value_support, model.reward_support), self, supports)

    def features(self, observation: PyTree[Array]) -> Float[Array, "*B features"]:
        """Return the features of an observation, which may have any type; a memory may follow before `project`.

        Bytes of an image are scaled to [0, 1] by the network and nowhere else.  Those of a vector, such as a machine's
        RAM, stay as they are.  Pictures of another layout are transposed.
        """
        if isinstance(self.representation, IndexTorso):
            return self.representation.encode(observation, self.dtype)
        if self.layout != "as_given":
            observation = spaces.to_channels_last(observation, self.layout)
        if isinstance(self.representation, JoinedTorso):
            return self.representation.encode(observation, self.dtype)
        x = scale_bytes(observation) if self.is_image else observation
        return self.representation.encode(x.astype(self.dtype))

    def project(self, features: Float[Array, "*B features"]) -> Float[Array, "*B latent"]:
        """Return the latent of features, in [-1, 1]."""
        return self.representation.project(features).astype(jnp.float32)

    def represent(self, observation: PyTree[Array]) -> Float[Array, "*B latent"]:
        """Return h, the latent of an observation without a memory, in [-1, 1].

        With a memory, `encode` and `encode_rows` compute the latent.
        """
        return self.project(self.features(observation))

    def encode(
        self,
        observation: PyTree[Array],
        state: Float[Array, "B state"] | None,
        first: Bool[Array, " B"],
    ) -> tuple[Float[Array, "B latent"], Float[Array, "B state"] | None]:
        """Return the latents of one row, and the state of the memory after it."""
        features = self.features(observation)
        if self.memory is not None and state is not None:
            features, state = self.memory(features, state, first)
        return self.project(features), state

    def encode_rows(
        self,
        observation: PyTree[Array],
        state: Float[Array, "B state"] | None,
        first: Bool[Array, "B R"],
        burn_in: int = 0,
    ) -> Float[Array, "B R latent"]:
        """Return the latents of sequences of rows, given the state of the memory before their first rows."""
        features = self.features(observation)
        if self.memory is not None and state is not None:
            features = self.memory.rows(features, state, first, burn_in)
        return self.project(features)

    def step(self, latent: Float[Array, "*B latent"], action: Shaped[Array, ...]) -> Float[Array, "*B latent"]:
        """Return g, the latent after an action.  The reward of the action is `reward` of the result."""
        assert self.dynamics is not None
        features = self.distribution.features(action, self.dtype)
        return self.dynamics(scale_gradient(latent, self.latent_gradient_scale), features)

    def head_input(self, latent: Float[Array, "*B latent"]) -> Float[Array, "*B features"]:
        """Return the input of the heads, which is the latent (h of an LSTM) or the output of `reader` for a grid."""
        visible = latent[..., : self.visible].astype(self.dtype)
        return visible if self.reader is None else self.reader(visible)

    def value_logits(self, features: Float[Array, "*B features"]) -> Float[Array, ...]:
        """Return the logits of the value, given the heads' input; [*B, P, atoms] in games of P > 2 players."""
        return self._per_player(self.heads.value(features).astype(jnp.float32))

    def _per_player(self, logits: Float[Array, "*B numbers"]) -> Float[Array, ...]:
        return logits.reshape(*logits.shape[:-1], *self.players, -1) if self.players else logits

    def reward_logits(self, features: Float[Array, "*B features"]) -> Float[Array, ...]:
        """Return the logits of the reward for arriving in a latent, given the heads' input.

        They have no atoms where the model predicts no reward.
        """
        if self.heads.reward is None:
            return jnp.zeros((*features.shape[:-1], *self.players, 0))
        return self._per_player(self.heads.reward(features).astype(jnp.float32))

    def reward(self, latent: Float[Array, "*B latent"]) -> Float[Array, ...]:
        """Return the reward for arriving in a latent that `step` returned, or 0 where the model predicts no reward.

        In games of P > 2 players it is a vector, [*B, P], which begins with the player who moved.
        """
        if self.heads.reward is None:
            return jnp.zeros((*latent.shape[:-1], *self.players))
        return self.reward_support.mean(self.reward_logits(self.head_input(latent)))

    def value(self, latent: Float[Array, "*B latent"]) -> Float[Array, ...]:
        """Return the value of a latent, [*B, P] in games of P > 2 players."""
        return self.value_support.mean(self.value_logits(self.head_input(latent)))

    def prediction(self, features: Float[Array, "*B features"]) -> Prediction:
        """Return the logits of policy and value, given the heads' input."""
        return Prediction(self.heads.policy(features).astype(jnp.float32), self.value_logits(features))

    def predict(self, latent: Float[Array, "*B latent"]) -> Prediction:
        """Return f, the logits of policy and value of a latent."""
        return self.prediction(self.head_input(latent))

    def unroll(self, latent: Float[Array, "*B latent"], actions: Shaped[Array, ...]) -> Float[Array, "K *B latent"]:
        """Return the latents after each of K actions that begin at a latent."""

        def step(latent, action):
            latent = self.step(latent, action)
            return latent, latent

        if not len(actions):
            return jnp.zeros((0, *latent.shape), latent.dtype)
        # K is small.  When the scan is unrolled, the weight gradients of the steps are summed without a loop's carry.
        return jax.lax.scan(step, latent, actions, unroll=max(len(actions), 1))[1]

    def look_ahead(
        self, latent: Float[Array, "*B latent"], model_discount: float, actions: Shaped[Array, ...] | None = None
    ) -> Float[Array, "*B A"]:
        """Return q^(s, a) = r^_1(s, a) + gamma v^_1(s, a) for some actions (Muesli, equation 14).

        Args:
          latent: the latents.
          model_discount: gamma, negative where the next value is the opponent's.
          actions: A actions of each latent, [*B, A] or [*B, A, D]; None takes every discrete action.
        """
        dynamics = self.dynamics
        assert dynamics is not None
        table, latent_term = dynamics.action_terms(), dynamics.latent_term(latent.astype(self.dtype))

        def q_values(action_terms: Float[Array, "*#B A numbers"]) -> Float[Array, "*B A"]:
            next_latents = dynamics.next_latents(latent, latent_term, action_terms)
            return self.reward(next_latents) + model_discount * self.value(next_latents)

        def q_of(actions: Shaped[Array, ...]) -> Float[Array, "*B A"]:
            own = jnp.moveaxis(actions, 0, latent.ndim - 1)
            if isinstance(self.distribution, Categorical):
                return q_values(table[own])
            return q_values(self.distribution.features(own, self.dtype) @ table.astype(self.dtype))

        # For each action there is a latent, and the sum of both terms; the terms of a latent's own actions too.
        width = latent.shape[-1] + latent_term.shape[-1] * (1 if actions is None else 2)
        most = max(LOOK_AHEAD_BYTES // max(4 * math.prod(latent.shape[:-1]) * width, 1), 1)
        if actions is None:
            return in_chunks(q_values, table, most)
        return in_chunks(q_of, jnp.moveaxis(actions, latent.ndim - 1, 0), most)


def in_chunks(
    function: Callable[[Shaped[Array, ...]], Float[Array, ...]], actions: Shaped[Array, "A ..."], most: int
) -> Float[Array, "*B A"]:
    """Apply a function to all actions, with at most `most` of them at a time.

    Args:
      function: a function of actions whose result has them as its last axis.
      actions: a row for each action.
      most: the greatest number of actions of one call.
    """
    count = len(actions)
    if count <= most:
        return function(actions)
    chunks = -(-count // most)
    size = -(-count // chunks)
    padding = [(0, chunks * size - count)] + [(0, 0)] * (actions.ndim - 1)
    padded = jnp.pad(actions, padding).reshape(chunks, size, *actions.shape[1:])
    results = jnp.moveaxis(jax.lax.map(function, padded), 0, -2)
    return results.reshape(*results.shape[:-2], -1)[..., :count]


def make_reader(config: ModelConfig, grid: tuple[int, int, int] | None, key: Key) -> GridReader:
    """Return the convolution between a latent that is a grid and the heads.

    Raises:
      ConfigError: the latent is not a grid, or is smaller than the kernel.
    """
    kernel = config.prediction_kernel
    if grid is None:
        raise ConfigError(
            f"model.prediction_channels={config.prediction_channels} needs a latent that is a grid, "
            f"as with model.torso=grid, identity or muzero_resnet, not {config.torso}"
        )
    if min(grid[:2]) < kernel:
        raise ConfigError(
            f"model.prediction_kernel={kernel} needs a grid of at least {kernel} × {kernel}, not {grid[0]} × {grid[1]}"
        )
    return GridReader(grid, config.prediction_channels, kernel, config.latent_width, key)
