"""MuZero against a slow reference, and what its pieces promise."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.muzero_reference import losses as slow_losses
from agents.muzero_reference import value_target
from bircher.agents import muzero
from bircher.agents.base import Carry
from bircher.agents.muzero import MuZeroState
from bircher.ops import improvement, losses
from bircher.search import SearchConfig
from bircher.types import Extras, Policy, TimeStep
from builders import ACTIONS, SMALL, SPEC, batch_of, quick_jit, random_model, random_rows

BATCH, LENGTH, DISCOUNT = 6, 9, 0.9
SEARCH = SearchConfig(num_simulations=6)
STATE = MuZeroState()
KINDS = ("n_step", "lambda", "outcome")


def agent_of(name="muzero", model=SMALL, loss=None, num_players=1, search=SEARCH, **settings):
    config = muzero.MuZeroConfig.model_validate({"name": name, "gamma": DISCOUNT, **settings})
    return muzero.make(config, model, muzero.MuZeroLosses(**(loss or {})), search, num_players)


def rows_of(seed, two_players=False):
    """Random rows with searches' policies and values, and turns that change hands."""
    rows = random_rows(seed, BATCH, LENGTH)
    rng = np.random.default_rng(seed + 100)
    policy = rng.uniform(size=(*rows.reward.shape, ACTIONS)) * np.asarray(rows.legal_actions)
    policy = policy / policy.sum(-1, keepdims=True)
    value = rng.uniform(-1, 1, size=rows.reward.shape)
    extras = Extras(
        {"search_value": jnp.asarray(value, jnp.float32)}, {"search_policy": jnp.asarray(policy, jnp.float32)}
    )
    reward = jnp.clip(rows.reward / 3, -1, 1)
    discount = jnp.where(rows.terminal | rows.first | (not two_players), rows.discount, -1.0)
    return rows._replace(extras=extras, reward=reward, discount=discount)


def targets_of(agent, rows, seed=0, model=None):
    policy = Policy(model, STATE) if model is not None else agent.init(jax.random.key(0), SPEC)
    return quick_jit(agent.targets)(policy, batch_of(rows), jax.random.key(seed))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("players", [1, 2])
@pytest.mark.parametrize("random", [False, True])
def test_value_targets_are_the_slow_references(kind, players, random):
    rows = rows_of(3, players == 2)
    if random:
        rows.extras.per_row["random_action"] = jax.random.bernoulli(jax.random.key(2), 0.3, rows.reward.shape)
    agent = agent_of(returns={"kind": kind, "steps": 3, "lambda": 0.8}, num_players=players)
    target = targets_of(agent, rows)
    plain = jax.tree.map(np.asarray, rows)
    value = np.asarray(rows.extras.per_row["search_value"])
    checked = 0
    for b in range(BATCH):
        for t in range(LENGTH):
            if not target.mask[b, t]:
                assert not target.extras.per_transition["value_mask"][b, t]
                continue
            slow = value_target(plain, value, b, t, DISCOUNT, kind, n=3, lambda_=0.8)
            assert bool(target.extras.per_transition["value_mask"][b, t]) == (slow is not None)
            if slow is not None:
                assert float(target.value[b, t]) == pytest.approx(slow, abs=1e-5)
                checked += 1
    assert checked > 10
    errors = np.where(target.extras.per_transition["value_mask"], np.abs(target.value - value[:, :-1]), 0)
    np.testing.assert_allclose(target.priority, errors.max(-1), rtol=1e-6)


@pytest.mark.parametrize("kind", ["n_step", "lambda"])
def test_bootstraps_from_the_network_are_the_target_networks_values(kind):
    rows, model = rows_of(3), random_model(5)
    agent = agent_of(returns={"kind": kind, "steps": 3, "lambda": 0.8, "bootstrap": "network"})
    target = targets_of(agent, rows, model=model)
    plain, value = jax.tree.map(np.asarray, rows), np.asarray(model.value(model.represent(rows.observation)))
    for b, t in np.argwhere(target.mask):
        slow = value_target(plain, value, b, t, DISCOUNT, kind, n=3, lambda_=0.8)
        assert float(target.value[b, t]) == pytest.approx(slow, abs=1e-4)
        assert float(target.advantage[b, t]) == pytest.approx(slow - value[b, t], abs=1e-4)


@pytest.mark.parametrize("head", ["categorical", "tanh"])
@pytest.mark.parametrize("reward_head", [True, False])
def test_losses_are_the_slow_references(head, reward_head):
    config = SMALL.model_copy(update={"value_head": head, "reward_head": reward_head})
    turn = 1 if reward_head else -1
    rows = rows_of(5, turn == -1)
    off = {} if reward_head else {"model_reward": {"enabled": False}}
    agent = agent_of(model=config, loss=off, num_players=1 if turn == 1 else 2, returns={"kind": "outcome"})
    model = random_model(7, config)
    target = targets_of(agent, rows)
    terms, _ = quick_jit(agent.loss)(model, STATE, batch_of(rows), target, jax.random.key(0))
    held = {
        "value": np.asarray(target.value),
        "known": np.asarray(target.extras.per_transition["value_mask"]),
        "policy": np.asarray(improvement.dense(target.policy, ACTIONS)),
        "mask": np.asarray(target.mask),
    }
    slow = slow_losses(model, rows, held, SMALL.unroll_steps, turn, not reward_head)
    assert set(terms) == set(slow) - (set() if reward_head else {"model_reward"})
    for name, values in terms.items():
        np.testing.assert_allclose(np.where(target.mask, values, 0), slow[name], atol=2e-3, err_msg=name)


def test_a_fixture_that_encodes_place_and_time_shows_every_shift():
    """Trap 3: with n = 1 and discount 1 the target of (b, t) is exactly its next reward plus its next value."""
    rows = rows_of(0)
    b, t = np.meshgrid(np.arange(BATCH), np.arange(LENGTH + 1), indexing="ij")
    none = jnp.zeros(rows.first.shape, bool)
    rows = rows._replace(
        first=none, last=none, terminal=none, discount=jnp.ones(none.shape), reward=jnp.asarray(100.0 * b + t),
        extras=rows.extras._replace(per_row={"search_value": jnp.asarray(1000.0 * b + 0.5 * t)}),
    )  # fmt: skip
    target = targets_of(agent_of(gamma=1.0, returns={"steps": 1}), rows)
    np.testing.assert_allclose(target.value, (1100.0 * b + 1.5 * t)[:, 1:])
    np.testing.assert_allclose(target.reward, (100.0 * b + t)[:, 1:])
    np.testing.assert_allclose(improvement.dense(target.policy, ACTIONS), rows.extras.per_action["search_policy"])


@pytest.mark.parametrize("torso", ["mlp", "identity"])
def test_every_part_learns(torso):
    """Trap 2, with the consistency term's projection, or with the observation itself as latent and no projection."""
    model, spec, rows = SMALL, SPEC, rows_of(1)
    if torso == "identity":
        settings = {"torso": torso, "dynamics_widths": (5,), "prediction_channels": 3, "prediction_kernel": 4}
        model = SMALL.model_copy(update=settings)
        spec = SPEC._replace(observation=jax.ShapeDtypeStruct((4, 5, 2), bool))
        rows = rows._replace(observation=jax.random.bernoulli(jax.random.key(2), 0.5, (*rows.reward.shape, 4, 5, 2)))
    agent = agent_of(loss={"consistency": {"weight": 1.0}}, model=model)
    policy = agent.init(jax.random.key(1), spec)
    target = targets_of(agent, rows, model=policy.params)
    model = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), policy.params)

    def total(model):
        terms, _ = agent.loss(model, STATE, batch_of(rows), target, jax.random.key(0))
        return losses.combine(terms, agent.weights, target.mask, jnp.ones(BATCH))[0]

    gradient = quick_jit(jax.grad(total))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


def test_identity_latents_are_compared_by_squared_distance():
    model = SMALL.model_copy(update={"torso": "identity", "dynamics_widths": (5,), "unroll_steps": 1})
    rows = rows_of(1)
    shown = jax.random.bernoulli(jax.random.key(2), 0.5, (*rows.reward.shape, 4, 5, 2)).astype(jnp.float32)
    rows = rows._replace(observation=shown)
    agent = agent_of(loss={"consistency": {"weight": 1.0}}, model=model)
    network = agent.init(jax.random.key(1), SPEC._replace(observation=jax.ShapeDtypeStruct((4, 5, 2), bool))).params
    target = targets_of(agent, rows, model=network)
    found = quick_jit(agent.loss)(network, STATE, batch_of(rows), target, jax.random.key(0))[0]["consistency"]
    board = 2 * np.asarray(shown).reshape(BATCH, LENGTH + 1, -1) - 1
    imagined = np.asarray(network.step(jnp.asarray(board), rows.action))
    for b, t in np.ndindex(BATCH, LENGTH):
        expected = np.square(imagined[b, t] - board[b, t + 1]).mean() if target.mask[b, t] else 0.0
        assert float(found[b, t]) == pytest.approx(expected, abs=1e-4)


def test_policies_learn_which_actions_are_illegal():
    """Below its root a search sees no mask: only the network can keep it from moves that there are none of."""
    rows = rows_of(5)
    agent, model = agent_of(loss={"entropy": {"weight": 1.0}}), random_model(7)

    def term(bias, name):
        policy = eqx.tree_at(lambda model: model.heads.policy.layers[-1].bias, model, bias)
        return (agent.loss(policy, STATE, batch_of(rows), target, jax.random.key(0))[0][name] * target.mask).sum()

    bias = model.heads.policy.layers[-1].bias
    only = jnp.arange(ACTIONS) == 1  # the others are illegal wherever this one is forced
    rows = rows._replace(
        legal_actions=jnp.broadcast_to(only, rows.legal_actions.shape),
        extras=rows.extras._replace(
            per_action={"search_policy": jnp.broadcast_to(only * 1.0, rows.legal_actions.shape)}
        ),
    )
    target = targets_of(agent, rows)
    for name in ("policy", "model_policy"):
        gradient = np.asarray(quick_jit(jax.grad(term), static_argnums=1)(bias, name))
        assert gradient[1] < -0.1 and (gradient[[0, 2]] > 0.1).all()
    # An entropy of what cannot be done would pull the other way.
    np.testing.assert_allclose(quick_jit(jax.grad(term), static_argnums=1)(bias, "entropy"), 0, atol=1e-6)


def test_additions_are_absent_unless_weighted():
    agent = agent_of()
    assert "consistency" not in agent.weights and "entropy" not in agent.weights
    assert agent.init(jax.random.key(0), SPEC).params.projection is None


@pytest.mark.parametrize("name", ["muzero", "gumbel_muzero"])
def test_reanalysis_with_the_same_parameters_gives_the_same_targets(name):
    model = random_model(2)
    rows = random_rows(4, BATCH, LENGTH)
    legal = rows.legal_actions | ~rows.legal_actions.any(-1, keepdims=True)
    rows = rows._replace(legal_actions=legal)
    fresh = agent_of(name, reanalyze_fraction=1.0)
    key = jax.random.key(9)
    shape = rows.reward.shape
    blank = Extras({"search_value": jnp.zeros(shape)}, {"search_policy": jnp.zeros((*shape, ACTIONS))})
    first = targets_of(fresh, rows._replace(extras=blank), 9, model)
    # What that search said, as if it had acted: without reanalysis the targets are the same.
    config = muzero.MuZeroConfig.model_validate({"name": name, "gamma": DISCOUNT})
    plan = muzero.planner(config, SEARCH, DISCOUNT)
    flat = (model.represent(rows.observation.reshape(-1, 4)), legal.reshape(-1, ACTIONS))
    found = quick_jit(lambda: plan(model, *flat, key, "sample"))()
    stored = Extras(
        {"search_value": found.value.reshape(shape)}, {"search_policy": found.weights.reshape(*shape, ACTIONS)}
    )
    second = targets_of(agent_of(name), rows._replace(extras=stored), 9, model)
    np.testing.assert_allclose(first.value, second.value, atol=1e-4)
    np.testing.assert_allclose(first.policy.weights, second.policy.weights, atol=1e-4)
    half = targets_of(agent_of(name, reanalyze_fraction=0.5), rows._replace(extras=blank), 9, model)
    assert float(jnp.abs(half.policy.weights[: BATCH // 2]).max()) == 0
    assert float(half.policy.weights[BATCH // 2 :].sum(-1).min()) == pytest.approx(1, abs=1e-4)


def first_rows(size, legal=None):
    flag, number = jnp.zeros(size, bool), jnp.zeros(size)
    legal = jnp.ones((size, ACTIONS), bool) if legal is None else legal
    observation = jax.random.normal(jax.random.key(1), (1, 4)) * jnp.ones((size, 1))
    return TimeStep(observation, number, number + 1, ~flag, flag, flag, legal, flag)


@pytest.mark.parametrize("name", ["muzero", "gumbel_muzero"])
def test_acting_takes_legal_actions_and_stores_the_search_result(name):
    legal = jnp.asarray(np.tile([True, False, True], (64, 1)))
    agent, model = agent_of(name), random_model(3)
    for mode in ("explore", "sample", "greedy"):
        act = quick_jit(
            lambda key, mode=mode: agent.act(Policy(model, STATE), Carry(), first_rows(64, legal), key, mode, 0.0)
        )
        output, carry = act(jax.random.key(0))
        assert carry == Carry() and not (output.action == 1).any()
        policy = output.extras.per_action["search_policy"]
        np.testing.assert_allclose(policy.sum(-1), 1, atol=1e-5)
        assert float(policy[:, 1].max()) == 0
        assert output.extras.per_row["search_value"].shape == (64,)
        if mode == "greedy":
            assert len(set(np.asarray(output.action).tolist())) == 1


def test_a_share_of_trainings_actions_is_random_and_says_so():
    legal = jnp.asarray(np.tile([True, False, True], (4000, 1)))
    agent, model = agent_of(random_action_share=0.25), random_model(3)
    rows = first_rows(4000, legal)
    found = {}
    for mode in ("explore", "sample"):
        output, _ = quick_jit(
            lambda mode=mode: agent.act(Policy(model, STATE), Carry(), rows, jax.random.key(0), mode, 0.0)
        )()
        found[mode] = np.asarray(output.action), np.asarray(output.extras.per_row["random_action"])
    assert not found["sample"][1].any(), "after training none is"
    action, random = found["explore"]
    assert abs(random.mean() - 0.25) < 0.03
    assert abs((action[random] == 0).mean() - 0.5) < 0.06, "the prior prefers one"
    assert not (action == 1).any()
    plain, _ = quick_jit(
        lambda: agent_of().act(Policy(model, STATE), Carry(), rows, jax.random.key(0), "explore", 0.0)
    )()
    assert "random_action" not in plain.extras.per_row


def test_without_simulations_the_network_acts_alone():
    agent, model = agent_of(search=SearchConfig(num_simulations=0)), random_model(3)
    rows = first_rows(4000)
    output, _ = quick_jit(lambda: agent.act(Policy(model, STATE), Carry(), rows, jax.random.key(0), "sample", 1.0))()
    expected = jax.nn.softmax(model.predict(model.represent(rows.observation[:1])).policy_logits)[0]
    np.testing.assert_allclose(np.bincount(output.action, minlength=ACTIONS) / 4000, expected, atol=0.03)
    greedy, _ = agent.act(Policy(model, STATE), Carry(), rows, jax.random.key(0), "greedy", 1.0)
    assert set(np.asarray(greedy.action).tolist()) == {int(expected.argmax())}


def test_the_temperature_falls_with_training():
    config = muzero.TemperatureConfig()
    shares = (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)
    assert [float(config.at(share)) for share in shares] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    weights = jnp.tile(jnp.array([0.6, 0.4, 0.0]), (20_000, 1))
    for temperature in (1.0, 0.5):
        drawn = muzero.draw(jax.random.key(0), weights, jnp.asarray(temperature))
        goal = np.array([0.6, 0.4, 0]) ** (1 / temperature)
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, goal / goal.sum(), atol=0.015)
    assert set(np.asarray(muzero.draw(jax.random.key(0), weights, jnp.zeros(()))).tolist()) == {0}


def test_the_temperature_scales_gumbels_noise():
    """The same noise moves fewer actions away from the best one as training goes on."""
    agent, models, rows = agent_of("gumbel_muzero"), [random_model(seed) for seed in range(6)], first_rows(200)
    act = quick_jit(
        lambda model, mode, p: agent.act(Policy(model, STATE), Carry(), rows, jax.random.key(0), mode, p)[0].action,
        static_argnums=1,
    )
    # Over several networks: how far apart a single one's two best actions are is chance.
    bests = [int(act(model, "greedy", 0.0)[0]) for model in models]
    moved = [
        [(act(model, "explore", share) != best).mean() for model, best in zip(models, bests, strict=True)]
        for share in (0.0, 0.6, 1.0)
    ]
    others = np.mean(moved, axis=1)
    assert others[0] > 1.5 * others[1] > 2 * others[2], others
    model, best = models[0], bests[0]
    still = agent_of("gumbel_muzero", temperature={"values": [0.0], "changes": []})
    output, _ = quick_jit(lambda: still.act(Policy(model, STATE), Carry(), rows, jax.random.key(0), "explore", 0.0))()
    assert (output.action == best).all()


def test_only_the_first_moves_are_drawn_where_so_set():
    agent, model = agent_of(temperature={"values": [1.0], "changes": [], "moves": 2}), random_model(3)
    rows, carry = first_rows(200), agent.start(200)
    act = quick_jit(lambda rows, carry, key: agent.act(Policy(model, STATE), carry, rows, key, "sample", 0.0))
    kinds = []
    for number in range(4):
        output, carry = act(rows._replace(first=jnp.full(200, number == 0)), carry, jax.random.key(number))
        kinds.append(len(set(np.asarray(output.action).tolist())))
    assert kinds[0] > 1 and kinds[1] > 1 and kinds[2:] == [1, 1]
    _, carry = act(rows, carry, jax.random.key(9))
    np.testing.assert_array_equal(carry.moves, 1)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="values must be temperatures of at least 0"):
        muzero.TemperatureConfig(values=(1.0,), changes=(0.5,))
    with pytest.raises(ValueError, match="changes must be in ascending order"):
        muzero.TemperatureConfig(values=(1.0, 0.5, 0.1), changes=(0.7, 0.5))


def test_defaults_are_the_papers():
    config, table = muzero.MuZeroConfig(), muzero.MuZeroLosses()
    assert (config.gamma, config.returns.steps, config.temperature.values) == (0.997, 10, (1.0, 0.5, 0.25))
    assert table.weights() == {"policy": 1, "model_policy": 1, "value": 0.25, "model_value": 0.25, "model_reward": 1}
    assert dataclasses.is_dataclass(agent_of().init(jax.random.key(0), SPEC).params)
