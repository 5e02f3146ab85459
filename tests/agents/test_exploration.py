"""The bonus for exploring: its numbers, where it is added and where not, and that it finds what chance does not."""

from __future__ import annotations

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bircher
import environments
from bircher.agents.exploration import KEPT, LARGEST, ExplorationConfig, with_exploration
from bircher.config.config import AGENTS, compose
from bircher.envs.toys import counter_reward
from bircher.errors import ConfigError, UnsupportedEnvironment
from bircher.metrics import GLOSSARY
from bircher.networks.exploration import WIDTH, Ensemble, elliptical_bonus
from bircher.ops.distributions import Categorical, distribution_of
from bircher.runs import build, inspect
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Continuous, Extras, MultiDiscrete, Policy, TimeStep
from builders import ACTIONS, SMALL, SPEC, assert_trees_equal, batch_of, muesli_agent, quick_jit, random_rows
from tiny import SETTINGS

BATCH, LENGTH = 3, 9
KINDS = ("e3b", "disagreement")


def config_of(kind: str, **settings) -> ExplorationConfig:
    """Settings of a bonus of this kind."""
    return ExplorationConfig.model_validate({"kind": kind, **settings})


def explored(kind: str, **settings):
    """A small Muesli with a bonus."""
    return with_exploration(muesli_agent(), config_of(kind, **settings), SMALL)


def rows_of(seed: int = 0):
    """Rows with bonuses and their discounted sums, as acting stores them."""
    rows, rng = random_rows(seed, BATCH, LENGTH), np.random.default_rng(seed)
    bonus = jnp.asarray(rng.uniform(1.0, 2.0, rows.reward.shape), jnp.float32)
    return rows._replace(extras=rows.extras._replace(per_row={"bonus": bonus, "bonus_return": 4.0 * bonus}))


# What the bonuses are.


def test_the_elliptical_bonus_is_that_of_the_inverse_matrix_and_starts_again_with_an_episode() -> None:
    """Against NumPy's inverse of the matrix itself, over a rollout of the agent with a reset in each environment."""
    ridge, size = 0.3, 2
    agent = explored("e3b", ridge=ridge)
    rng = np.random.default_rng(0)
    policy = quick_jit(lambda: agent.init(jax.random.key(0), SPEC))()
    act = quick_jit(lambda carry, row: agent.act(policy, carry, row, jax.random.key(1), "explore", 0.0))
    carry = agent.start(size)
    matrix, total = np.zeros((size, WIDTH, WIDTH)), np.zeros(size)
    gamma = agent.model_discount
    for t in range(12):
        first = np.array([t in (0, 5), t in (0, 8)])
        observation = rng.normal(size=(size, *SPEC.observation.shape)).astype(np.float32)
        flag = jnp.zeros(size, bool)
        legal = jnp.ones((size, ACTIONS), bool)
        zeros = jnp.zeros(size)
        row = TimeStep(jnp.asarray(observation), zeros, zeros + 1, jnp.asarray(first), flag, flag, legal, flag)
        output, carry = act(carry, row)
        features = np.asarray(policy.params.exploration.features(jnp.asarray(observation)), np.float64)
        matrix[first] = ridge * np.eye(WIDTH)
        expected = np.array([f @ np.linalg.inv(c) @ f for f, c in zip(features, matrix, strict=True)])
        expected[first] = 0.0
        matrix += features[:, :, None] * features[:, None, :]
        total = np.where(first, 0.0, gamma * total + expected)
        np.testing.assert_allclose(output.extras.per_row["bonus"], expected, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(output.extras.per_row["bonus_return"], total, rtol=2e-3, atol=1e-5)
    assert total.min() > 0


def test_the_inverse_stays_exact_over_a_long_episode() -> None:
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(2000, 1, 6)) * [3, 1, 1, 0.1, 0.1, 0.01], jnp.float32)

    def step(inverse, features):
        bonus, inverse = elliptical_bonus(inverse, features)
        return inverse, bonus

    inverse, bonus = jax.lax.scan(step, jnp.eye(6)[None] / 0.1, features)
    rows = np.asarray(features, np.float64)[:, 0]
    expected = np.linalg.inv(0.1 * np.eye(6) + rows.T @ rows)
    np.testing.assert_allclose(inverse[0], expected, rtol=2e-2, atol=1e-4 * expected.max())
    assert bonus.min() >= 0 and bonus[-100:].mean() < 0.1 * bonus[:20].mean()


def test_equal_heads_agree_and_heads_agree_where_they_learned() -> None:
    """Random heads disagree everywhere.  After they learned from some rows, they agree there and not elsewhere."""
    ensemble = Ensemble(Categorical(ACTIONS), 4, jax.random.key(0))
    features, elsewhere = jax.random.normal(jax.random.key(1), (2, 2, 16, WIDTH))
    action = jnp.zeros((2, 16), jnp.int32)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), ensemble)
    assert float(jnp.abs(same.disagreement(features, action)).max()) < 1e-12

    def step(ensemble, _):
        gradient = jax.grad(lambda ensemble: ensemble.loss(features, action[:, :-1]).mean())(ensemble)
        return jax.tree.map(lambda x, g: x - g, ensemble, gradient), None

    trained = quick_jit(lambda ensemble: jax.lax.scan(step, ensemble, None, length=300)[0])(ensemble)
    before = ensemble.disagreement(features, action)[:, :-1].mean()
    seen = trained.disagreement(features, action)[:, :-1].mean()
    unseen = trained.disagreement(elsewhere, action).mean()
    assert float(seen) < 0.2 * float(before) and float(unseen) > 3 * float(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_bonus_learns_and_none_of_it_reaches_the_agent(kind: str) -> None:
    agent, batch = explored(kind), batch_of(rows_of())
    policy = agent.init(jax.random.key(0), SPEC)
    term = {"e3b": "inverse_dynamics", "disagreement": "disagreement"}[kind]

    def loss(params):
        targets, _ = agent.targets(policy, batch, jax.random.key(0))
        terms, _ = agent.loss(params, policy.state, batch, targets, jax.random.key(0), False)
        assert set(terms) == set(agent.weights)
        return terms[term].mean()

    gradient = quick_jit(jax.grad(loss))(policy.params)
    assert not any(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient.agent))
    for leaf in jax.tree.leaves(gradient.exploration):
        heads = np.asarray(leaf if kind == "disagreement" else leaf[None])
        assert (np.abs(heads).reshape(len(heads), -1).max(-1) > 0).all()


# Where it is added.


@pytest.mark.parametrize("kind", KINDS)
def test_targets_see_rewards_with_the_bonus(kind: str) -> None:
    """As if the environment had given it: to every arrival, and to no row that begins an episode."""
    settings = {"weight": 3.0, "final_weight": 1.0}
    agent, plain, rows = explored(kind, **settings), muesli_agent(), rows_of()
    policy = policy_with(agent, progress=0.25)
    weight = 0.75 * 3.0 + 0.25 * 1.0
    if kind == "e3b":
        raw = np.asarray(rows.extras.per_row["bonus"])
    else:
        features = policy.state.features(rows.observation)
        of_actions = np.asarray(policy.params.exploration.disagreement(features, rows.action))
        raw = np.concatenate([np.zeros((BATCH, 1)), of_actions[:, :-1]], axis=1)
        raw[:, 0] = np.asarray(rows.extras.per_row["bonus"])[:, 0]
    added = np.where(rows.first, 0.0, weight * raw / policy.state.size)
    targets, _ = quick_jit(agent.targets)(policy, batch_of(rows), jax.random.key(2))
    given = rows._replace(reward=rows.reward + jnp.asarray(added, jnp.float32))
    expected, _ = quick_jit(plain.targets)(agent.unwrap(policy), batch_of(given), jax.random.key(2))
    np.testing.assert_allclose(targets.reward, expected.reward, rtol=1e-4)
    np.testing.assert_allclose(targets.value, expected.value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(targets.advantage, expected.advantage, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(targets.extras.per_transition["bonus"], added[:, 1:], rtol=1e-4)
    first = np.asarray(rows.first)[:, 1:]
    assert first.any() and not np.asarray(targets.extras.per_transition["bonus"])[first].any()
    assert (np.asarray(targets.extras.per_transition["bonus"])[~first] > 0).all()


def policy_with(agent, progress: float = 0.0, size: float = 2.0) -> Policy:
    """The agent's first policy, at a share of training and with a root mean square of the sums of bonuses."""
    policy = agent.init(jax.random.key(0), SPEC)
    values = [jnp.asarray(value, jnp.float32) for value in (size**2, 1.0, progress)]
    state = eqx.tree_at(lambda s: (s.square, s.seen, s.progress), policy.state, values)
    return Policy(policy.params, state)


def test_the_size_of_bonuses_is_a_moving_mean_over_rollouts() -> None:
    agent = explored("e3b")
    state, square, seen = agent.init(jax.random.key(0), SPEC).state, 0.0, 0.0
    assert agent.begin is not None
    for rows in map(rows_of, range(3)):
        state = agent.begin(state, rows, jnp.asarray(0.5))
        sums = np.asarray(rows.extras.per_row["bonus_return"])[:, 1:][~np.asarray(rows.first)[:, 1:]]
        square, seen = KEPT * square + (1 - KEPT) * np.square(sums).mean(), KEPT * seen + (1 - KEPT)
        assert float(state.size) == pytest.approx(np.sqrt(square / seen), rel=1e-5) and float(state.progress) == 0.5
    failed = jax.tree.map(jnp.zeros_like, rows_of())
    failed = failed._replace(first=jnp.ones_like(failed.first))
    assert float(agent.begin(state, failed, jnp.asarray(0.5)).size) == pytest.approx(float(state.size), rel=1e-6)


def test_the_unit_of_values_covers_bonuses_and_the_largest_return_does_not_contain_them() -> None:
    """With a sparse reward that was never found, values in units of returns still resolve the bonus."""
    model = SMALL.model_copy(update={"value_unit": "returns"})
    agent = with_exploration(muesli_agent(model), ExplorationConfig(kind="e3b", weight=0.5, final_weight=0.1), model)
    policy = agent.init(jax.random.key(0), SPEC)
    for largest in (0.0, 2.0):
        state = eqx.tree_at(lambda state: state.largest_return, policy.state, jnp.asarray(largest))
        state = quick_jit(agent.targets)(Policy(policy.params, state), batch_of(rows_of()), jax.random.key(0))[1]
        assert float(state.largest_return) == largest
        assert float(state.agent.largest_return) == largest + LARGEST * 0.5
    assert agent.follows_returns and explored("e3b").follows_returns


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_computes_a_bonus_and_no_return_contains_it(kind: str) -> None:
    env = environments.make("toy/counter", 2, 0, options={"length": 3})
    agent = explored(kind)
    policy = agent.init(jax.random.key(0), env.spec)
    start = start_actors(agent, env, jax.random.key(1))
    collect = lambda mode: collect_rollout(agent, env, policy, start, 6, 0.0, mode)  # noqa: E731
    _, found, tally = quick_jit(lambda: collect("explore"))()
    bonus, first, last = (np.asarray(x) for x in (found.extras.per_row["bonus"], found.first, found.last))
    assert (bonus[first] == 0).all() and (bonus[~first] > 0).all()
    rewards = np.where(first, 0.0, reward_of(found))
    np.testing.assert_allclose(found.reward, rewards, rtol=1e-6)
    ended = np.cumsum(rewards, axis=1)[last].sum()  # one episode of each environment ends within six steps
    assert int(tally.episodes) == last.sum() == 2 and float(tally.return_sum) == pytest.approx(ended)
    state, plain_rows, _ = quick_jit(lambda: collect("sample"))()
    assert dict(plain_rows.extras.per_row) == {}
    assert_trees_equal(state.carry.exploration, start.carry.exploration)


def reward_of(rows) -> np.ndarray:
    """The counter's rewards, from its observations (index, time, previous action)."""
    index, time, action = np.moveaxis(np.asarray(rows.observation), -1, 0)
    return counter_reward(index, time, action)


# As a setting of every agent.


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_learns_with_it(agent: str) -> None:
    """A whole update of each agent and kind is traced, with its metrics; nothing is compiled."""
    for kind in KINDS:
        config = compose("toy/chain", {**settings_of(agent), "exploration.kind": kind})
        env = build.make_env(config, None, 4, 0, "train")
        parts = build.make_parts(config, env.spec)
        acting = start_actors(parts.agent, env, jax.random.key(0))
        plain = build.make_agent(compose("toy/chain", settings_of(agent)), env.spec)
        new = set(parts.agent.weights) - set(plain.weights)
        assert len(new) == 1 and (parts.agent.look is None) == (plain.look is None)
        assert parts.agent.begin is not None

        def iteration(state, acting, parts=parts, env=env, config=config):
            policy = Policy(state.params, state.agent_state)
            _, rows, tally = collect_rollout(parts.agent, env, policy, acting, config.loop.rollout_length, 0.0)
            return parts.learner.update(state, rows, tally)

        state, measured = jax.eval_shape(iteration, parts.template, acting)
        assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, parts.template)
        assert {"target/bonus", "target/bonus_share", "target/bonus_weight", *(f"loss/{term}" for term in new)} <= {
            *measured
        }
        assert all(name in GLOSSARY for name in measured)


def settings_of(agent: str) -> dict:
    """Settings of a tiny run of an agent."""
    derived = {"optimizer.batch_size": None, "optimizer.updates_per_step": None, "replay.capacity": None}
    more = {**derived, "optimizer.minibatches": 1} if agent == "ppo" else {}
    return {**SETTINGS, "agent": agent, **more}


def test_without_it_nothing_changes() -> None:
    agent = muesli_agent()
    assert with_exploration(agent, ExplorationConfig(), SMALL) is agent
    assert compose("toy/chain").exploration.kind == "none"
    assert agent.start(2).exploration is None and agent.unwrap(policy := Policy((), ())) is policy


@pytest.mark.parametrize(
    ("env", "settings", "error", "match"),
    [
        ("toy/chain", {"exploration.kind": "rnd"}, ConfigError, "expected one of none, e3b, disagreement"),
        ("toy/chain", {"exploration.weight": 0.0}, ConfigError, "no effect with weight=0"),
        ("toy/chain", {"exploration.weight": -1.0}, ConfigError, "exploration.weight"),
        ("toy/chain", {"exploration.ridge": 0.0}, ConfigError, "exploration.ridge"),
        ("toy/chain", {"exploration.ensemble_size": 1}, ConfigError, "exploration.ensemble_size"),
        ("toy/chain", {"model.value_head": "tanh"}, ConfigError, "model.value_head=tanh bounds"),
        (
            "toy/chain",
            {"model.reward_head": False, "losses.model_reward.weight": 0.0},
            ConfigError,
            "model.reward_head=false does not",
        ),
        ("toy/nim", {}, UnsupportedEnvironment, "e3b is for environments of one player"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_compiled(env, settings, error, match) -> None:
    with pytest.raises(error, match=match):
        build.require_possible(compose(env, {**SETTINGS, "exploration.kind": "e3b", **settings}))


@pytest.mark.parametrize("kind", KINDS)
def test_its_networks_are_a_part_of_the_summary(kind: str) -> None:
    settings = {**SETTINGS, "exploration.kind": kind, "exploration.ensemble_size": 3}
    (part,) = [part for part in inspect.parts_of(compose("toy/chain", settings), SPEC) if part.name == "exploration"]
    one = (WIDTH + ACTIONS + 1) * 128 + 129 * WIDTH
    encoder, head = (4 + 1) * 8 + 9 * WIDTH, (2 * WIDTH + 1) * 128 + 129 * ACTIONS
    assert part.parameters == {"e3b": encoder + head, "disagreement": 3 * one}[kind]
    assert part.flops == {"e3b": 2 * (4 * 8 + 8 * WIDTH), "disagreement": 6 * (one - 128 - WIDTH)}[kind]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_it_works_with_observations_of_several_arrays(kind: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "exploration.kind": kind, "exploration.weight": 1.0}
    config = compose("toy/riddle", settings)
    spec = environments.make("toy/riddle", 1, seed=0).spec
    (part,) = [part for part in inspect.parts_of(config, spec) if part.name == "exploration"]
    assert part.parameters > 0 and part.flops > 0
    run = bircher.train("toy/riddle", steps=128, out=tmp_path / "run", **settings)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["target/bonus"] > 0 for row in rows if "target/bonus" in row)
    assert any("target/bonus" in row for row in rows)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "solves"), [("none", False), ("e3b", True), ("disagreement", True)])
def test_it_finds_what_chance_does_not(tmp_path: Path, kind: str, solves: bool) -> None:
    """The right actions in a row are found by chance in one of 3^12 tries, and there are about 12,000 of them."""
    run = bircher.train(
        "toy/chain", seed=1, out=tmp_path / "run", steps=12_000,
        **{"env.options": {"length": 12}, "exploration.kind": kind, "evaluation.count": 0},
    )  # fmt: skip
    report = bircher.evaluate(run.agent, episodes=20)
    assert report.mean > 0.8 if solves else report.mean == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "space", [Continuous((2,), (-1.0,) * 2, (1.0,) * 2), MultiDiscrete((2, 3), (2,), (0, 0))], ids=str
)
def test_bonuses_depend_on_actions_of_any_kind(kind, space) -> None:
    """The networks of a bonus learn from vectors of actions, and another action gives another loss or bonus."""
    spec = SPEC._replace(action=space)
    agent, distribution = explored(kind), distribution_of(space)
    policy = quick_jit(lambda: agent.init(jax.random.key(0), spec))()
    rows = rows_of()
    params = jnp.zeros((*rows.reward.shape, distribution.num_params))
    losses = []
    for key in jax.random.split(jax.random.key(0), 2):
        action = distribution.sample(params, key)
        per_row = {**rows.extras.per_row, "behavior_log_prob": distribution.log_prob(params, action)}
        changed = rows._replace(
            action=action, legal_actions=jnp.ones((*rows.reward.shape, 0), bool), extras=Extras(per_row=per_row)
        )
        target, _ = quick_jit(lambda policy, batch: agent.targets(policy, batch, jax.random.key(1)))(
            policy, batch_of(changed)
        )
        terms, _ = quick_jit(agent.loss)(policy.params, policy.state, batch_of(changed), target, jax.random.key(1))
        losses.append(terms["inverse_dynamics" if kind == "e3b" else "disagreement"])
    assert np.isfinite(losses).all() and not np.allclose(*losses)
