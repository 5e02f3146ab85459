"""Agents of actions that are not few discrete ones: candidates, and that they agree with the exact agent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bircher.agents import actor_critic, candidates, loss_terms
from bircher.agents.actor_critic import MPOConfig, MPOLosses, MuesliConfig, MuesliLosses
from bircher.agents.config import PriorConfig
from bircher.errors import ConfigError
from bircher.networks.model import Model
from bircher.ops import improvement
from bircher.ops.distributions import Categorical, ClippedNormal, MultiCategorical
from bircher.search import SearchConfig
from bircher.types import Batch, Continuous, Discrete, Extras, MultiDiscrete, Policy, Trajectory
from builders import ACTIONS, SMALL, SPEC, batch_of, quick_jit, random_model, random_rows

BATCH, LENGTH, DISCOUNT = 6, 8, 0.9
MODEL = random_model(0)
KEY = jax.random.key(0)


def muesli(**settings):
    return actor_critic.make(MuesliConfig(gamma=DISCOUNT, **settings), SMALL, MuesliLosses())


def mpo(**settings):
    """MPO, whose model's policies are distilled from CMPO, so that both kinds of target occur."""
    settings |= {"policy_target": "cmpo", "mpo": {"temperature": 0.7}}
    return actor_critic.make(MPOConfig(gamma=DISCOUNT, **settings), SMALL, MPOLosses())


def rows_of(seed: int = 0, batch: int = BATCH) -> tuple[Trajectory, Trajectory]:
    """Rows with the logits of the policy that acted, and the same with the log-probability of its action alone."""
    exact = random_rows(seed, batch, LENGTH)
    logits = exact.extras.per_action["behavior_logits"]
    log_prob = Categorical(ACTIONS).log_prob(logits, exact.action)
    return exact, exact._replace(extras=Extras(per_row={"behavior_log_prob": log_prob}))


def targets_of(agent, rows, key=KEY, model=MODEL):
    policy = Policy(model, agent.init(KEY, SPEC).state)
    return quick_jit(lambda policy, rows, key: agent.targets(policy, batch_of(rows), key))(policy, rows, key)[0]


def losses_of(agent, rows, target, model=MODEL):
    state = agent.init(KEY, SPEC).state

    def total(model):
        terms, _ = agent.loss(model, state, batch_of(rows), target, KEY)
        return sum(jnp.where(target.mask, term, 0.0).sum() for term in terms.values()), terms

    (_, terms), gradient = quick_jit(jax.value_and_grad(total, has_aux=True))(model)
    return terms, gradient


PRIOR = {"behavior_share": 0.0, "uniform_share": 0.1}


def listed_as_candidates(monkeypatch) -> None:
    """Let few discrete actions be handled as candidates, all of which are listed."""
    for module in (candidates, actor_critic):
        monkeypatch.setattr(module, "lists_probabilities", lambda distribution, config: False)


@pytest.mark.parametrize("make", [muesli, mpo])
def test_all_actions_as_candidates_are_the_exact_agent(make, monkeypatch):
    """Targets, every loss term and every gradient agree, with rows of episodes' ends, seams and masks."""
    rows, without_logits = rows_of()
    exact = targets_of(make(prior=PRIOR), rows)
    exact_terms, exact_gradient = losses_of(make(prior=PRIOR), rows, exact)
    listed_as_candidates(monkeypatch)
    found = targets_of(make(prior=PRIOR), without_logits)
    terms, gradient = losses_of(make(prior=PRIOR), without_logits, found)
    for name in ("value", "reward", "advantage", "mask", "priority"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-4, atol=1e-5, err_msg=name)
    legal = np.asarray(rows.legal_actions)
    np.testing.assert_allclose(found.policy.weights[legal], exact.policy.weights[legal], rtol=1e-4, atol=1e-5)
    for name in exact_terms:
        np.testing.assert_allclose(
            terms[name][exact.mask], exact_terms[name][exact.mask], rtol=1e-3, atol=1e-4, err_msg=name
        )
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_samples_tend_to_the_exact_agent_as_their_number_grows():
    """The error of the returns falls as one over the root of N, and that of the distilled policy falls too."""
    exact_rows, rows = rows_of(1, 2)
    exact = targets_of(muesli(prior=PRIOR), exact_rows)
    policy_error, value_error = [], []
    numbers = (16, 256, 4096)
    for number in numbers:
        agent = muesli(prior=PRIOR, enumerate_actions=0, num_candidates=number)
        found = [targets_of(agent, rows, key) for key in jax.random.split(KEY, 3)]
        dense = [improvement.dense(target.policy, ACTIONS) for target in found]
        policy_error.append(np.mean([np.abs(x - exact.policy.weights)[:, :-1].mean() for x in dense]))
        value_error.append(np.mean([np.abs(target.value - exact.value)[exact.mask].mean() for target in found]))
    for errors in (policy_error, value_error):
        rate = np.log(errors[0] / errors[-1]) / np.log(numbers[-1] / numbers[0])
        assert 0.35 < rate < 0.65, errors
    assert policy_error[-1] < 0.02


def test_the_prior_is_a_mixture_with_the_action_that_was_taken():
    """Every part has its share, and a taken action is that of its own row (b, t)."""
    kind, config = ClippedNormal(1), MuesliConfig(prior=PriorConfig(behavior_share=0.2, uniform_share=0.3))
    config = config.model_copy(update={"num_candidates": 2000})
    params = jnp.broadcast_to(jnp.array([3.0, -9.0]), (2, 3, 2))  # nearly all at 0.995 ± 0.05
    taken = 5.0 + jnp.arange(6.0).reshape(2, 3, 1)
    chosen = candidates.choose_candidates(kind, config, params, taken, KEY)
    assert chosen.actions.shape == (2, 3, 2000, 1) and not chosen.listed
    for b, t in np.ndindex(2, 3):
        actions = np.asarray(chosen.actions[b, t, :, 0])
        assert (actions == float(taken[b, t, 0])).mean() == pytest.approx(0.2, abs=0.03)
        assert (np.abs(actions - np.tanh(3.0)) > 0.3).mean() - 0.2 == pytest.approx(0.3 * 1.7 / 2, abs=0.04)
    assert float(chosen.expectation(jnp.ones((2, 3, 2000)))[0, 0]) == pytest.approx(1, abs=1e-5)
    # Without an action that was taken, the network's own policy has its share.
    alone = candidates.choose_candidates(kind, config, params, None, KEY).actions
    assert (np.abs(np.asarray(alone) - np.tanh(3.0)) > 0.3).mean() == pytest.approx(0.3 * 1.7 / 2, abs=0.03)


@pytest.mark.parametrize("kind", [Categorical(4), MultiCategorical((2, 3)), ClippedNormal(2)], ids=str)
def test_ratios_of_the_prior_and_the_policy_that_acted(kind):
    config = PriorConfig(behavior_share=0.1, uniform_share=0.2)
    rng = np.random.default_rng(0)
    params, behavior = (jnp.asarray(rng.normal(size=(2, 3, kind.num_params)), jnp.float32) for _ in range(2))
    taken = kind.sample(behavior, KEY)
    log_b = kind.log_prob(behavior, taken)
    found = candidates.prior_ratio(kind, config, params, taken, log_b)
    for b, t in np.ndindex(2, 3):
        own = float(jnp.exp(kind.log_prob(params[b, t], taken[b, t])))
        uniform = float(jnp.exp(kind.uniform_log_prob(params[b, t], taken[b, t][None])[0]))
        acted = float(jnp.exp(log_b[b, t]))
        assert float(found[b, t]) == pytest.approx((0.7 * own + 0.1 * acted + 0.2 * uniform) / acted, rel=1e-3)


CONTINUOUS = SPEC._replace(action=Continuous((2,), (-1.0, -1.0), (1.0, 1.0)))
MULTI = SPEC._replace(action=MultiDiscrete((2, 3), (2,), (0, 0)))
SPACES = {"continuous": CONTINUOUS, "multi-discrete": MULTI, "many": SPEC._replace(action=Discrete(70))}


def random_batch(spec, model, seed: int = 0) -> Batch:
    """Rows whose actions are those of a policy that acted."""
    rows = random_rows(seed, BATCH, LENGTH, all_legal=True)
    kind = model.distribution
    behavior = 0.5 * jax.random.normal(jax.random.key(seed), (BATCH, LENGTH + 1, kind.num_params))
    action = kind.sample(behavior, jax.random.key(seed + 1))
    width = kind.num_actions if isinstance(kind, Categorical) else 0
    extras = Extras(per_row={"behavior_log_prob": kind.log_prob(behavior, action)})
    legal = jnp.ones((BATCH, LENGTH + 1, width), bool)
    return batch_of(rows._replace(action=action, legal_actions=legal, extras=extras))


@pytest.mark.parametrize("name", SPACES)
def test_every_part_of_the_network_learns(name):
    """Every group of parameters has a gradient, targets are finite, and the improved policy differs from the prior."""
    spec = SPACES[name]
    model = random_model(0, spec=spec)
    agent = muesli(prior=PriorConfig())
    state, batch = agent.init(KEY, spec).state, random_batch(spec, model)
    target, _ = quick_jit(lambda model, batch: agent.targets(Policy(model, state), batch, KEY))(model, batch)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(target))

    def total(model):
        terms, metrics = agent.loss(model, state, batch, target, KEY)
        return sum(jnp.where(target.mask, term, 0.0).sum() for term in terms.values()), metrics

    gradient, metrics = quick_jit(jax.grad(total, has_aux=True))(model)
    for part in ("representation", "dynamics", "heads"):
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(getattr(gradient, part))), part
    assert float(metrics["target/cmpo_kl"]) > 1e-3 and float(metrics["act/kl_to_behavior"]) > 0
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())


@pytest.mark.parametrize("name", SPACES)
def test_a_look_ahead_over_candidates_is_a_step_of_the_model(name, monkeypatch):
    """That of each row's own actions, also where it is computed in pieces."""
    model = random_model(1, spec=SPACES[name])
    latent = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, SMALL.latent_width)), jnp.float32)
    params = jnp.zeros((2, 3, model.distribution.num_params))
    actions = model.distribution.sample_many(params, KEY, 5)
    whole = quick_jit(lambda model: model.look_ahead(latent, 0.9, actions))(model)
    for i in range(5):
        following = model.step(latent, actions[:, :, i])
        np.testing.assert_allclose(whole[..., i], model.reward(following) + 0.9 * model.value(following), rtol=1e-4)
    monkeypatch.setattr("bircher.networks.model.LOOK_AHEAD_BYTES", 1)
    np.testing.assert_allclose(quick_jit(lambda model: model.look_ahead(latent, 0.9, actions))(model), whole, rtol=1e-5)


def test_two_thousand_actions_need_no_table_of_candidates_and_actions():
    """Targets and gradients of 12 sequences: a table of 64 candidates and 2,000 actions for each row takes 98 MiB."""
    spec = SPEC._replace(action=Discrete(2000))
    agent = muesli(num_candidates=64)
    rows = jax.eval_shape(lambda: random_batch(spec, Model(spec, SMALL, KEY)))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((12, *x.shape[1:]), x.dtype), rows)

    def update(model, batch):
        policy = Policy(model, agent.init(KEY, spec).state)
        target, state = agent.targets(policy, batch, KEY)

        def total(model):
            terms, _ = agent.loss(model, state, batch, target, KEY, False)
            return sum(term.mean() for term in terms.values())

        return jax.grad(total)(model)

    model = jax.eval_shape(lambda: Model(spec, SMALL, KEY))
    program = jax.jit(update).lower(model, rows).compile()
    assert program.memory_analysis().temp_size_in_bytes < 40 * 2**20


def test_a_distilled_target_is_the_divergence_of_its_policies():
    """Over all actions it is KL(target, pi), and over many samples it tends to it."""
    kind, params, other = ClippedNormal(1), jnp.array([0.3, -0.2]), jnp.array([0.1, 0.4])
    actions = kind.sample_many(params, KEY, 20_000)
    chosen = candidates.Candidates(actions, jnp.full(20_000, 1 / 20_000), kind.log_prob_many(params, actions), False)
    target = candidates.target_of(chosen, chosen.weights)
    found = loss_terms.policy_distillation(target, other, kind)
    assert float(found) == pytest.approx(float(kind.kl(params, other)), rel=0.05)


@pytest.mark.parametrize(("spec", "settings", "search", "words"), [
    (CONTINUOUS, {"cmpo": {"samples": 16}}, 0, "agent.cmpo.samples=16"),
    (SPACES["many"], {"cmpo": {"samples": 16}}, 0, "set agent.num_candidates instead"),
])  # fmt: skip
def test_settings_of_few_discrete_actions_are_refused(spec, settings, search, words):
    config = SearchConfig(num_simulations=search)
    agent = actor_critic.make(MuesliConfig(**settings), SMALL, MuesliLosses(), config)
    with pytest.raises(ConfigError, match=words):
        agent.init(KEY, spec)


def test_log_priors_are_those_of_the_candidates_that_were_chosen():
    """Also of the action that was taken where it replaced a sample: against SciPy's density of each candidate."""
    distribution, share, uniform = ClippedNormal(2), 0.5, 0.2
    config = MuesliConfig(prior=PriorConfig(behavior_share=share, uniform_share=uniform), num_candidates=400)
    params = jax.random.normal(KEY, (3, distribution.num_params))
    taken = jnp.array([[0.3, -0.4], [0.9, 0.1], [-0.2, 0.5]])
    found = candidates.choose_candidates(distribution, config, params, taken, KEY)
    repeated = np.asarray((found.actions == taken[:, None]).all(-1))
    np.testing.assert_allclose(repeated.mean(), share, atol=0.06)
    mean, log_deviation = (np.asarray(x)[:, None] for x in distribution.moments(params))
    own = scipy.stats.norm.pdf(np.asarray(found.actions), mean, np.exp(log_deviation)).prod(-1)
    inside = (np.abs(np.asarray(found.actions)) <= 1).all(-1)
    rest = uniform / (1 - share)
    np.testing.assert_allclose(found.log_prior, np.log((1 - rest) * own + rest * inside / 4), rtol=1e-3, atol=1e-4)
