"""The searches against a slow exact reference, golden trees, known games and what the papers promise."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_reference as reference
from bircher.search import Root, SearchConfig, Step, completed_q_values, gumbel_search, rollout_search, tree_min_max
from search_worlds import (
    LARGEST_RETURN,
    SEARCHES,
    Network,
    Nim,
    Tables,
    network_program,
    root_latents,
    some_legal,
    tree_arrays,
)

BATCH = 4
KINDS = tuple(SEARCHES)
# (actions, simulations, whether there is noise, further settings)
CASES = [
    (3, 2, False, {}),
    (4, 12, False, {}),
    (4, 12, True, {}),
    (5, 50, False, {"max_considered_actions": 4}),
    (4, 24, True, {"q_range": "tree"}),
    (4, 24, True, {"q_range": "returns", "value_scale": 0.5}),
    (3, 20, False, {"max_depth": 2, "puct_init": 2.0, "puct_base": 30.0, "visit_offset": 20.0, "value_scale": 0.3}),
]


def assert_same_tree(tree, element: int, expected: dict) -> None:
    for name, numbers in tree_arrays(tree, element).items():
        tolerance = 2e-4 if numbers.dtype.kind == "f" else 0
        np.testing.assert_allclose(numbers, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def noisy_logits(result, element: int) -> np.ndarray:
    """The prior that the root was searched with, noise included."""
    return np.asarray(result.tree.children_prior_logits[element, 0], float)


@pytest.mark.parametrize("discount", [0.97, -1.0])
@pytest.mark.parametrize(("num_actions", "num_simulations", "explore", "settings"), CASES)
def test_puct_equals_the_reference_node_by_node(num_actions, num_simulations, explore, settings, discount):
    program = network_program("puct", num_simulations, explore, **settings)
    for seed in range(2):
        network = Network.random(seed, num_actions, discount)
        latents, legal = root_latents(seed, BATCH), some_legal(seed, BATCH, num_actions)
        result = program(network, latents, legal, jax.random.key(seed))
        for b in range(BATCH):
            tree = reference.puct(
                noisy_logits(result, b),
                float(result.tree.raw_values[b, 0]),
                latents[b].astype(float),
                legal[b],
                network.simulate_one,
                num_simulations,
                settings.get("max_depth"),
                settings.get("puct_init", 1.25),
                settings.get("puct_base", 19652.0),
            )
            expected = tree.arrays()
            assert_same_tree(result.tree, b, expected)
            visits = np.array(expected["children_visits"][0])
            assert result.action[b] == visits.argmax()
            np.testing.assert_array_equal(result.visits[b], visits)
            np.testing.assert_allclose(result.weights[b], visits / num_simulations, rtol=1e-6)
            np.testing.assert_allclose(result.value[b], tree.nodes[0].value, rtol=1e-4, atol=1e-4)
            for action, child in tree.nodes[0].children.items():
                np.testing.assert_allclose(result.q_values[b, action], child.q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("discount", [0.97, -1.0])
@pytest.mark.parametrize(("num_actions", "num_simulations", "explore", "settings"), CASES)
def test_gumbel_equals_the_reference_node_by_node(num_actions, num_simulations, explore, settings, discount):
    program = network_program("gumbel", num_simulations, explore, **settings)
    for seed in range(2):
        network = Network.random(seed, num_actions, discount)
        latents, legal = root_latents(seed, BATCH), some_legal(seed, BATCH, num_actions)
        result = program(network, latents, legal, jax.random.key(seed))
        noise = np.asarray(result.tree.extra_data.root_gumbel, float)
        assert (np.abs(noise) > 0).all() == explore
        logits, value = network.predict(np, latents.astype(float))
        for b in range(BATCH):
            tree, action, weights, value_of_weights = reference.gumbel(
                logits[b],
                float(value[b]),
                latents[b].astype(float),
                legal[b],
                network.simulate_one,
                num_simulations,
                noise[b],
                settings.get("max_depth"),
                settings.get("max_considered_actions", 16),
                settings.get("visit_offset", 50.0),
                settings.get("value_scale", 0.1),
                settings.get("q_range", "node"),
                LARGEST_RETURN,
            )
            assert_same_tree(result.tree, b, tree.arrays())
            assert result.action[b] == action
            np.testing.assert_allclose(result.weights[b], weights, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(result.value[b], value_of_weights, rtol=1e-3, atol=1e-4)


def test_gumbel_equals_mctx():
    network = Network.random(5, 4, -1.0)
    latents, legal = root_latents(5, BATCH), some_legal(5, BATCH, 4)
    result = network_program("gumbel", 12, True)(network, latents, legal, jax.random.key(5))

    def recurrent(params, key, action, latent):
        reward, discount, logits, value, latent = network.simulate(latent, action)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), latent

    root = network.root(latents, legal)
    root = mctx.RootFnOutput(prior_logits=root.logits, value=root.value, embedding=root.latent)
    expected = jax.jit(lambda: mctx.gumbel_muzero_policy((), jax.random.key(5), root, recurrent, 12, ~legal))()
    np.testing.assert_array_equal(result.action, expected.action)
    np.testing.assert_allclose(result.weights, expected.action_weights, rtol=1e-4, atol=1e-6)
    for b in range(BATCH):
        assert_same_tree(result.tree, b, tree_arrays(expected.search_tree, b))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_trees(kind):
    folder = Path(__file__).parent / "golden"
    spec = importlib.util.spec_from_file_location("make_trees", folder / "make_trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    golden = json.loads((folder / f"{kind}_tree.json").read_text())
    answer = module.searched(kind)
    for name in ("action", "weights", "value", "q_values"):
        np.testing.assert_allclose(answer[name], golden[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for tree, expected in zip(answer["trees"], golden["trees"], strict=True):
        assert tree.keys() == expected.keys()
        for name, numbers in tree.items():
            np.testing.assert_allclose(numbers, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("explore", [False, True])
def test_an_element_does_not_see_its_neighbors(kind, explore):
    program = network_program(kind, 12, explore)
    network = Network.random(3, 4, 0.97)
    latents, legal = root_latents(3, BATCH), some_legal(3, BATCH, 4)
    alone = program(network, latents, legal, jax.random.key(0))
    others, allowed = 20 * root_latents(4, BATCH), some_legal(5, BATCH, 4)
    # One neighbor with a single line to search deep, one with nothing legal.
    allowed[0], allowed[3] = [True, False, False, False], False
    others[2], allowed[2] = latents[2], legal[2]
    among_others = program(network, others, allowed, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(among_others), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[2], np.asarray(y)[2])
    assert not np.array_equal(alone.visits, among_others.visits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "rollout"])
def test_one_call_of_the_model_a_simulation(kind):
    num_simulations, calls = 7, []

    def counted(step):
        jax.debug.callback(lambda _: calls.append(1), jnp.zeros(()))
        return step

    stones = jnp.array([5, 6, 9])

    @jax.jit
    def program(key):
        if kind == "rollout":
            return rollout_search(
                stones, Nim.legal_actions(stones), lambda s, a: counted(Nim.simulate(s, a)), Nim.rollout, key,
                num_simulations,
            )[1]  # fmt: skip
        simulate = lambda s, a: counted(Nim.step(s, a))  # noqa: E731
        return SEARCHES[kind](SearchConfig(), Nim.root(stones), simulate, key, num_simulations, True).visits

    for repeat in range(1, 3):
        visits = program(jax.random.key(0))
        jax.effects_barrier()
        assert len(calls) == repeat * num_simulations
        np.testing.assert_array_equal(visits.sum(-1), num_simulations)


@functools.cache
def nim_program(kind: str, num_simulations: int):
    if kind == "rollout":
        return jax.jit(
            lambda stones, key: rollout_search(
                stones, Nim.legal_actions(stones), Nim.simulate, Nim.rollout, key, num_simulations
            )[0]
        )
    search = SEARCHES[kind]
    return jax.jit(lambda stones, key: search(SearchConfig(), Nim.root(stones), Nim.step, key, num_simulations, False))


STONES = np.array([1, 2, 3, 5, 6, 7, 9, 4, 8])


@pytest.mark.parametrize("kind", KINDS)
def test_nim_is_won_and_values_have_the_movers_sign(kind):
    result = nim_program(kind, 300)(STONES, jax.random.key(0))
    won = STONES % 4 != 0
    np.testing.assert_array_equal((np.asarray(result.action) + 1)[won], (STONES % 4)[won])
    assert (np.asarray(result.value)[won] > 0.2).all()
    assert (np.asarray(result.value)[~won] < -0.2).all()
    best = np.asarray(result.q_values)[np.arange(len(STONES)), result.action]
    assert (best[won] > 0.4).all() and (best[~won] < -0.4).all()


def test_rollouts_win_nim():
    won = STONES % 4 != 0
    for seed in range(3):
        action = nim_program("rollout", 300)(STONES, jax.random.key(seed))
        np.testing.assert_array_equal((np.asarray(action) + 1)[won], (STONES % 4)[won])


def test_rollouts_take_legal_actions_only():
    """In Nim what is illegal loses, so that it would be avoided anyway: here it wins at once, at every node."""
    legal = jnp.array([[False, True, True], [True, False, False]])

    def simulate(state, action):
        allowed = jnp.where(state[:, None] == 0, legal, ~legal)
        chosen = jnp.take_along_axis(allowed, action[:, None], -1)[:, 0]
        reward = jnp.where(chosen, 0.0, 1.0)
        return state + 1, reward, jnp.where(chosen, -1.0, 0.0), ~legal

    def rollout(state, key):
        return jnp.zeros(2)

    visits = jax.jit(lambda key: rollout_search(jnp.zeros(2, jnp.int32), legal, simulate, rollout, key, 40)[1])(
        jax.random.key(0)
    )
    assert (np.asarray(visits)[~np.asarray(legal)] == 0).all()
    # Not even deeper down: equal outcomes everywhere leave both of the first row's actions as often visited.
    assert abs(int(visits[0, 1]) - int(visits[0, 2])) <= 1


@functools.cache
def tables_program(num_simulations: int, max_depth: int | None):
    config = SearchConfig(max_depth=max_depth)
    return jax.jit(
        lambda tables, key: gumbel_search(config, tables.root(), tables.simulate, key, num_simulations, True)
    )


def improvement(tables: Tables, weights) -> np.ndarray:
    """[B]: exact value of one action by the weights and of the prior ever after, less that of the prior alone."""
    return (np.asarray(weights, float) * tables.q_values()[:, 0]).sum(-1) - tables.value[:, 0]


@pytest.mark.parametrize("num_simulations", [2, 4, 8, 16])
@hypothesis.settings(max_examples=10)  # of 64 policies each
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]))
def test_gumbel_never_worsens_a_policy(num_simulations, seed, sharpness):
    """On bandits, and in decision processes whose Q is exact because nothing is searched below one action."""
    for discount in (0.0, 0.9):
        tables = Tables.random(seed, 64, 4, discount, sharpness)
        result = tables_program(num_simulations, 1)(tables, jax.random.key(seed))
        gain = improvement(tables, result.weights)
        assert gain.min() > -1e-4, f"discount {discount}, sharpness {sharpness}: {gain.min()}"
        assert gain.mean() > 0.1


@hypothesis.settings(max_examples=10)  # of 64 policies each
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]))
def test_gumbel_improves_policies_when_it_looks_deeper(seed, sharpness):
    """Q is then that of the searching policy, which may be better or, rarely, worse than the prior's own."""
    tables = Tables.random(seed, 64, 4, 0.9, sharpness)
    result = tables_program(8, None)(tables, jax.random.key(seed))
    gain = improvement(tables, result.weights)
    assert gain.mean() > 0.5
    assert (gain < -1e-4).mean() < 0.1


def test_gumbels_value_is_not_a_mean_over_bad_arms():
    """Trap 12: the tree's mean at the root is far from 1 on a bandit whose best of eight arms is worth 1."""
    arms = jnp.zeros((1, 8)).at[0, 5].set(1.0)

    def simulate(latent, action):
        reward = jnp.take_along_axis(arms, action[:, None], -1)[:, 0]
        return Step(reward, jnp.zeros(1), jnp.zeros((1, 8)), jnp.zeros(1), latent)

    root = Root(jnp.zeros((1, 8)), jnp.zeros(1), jnp.zeros((1, 1)), jnp.ones((1, 8), bool))
    result = jax.jit(lambda key: gumbel_search(SearchConfig(), root, simulate, key, 16, True, keep_tree=True))(
        jax.random.key(0)
    )
    assert result.action[0] == 5
    assert result.value[0] > 0.95
    assert result.tree.node_values[0, 0] < 0.5


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 10**6))
def test_illegal_actions_are_never_taken(kind, seed):
    network = Network.random(seed, 4, 0.97)
    legal = some_legal(seed, BATCH, 4)
    result = masked_program(kind)(network, root_latents(seed, BATCH), legal, jax.random.key(seed))
    assert (np.asarray(result.weights)[~legal] == 0).all()
    assert (np.asarray(result.visits)[~legal] == 0).all()
    assert legal[np.arange(BATCH), result.action].all()
    np.testing.assert_allclose(np.asarray(result.weights).sum(-1), 1.0, rtol=1e-5)
    assert result.tree is None


@functools.cache
def masked_program(kind: str):
    def program(network, latents, legal, key):
        root = network.root(latents, legal)
        # The network would like nothing better.
        root = root._replace(logits=root.logits + 30.0 * ~legal)
        return SEARCHES[kind](SearchConfig(), root, network.simulate, key, 6, True)

    return jax.jit(program)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_legal_actions_is_a_number(kind):
    network = Network.random(0, 4, 0.97)
    result = masked_program(kind)(network, root_latents(0, BATCH), np.zeros((BATCH, 4), bool), jax.random.key(0))
    for x in jax.tree.leaves(result):
        assert np.isfinite(x).all()
    np.testing.assert_allclose(np.asarray(result.weights).sum(-1), 1.0, rtol=1e-5)


def test_dirichlet_noise_is_over_legal_actions():
    """Share and second moment as set: for k legal actions, E[p²] = (alpha + 1) / (k (k alpha + 1))."""
    batch, alpha, share = 4000, 0.25, 0.25
    legal = np.tile([True, True, False, True], (batch, 1))
    network = Network.random(0, 4, 0.97)
    latents = np.repeat(root_latents(0, 1), batch, 0)
    result = network_program("puct", 1, True)(network, latents, legal, jax.random.key(0))
    prior = reference.softmax(np.where(legal, network.predict(np, latents)[0], -np.inf)[0])
    noisy = np.asarray(jax.nn.softmax(result.tree.children_prior_logits[:, 0]))
    noise = (noisy - (1 - share) * prior) / share
    assert (noise[:, 2] == 0).all() and (noise > -1e-5).all()
    np.testing.assert_allclose(noise.sum(-1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(noise.mean(0)[legal[0]], 1 / 3, atol=0.03)
    np.testing.assert_allclose((noise**2).mean(0)[legal[0]], (alpha + 1) / (3 * (3 * alpha + 1)), atol=0.03)


def test_without_exploration_the_key_plays_no_part():
    network = Network.random(1, 4, 0.97)
    latents, legal = root_latents(1, BATCH), some_legal(1, BATCH, 4)
    for kind in KINDS:
        answers = [network_program(kind, 12)(network, latents, legal, jax.random.key(seed)) for seed in (0, 1)]
        np.testing.assert_array_equal(answers[0].visits, answers[1].visits)
        noisy = [network_program(kind, 12, True)(network, latents, legal, jax.random.key(seed)) for seed in (0, 1)]
        assert not np.array_equal(noisy[0].visits, noisy[1].visits)


def test_q_is_scaled_over_the_whole_tree():
    """By hand: Q of 1 and 3 at a node, -1 and 7 the least and greatest of its tree."""
    q_values, visits = jnp.array([[1.0, 3.0, 99.0]]), jnp.array([[1, 2, 0]])
    scaled = tree_min_max(q_values, visits, jnp.array([-1.0]), jnp.array([7.0]))
    np.testing.assert_allclose(scaled, [[0.25, 0.5, 0.0]])
    for low, high in ((5.0, 5.0), (np.inf, -np.inf)):
        scaled = tree_min_max(q_values, visits, jnp.array([low]), jnp.array([high]))
        np.testing.assert_array_equal(scaled, [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("kind", [*KINDS, "rollout"])
def test_no_simulations_are_refused(kind):
    stones, key = jnp.array([5]), jax.random.key(0)
    with pytest.raises(ValueError, match="at least 1 simulation, not 0"):
        if kind == "rollout":
            rollout_search(stones, Nim.legal_actions(stones), Nim.simulate, Nim.rollout, key, 0)
        else:
            SEARCHES[kind](SearchConfig(), Nim.root(stones), Nim.step, key, 0, True)


def test_unvisited_actions_get_the_mixed_value():
    """By hand: v 2, Q 4 twice visited with prior 0.5, others not: (2 + 2 · 4) / 3."""
    q = completed_q_values(
        jnp.array([4.0, 9.0, 9.0]), jnp.array([2, 0, 0]), jnp.array([0.5, 0.25, 0.25]), jnp.array(2.0)
    )
    np.testing.assert_allclose(q, [4.0, 10 / 3, 10 / 3], rtol=1e-6)
    q = completed_q_values(jnp.zeros(3), jnp.zeros(3, jnp.int32), jnp.ones(3) / 3, jnp.array(2.0))
    np.testing.assert_allclose(q, [2.0, 2.0, 2.0])
