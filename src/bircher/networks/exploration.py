"""Networks that measure how new a transition is: features of observations, inverse dynamics, and an ensemble."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from bircher.networks.config import ModelConfig
from bircher.networks.encoders import GRIDS, FlatTorso
from bircher.networks.layers import MLP
from bircher.networks.model import Model
from bircher.ops.distributions import Distribution, distribution_of
from bircher.types import EnvSpec, Key

WIDTH, HIDDEN = 32, 128
"""The number of features of an observation, and the width of the hidden layer behind them."""


class Features(eqx.Module):
    """Features of an observation, by a separate network with the torso of the agent's.

    Unlike a latent they are not scaled to [-1, 1], so that an observation far from all others has large features.
    """

    model: Model

    def __init__(self, spec: EnvSpec, config: ModelConfig, key: Key):
        changed = {"latent_width": WIDTH, "memory": "none", "prediction_channels": 0}
        if config.torso in GRIDS:  # a grid has too many numbers for a matrix over pairs of them
            changed["torso"] = "auto"
        model = Model(spec, config.model_copy(update=changed), key, imagine=False)
        self.model = eqx.tree_at(lambda model: model.heads, model, None)

    def __call__(self, observation: PyTree[Array]) -> Float[Array, "*B features"]:
        torso = self.model.representation
        assert isinstance(torso, FlatTorso)
        return torso.mlp.last(self.model.features(observation)).astype(jnp.float32)


class InverseDynamics(eqx.Module):
    """Features from which, with those of the next observation, the action between both can be told.

    Features that are learned in this way keep what actions change, and not what changes by itself.  "Curiosity-driven
    Exploration by Self-supervised Prediction" by Pathak et al. 2017 (https://arxiv.org/abs/1705.05363), section 2.2.
    """

    features: Features
    head: MLP
    distribution: Distribution = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, config: ModelConfig, key: Key):
        features_key, head_key = jax.random.split(key)
        self.features = Features(spec, config, features_key)
        self.distribution = distribution_of(spec.action)
        self.head = MLP(2 * WIDTH, (HIDDEN, self.distribution.num_params), head_key)

    def loss(self, observation: PyTree[Array], action: Shaped[Array, "B T ..."]) -> Float[Array, "B T"]:
        """Return minus the log-probability of the actions between consecutive observations [B, T + 1, ...]."""
        features = self.features(observation)
        params = self.head(jnp.concatenate([features[:, :-1], features[:, 1:]], axis=-1))
        return -self.distribution.log_prob(params, action)


class Ensemble(eqx.Module):
    """Predictions of the next observation's features, given those of an observation and an action.

    The heads begin differently and learn from the same data, so that they agree only where they have seen data.
    """

    heads: MLP
    """The heads, stacked along the first axis of each array."""
    distribution: Distribution = eqx.field(static=True)

    def __init__(self, distribution: Distribution, size: int, key: Key):
        def make(key: Key) -> MLP:
            return MLP(WIDTH + distribution.num_features, (HIDDEN, WIDTH), key)

        self.heads, self.distribution = jax.vmap(make)(jax.random.split(key, size)), distribution

    def __call__(
        self, features: Float[Array, "*B features"], action: Shaped[Array, ...]
    ) -> Float[Array, "heads *B features"]:
        inputs = jnp.concatenate([features, self.distribution.features(action)], axis=-1)
        return jax.vmap(lambda head: head(inputs))(self.heads)

    def disagreement(self, features: Float[Array, "*B features"], action: Shaped[Array, ...]) -> Float[Array, "*B"]:
        """Return the variance of the predictions between heads, averaged over the features."""
        return self(features, action).var(0).mean(-1)

    def loss(self, features: Float[Array, "B R features"], action: Shaped[Array, "B T ..."]) -> Float[Array, "B T"]:
        """Return the squared error of the predictions, averaged over the heads and the features."""
        return jnp.square(self(features[:, :-1], action) - features[:, 1:]).mean((0, -1))


def elliptical_bonus(
    inverse: Float[Array, "B n n"], features: Float[Array, "B n"]
) -> tuple[Float[Array, " B"], Float[Array, "B n n"]]:
    """Return b = f' C^-1 f, and the inverse of C + f f' by the formula of Sherman and Morrison.

    `inverse` is C^-1, which is symmetric.
    """
    product = jnp.einsum("bij,bj->bi", inverse, features)
    bonus = jnp.maximum((product * features).sum(-1), 0.0)
    return bonus, inverse - product[:, :, None] * product[:, None, :] / (1.0 + bonus)[:, None, None]
