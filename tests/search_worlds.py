"""What the tests search in: a small random model, tabular decision processes known exactly, and the game of Nim."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher.search import Root, SearchConfig, SearchResult, Step, gumbel_search, puct_search

SEARCHES = {"puct": puct_search, "gumbel": gumbel_search}


LARGEST_RETURN = 0.7
"""What `q_range=returns` divides by."""


class Network(NamedTuple):
    """A fixed random model of one layer; the same code serves NumPy in double precision and JAX."""

    from_latent: Any
    from_action: Any
    policy: Any
    value: Any
    reward: Any
    discount: Any

    @classmethod
    def random(cls, seed: int, num_actions: int, discount: float, width: int = 6, players: tuple = ()) -> Network:
        """Weights for which Q and priors differ clearly between actions; `players` is the shape of a value."""
        rng = np.random.default_rng(seed)
        shapes = [(width, width), (num_actions, width), (width, num_actions), (width, *players), (width, *players)]
        return cls(*(rng.normal(size=shape).astype(np.float32) for shape in shapes), np.float32(discount))

    def predict(self, xp: Any, latent: Any) -> tuple[Any, Any]:
        """(logits, value)"""
        return latent @ self.policy, xp.tanh(latent @ self.value)

    def step(self, xp: Any, latent: Any, action: Any) -> tuple[Any, Any]:
        """(reward, latent)"""
        latent = xp.tanh(latent @ self.from_latent + xp.asarray(self.from_action)[action])
        return 0.3 * (latent @ self.reward), latent

    def simulate(self, latent: Any, action: Any) -> Step:
        """As bircher's searches ask."""
        reward, latent = self.step(jnp, latent, action)
        logits, value = self.predict(jnp, latent)
        return Step(reward, jnp.full(reward.shape[:1], self.discount), logits, value, latent)

    def simulate_one(self, latent: Any, action: int) -> tuple[Any, float, np.ndarray, Any, Any]:
        """As the reference asks, in double precision."""
        exact = Network(*(np.asarray(x, float) for x in self))
        reward, latent = exact.step(np, latent, action)
        logits, value = exact.predict(np, latent)
        return reward, float(exact.discount), logits, value, latent

    def root(self, latent: Any, legal_actions: Any) -> Root:
        """From latents [B, width]."""
        logits, value = self.predict(jnp, latent)
        return Root(logits, value, latent, legal_actions, jnp.float32(LARGEST_RETURN))


def root_latents(seed: int, batch_size: int, width: int = 6) -> np.ndarray:
    """[B, width] in (-1, 1)."""
    return np.tanh(np.random.default_rng(1000 + seed).normal(size=(batch_size, width))).astype(np.float32)


def some_legal(seed: int, batch_size: int, num_actions: int) -> np.ndarray:
    """Masks with at least one legal action; the first row allows everything."""
    rng = np.random.default_rng(2000 + seed)
    legal = rng.uniform(size=(batch_size, num_actions)) < 0.6
    legal[np.arange(batch_size), rng.integers(num_actions, size=batch_size)] = True
    legal[0] = True
    return legal


@functools.cache
def network_program(
    kind: str, num_simulations: int, explore: bool = False, **settings: Any
) -> Callable[[Network, Any, Any, Any], SearchResult]:
    """A compiled search with its tree: (network, latents, legal actions, key) -> result."""
    config = SearchConfig(**settings)

    @jax.jit
    def program(network, latents, legal_actions, key):
        root = network.root(latents, legal_actions)
        return SEARCHES[kind](config, root, network.simulate, key, num_simulations, explore, keep_tree=True)

    return program


def tree_arrays(tree: Any, element: int) -> dict[str, Any]:
    """One element's tree, named as the reference names it."""
    names = (
        "node_visits node_values raw_values parents action_from_parent "
        "children_index children_visits children_values children_rewards children_discounts"
    )
    arrays = {name: np.asarray(getattr(tree, name))[element] for name in names.split()}
    arrays["children_priors"] = np.asarray(jax.nn.softmax(tree.children_prior_logits[element]))
    return arrays


class Tables(NamedTuple):
    """B decision processes of S states, each with a prior policy and that policy's exact values."""

    following: Any
    """[B, S, A]"""
    reward: Any
    discount: Any
    """[B]; 0 makes a bandit of each state."""
    logits: Any
    """[B, S, A]"""
    value: Any
    """[B, S] of always following the prior"""

    @classmethod
    def random(cls, seed: int, batch_size: int, num_actions: int, discount: float, sharpness: float) -> Tables:
        """Five states, rewards from the unit normal; the prior grows sharper with `sharpness`."""
        rng = np.random.default_rng(seed)
        shape = (batch_size, 5, num_actions)
        following = rng.integers(5, size=shape)
        reward = rng.normal(size=shape)
        logits = sharpness * rng.normal(size=shape)
        prior = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        transition = np.einsum("bsa,bsaz->bsz", prior, np.eye(5)[following])
        value = np.linalg.solve(np.eye(5) - discount * transition, (prior * reward).sum(-1)[..., None])[..., 0]
        discounts = np.full(batch_size, discount)
        return cls(following, *(x.astype(np.float32) for x in (reward, discounts, logits, value)))

    def q_values(self) -> np.ndarray:
        """[B, S, A] of the prior, exact."""
        value = np.take_along_axis(self.value[:, None], self.following.reshape(len(self.value), 1, -1), -1)
        return self.reward + self.discount[:, None, None] * value.reshape(self.reward.shape)

    def root(self) -> Root:
        """In state 0, with every action legal."""
        state = jnp.zeros(len(self.value), jnp.int32)
        return Root(self.logits[:, 0], self.value[:, 0], state, jnp.ones(self.logits[:, 0].shape, bool))

    def simulate(self, state: Any, action: Any) -> Step:
        """The perfect model."""
        rows = jnp.arange(len(state))
        following = self.following[rows, state, action]
        reward = self.reward[rows, state, action]
        return Step(reward, self.discount, self.logits[rows, following], self.value[rows, following], following)


class Nim:
    """Take one, two or three stones; who takes the last one wins.  Lost for the mover at multiples of four."""

    num_actions = 3

    @staticmethod
    def legal_actions(stones: Any) -> Any:
        """[B, 3]"""
        return stones[:, None] > jnp.arange(3)

    @classmethod
    def simulate(cls, stones: Any, action: Any) -> tuple[Any, Any, Any, Any]:
        """State, reward, discount and legal actions; to take more than there are loses."""
        left = stones - action - 1
        reward = jnp.where(left == 0, 1.0, jnp.where(left < 0, -1.0, 0.0))
        left = jnp.maximum(left, 0)
        return left, reward, jnp.where(left == 0, 0.0, -1.0), cls.legal_actions(left)

    @classmethod
    def step(cls, stones: Any, action: Any) -> Step:
        """A model that knows the rules and nothing of the game: even priors, values 0."""
        left, reward, discount, _ = cls.simulate(stones, action)
        return Step(reward, discount, jnp.zeros((len(stones), 3)), jnp.zeros(len(stones)), left)

    @classmethod
    def root(cls, stones: Any) -> Root:
        """With even priors and value 0."""
        return Root(jnp.zeros((len(stones), 3)), jnp.zeros(len(stones)), stones, cls.legal_actions(stones))

    @classmethod
    def rollout(cls, stones: Any, key: Any) -> Any:
        """[B]: the outcome of a game of random moves for who is to move."""

        def play(i, state):
            stones, sign, outcome = state
            logits = jnp.where(cls.legal_actions(stones), 0.0, -jnp.inf).at[:, 0].set(0.0)
            action = jax.random.categorical(jax.random.fold_in(key, i), logits)
            left, reward, discount, _ = cls.simulate(stones, action)
            # A game that is over adds nothing more.
            return left, sign * discount, outcome + sign * reward

        sign = jnp.where(stones > 0, 1.0, 0.0)
        return jax.lax.fori_loop(0, 12, play, (stones, sign, jnp.zeros(len(stones))))[2]
