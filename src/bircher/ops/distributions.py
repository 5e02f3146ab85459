"""Policies over actions of any kind: samples, log-probabilities, entropies and divergences, for any leading axes.

The functions at the beginning are those of few discrete actions, whose probabilities are all known.  The classes after
them have the same methods for every kind of action, as Brax's `ParametricDistribution` has.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from bircher.types import Continuous, Discrete, Key, MultiDiscrete, Unsupported

ILLEGAL = -1e9
"""Logit of an action that must not be taken; finite, so that its gradient is 0 and not NaN."""


def mask_logits(logits: Float[Array, "*B A"], legal_actions: Bool[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Return the logits with `ILLEGAL` in place of those of illegal actions."""
    return jnp.where(legal_actions, logits, ILLEGAL)


def log_probability(logits: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Return log pi(action) of the policy softmax(logits)."""
    return select(jax.nn.log_softmax(logits), action)


def select(values: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Return the entry of each action in `values`.

    It is a masked sum, which is faster than a gather for a small number of actions.
    """
    # `where` and not a product, because an illegal action's infinity must not reach the others.
    chosen = action[..., None] == jnp.arange(values.shape[-1])
    return jnp.where(chosen, values, 0.0).sum(-1)


def entropy(logits: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Return the entropy of softmax(logits) in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probabilities) * log_probabilities).sum(-1)


def kl_divergence(p: Float[Array, "*B A"], q: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """Return KL(p, q) in nats.

    Args:
      p: probabilities, where 0 log 0 is taken as 0.
      q: probabilities.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    return (p * (jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny)))).sum(-1)


def mixture_prior(
    target_logits: Float[Array, "*B A"],
    behavior_logits: Float[Array, "*B A"],
    legal_actions: Bool[Array, "*B A"],
    behavior_share: float,
    uniform_share: float,
) -> Float[Array, "*B A"]:
    """Return the probabilities of a mixture of the target network's, the behavior and the uniform policy.

    The target network's policy has the share that is left, 1 - behavior_share - uniform_share.  The mixture bounds the
    importance ratio and gives every legal action some probability (Muesli, appendix, as re-implementers cite it).
    """
    target = jax.nn.softmax(mask_logits(target_logits, legal_actions))
    behavior = jax.nn.softmax(mask_logits(behavior_logits, legal_actions))
    legal = legal_actions.astype(target.dtype)
    uniform = legal / jnp.maximum(legal.sum(-1, keepdims=True), 1.0)
    return (1 - behavior_share - uniform_share) * target + behavior_share * behavior + uniform_share * uniform


@runtime_checkable
class Distribution(Protocol):
    """A policy over the actions of a space, given the numbers that the policy head predicts (its parameters).

    Every function is pure and takes any leading axes *B.  One action of each policy has the shape [*B] for
    `Categorical` and [*B, D] for the others; N actions of each have the shape [*B, N] or [*B, N, D].
    """

    @property
    def num_params(self) -> int:
        """Return the number of parameters of one policy."""
        ...

    @property
    def num_features(self) -> int:
        """Return the number of numbers by which a model receives an action."""
        ...

    @property
    def num_choices(self) -> int | None:
        """Return the number of different actions; None where they cannot be counted."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Return the shape of one action."""
        ...

    def restrict(self, params: Float[Array, "*B P"], legal_actions: Bool[Array, "*#B A"]) -> Float[Array, "*B P"]:
        """Return the parameters of the policy that takes legal actions only."""
        ...

    def sample(self, params: Float[Array, "*B P"], key: Key) -> Shaped[Array, ...]:
        """Draw one action from each policy."""
        ...

    def sample_many(self, params: Float[Array, "*B P"], key: Key, count: int) -> Shaped[Array, ...]:
        """Draw `count` actions from each policy, with replacement."""
        ...

    def log_prob(self, params: Float[Array, "*B P"], action: Shaped[Array, ...]) -> Float[Array, "*B"]:
        """Return the logarithm of an action's probability or density."""
        ...

    def log_prob_many(self, params: Float[Array, "*B P"], actions: Shaped[Array, ...]) -> Float[Array, "*B N"]:
        """Return the logarithms of the probabilities or densities of N actions of each policy."""
        ...

    def entropy(self, params: Float[Array, "*B P"]) -> Float[Array, "*B"]:
        """Return the entropy in nats; that of a density may be negative."""
        ...

    def kl(self, p: Float[Array, "*B P"], q: Float[Array, "*B P"]) -> Float[Array, "*B"]:
        """Return the divergence KL(p, q) of the policies with these parameters, in nats."""
        ...

    def mode(self, params: Float[Array, "*B P"]) -> Shaped[Array, ...]:
        """Return the most probable action."""
        ...

    def uniform_many(self, params: Float[Array, "*B P"], key: Key, count: int) -> Shaped[Array, ...]:
        """Draw `count` actions uniformly from those that restricted parameters allow."""
        ...

    def uniform_log_prob(self, params: Float[Array, "*B P"], actions: Shaped[Array, ...]) -> Float[Array, "*B N"]:
        """Return the logarithms of the probabilities or densities of N actions under `uniform_many`."""
        ...

    def features(self, action: Shaped[Array, ...], dtype: Any = jnp.float32) -> Float[Array, "*B F"]:
        """Return the numbers by which a model receives an action; a linear layer of them is the action's embedding."""
        ...

    def all_actions(self) -> Shaped[Array, ...]:
        """Return every action, where they can be counted."""
        ...


def sample_indices(key: Key, logits: Float[Array, "*B A"], count: int) -> Int[Array, "*B N"]:
    """Draw `count` indices from each softmax(logits), by the inverse of the cumulative distribution.

    It needs one random number for each index, whereas the usual draw needs one for each logit of each index.
    """
    sums = jnp.cumsum(jax.nn.softmax(logits), axis=-1).reshape(-1, logits.shape[-1])
    # The factor keeps every number below the sum, so that an index of probability 0 is never drawn.
    share = jax.random.uniform(key, (*logits.shape[:-1], count)).reshape(-1, count) * (1 - 2**-23)
    drawn = jax.vmap(partial(jnp.searchsorted, side="right"))(sums, share * sums[:, -1:])
    return drawn.reshape(*logits.shape[:-1], count).astype(jnp.int32)


class Categorical(NamedTuple):
    """A probability for each of a number of actions; the parameters are logits."""

    num_actions: int

    @property
    def num_params(self) -> int:
        return self.num_actions

    @property
    def num_features(self) -> int:
        return self.num_actions

    @property
    def num_choices(self) -> int:
        return self.num_actions

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    def restrict(self, params: Array, legal_actions: Array) -> Array:
        return mask_logits(params, legal_actions)

    def sample(self, params: Array, key: Key) -> Array:
        return jax.random.categorical(key, params).astype(jnp.int32)

    def sample_many(self, params: Array, key: Key, count: int) -> Array:
        return sample_indices(key, params, count)

    def log_prob(self, params: Array, action: Array) -> Array:
        return log_probability(params, action)

    def log_prob_many(self, params: Array, actions: Array) -> Array:
        # A gather, because comparing each of N actions with each of A would take N times the memory of the logits.
        return jnp.take_along_axis(jax.nn.log_softmax(params), actions, axis=-1)

    def entropy(self, params: Array) -> Array:
        return entropy(params)

    def kl(self, p: Array, q: Array) -> Array:
        return kl_divergence(jax.nn.softmax(p), jax.nn.softmax(q))

    def mode(self, params: Array) -> Array:
        return jnp.argmax(params, -1).astype(jnp.int32)

    def uniform_many(self, params: Array, key: Key, count: int) -> Array:
        return sample_indices(key, self._uniform(params), count)

    def uniform_log_prob(self, params: Array, actions: Array) -> Array:
        return self.log_prob_many(self._uniform(params), actions)

    def _uniform(self, params: Array) -> Array:
        return jnp.where(params > ILLEGAL / 2, 0.0, ILLEGAL)

    def features(self, action: Array, dtype: Any = jnp.float32) -> Array:
        return jax.nn.one_hot(action, self.num_actions, dtype=dtype)

    def all_actions(self) -> Array:
        return jnp.arange(self.num_actions, dtype=jnp.int32)


class MultiCategorical(NamedTuple):
    """Independent categorical factors, one for each dimension of an action; the parameters are the logits of all."""

    sizes: tuple[int, ...]
    """The number of choices of each dimension."""

    @property
    def num_params(self) -> int:
        return sum(self.sizes)

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    @property
    def num_choices(self) -> int:
        return math.prod(self.sizes)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    @property
    def _starts(self) -> np.ndarray:
        """The position of each dimension's first logit."""
        return np.cumsum([0, *self.sizes[:-1]])

    def _factors(self, params: Array) -> Array:
        """Return the logits of each factor, [*B, D, most], where choices beyond a factor's own are illegal."""
        choice = np.arange(max(self.sizes))
        exists = choice < np.asarray(self.sizes)[:, None]
        return jnp.where(exists, params[..., np.where(exists, self._starts[:, None] + choice, 0)], ILLEGAL)

    def restrict(self, params: Array, legal_actions: Array) -> Array:
        del legal_actions  # only discrete actions have a mask
        return params

    def sample(self, params: Array, key: Key) -> Array:
        return jax.random.categorical(key, self._factors(params)).astype(jnp.int32)

    def sample_many(self, params: Array, key: Key, count: int) -> Array:
        return jnp.swapaxes(sample_indices(key, self._factors(params), count), -1, -2)

    def log_prob(self, params: Array, action: Array) -> Array:
        return self.log_prob_many(params, action[..., None, :])[..., 0]

    def log_prob_many(self, params: Array, actions: Array) -> Array:
        factors = jax.nn.log_softmax(self._factors(params))
        return jnp.take_along_axis(factors, jnp.swapaxes(actions, -1, -2), axis=-1).sum(-2)

    def entropy(self, params: Array) -> Array:
        return entropy(self._factors(params)).sum(-1)

    def kl(self, p: Array, q: Array) -> Array:
        return kl_divergence(jax.nn.softmax(self._factors(p)), jax.nn.softmax(self._factors(q))).sum(-1)

    def mode(self, params: Array) -> Array:
        return jnp.argmax(self._factors(params), -1).astype(jnp.int32)

    def uniform_many(self, params: Array, key: Key, count: int) -> Array:
        return self.sample_many(jnp.zeros_like(params), key, count)

    def uniform_log_prob(self, params: Array, actions: Array) -> Array:
        return jnp.full((*params.shape[:-1], actions.shape[-2]), -math.fsum(map(math.log, self.sizes)))

    def features(self, action: Array, dtype: Any = jnp.float32) -> Array:
        parts = [jax.nn.one_hot(action[..., i], size, dtype=dtype) for i, size in enumerate(self.sizes)]
        return jnp.concatenate(parts, axis=-1)

    def all_actions(self) -> Array:
        grid = np.indices(self.sizes).reshape(len(self.sizes), -1).T
        return jnp.asarray(grid, jnp.int32)


LOG_DEVIATION = (-3.0, 0.5)
"""The least and the greatest logarithm of a `ClippedNormal`'s standard deviation."""
FIRST_LOG_DEVIATION = -0.5
"""The logarithm of the standard deviation where the parameter is 0, as in a new network."""


class ClippedNormal(NamedTuple):
    """A normal distribution with independent dimensions, whose actions the environment receives clipped to [-1, 1].

    The parameters are, for each dimension, a number m and then, for each dimension, a number s.  The mean is tanh(m),
    so that the best action lies within the bounds, and the logarithm of the standard deviation lies smoothly within
    `LOG_DEVIATION`.  Densities, entropies and divergences are those of the normal distribution before the clipping, in
    closed form; ratios of densities and distilled policies need no more.
    """

    size: int
    """The number of dimensions."""

    @property
    def num_params(self) -> int:
        return 2 * self.size

    @property
    def num_features(self) -> int:
        return self.size

    @property
    def num_choices(self) -> None:
        return None

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.size,)

    def moments(self, params: Float[Array, "*B P"]) -> tuple[Float[Array, "*B n"], Float[Array, "*B n"]]:
        """Return the mean and the logarithm of the standard deviation of each dimension."""
        mean, deviation = jnp.split(params.astype(jnp.float32), 2, axis=-1)
        low, high = LOG_DEVIATION
        share = (FIRST_LOG_DEVIATION - low) / (high - low)
        return jnp.tanh(mean), low + (high - low) * jax.nn.sigmoid(deviation + math.log(share / (1 - share)))

    def restrict(self, params: Array, legal_actions: Array) -> Array:
        del legal_actions  # only discrete actions have a mask
        return params

    def sample(self, params: Array, key: Key) -> Array:
        return self.sample_many(params, key, 1)[..., 0, :]

    def sample_many(self, params: Array, key: Key, count: int) -> Array:
        mean, log_deviation = (x[..., None, :] for x in self.moments(params))
        noise = jax.random.normal(key, (*params.shape[:-1], count, self.size))
        return mean + jnp.exp(log_deviation) * noise

    def log_prob(self, params: Array, action: Array) -> Array:
        return self.log_prob_many(params, action[..., None, :])[..., 0]

    def log_prob_many(self, params: Array, actions: Array) -> Array:
        mean, log_deviation = (x[..., None, :] for x in self.moments(params))
        squares = jnp.square((actions - mean) * jnp.exp(-log_deviation))
        return -(0.5 * squares + log_deviation + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Array) -> Array:
        _, log_deviation = self.moments(params)
        return (log_deviation + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, p: Array, q: Array) -> Array:
        (mean, log_deviation), (other_mean, other_log_deviation) = self.moments(p), self.moments(q)
        difference = log_deviation - other_log_deviation
        distance = jnp.square((mean - other_mean) * jnp.exp(-other_log_deviation))
        return (0.5 * (jnp.exp(2 * difference) + distance - 1.0) - difference).sum(-1)

    def mode(self, params: Array) -> Array:
        return self.moments(params)[0]

    def uniform_many(self, params: Array, key: Key, count: int) -> Array:
        return jax.random.uniform(key, (*params.shape[:-1], count, self.size), minval=-1.0, maxval=1.0)

    def uniform_log_prob(self, params: Array, actions: Array) -> Array:
        inside = (jnp.abs(actions) <= 1.0).all(-1)
        return jnp.where(inside, -self.size * math.log(2.0), -jnp.inf)

    def features(self, action: Array, dtype: Any = jnp.float32) -> Array:
        return jnp.clip(action, -1.0, 1.0).astype(dtype)

    def all_actions(self) -> Array:
        raise TypeError("continuous actions cannot be listed")


def distribution_of(action: Discrete | MultiDiscrete | Continuous | Unsupported) -> Distribution:
    """Return the distribution of policies over a space of actions.

    Raises:
      TypeError: the space is not supported.
    """
    if isinstance(action, Unsupported):
        raise TypeError(f"there is no distribution over the {action}")
    if isinstance(action, Discrete):
        return Categorical(action.num_actions)
    if isinstance(action, MultiDiscrete):
        return MultiCategorical(action.sizes)
    return ClippedNormal(math.prod(action.shape))


def mixture_log_prob(
    distribution: Distribution, params: Float[Array, "*B P"], actions: Shaped[Array, ...],
    uniform_share: float,
) -> Float[Array, "*B N"]:  # fmt: skip
    """Return the log-probabilities of actions under a policy in which the uniform policy has a share.

    `params` are restricted to the legal actions.
    """
    own = distribution.log_prob_many(params, actions)
    if not uniform_share:
        return own
    uniform = distribution.uniform_log_prob(params, actions)
    return jnp.logaddexp(own + math.log1p(-uniform_share), uniform + math.log(uniform_share))
