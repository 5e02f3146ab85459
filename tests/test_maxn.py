"""Searches with a value for each player: against the plain reference, the searches of numbers, and max^n itself."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_reference as reference
from bircher.ops import turns
from bircher.search import Root, SearchConfig, Step, rollout_search
from search_worlds import SEARCHES, Network, network_program, root_latents, some_legal
from test_search import assert_same_tree, noisy_logits

BATCH, PLAYERS = 3, 3
SETTINGS = {"max_depth": 5, "puct_init": 2.0, "visit_offset": 20.0, "value_scale": 0.3, "q_range": "tree"}


@pytest.mark.parametrize(("explore", "settings"), [(False, {}), (True, SETTINGS)])
def test_puct_of_three_players_equals_the_reference(explore, settings):
    program = network_program("puct", 24, explore, **settings)
    for seed in range(2):
        network = Network.random(seed, 4, 0.97, players=(PLAYERS,))
        latents, legal = root_latents(seed, BATCH), some_legal(seed, BATCH, 4)
        result = program(network, latents, legal, jax.random.key(seed))
        _, value = network.predict(np, latents.astype(float))
        for b in range(BATCH):
            tree = reference.puct(
                noisy_logits(result, b), value[b], latents[b].astype(float), legal[b], network.simulate_one, 24,
                settings.get("max_depth"), settings.get("puct_init", 1.25),
            )  # fmt: skip
            expected = tree.arrays()
            assert_same_tree(result.tree, b, expected)
            np.testing.assert_array_equal(result.visits[b], expected["children_visits"][0])
            np.testing.assert_allclose(result.value[b], tree.nodes[0].value, rtol=1e-4, atol=1e-4)
            for action, child in tree.nodes[0].children.items():
                np.testing.assert_allclose(result.q_values[b, action], child.q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("explore", "settings"), [(False, {}), (True, SETTINGS)])
def test_gumbel_of_three_players_equals_the_reference(explore, settings):
    program = network_program("gumbel", 24, explore, **settings)
    for seed in range(2):
        network = Network.random(seed, 4, 0.97, players=(PLAYERS,))
        latents, legal = root_latents(seed, BATCH), some_legal(seed, BATCH, 4)
        result = program(network, latents, legal, jax.random.key(seed))
        noise = np.asarray(result.tree.extra_data.root_gumbel, float)
        logits, value = network.predict(np, latents.astype(float))
        for b in range(BATCH):
            tree, action, weights, values = reference.gumbel(
                logits[b], value[b], latents[b].astype(float), legal[b], network.simulate_one, 24, noise[b],
                settings.get("max_depth"), 16, settings.get("visit_offset", 50.0), settings.get("value_scale", 0.1),
                settings.get("q_range", "node"),
            )  # fmt: skip
            assert_same_tree(result.tree, b, tree.arrays())
            assert result.action[b] == action
            np.testing.assert_allclose(result.weights[b], weights, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(result.value[b], values, rtol=1e-3, atol=1e-4)


class Vectors(Network):
    """A network of numbers whose values and rewards are written as vectors: (x,) of one player, (x, -x) of two."""

    def predict(self, xp, latent):
        logits, value = super().predict(xp, latent)
        return logits, self._vector(xp, value)

    def step(self, xp, latent, action):
        reward, latent = super().step(xp, latent, action)
        return self._vector(xp, reward), latent

    def _vector(self, xp, x):
        return xp.stack([x, -x] if self.players == 2 else [x], -1)


class One(Vectors):
    players = 1


class Two(Vectors):
    players = 2


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("vectors", [One, Two])
def test_vectors_of_one_and_two_players_give_the_search_of_numbers(kind, vectors):
    sign = -1.0 if vectors is Two else 1.0
    program = network_program(kind, 20, True)
    numbers = Network.random(3, 4, sign * 0.9)
    latents, legal = root_latents(3, BATCH), some_legal(3, BATCH, 4)
    expected = program(numbers, latents, legal, jax.random.key(1))
    result = program(vectors(*numbers)._replace(discount=np.float32(0.9)), latents, legal, jax.random.key(1))
    for name in ("action", "visits"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(result.tree.children_index, expected.tree.children_index)
    # Products and sums of a vector may be fused in another way, which changes the last bit.
    for name in ("weights", "q_values"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=2e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(result.value[:, 0], expected.value, rtol=2e-5, atol=1e-6)
    if vectors is Two:
        np.testing.assert_allclose(result.value[:, 1], -result.value[:, 0], rtol=2e-5, atol=1e-6)


DEPTH, ACTIONS = 3, 2
LEAVES = ACTIONS**DEPTH
INNER = (LEAVES - 1) // (ACTIONS - 1)
"""Node n of the game has the children ACTIONS n + 1 … ACTIONS n + ACTIONS; those from INNER on are its ends."""


def max_n(payoffs: np.ndarray, node: int = 0, depth: int = 0) -> tuple[int, np.ndarray]:
    """The best action by enumeration, and the payoffs [PLAYERS] that it leads to."""
    if node >= INNER:
        return -1, payoffs[node - INNER]
    below = [max_n(payoffs, ACTIONS * node + 1 + action, depth + 1)[1] for action in range(ACTIONS)]
    best = int(np.argmax([values[depth % PLAYERS] for values in below]))
    return best, below[best]


def simulate(payoffs, state, action):
    """A move of the game: the state is (node, depth), and payoffs are those of players 0, 1 and 2."""
    node, depth = state
    following = jnp.where(node < INNER, ACTIONS * node + 1 + action, node)
    over = (following >= INNER) & (node < INNER)
    reward = jnp.where(over[:, None], payoffs[jnp.maximum(following - INNER, 0)], 0.0)
    mover = (jnp.arange(PLAYERS) + depth[:, None]) % PLAYERS
    reward = jnp.take_along_axis(reward, mover, -1)
    discount = jnp.where(following >= INNER, 0.0, 1.0)
    return (following, depth + 1), reward, discount


@functools.cache
def game_program(kind):
    @jax.jit
    def program(payoffs, values, logits):
        state, legal = (jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)), jnp.ones((1, ACTIONS), bool)
        key = jax.random.key(0)
        if kind == "uct":

            def moved(state, action):
                return *simulate(payoffs, state, action), legal

            def rollout(state, key):
                return values[state[0]]

            return rollout_search(state, legal, moved, rollout, key, 3000, 0.5, PLAYERS)[0]

        def step(state, action):
            following, reward, discount = simulate(payoffs, state, action)
            return Step(reward, discount, logits[following[0]], values[following[0]] * discount, following)

        root = Root(jnp.zeros((1, ACTIONS)), values[:1], state, legal)
        return SEARCHES[kind](SearchConfig(value_scale=1.0, max_depth=DEPTH), root, step, key, 1500, False).action

    return program


@pytest.mark.parametrize("kind", [*SEARCHES, pytest.param("uct", marks=pytest.mark.long)])
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_searches_of_a_known_game_find_what_max_n_finds(kind, seed):
    rng = np.random.default_rng(seed)
    payoffs = np.stack([rng.permutation(np.linspace(-1, 1, LEAVES)) for _ in range(PLAYERS)], -1).astype(np.float32)
    best, _ = max_n(payoffs)
    values, logits = np.zeros((INNER + LEAVES, PLAYERS), np.float32), np.zeros((INNER + LEAVES, ACTIONS), np.float32)
    if kind != "puct":
        # Below the root Gumbel's search is greedy from the beginning, so that its network has to know the game there.
        for depth, nodes in ((1, (1, 2)), (2, (3, 4, 5, 6))):
            for node in nodes:
                action, outcome = max_n(payoffs, node, depth)
                values[node], logits[node, action] = np.roll(outcome, -depth), 8.0
    assert int(game_program(kind)(payoffs, values, logits)[0]) == best


def test_frames_of_rows_and_back():
    x = jnp.arange(24.0).reshape(1, 4, 6)[..., :3]
    seen = turns.from_first(x)
    for row in range(4):
        np.testing.assert_array_equal(seen[0, row], np.roll(x[0, row], row))
    np.testing.assert_array_equal(turns.from_each(seen), x)
    before = turns.from_first(x, before=1)
    np.testing.assert_array_equal(before[0, 1], x[0, 1])
    np.testing.assert_array_equal(turns.to_next(turns.to_mover(x)), x)
    assert turns.player_axis(1) == turns.player_axis(2) == () and turns.player_axis(3) == (3,)
