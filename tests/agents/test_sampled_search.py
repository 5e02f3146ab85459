"""Searches over candidates: the exact search where they are all actions, and its limit as their number grows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents import muzero
from bircher.agents.base import Carry
from bircher.agents.model_search import Proposal, propose
from bircher.agents.muzero import MuZeroConfig, MuZeroLosses
from bircher.ops.distributions import Categorical, ClippedNormal, MultiCategorical
from bircher.search import SearchConfig
from bircher.types import Continuous, Extras, MultiDiscrete, Policy, TimeStep
from builders import ACTIONS, SMALL, SPEC, batch_of, quick_jit, random_model, random_rows

KEY = jax.random.key(0)
SEARCH = SearchConfig(num_simulations=8)
ONE_FACTOR = SPEC._replace(action=MultiDiscrete((ACTIONS,), (1,), (0,)))
CONTINUOUS = SPEC._replace(action=Continuous((2,), (-1.0, -1.0), (1.0, 1.0)))
NAMES = ("muzero", "gumbel_muzero")


def config_of(name: str, **settings) -> MuZeroConfig:
    return MuZeroConfig.model_validate({"name": name, "gamma": 0.9, **settings})


def latents(model, size: int) -> jax.Array:
    return model.represent(jnp.asarray(np.random.default_rng(0).normal(size=(size, 4)), jnp.float32))


@pytest.mark.parametrize("name", NAMES)
def test_all_actions_as_candidates_are_the_exact_search(name):
    """A multi-discrete space of one dimension has the same search as a discrete one, number by number."""
    discrete, listed = random_model(0), random_model(0, spec=ONE_FACTOR)
    legal = jnp.ones((5, ACTIONS), bool), jnp.ones((5, 0), bool)
    plan = muzero.planner(config_of(name), SEARCH, 0.9)
    results = [
        quick_jit(lambda model, legal: plan(model, latents(model, 5), legal, KEY, "sample"))(model, mask)
        for model, mask in zip((discrete, listed), legal, strict=True)
    ]
    for field in ("weights", "value", "visits", "q_values"):
        one, other = (getattr(result, field) for result in results)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=field)
    np.testing.assert_array_equal(results[1].actions[..., 0], np.broadcast_to(np.arange(ACTIONS), (5, ACTIONS)))


@pytest.mark.long
def test_the_search_tends_to_the_exact_one_as_candidates_grow():
    """The prior of the candidates, summed for each action, at the rate of one over the root of their number."""
    model = random_model(0, spec=ONE_FACTOR)
    legal, latent = jnp.ones((4, 0), bool), latents(model, 4)
    wide = SearchConfig(num_simulations=1, max_depth=1)
    exact = muzero.planner(config_of("gumbel_muzero"), wide, 0.9)(model, latent, legal, KEY, "greedy")
    prior = jax.nn.softmax(exact.root.logits)
    errors = []
    for number in (8, 128, 2048):
        drawn = muzero.planner(config_of("gumbel_muzero", enumerate_actions=0, num_candidates=number), wide, 0.9)
        error = []
        for key in jax.random.split(KEY, 3):
            root = drawn(model, latent, legal, key, "sample").root
            shares = jax.nn.softmax(root.logits)
            one_hot = jax.nn.one_hot(root.latent.actions[..., 0], ACTIONS)
            error.append(float(jnp.abs((one_hot * shares[..., None]).sum(1) - prior).mean()))
        errors.append(np.mean(error))
    rate = np.log(errors[0] / errors[-1]) / np.log(2048 / 8)
    assert 0.35 < rate < 0.65, errors


@pytest.mark.parametrize("kind", [MultiCategorical((2, 3)), ClippedNormal(2), Categorical(4)], ids=str)
def test_the_prior_corrects_for_the_proposal(kind):
    """Means of features under the candidates' prior are those of the policy, whatever share is drawn uniformly."""
    params = 0.7 * jax.random.normal(KEY, (kind.num_params,))
    means = []
    for share in (0.0, 0.4):
        proposal = Proposal(20_000, share, 0)
        actions, logits = propose(kind, proposal, params[None], jax.random.split(KEY, 1))
        if not share:
            np.testing.assert_array_equal(logits, 0.0)
        weights = jax.nn.softmax(logits[0])
        means.append((weights[:, None] * kind.features(actions[0])).sum(0))
    np.testing.assert_allclose(means[0], means[1], atol=0.03)


def test_nodes_have_their_own_candidates_and_elements_do_not_share_any():
    model = random_model(0, spec=CONTINUOUS)
    plan = muzero.planner(config_of("gumbel_muzero", num_candidates=5), SEARCH, 0.9)
    latent = jnp.broadcast_to(latents(model, 1), (3, SMALL.latent_width))
    legal = jnp.ones((3, 0), bool)
    result = quick_jit(lambda model: plan(model, latent, legal, KEY, "sample", keep_tree=True))(model)
    nodes = np.asarray(result.tree.embeddings.actions)
    assert nodes.shape == (3, SEARCH.num_simulations + 1, 5, 2)
    assert len(np.unique(nodes)) == nodes.size
    np.testing.assert_array_equal(nodes[:, 0], result.actions)


def timestep(size: int) -> TimeStep:
    flag, number = jnp.zeros(size, bool), jnp.zeros(size)
    observation = jax.random.normal(KEY, (size, 4))
    return TimeStep(observation, number, number + 1, ~flag, flag, flag, jnp.ones((size, 0), bool), flag)


@pytest.mark.parametrize("name", NAMES)
def test_acting_and_learning_from_candidates(name):
    """Actions are candidates of their own row, reanalysis replaces candidates, and every part of the network learns."""
    model = random_model(0, spec=CONTINUOUS)
    settings = config_of(name, num_candidates=6, reanalyze_fraction=0.5, random_action_share=0.2)
    agent = muzero.make(settings, SMALL, MuZeroLosses(), SEARCH)
    state = agent.init(KEY, CONTINUOUS).state
    policy = Policy(model, state)
    output, _ = quick_jit(lambda policy: agent.act(policy, Carry(), timestep(64), KEY, "explore", 0.0))(policy)
    stored = output.extras.per_action["search_actions"]
    assert stored.shape == (64, 6, 2) and output.action.shape == (64, 2)
    chosen = (stored == output.action[:, None]).all(-1).any(-1)
    np.testing.assert_array_equal(chosen, ~output.extras.per_row["random_action"])
    assert 0 < int(output.extras.per_row["random_action"].sum()) < 30
    greedy, _ = quick_jit(lambda policy: agent.act(policy, Carry(), timestep(4), KEY, "greedy", 0.0))(policy)
    mode = model.distribution.mode(model.predict(model.represent(timestep(4).observation)).policy_logits)
    np.testing.assert_allclose(greedy.extras.per_action["search_actions"][:, 0], mode, rtol=1e-5)
    plain = muzero.make(settings, SMALL, MuZeroLosses(), SearchConfig(num_simulations=0))
    alone, _ = quick_jit(lambda policy: plain.act(policy, Carry(), timestep(4), KEY, "greedy", 0.0))(policy)
    np.testing.assert_allclose(alone.action, mode, rtol=1e-5, err_msg="without a search the mode is taken")

    rows = random_rows(0, 4, 8, all_legal=True)
    shape = rows.reward.shape
    actions = jnp.arange(np.prod(shape) * 12.0).reshape(*shape, 6, 2) / np.prod(shape) / 6 - 1
    extras = Extras(
        {"search_value": jnp.zeros(shape), "random_action": jnp.zeros(shape, bool)},
        {"search_policy": jnp.full((*shape, 6), 1 / 6), "search_actions": actions},
    )
    rows = rows._replace(action=actions[:, :, 0], legal_actions=jnp.ones((*shape, 0), bool), extras=extras)
    target, _ = quick_jit(lambda policy, rows: agent.targets(policy, batch_of(rows), KEY))(policy, rows)
    np.testing.assert_array_equal(target.policy.actions[:2], actions[:2])
    assert not np.isin(np.asarray(target.policy.actions[2:]), np.asarray(actions)).any()

    def total(model):
        terms, metrics = agent.loss(model, state, batch_of(rows), target, KEY)
        return sum(jnp.where(target.mask, term, 0.0).sum() for term in terms.values()), metrics

    gradient, metrics = quick_jit(jax.grad(total, has_aux=True))(model)
    for part in ("representation", "dynamics", "heads"):
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(getattr(gradient, part))), part
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())
