"""Searches with a learned model: their roots, and the model's steps below them.

Discrete actions are the edges of every node.  For all other actions a node has its own candidates, and the search walks
over their indices: "Learning and Planning in Complex Action Spaces" by Hubert et al. 2021
(https://arxiv.org/abs/2104.06303), Sampled MuZero.  The prior of a candidate is the policy's density there, divided by
the density from which it was drawn, so that searches over samples tend to the search over all actions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from bircher.networks.model import Model
from bircher.ops.distributions import Categorical, Distribution, mixture_log_prob
from bircher.search import Root, Simulate, Step
from bircher.types import Key


class Proposal(NamedTuple):
    """How the candidates of a node are chosen."""

    num_candidates: int
    uniform_share: float
    """The share of candidates that are drawn uniformly; the others are drawn from the policy."""
    enumerate_actions: int
    """Up to this number of different actions, all of them are candidates."""


class Node(NamedTuple):
    """The latent of a node with its candidates, [B, ...]."""

    latent: Float[Array, "B latent"]
    actions: Shaped[Array, "B N ..."]
    key: Key
    """[B]; the keys of the nodes below are folded from it."""


def propose(
    distribution: Distribution, proposal: Proposal, params: Float[Array, "B P"], keys: Key
) -> tuple[Shaped[Array, "B N ..."], Float[Array, "B N"]]:
    """Return the candidates of B nodes, and the logits of their prior.

    Args:
      distribution: the kind of policy.
      proposal: how candidates are chosen.
      params: parameters of the policies.
      keys: a key for each node, [B].
    """
    number, share = proposal.num_candidates, proposal.uniform_share
    if lists_all(distribution, proposal):
        every = distribution.all_actions()
        actions = jnp.broadcast_to(every, (len(params), *every.shape))
        return actions, distribution.log_prob_many(params, actions)

    def draw(params: Float[Array, " P"], key: Key) -> Shaped[Array, "N ..."]:
        own_key, uniform_key, choice_key = jax.random.split(key, 3)
        actions = distribution.sample_many(params, own_key, number)
        if not share:
            return actions
        uniform = distribution.uniform_many(params, uniform_key, number)
        chosen = jax.random.bernoulli(choice_key, share, (number,))
        return jnp.where(chosen.reshape(number, *[1] * (actions.ndim - 1)), uniform, actions)

    actions = jax.vmap(draw)(params, keys)
    return actions, _prior_logits(distribution, params, actions, share)


def _prior_logits(
    distribution: Distribution, params: Float[Array, "B P"], actions: Shaped[Array, "B N ..."], share: float
) -> Float[Array, "B N"]:
    """Return log pi(a) - log beta(a) of candidates that were drawn from the mixture beta."""
    log_prob = distribution.log_prob_many(params, actions)
    return log_prob - mixture_log_prob(distribution, params, actions, share)


def lists_all(distribution: Distribution, proposal: Proposal) -> bool:
    """Return whether the candidates of a node are all actions."""
    return distribution.num_choices is not None and distribution.num_choices <= proposal.enumerate_actions


def has_candidates(model: Model) -> bool:
    """Return whether the nodes of a search have candidates, because actions are not discrete."""
    return not isinstance(model.distribution, Categorical)


def search_root(
    model: Model, latent: Float[Array, "B latent"], legal_actions: Bool[Array, "B A"], proposal: Proposal, key: Key,
    with_mode: bool = False,
) -> Root:  # fmt: skip
    """Return the root of a search at encoded observations.

    With `with_mode` the first candidate is the policy's most probable action instead of a sample.
    """
    prediction = model.predict(latent)
    value, largest = model.value_support.mean(prediction.value_logits), model.value_support.largest
    if not has_candidates(model):
        # A last row may have no legal action left; the result of a search there is never used as a policy.
        legal = legal_actions | ~legal_actions.any(-1, keepdims=True)
        return Root(model.distribution.restrict(prediction.policy_logits, legal), value, latent, legal, largest)
    keys = jax.random.split(key, len(latent))
    actions, logits = propose(model.distribution, proposal, prediction.policy_logits, keys)
    if with_mode and not lists_all(model.distribution, proposal):
        actions = actions.at[:, 0].set(model.distribution.mode(prediction.policy_logits))
        logits = _prior_logits(model.distribution, prediction.policy_logits, actions, proposal.uniform_share)
    return Root(logits, value, Node(latent, actions, keys), jnp.ones(logits.shape, bool), largest)


def simulator(model: Model, model_discount: float, proposal: Proposal) -> Simulate:
    """Return a function that takes one step of the model from a latent, or from a node with candidates.

    `model_discount` is gamma, negative where the next state is the other player's, of two.
    """

    def step(latent: Float[Array, "B latent"], action: Shaped[Array, "B ..."]) -> Step:
        following = model.step(latent, action)
        prediction = model.predict(following)
        value = model.value_support.mean(prediction.value_logits)
        return Step(
            reward=model.reward(following),
            discount=jnp.full(value.shape[:1], model_discount),
            logits=prediction.policy_logits,
            value=value,
            latent=following,
        )

    def step_to_candidates(node: Node, index: Int[Array, " B"]) -> Step:
        found = step(node.latent, take_actions(node.actions, index))
        keys = jax.vmap(jax.random.fold_in)(node.key, index)
        actions, logits = propose(model.distribution, proposal, found.logits, keys)
        return found._replace(logits=logits, latent=Node(found.latent, actions, keys))

    return step_to_candidates if has_candidates(model) else step


def take_actions(actions: Shaped[Array, "B N ..."], index: Int[Array, " B"]) -> Shaped[Array, "B ..."]:
    """Return the candidate of each element at an index."""
    return jax.vmap(lambda own, i: own[i])(actions, index)
