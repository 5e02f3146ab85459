"""What a model knows, by a loop over every row and depth; and on models whose errors are known."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from agents.muesli_reference import leads_nowhere, step
from bircher.agents import actor_critic
from bircher.agents.base import LookAhead
from bircher.analysis import model_error
from bircher.cli import app
from bircher.config.config import AGENTS
from bircher.ops.distributions import mask_logits
from bircher.types import Extras, Policy
from builders import SMALL, SPEC, batch_of, muesli_agent, policy_of, quick_jit, random_model, random_rows

BATCH, LENGTH, DEPTHS, DISCOUNT = 5, 8, 4, 0.9
AGENT = muesli_agent(gamma=DISCOUNT)
MODEL = random_model(11)


def found_for(rows, depths=DEPTHS):
    def measure(rows):
        return model_error.diagnose(AGENT, policy_of(AGENT, MODEL), rows, depths, jax.random.key(0))

    return quick_jit(measure)(rows)


def outcome_of(rows, value, b, t):
    """The discounted rewards from row t to its episode's end, or to the value where the rows or a limit cut it."""
    if rows.terminal[b, t]:
        return 0.0
    if t + 1 >= rows.reward.shape[1] or leads_nowhere(rows, b, t):
        return value[b, t]
    return rows.reward[b, t + 1] + DISCOUNT * rows.discount[b, t + 1] * outcome_of(rows, value, b, t + 1)


@pytest.mark.slow
def test_errors_are_those_of_a_loop_over_rows_and_depths():
    rows = random_rows(8, 4 * BATCH, LENGTH, all_legal=True)
    found = found_for(rows)
    latents = MODEL.represent(rows.observation)
    value = np.array(MODEL.value(latents))
    prior = np.asarray(jax.nn.softmax(MODEL.predict(latents).policy_logits), float)
    rows = jax.tree.map(np.asarray, rows)
    value[rows.terminal] = 0
    errors = {name: [[] for _ in range(DEPTHS)] for name in ("reward", "value", "return", "policy")}
    q, one_step, advantages = np.asarray(MODEL.look_ahead(latents, DISCOUNT)), [], []
    for b in range(4 * BATCH):
        for t in range(LENGTH):
            latent = latents[b, t]
            if not leads_nowhere(rows, b, t):
                following = rows.reward[b, t + 1] + DISCOUNT * rows.discount[b, t + 1] * value[b, t + 1]
                one_step.append(following - value[b, t])
                advantages.append(q[b, t, rows.action[b, t]] - (prior[b, t] * q[b, t]).sum())
            for k in range(1, DEPTHS + 1):
                if t + k > LENGTH or leads_nowhere(rows, b, t + k - 1):
                    break
                latent = step(MODEL, latent, rows.action[b, t + k - 1])
                there = float(MODEL.value(latent))
                errors["reward"][k - 1].append((float(MODEL.reward(latent)) - rows.reward[b, t + k]) ** 2)
                errors["value"][k - 1].append((there - value[b, t + k]) ** 2)
                errors["return"][k - 1].append((there - outcome_of(rows, value, b, t + k)) ** 2)
                if not leads_nowhere(rows, b, t + k):
                    logits = np.asarray(MODEL.predict(latent).policy_logits, float)
                    log_q = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                    p = prior[b, t + k]
                    errors["policy"][k - 1].append((p * (np.log(p) - log_q)).sum())
    for name in ("reward", "value", "return"):
        slow = [np.sqrt(np.mean(squares)) for squares in errors[name]]
        np.testing.assert_allclose(getattr(found, f"{name}_error"), slow, rtol=2e-3)
    np.testing.assert_allclose(found.policy_kl, [np.mean(values) for values in errors["policy"]], rtol=2e-3)
    correlation = np.corrcoef(advantages, one_step)[0, 1]
    np.testing.assert_allclose(found.advantage_correlation, correlation, rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(found.advantage_ceiling, np.std(advantages) / np.std(one_step), rtol=2e-3)


@pytest.mark.parametrize(("known", "slope"), [(1.0, 1.0), (0.25, 4.0), (0.0, 0.0)])
def test_true_advantages_reach_their_ceiling_in_spite_of_chance(known, slope):
    """Errors of one step hold an advantage, the state's own value error and chance; the model may know the first."""
    batch, length = 64, 64
    rows, rng = random_rows(1, batch, length, all_legal=True), np.random.default_rng(0)
    shape, no = rows.reward.shape, jnp.zeros(rows.reward.shape, bool)
    advantage = rng.normal(size=(*shape, 3))
    advantage -= advantage.mean(-1, keepdims=True)
    action = rng.integers(0, 3, shape)
    value = rng.normal(size=shape) * 10
    taken = np.take_along_axis(advantage, action[..., None], -1)[..., 0]
    error = taken + rng.normal(size=shape) + 2 * rng.normal(size=shape)
    reward = np.zeros(shape)
    reward[:, 1:] = (error + value)[:, :-1] - DISCOUNT * value[:, 1:]
    rows = rows._replace(
        first=no, last=no, terminal=no, discount=jnp.ones(shape), reward=jnp.asarray(reward, jnp.float32),
        action=jnp.asarray(action, jnp.int32),
    )  # fmt: skip
    # A model that knows nothing guesses: advantages of the right size that mean nothing.
    q = value[..., None] + (
        known * advantage if known else rng.permutation(advantage.reshape(-1, 3)).reshape(*shape, 3)
    )
    flat = [jnp.asarray(x, jnp.float32).reshape(-1, *x.shape[2:]) for x in (value, q)]
    prior = jnp.full((flat[0].size, 3), 1 / 3)
    agent = AGENT._replace(look=lambda *_: LookAhead(flat[0], prior, flat[1], prior))
    found = quick_jit(lambda: model_error.diagnose(agent, policy_of(AGENT, MODEL), rows, 1, jax.random.key(0)))()
    expected = known * np.std(taken) / np.std(error) if known else np.std(taken) / np.std(error)
    assert float(found.advantage_ceiling) == pytest.approx(expected, abs=0.02)
    assert float(found.advantage_correlation / found.advantage_ceiling) == pytest.approx(slope, abs=0.2)


def test_a_model_without_a_clue_gains_nothing():
    """A fresh network says 0 of everything: its errors are the real numbers' own size, and it promises nothing."""
    fresh = AGENT.init(jax.random.key(0), SPEC)
    rows = random_rows(9, 16, LENGTH, all_legal=True)
    found = quick_jit(lambda: model_error.diagnose(AGENT, fresh, rows, 2, jax.random.key(0)))()
    assert float(found.gain) == 0 and float(found.policy_kl.max()) < 1e-6 and float(found.improvement_kl) < 1e-6
    assert float(found.value_error.max()) == 0
    assert float(found.reward_error[0]) == pytest.approx(float(found.reward_deviation), rel=0.05)


def test_the_look_ahead_promises_a_gain():
    found = found_for(random_rows(10, BATCH, LENGTH, all_legal=True))
    assert float(found.gain) > 0 and float(found.improvement_kl) > 0
    assert -1 <= float(found.advantage_correlation) <= 1 and 0 < float(found.advantage_ceiling) <= 1


CMPO_ON = {"cmpo": {"weight": 1.0}, "model_value": {"weight": 1.0}, "model_reward": {"weight": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("muesli", {}),
        ("muesli", {"advantage": {"factor": 7.0}}),
        ("muesli", {"advantage": {"normalization": "none"}, "cmpo": {"clip_bound": 0.3}}),
        ("muesli", {"cmpo": {"baseline": "expected_q", "clip_bound": None}}),
        ("muesli", {"prior": {"behavior_share": 0.2, "uniform_share": 0.5}}),
        ("muesli", {"advantage": {"normalization": "batch", "factor": 0.2}}),
        ("ppo", {"cmpo": {"clip_bound": 5.0}}),
        ("mpo", {"mpo": {"temperature": 2.0}}),
        ("pg", {}),
    ],
)
def test_the_improved_policy_of_one_observation_is_the_target_of_a_batch(agent, settings):
    """Where the network's own policy acted, and on the batch that it knows."""
    kind = AGENTS[agent].model_fields
    losses = kind["losses"].annotation.model_validate(CMPO_ON if agent == "ppo" else {})
    made = actor_critic.make(kind["agent"].annotation.model_validate(settings), SMALL, losses)
    rows = random_rows(12, 2 * BATCH, LENGTH)
    logits = MODEL.predict(MODEL.represent(rows.observation)).policy_logits
    # Rewards above 0: a batch's mean and deviation differ from its second moment.
    reward, behavior = np.where(rows.first, 0.0, rows.reward + 5.0), mask_logits(logits, rows.legal_actions)
    rows = rows._replace(reward=reward.astype(np.float32), extras=Extras(per_action={"behavior_logits": behavior}))
    targets, state = quick_jit(made.targets)(policy_of(made, MODEL), batch_of(rows), jax.random.key(0))
    look = made.look(Policy(MODEL, state), MODEL.represent(rows.observation), rows.legal_actions, jax.random.key(0))
    toward = targets.extras.per_transition["mpo_policy"] if agent == "mpo" else targets.policy.weights
    np.testing.assert_allclose(look.improved[:, : toward.shape[1]], toward, rtol=1e-3, atol=1e-4)
    moved = np.abs(np.asarray(look.improved) - np.asarray(look.prior)).max()
    assert (moved > 0.02) == (agent != "pg"), "a plain policy gradient has no improved policy"


def test_too_short_sequences_are_refused():
    with pytest.raises(ValueError, match="sequences of 8 steps are too short for 9 steps"):
        model_error.diagnose(AGENT, policy_of(AGENT, MODEL), random_rows(0, 2, LENGTH), 9, jax.random.key(0))


def test_without_a_reward_head_the_outcome_is_the_last_positions_value():
    """Rewards are not judged, and a value is held against the outcome seen from its own side."""
    board = SMALL.model_copy(update={"value_head": "tanh", "reward_head": False})
    model = random_model(11, board)
    agent = actor_critic.make(actor_critic.MuesliConfig(gamma=1.0), board, actor_critic.MuesliLosses(), None, 2)
    rows = random_rows(8, 4 * BATCH, LENGTH, all_legal=True)
    discount = np.where(rows.terminal | rows.first, rows.discount, -1.0).astype(np.float32)
    rows = rows._replace(reward=np.where(rows.terminal, 1.0, 0.0).astype(np.float32), discount=discount)
    found = quick_jit(lambda rows: model_error.diagnose(agent, policy_of(agent, model), rows, 1, jax.random.key(0)))(
        rows
    )
    assert np.isnan(np.asarray(found.reward_error)).all()
    assert model_error.as_dictionary(found)["reward_error"] == [None]
    assert not any("reward" in name for name in model_error.as_metrics(found))
    latents = model.represent(rows.observation)
    values, rows = np.asarray(model.value(latents)), jax.tree.map(np.asarray, rows)
    errors = []
    for b in range(4 * BATCH):
        for t in range(LENGTH):
            if leads_nowhere(rows, b, t):
                continue
            there = float(model.value(step(model, latents[b, t], rows.action[b, t])))
            s, sign = t + 1, 1
            while s < LENGTH and not leads_nowhere(rows, b, s):
                s, sign = s + 1, -sign
            # Who would move behind the last move is who did not make it: it lost.
            outcome = -1.0 if rows.terminal[b, s] else values[b, s]
            errors.append((there - sign * outcome) ** 2)
    np.testing.assert_allclose(found.return_error[0], np.sqrt(np.mean(errors)), rtol=1e-3)


def test_every_metric_is_in_the_glossary():
    from bircher import metrics

    metrics.check(model_error.as_metrics(found_for(random_rows(10, BATCH, LENGTH, all_legal=True))))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["muesli", pytest.param("gumbel_muzero", marks=pytest.mark.long)])
def test_the_command_prints_one_object_and_draws(agent, tmp_path):
    from tiny import WORDS

    run = str(tmp_path / "run")
    words = ["train", "toy/catch", "steps=32", f"agent={agent}", *WORDS, "--out", run]
    words += ["search.num_simulations=4"] if agent != "muesli" else []
    assert CliRunner().invoke(app, words).exit_code == 0
    told = CliRunner().invoke(app, ["diagnose", run, "--steps", "1024", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["depths"] == [1, 2, 3, 4] and found["unroll_steps"] == 2 and found["env_steps"] > 500
    assert len(found["value_error"]) == 4 and np.isfinite(found["return_error"]).all()
    assert abs(found["advantage_correlation"]) <= 1 and 0 <= found["advantage_ceiling"] <= 1
    assert (tmp_path / "run" / "diagnosis.png").stat().st_size > 10_000
    assert CliRunner().invoke(app, ["diagnose", str(tmp_path / "none")]).exit_code == 2
