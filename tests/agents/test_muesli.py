"""Muesli's targets and losses against a slow re-implementation, and what reaches which parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import muesli_reference as reference
import numpy as np
import pytest

from bircher.agents import actor_critic
from bircher.agents.base import Carry
from bircher.errors import UnsupportedEnvironment
from bircher.networks.model import ModelConfig
from bircher.ops import improvement, losses
from bircher.search import SearchConfig
from bircher.types import TimeStep, Unsupported
from builders import ACTIONS, SMALL, SPEC, batch_of, muesli_agent, policy_of, quick_jit, random_model, random_rows

BATCH, LENGTH, DISCOUNT = 6, 8, 0.9
MODEL = random_model(0)
TERMS = ("policy_gradient", "cmpo", "model_policy", "value", "model_value", "model_reward")


AGENT = muesli_agent(gamma=DISCOUNT)


def targets_of(agent):
    """Targets and state as a function of model, rows and key."""
    return lambda model, rows, key: agent.targets(policy_of(agent, model), batch_of(rows), key)


def compiled_targets(**settings):
    return quick_jit(targets_of(muesli_agent(gamma=DISCOUNT, **settings)))


exact_targets = quick_jit(targets_of(AGENT))


@pytest.mark.parametrize("seed", range(6))
def test_targets_equal_the_slow_reference(seed):
    rows = random_rows(seed, BATCH, LENGTH)
    target, state = exact_targets(MODEL, rows, jax.random.key(0))
    expected = reference.targets(MODEL, rows, DISCOUNT, 0.95, 1.0, (0.03, 0.003))
    mask = expected["mask"]
    np.testing.assert_array_equal(target.mask, mask)
    assert 0 < mask.sum() < mask.size and rows.terminal.any() and (rows.last & ~rows.terminal).any()
    np.testing.assert_allclose(np.asarray(target.value)[mask], expected["value"][mask], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(target.advantage)[mask], expected["advantage"][mask], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(improvement.dense(target.policy, ACTIONS), expected["policy"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(target.priority, expected["priority"], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(target.reward, rows.reward[:, 1:])
    assert float(state.normalizer.scale(1e-12)) == pytest.approx(expected["scale"], rel=1e-3)


def test_targets_with_other_settings_equal_the_slow_reference():
    rows = random_rows(11, BATCH, LENGTH)
    settings = {"clip_bound": 0.5, "baseline": "expected_q"}
    other = compiled_targets(
        cmpo=settings, returns={"lambda": 0.5}, prior={"behavior_share": 0.3, "uniform_share": 0.1}
    )
    target, _ = other(MODEL, rows, jax.random.key(0))
    expected = reference.targets(MODEL, rows, DISCOUNT, 0.5, 0.5, (0.3, 0.1), "expected_q")
    mask = expected["mask"]
    np.testing.assert_allclose(np.asarray(target.value)[mask], expected["value"][mask], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(improvement.dense(target.policy, ACTIONS), expected["policy"], rtol=1e-3, atol=1e-4)


def test_sampled_targets_are_near_the_exact_ones():
    rows = random_rows(12, BATCH, LENGTH)
    by_samples = compiled_targets(cmpo={"samples": 1000})
    sampled, _ = by_samples(MODEL, rows, jax.random.key(0))
    exact, _ = exact_targets(MODEL, rows, jax.random.key(0))
    assert sampled.policy.actions.shape == (BATCH, LENGTH + 1, 1000)
    difference = improvement.dense(sampled.policy, ACTIONS) - improvement.dense(exact.policy, ACTIONS)
    assert float(jnp.abs(difference).max()) < 0.1
    again, _ = by_samples(MODEL, rows, jax.random.key(1))
    assert (sampled.policy.actions != again.policy.actions).any()


def test_no_gradient_flows_through_targets():
    rows = random_rows(1, 2, LENGTH)

    def total(model):
        target, _ = targets_of(AGENT)(model, rows, jax.random.key(0))
        return target.value.sum() + target.advantage.sum() + jnp.square(target.policy.weights).sum()

    gradient = quick_jit(jax.grad(total))(MODEL)
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(gradient))


def test_nothing_crosses_an_episodes_end():
    """Whatever lies beyond an end, and on rows that lead nowhere, changes no valid target before it."""
    rows = random_rows(2, BATCH, LENGTH)
    reference_mask = np.asarray(exact_targets(MODEL, rows, jax.random.key(0))[0].mask)
    ends = [int(np.flatnonzero(~reference_mask[b])[0]) if (~reference_mask[b]).any() else None for b in range(BATCH)]
    # The advantages' scale is shared by all; the value targets are not.
    before = np.asarray(exact_targets(MODEL, rows, jax.random.key(0))[0].value)
    reward = np.asarray(rows.reward).copy()
    observation = np.asarray(rows.observation).copy()
    for b, end in enumerate(ends):
        if end is not None:
            reward[b, end + 1 :] += 50.0
            observation[b, end + 1 :] *= -3.0
    changed = rows._replace(reward=jnp.asarray(reward), observation=jnp.asarray(observation))
    after = np.asarray(exact_targets(MODEL, changed, jax.random.key(0))[0].value)
    checked = 0
    for b, end in enumerate(ends):
        if end:
            np.testing.assert_allclose(after[b, :end], before[b, :end], rtol=1e-5, atol=1e-5)
            checked += end
    assert checked >= 5


def _reference_target(target):
    return {
        "mask": np.asarray(target.mask),
        "value": np.asarray(target.value, float),
        "advantage": np.asarray(target.advantage, float),
        "policy": np.asarray(improvement.dense(target.policy, ACTIONS), float),
    }


def all_terms(model, rows, target):
    return AGENT.loss(model, policy_of(AGENT, model).state, batch_of(rows), target, jax.random.key(0))[0]


compiled_terms = quick_jit(all_terms)


@pytest.mark.parametrize("seed", [3, 4])
def test_loss_terms_equal_the_slow_reference(seed):
    """Every depth's action, reward, value, policy and mask, by a loop over roots and depths."""
    rows = random_rows(seed, 3, 6, all_legal=True)
    target, _ = exact_targets(MODEL, rows, jax.random.key(0))
    online = random_model(7)
    terms = compiled_terms(online, rows, target)
    expected = reference.losses(online, rows, _reference_target(target), SMALL.unroll_steps)
    assert set(terms) == set(expected) == set(TERMS)
    mask = np.asarray(target.mask)
    for name in TERMS:
        np.testing.assert_allclose(
            np.asarray(terms[name])[mask], expected[name][mask], rtol=2e-3, atol=2e-3, err_msg=name
        )
        assert np.abs(expected[name][mask]).max() > 0.01


def group_of(path) -> str:
    """encoder, dynamics, policy, value or reward, from a parameter's path."""
    text = jax.tree_util.keystr(path)
    for group in ("representation", "dynamics", "heads.policy", "heads.value", "heads.reward"):
        if group in text:
            return group
    raise AssertionError(f"{text} is in no group")


def reached(gradient) -> set[str]:
    """The groups that a gradient reaches."""
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    return {group_of(path) for path, leaf in leaves if float(jnp.abs(leaf).max()) > 1e-7}


def test_each_term_reaches_its_parameters_and_no_others():
    """Trap 2: the encoder is trained through every term, the dynamics through each term of the model."""
    rows = random_rows(3, 3, 6, all_legal=True)
    target, _ = exact_targets(MODEL, rows, jax.random.key(0))

    def means(model):
        terms = all_terms(model, rows, target)
        return {name: losses.masked_mean(values, target.mask) for name, values in terms.items()}

    gradients = quick_jit(jax.jacrev(means))(random_model(7))
    model = {"representation", "dynamics"}
    assert {name: reached(gradient) for name, gradient in gradients.items()} == {
        "policy_gradient": {"representation", "heads.policy"},
        "cmpo": {"representation", "heads.policy"},
        "model_policy": model | {"heads.policy"},
        "value": {"representation", "heads.value"},
        "model_value": model | {"heads.value"},
        "model_reward": model | {"heads.reward"},
    }


def test_a_disabled_term_is_absent_and_costs_nothing():
    """Its part of the program is gone, not multiplied by 0."""
    rows = random_rows(6, BATCH, LENGTH)
    target, _ = exact_targets(MODEL, rows, jax.random.key(0))
    off = {name: {"enabled": False} for name in TERMS if name.startswith("model")}
    fewer = muesli_agent(gamma=DISCOUNT, losses=off)
    assert set(fewer.weights) == {"policy_gradient", "cmpo", "value"}

    def cost(agent):
        def total(model):
            state = policy_of(agent, model).state
            terms, _ = agent.loss(model, state, batch_of(rows), target, jax.random.key(0))
            assert set(terms) == set(agent.weights)
            return losses.combine(terms, agent.weights, target.mask, jnp.ones(BATCH))[0]

        return jax.jit(jax.grad(total)).lower(MODEL).compile().cost_analysis()["flops"]

    assert cost(fewer) < 0.4 * cost(AGENT)


def test_default_weights_are_the_papers():
    assert AGENT.weights == {
        "policy_gradient": 1.0, "cmpo": 1.0, "value": 0.25,
        "model_policy": 1.0, "model_value": 0.25, "model_reward": 1.0,
    }  # fmt: skip
    config = actor_critic.MuesliConfig()
    assert (config.gamma, config.cmpo.clip_bound, config.returns.lambda_) == (0.995, 1.0, 0.95)
    assert (config.prior.behavior_share, config.prior.uniform_share) == (0.03, 0.003)
    assert (config.advantage.decay, config.advantage.epsilon) == (0.99, 1e-12)
    assert (config.target_update_rate, config.acts_with, config.normalize_observations) == (0.1, "target", False)
    model = ModelConfig()
    assert (model.unroll_steps, model.num_atoms, model.support, model.latent_gradient_scale) == (5, 601, 300.0, 0.5)


def timestep(batch: int, legal=None) -> TimeStep:
    no = jnp.zeros(batch, bool)
    legal = jnp.ones((batch, ACTIONS), bool) if legal is None else legal
    observation = jax.random.normal(jax.random.key(2), (batch, 4))
    return TimeStep(observation, jnp.zeros(batch), jnp.ones(batch), no, no, no, legal, no)


@pytest.mark.slow
def test_acting_samples_the_policy_and_keeps_its_logits():
    policy = policy_of(AGENT, MODEL)
    one = timestep(1)
    many = jax.tree.map(lambda x: jnp.repeat(x, 4000, 0), one)
    output, carry = AGENT.act(policy, Carry(), many, jax.random.key(0), "explore", 0.0)
    logits = MODEL.predict(MODEL.represent(one.observation)).policy_logits[0]
    np.testing.assert_allclose(output.extras.per_action["behavior_logits"][0], logits, rtol=1e-4, atol=1e-5)
    frequencies = np.bincount(output.action, minlength=ACTIONS) / 4000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits), atol=0.03)
    greedy, _ = AGENT.act(policy, Carry(), many, jax.random.key(0), "greedy", 0.0)
    assert (greedy.action == jnp.argmax(logits)).all() and carry == Carry()


def test_illegal_actions_are_never_taken():
    best = int(jnp.argmax(MODEL.predict(MODEL.represent(timestep(1).observation)).policy_logits[0]))
    legal = jnp.ones((1, ACTIONS), bool).at[0, best].set(False)
    many = jax.tree.map(lambda x: jnp.repeat(x, 500, 0), timestep(1, legal))
    for mode in ("explore", "greedy"):
        output, _ = AGENT.act(policy_of(AGENT, MODEL), Carry(), many, jax.random.key(0), mode, 0.0)
        assert (output.action != best).all()
        assert (jax.nn.softmax(output.extras.per_action["behavior_logits"])[:, best] == 0).all()


@pytest.mark.parametrize("broken", [
    SPEC._replace(action=Unsupported("action space Tuple(Discrete(2))")),
    SPEC._replace(observation=Unsupported("observation space Text(5)")),
])  # fmt: skip
def test_other_spaces_are_refused(broken):
    with pytest.raises(UnsupportedEnvironment, match="supports"):
        AGENT.init(jax.random.key(0), broken)


def test_normalized_observations_act_and_learn_alike():
    """Shifted and stretched observations give the same latents once their statistics are known."""
    agent = muesli_agent(gamma=DISCOUNT, normalize_observations=True)
    rows = random_rows(8, BATCH, LENGTH)
    moved = rows._replace(observation=rows.observation * 50.0 + 7.0)
    targets = quick_jit(lambda policy, rows: agent.targets(policy, batch_of(rows), jax.random.key(0)))
    first = policy_of(agent, MODEL)
    states = [targets(first, x)[1] for x in (rows, moved)]
    values = [targets(first._replace(state=state), x)[0].value for state, x in zip(states, (rows, moved), strict=True)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-2, atol=1e-2)
    assert float(states[0].statistics.count) == float(targets(first, rows)[0].mask.sum())


@pytest.mark.slow
def test_a_search_takes_part_in_acting_after_training_only():
    """Exploring and learning are those of an agent without one."""
    agent = actor_critic.make(
        actor_critic.MuesliConfig(gamma=DISCOUNT),
        SMALL,
        actor_critic.MuesliLosses(),
        SearchConfig(num_simulations=8),
    )
    plain = actor_critic.make(actor_critic.MuesliConfig(gamma=DISCOUNT), SMALL, actor_critic.MuesliLosses())
    rows = jax.tree.map(lambda x: x[:, 0], random_rows(3, 64, 2))
    rows = TimeStep(*rows[:6], rows.legal_actions, jnp.zeros(64, bool))
    acting = policy_of(agent, MODEL)
    acted = {}
    for mode in ("explore", "greedy"):
        for name, one in (("search", agent), ("plain", plain)):
            output, _ = one.act(acting, Carry(), rows, jax.random.key(0), mode, 0.0)
            acted[mode, name] = np.asarray(output.action)
            assert np.asarray(rows.legal_actions)[np.arange(64), acted[mode, name]].all()
    np.testing.assert_array_equal(acted["explore", "search"], acted["explore", "plain"])
    assert (acted["greedy", "search"] != acted["greedy", "plain"]).any()
    assert plain.plan is None and agent.plan is not None


@pytest.mark.slow
def test_in_a_game_of_two_the_next_value_is_the_opponents():
    """The look-ahead is r - gamma v: the sign of the turn is in the agent's discount."""
    alone, two = (
        actor_critic.make(actor_critic.MuesliConfig(gamma=DISCOUNT), SMALL, actor_critic.MuesliLosses(), None, players)
        for players in (1, 2)
    )
    assert (alone.model_discount, two.model_discount) == (DISCOUNT, -DISCOUNT)
    observation, legal = jax.random.normal(jax.random.key(1), (5, 4)), jnp.ones((5, 3), bool)
    latent = MODEL.represent(observation)
    looks = [agent.look(policy_of(agent, MODEL), latent, legal, jax.random.key(0)) for agent in (alone, two)]
    following = MODEL.step(jnp.repeat(latent[:, None], 3, 1), jnp.tile(jnp.arange(3), (5, 1)))
    for look, sign in zip(looks, (1, -1), strict=True):
        expected = MODEL.reward(following) + sign * DISCOUNT * MODEL.value(following)
        np.testing.assert_allclose(look.q_values, expected, atol=1e-4)
