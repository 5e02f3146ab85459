"""PPO's and the baselines' terms and targets against plain loops, and what their mixtures need."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import muesli_reference as reference
import numpy as np
import pytest

from bircher.agents import actor_critic, loss_terms, metrics
from bircher.agents.actor_critic import MPOConfig, MPOLosses, PPOConfig, PPOLosses, TRPOPenaltyConfig, TRPOPenaltyLosses
from bircher.agents.base import weights_at
from bircher.config.config import AGENTS, compose
from bircher.errors import ConfigError
from bircher.ops import losses
from bircher.ops.distributions import log_probability
from bircher.training.optimizer import updates_per_iteration
from bircher.types import Policy
from builders import ACTIONS, SMALL, SPEC, batch_of, quick_jit, random_model, random_rows

BATCH, LENGTH, DISCOUNT = 6, 8, 0.9
MODEL = random_model(0)


def agent_of(config, loss):
    return actor_critic.make(config, SMALL, loss)


def policy_of(agent, model=MODEL):
    return Policy(model, agent.init(jax.random.key(0), SPEC).state)


def ppo(loss=None, **settings):
    settings = {"gamma": DISCOUNT, **settings}
    return agent_of(PPOConfig.model_validate(settings), PPOLosses.model_validate(loss or {}))


def numbers(shape, seed, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def softmax(x):
    return reference.softmax(np.asarray(x, float))


def test_ppo_clip_is_the_lesser_of_two_surrogates():
    logits, behavior = numbers((4, 7, ACTIONS), 0), numbers((4, 7, ACTIONS), 1)
    action = np.random.default_rng(2).integers(0, ACTIONS, (4, 7))
    advantage = numbers((4, 7), 3)
    logs = [log_probability(jnp.asarray(x), jnp.asarray(action)) for x in (logits, behavior)]
    found = loss_terms.ppo_clip(*logs, jnp.asarray(advantage), 0.2)
    clipped = 0
    for b, t in np.ndindex(4, 7):
        ratio = softmax(logits[b, t])[action[b, t]] / softmax(behavior[b, t])[action[b, t]]
        bounded = min(max(ratio, 0.8), 1.2)
        clipped += bounded != ratio
        assert float(found[b, t]) == pytest.approx(-min(ratio * advantage[b, t], bounded * advantage[b, t]), rel=1e-4)
    assert 5 < clipped < 28


@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"), [(1.5, 1, False), (1.5, -1, True), (0.5, -1, False), (0.5, 1, True)]
)
def test_ppo_clip_stops_only_changes_that_go_further(ratio, advantage, learns):
    """Beyond the bound no gradient is left in the advantage's direction, and all of it back."""
    logits = jnp.zeros((1, 1, 2))
    behavior = jnp.log(jnp.asarray([[[0.5 / ratio, 1 - 0.5 / ratio]]])) if ratio > 0.5 else jnp.asarray([[[20.0, 0.0]]])

    def term(x):
        logs = [log_probability(y, jnp.zeros((1, 1), int)) for y in (x, behavior)]
        return loss_terms.ppo_clip(*logs, jnp.full((1, 1), float(advantage)), 0.2)[0, 0]

    assert (float(jnp.abs(jax.grad(term)(logits)).max()) > 1e-3) == learns


@pytest.mark.parametrize("clip", [None, 0.3])
def test_ppo_value_is_the_greater_of_two_errors(clip):
    value, old, target = numbers((5, 6), 0), numbers((5, 6), 1), numbers((5, 6), 2)
    found = loss_terms.ppo_value(jnp.asarray(value), jnp.asarray(old), jnp.asarray(target), clip)
    for b, t in np.ndindex(5, 6):
        errors = [(value[b, t] - target[b, t]) ** 2]
        if clip is not None:
            moved = old[b, t] + min(max(value[b, t] - old[b, t], -clip), clip)
            errors.append((moved - target[b, t]) ** 2)
        assert float(found[b, t]) == pytest.approx(max(errors) / 2, rel=1e-4)


def test_the_penalty_is_the_divergence_from_the_behavior():
    logits, behavior = numbers((3, 4, ACTIONS), 0), numbers((3, 4, ACTIONS), 1)
    found = loss_terms.kl_to_behavior(jnp.asarray(logits), jnp.asarray(behavior))
    for b, t in np.ndindex(3, 4):
        p, q = softmax(behavior[b, t]), softmax(logits[b, t])
        assert float(found[b, t]) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3, abs=1e-5)


def slow_gae(rows, value, lambda_):
    """Advantages by walking on from each row: the sum of (gamma lambda)^n delta up to the episode's end."""
    batch, length = value.shape[0], value.shape[1] - 1
    result = np.zeros((batch, length))
    for b, t in np.ndindex(batch, length):
        weight = 1.0
        for s in range(t, length):
            discount = DISCOUNT * rows.discount[b, s + 1]
            result[b, t] += weight * (rows.reward[b, s + 1] + discount * value[b, s + 1] - value[b, s])
            weight *= discount * lambda_
            if reference.leads_nowhere(rows, b, s + 1):
                break
    return result


def slow_v_trace(rows, value, ratio, lambda_):
    """V-trace's targets by its sum (IMPALA, equation 1), cut at episode ends, and the returns of its gradient."""
    batch, length = value.shape[0], value.shape[1] - 1
    target = value.astype(float).copy()
    of_gradient = np.zeros((batch, length))
    for b, t in np.ndindex(batch, length):
        weight = 1.0
        for s in range(t, length):
            discount = DISCOUNT * rows.discount[b, s + 1]
            delta = min(1, ratio[b, s]) * (rows.reward[b, s + 1] + discount * value[b, s + 1] - value[b, s])
            target[b, t] += weight * delta
            if reference.leads_nowhere(rows, b, s + 1):
                break
            weight *= discount * lambda_ * min(1, ratio[b, s])
    for b, t in np.ndindex(batch, length):
        ends = reference.leads_nowhere(rows, b, t + 1) or t + 1 == length
        after = value[b, t + 1] if ends else target[b, t + 1]
        of_gradient[b, t] = rows.reward[b, t + 1] + DISCOUNT * rows.discount[b, t + 1] * after
    return target[:, :-1], of_gradient


@pytest.mark.parametrize("kind", ["gae", "v_trace"])
@pytest.mark.parametrize("seed", [0, 1])
def test_returns_without_a_model_are_the_slow_references(kind, seed):
    rows = random_rows(seed, BATCH, LENGTH)
    agent = ppo(returns={"kind": kind, "lambda": 0.7}, advantage={"normalization": "none"})
    target, _ = quick_jit(agent.targets)(policy_of(agent), batch_of(rows), jax.random.key(0))
    plain = jax.tree.map(np.asarray, rows)
    latent = MODEL.represent(rows.observation)
    prediction = MODEL.predict(latent)
    value = np.asarray(MODEL.value_support.mean(prediction.value_logits))
    if kind == "gae":
        advantage = slow_gae(plain, value, 0.7)
        goal = advantage + value[:, :-1]
    else:
        pi = reference.masked_softmax(prediction.policy_logits, plain.legal_actions)
        pi_b = softmax(rows.extras.per_action["behavior_logits"])
        chosen = np.asarray(rows.action)[..., None]
        ratio = (np.take_along_axis(pi, chosen, -1) / np.take_along_axis(pi_b, chosen, -1))[..., 0]
        goal, of_gradient = slow_v_trace(plain, value, ratio, 0.7)
        advantage = of_gradient - value[:, :-1]
    mask = np.asarray(target.mask)
    assert mask.sum() > 15
    np.testing.assert_allclose(np.asarray(target.value)[mask], goal[mask], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(target.advantage)[mask], advantage[mask], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(target.extras.per_transition["old_value"], value[:, :-1], rtol=1e-4, atol=1e-4)


def test_advantages_of_a_batch_have_mean_0_and_deviation_1_over_valid_rows():
    rows = random_rows(2, BATCH, LENGTH)
    agent = ppo()
    target, _ = quick_jit(agent.targets)(policy_of(agent), batch_of(rows), jax.random.key(0))
    valid = np.asarray(target.advantage)[np.asarray(target.mask)]
    assert valid.mean() == pytest.approx(0, abs=1e-5) and valid.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_explained_variance_is_of_the_values_before_the_updates():
    agent, batch = ppo(), batch_of(random_rows(3, BATCH, LENGTH))
    before = policy_of(agent)
    targets, state = agent.targets(before, batch, jax.random.key(0))
    _, metrics = agent.loss(random_model(1), state, batch, targets, jax.random.key(1))
    rows = jnp.asarray(batch.trajectory.observation, jnp.float32)
    prediction = MODEL.predict(MODEL.represent(rows))
    value = np.asarray(MODEL.value_support.mean(prediction.value_logits))[:, :-1]
    pairs = [(targets.value[b, t], value[b, t]) for b, t in np.ndindex(BATCH, LENGTH) if targets.mask[b, t]]
    target, foretold = np.array(pairs, float).T
    expected = 1 - np.var(target - foretold) / np.var(target)
    assert 0 < len(pairs) < BATCH * LENGTH and expected > -1
    assert float(metrics["target/explained_variance"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muesli", "ppo"])
def test_metrics_that_are_not_computed_are_0_and_change_no_term(name):
    config = compose("CartPole-v1", [f"agent={name}"])
    agent = actor_critic.make(config.agent, SMALL, config.losses)
    batch = batch_of(random_rows(5, BATCH, LENGTH))
    targets, state = agent.targets(policy_of(agent), batch, jax.random.key(0))
    loss = quick_jit(agent.loss)
    terms_of, told = loss(MODEL, state, batch, targets, jax.random.key(1), with_metrics=jnp.asarray(True))
    same, nothing = loss(MODEL, state, batch, targets, jax.random.key(1), with_metrics=jnp.asarray(False))
    for term, values in terms_of.items():
        np.testing.assert_allclose(values, same[term], rtol=1e-5, atol=1e-6)
    assert set(told) == set(nothing) and not any(float(value) for value in nothing.values())
    assert sum(float(value) != 0 for value in told.values()) > 8


def test_the_share_of_entropy_is_of_the_legal_actions():
    agent, batch = ppo(), batch_of(random_rows(5, BATCH, LENGTH))
    policy, rows = policy_of(agent), batch.trajectory
    targets, state = agent.targets(policy, batch, jax.random.key(0))
    _, metrics = agent.loss(MODEL, state, batch, targets, jax.random.key(1))
    logits = MODEL.predict(MODEL.represent(jnp.asarray(rows.observation, jnp.float32))).policy_logits
    chances = reference.masked_softmax(logits, rows.legal_actions)
    shares = []
    choices = np.asarray(rows.legal_actions).sum(-1)[:, : targets.mask.shape[1]][np.asarray(targets.mask)] > 1
    for b, t in np.ndindex(*targets.mask.shape):
        legal = np.flatnonzero(rows.legal_actions[b, t])
        if targets.mask[b, t] and len(legal) > 1:
            p = chances[b, t, legal].astype(float)
            shares.append(-(p * np.log(p)).sum() / np.log(len(legal)))
    assert {1, 2} < set(np.asarray(rows.legal_actions).sum(-1).ravel().tolist())
    assert float(metrics["act/entropy_share"]) == pytest.approx(np.mean(shares), rel=1e-3)
    assert 0 < float(metrics["act/choice_share"]) == pytest.approx(choices.mean(), rel=1e-5) and not choices.all()


def test_how_much_latents_differ_is_a_mean_of_deviations_over_valid_rows():
    agent, batch = ppo(), batch_of(random_rows(5, BATCH, LENGTH))
    targets, _ = agent.targets(policy_of(agent), batch, jax.random.key(0))
    _, metrics = agent.loss(MODEL, policy_of(agent).state, batch, targets, jax.random.key(1))
    mask = np.asarray(targets.mask)
    latent = np.asarray(MODEL.represent(jnp.asarray(batch.trajectory.observation, jnp.float32)), float)
    by_hand = latent[:, : mask.shape[1]][mask].std(0).mean()
    assert not mask.all()
    assert float(metrics["model/latent_deviation"]) == pytest.approx(by_hand, rel=1e-4)


def test_the_scale_of_observations_and_values_is_that_of_valid_rows():
    agent, rows = ppo(), random_rows(5, BATCH, LENGTH)
    scaled = rows._replace(observation=jnp.asarray(rows.observation, jnp.float32) * 50.0 + 3e4)
    batch = batch_of(scaled)
    targets, _ = agent.targets(policy_of(agent), batch, jax.random.key(0))
    _, metrics = agent.loss(MODEL, policy_of(agent).state, batch, targets, jax.random.key(1))
    mask = np.asarray(targets.mask)
    observation = np.asarray(scaled.observation, float)[:, : mask.shape[1]][mask].reshape(mask.sum(), -1)
    value = np.asarray(targets.value, float)[mask]
    assert float(metrics["act/observation_size"]) == pytest.approx(np.sqrt((observation**2).mean(0)).max(), rel=1e-4)
    assert float(metrics["act/observation_deviation"]) == pytest.approx(observation.std(0).max(), rel=1e-3)
    assert float(metrics["target/value_size"]) == pytest.approx(np.abs(value).mean(), rel=1e-4)
    assert float(metrics["target/value_square"]) == pytest.approx((value**2).mean(), rel=1e-4)


def test_the_scale_of_images_in_bytes_and_of_booleans_is_known():
    mask = jnp.ones((2, 3), bool)
    for shape, kind, measured in (((4, 4, 1), "uint8", 0), ((5,), "bool", 0), ((5,), "uint8", 2), ((4, 4, 1), "f4", 2)):
        assert len(metrics.observation_scale(jnp.zeros((2, 3, *shape), kind), mask)) == measured


def test_mpos_policy_is_the_prior_times_exponentiated_advantages():
    agent = agent_of(MPOConfig.model_validate({"gamma": DISCOUNT, "mpo": {"temperature": 0.5}}), MPOLosses())
    rows = random_rows(3, BATCH, LENGTH)
    target, _ = quick_jit(agent.targets)(policy_of(agent), batch_of(rows), jax.random.key(0))
    expected = reference.targets(MODEL, rows, DISCOUNT, 0.95, 1.0, (0.03, 0.003))
    q = reference.looked_at(MODEL, rows, DISCOUNT)
    goal = expected["prior"] * np.exp((q["q"] - q["v"][..., None]) / expected["scale"] / 0.5)
    goal /= goal.sum(-1, keepdims=True)
    np.testing.assert_allclose(target.extras.per_transition["mpo_policy"], goal[:, :-1], rtol=1e-3, atol=1e-4)
    # The model's policies learn the prior.
    np.testing.assert_allclose(target.policy.weights, expected["prior"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"muzero", "gumbel_muzero"}))
def test_every_part_of_every_agent_learns(name):
    config = compose("toy/cliff", {"agent": name})
    agent = actor_critic.make(config.agent, SMALL, config.losses)
    rows, made = random_rows(1, BATCH, LENGTH), agent.init(jax.random.key(1), SPEC)
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), made.params)
    assert (noisy.dynamics is None) == (name == "ppo")

    def total(model):
        target, state = agent.targets(Policy(noisy, made.state), batch_of(rows), jax.random.key(0))
        found, _ = agent.loss(model, state, batch_of(rows), target, jax.random.key(0))
        return losses.combine(found, weights_at(agent.weights, 0.0), target.mask, jnp.ones(BATCH))[0]

    gradient = quick_jit(jax.grad(total))(noisy)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({"cmpo": {"weight": 0.0}, "model_value": {"weight": 0.0}}, {"ppo_clip", "entropy", "value"}),
        ({"value": {"weight": 0.0}}, {"ppo_clip", "entropy"}),
        ({"ppo_clip": {"weight": 0.0, "final_weight": 0.0}}, {"entropy", "value"}),
    ],
)
def test_a_term_without_weight_is_not_there_also_an_agents_own(off, left):
    """As if it were switched off, and nothing else changes."""
    rows = random_rows(4, BATCH, LENGTH)
    plain, mixed = ppo({name: {"enabled": False} for name in off}), ppo(off)
    assert set(plain.weights) == set(mixed.weights) == left
    assert plain.look is None
    texts = [
        jax.jit(agent.loss).lower(made.params, made.state, batch_of(rows), target, jax.random.key(0)).as_text()
        for agent in (plain, mixed)
        for made in [agent.init(jax.random.key(0), SPEC)]
        for target in [agent.targets(made, batch_of(rows), jax.random.key(0))[0]]
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("agent", "settings", "words"),
    [
        ("ppo", {"losses.cmpo.weight": 0.01, "losses.model_value.weight": 0.0}, "losses.cmpo looks ahead"),
        ("ppo", {"losses.cmpo.weight": 0.01, "losses.model_reward.enabled": False}, "give losses.model_reward a"),
        ("ppo", {"losses.mpo.weight": 1.0, "losses.model_reward.weight": 0.0}, "losses.mpo looks ahead"),
        (
            "ppo",
            {"losses.cmpo.weight": 0.01, "optimizer.segment_length": 1},
            "optimizer.segment_length=1 is shorter than",
        ),
        ("ppo", {"agent.returns.kind": "retrace"}, "agent.returns.kind=retrace looks ahead"),
        ("ppo", {"agent.advantage.source": "look_ahead"}, "agent.advantage.source=look_ahead looks ahead"),
        ("muesli", {"losses.model_reward.enabled": False}, "losses.model_reward a weight"),
        ("ppo", {"search.num_simulations": 9}, "search.num_simulations=9 looks ahead"),
        ("ppo", {"model.policy_horizon": 9}, "policy_horizon=9 is more than the unroll_steps"),
        ("ppo", {"optimizer.segment_length": 5}, "optimizer.segment_length=5 must divide"),
        ("muesli", {"losses.model_reward.weight": 0}, "losses.cmpo looks ahead .* give losses.model_reward a weight"),
        ("pg", {"losses.model_value.weight": 0}, "agent.returns.kind=retrace looks ahead .* give losses.model_value a"),
        ("muzero", {"losses.model_value.weight": 0}, "muzero searches with .* give losses.model_value a weight"),
        ("muzero", {"losses.model_reward.enabled": False}, "give losses.model_reward a weight above 0"),
        ("muzero", {"optimizer.target_kl": 0.01}, "optimizer.target_kl=0.01 needs the policy that acted, which muzero"),
        ("muesli", {"optimizer.target_kl": 0.01}, "optimizer.target_kl=0.01 skips .* epochs × minibatches = 1"),
        ("ppo", {"agent.clip.value": 0.2}, "agent.clip.value=0.2 clips the ppo_value term, which is not used"),
        ("ppo", {"agent.clip.value": 0.2, "losses.ppo_value.weight": 0}, "give losses.ppo_value a weight above 0"),
        ("ppo", {"env.num_envs": 9}, "optimizer.minibatches=16 does not divide env.num_envs=9"),
    ],
)
def test_a_mixture_without_a_required_term_is_refused_by_name(agent, settings, words):
    with pytest.raises(ConfigError, match=words):
        compose("toy/cliff", {"agent": agent, **settings})


def test_the_same_settings_stand_where_they_do_something():
    used = {"agent.clip.value": 0.2, "losses.ppo_value.weight": 0.5, "optimizer.target_kl": 0.02}
    found = compose("toy/cliff", {"agent": "ppo", **used})
    assert (found.agent.clip.value, found.optimizer.target_kl) == (0.2, 0.02)
    without = {"losses.cmpo.weight": 0, "losses.model_policy.weight": 0, "agent.returns.kind": "v_trace"}
    without["losses.entropy.enabled"] = False
    alone = compose("toy/cliff", {"agent": "muesli", **without, "losses.model_reward.weight": 0})
    assert set(alone.losses.weights()) == {"policy_gradient", "value", "model_value"}, "nothing looks ahead"
    board = {"losses.model_reward.weight": 0, "model.reward_head": False}
    assert "model_reward" not in compose("toy/cliff", {"agent": "muzero", **board}).losses.weights()


def test_a_mixture_gets_the_targets_that_its_terms_need():
    given = {"losses.cmpo.weight": 0.01, "losses.model_policy.weight": 0.001, "model.unroll_steps": 3}
    mixed, plain = compose("CartPole-v1", {"agent": "ppo", **given}), compose("CartPole-v1", {"agent": "ppo"})
    assert set(mixed.losses.weights()) - set(plain.losses.weights()) == {
        "cmpo", "model_policy", "model_value", "model_reward"
    }  # fmt: skip
    assert mixed.losses.weights()["model_reward"] == 1.0
    assert plain.optimizer.segment_length == 1 and mixed.optimizer.segment_length == 16
    own = compose(
        "CartPole-v1", {"agent": "ppo", **given, "losses.model_value.weight": 0.5, "optimizer.segment_length": 8}
    )
    assert own.losses.weights()["model_value"] == 0.5 and own.optimizer.segment_length == 8
    again = compose("CartPole-v1", mixed.model_dump(mode="json", by_alias=True, exclude={"env"}))
    assert again.losses == mixed.losses and again.optimizer == mixed.optimizer


@pytest.mark.slow
def test_policies_are_learned_over_their_own_horizon():
    rows = random_rows(5, BATCH, LENGTH)
    weights = {"model_policy": {"weight": 0.1}, "model_value": {"weight": 0.1}, "model_reward": {"weight": 0.1}}
    found = {}
    for steps, horizon in ((3, None), (3, 1), (1, None)):
        model = SMALL.model_copy(update={"unroll_steps": steps, "policy_horizon": horizon})
        agent = actor_critic.make(PPOConfig(), model, PPOLosses.model_validate(weights))
        target, state = agent.targets(policy_of(agent), batch_of(rows), jax.random.key(0))
        found[steps, horizon], _ = quick_jit(agent.loss)(MODEL, state, batch_of(rows), target, jax.random.key(0))
    np.testing.assert_allclose(found[3, 1]["model_policy"], found[1, None]["model_policy"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[3, 1]["model_value"], found[3, None]["model_value"], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(found[3, None]["model_policy"] - found[1, None]["model_policy"]).max()) > 1e-3


def test_the_penalized_gradient_has_both_terms():
    agent = agent_of(TRPOPenaltyConfig(), TRPOPenaltyLosses())
    assert set(agent.weights) == {
        "policy_gradient", "kl_to_behavior", "value", "model_policy", "model_value", "model_reward"
    }  # fmt: skip


def test_ppo_deals_out_every_rollout_once_an_epoch():
    found = compose("toy/cliff", {"agent": "ppo", "env.num_envs": 64, "optimizer.epochs": 3})
    assert found.optimizer.batch_size == 4 and found.optimizer.minibatches == 16
    assert updates_per_iteration(found.optimizer, 64 * found.loop.rollout_length) == 3 * 16
    set_values = {"optimizer.batch_size": 1, "optimizer.updates_per_step": 1 / 8}
    mine = compose("toy/cliff", {"agent": "ppo", **set_values}).optimizer
    assert (mine.batch_size, mine.updates_per_step) == (1, 1 / 8)
    more = compose("toy/cliff", {"agent": "ppo", "optimizer.batch_size": 3}).optimizer
    assert more.batch_size == 3 and more.updates_per_step == found.optimizer.updates_per_step * 4 * 4 / 3


def test_a_model_of_policies_alone_has_no_head_for_rewards():
    """Nothing would ever move it."""
    assert ppo({"model_policy": {"weight": 0.1}}).init(jax.random.key(0), SPEC).params.heads.reward is None
    both = ppo({"model_value": {"weight": 1.0}, "model_reward": {"weight": 1.0}})
    assert both.init(jax.random.key(0), SPEC).params.heads.reward is not None
