"""What agents without a search learn from: multi-step returns, advantages, and policies improved by look-ahead.

"Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021 (https://arxiv.org/abs/2104.06159).
Equation numbers are that paper's.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.agents.policy_config import AdvantageConfig, CMPOConfig, PolicyAgentConfig
from bircher.agents.unrolling import episode_ends
from bircher.models.model import Model
from bircher.models.statistics import ObservationStatistics
from bircher.ops import distributions, improvement, losses, returns
from bircher.types import Batch, Key, Policy, PolicyTarget, Targets, Trajectory


class PolicyAgentState(eqx.Module):
    """What these agents keep beside their parameters."""

    normaliser: improvement.AdvantageNormaliser
    statistics: ObservationStatistics | None


class Wanted(NamedTuple):
    """Which products the enabled terms ask for; nothing else is computed."""

    look_ahead: bool
    """q^ of every action."""
    cmpo: bool
    """The policy target is CMPO's; else it is the prior."""
    mpo: bool


class _Seen(NamedTuple):
    """What the target network says of every row."""

    value: Float[Array, "B R"]
    prior: Float[Array, "B R A"]
    q: Float[Array, "B R A"] | None
    ratio: Float[Array, "B R"]
    """pi_prior(a|s) / pi_b(a|s) of the actions taken."""


def normalised(state: PolicyAgentState, observation: Array) -> Array:
    """Observations as the network is given them: as they were stored, or by their running mean and deviation."""
    return observation if state.statistics is None else state.statistics.normalise(observation)


def policy_targets(
    config: PolicyAgentConfig, wanted: Wanted, discount: float, policy: Policy, batch: Batch, key: Key
) -> tuple[Targets, PolicyAgentState]:
    """Multi-step returns, normalised advantages and improved policies, all from the target network.

    `discount` is gamma, negative where the next value is the opponent's; the rows' own discounts tell the same.
    `Targets.policy` covers all T + 1 rows, for the model's unroll may end on the last; the others T.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = ~ends[:, :-1]
    state = _observe(policy.state, rows, mask)
    seen = _seen(config, wanted, discount, policy.params, state, rows)
    value, raw_advantage = _returns(config, seen, rows, ends)
    normaliser = state.normaliser.update(raw_advantage, mask, config.advantage.decay)
    shift, scale = _normalisation(config.advantage, normaliser, raw_advantage, mask)
    chosen = raw_advantage
    if config.advantage.source == "look_ahead":
        assert seen.q is not None
        chosen = (distributions.select(seen.q, rows.action) - seen.value)[:, :-1]
    extras = {"prior": seen.prior, "advantage_scale": scale, "old_value": seen.value[:, :-1]}
    target = improvement.exact_target(seen.prior)
    if wanted.cmpo or wanted.mpo:
        q_advantage = _q_advantage(config.cmpo, seen) / scale
        extras["q_advantage"] = q_advantage
        if wanted.cmpo:
            target = _cmpo(config.cmpo, seen.prior, q_advantage, key)
        if wanted.mpo:
            tempered = q_advantage / config.mpo.temperature
            extras["mpo_policy"] = improvement.cmpo_policy(seen.prior, tempered, None)[:, :-1]
    result = Targets(
        value=value,
        reward=rows.reward[:, 1:],
        advantage=(chosen - shift) / scale,
        policy=target,
        mask=mask,
        priority=jnp.abs(jnp.where(mask, raw_advantage, 0.0)).max(-1),
        extras=extras,
    )
    return jax.lax.stop_gradient(result), PolicyAgentState(normaliser, state.statistics)


def _seen(
    config: PolicyAgentConfig, wanted: Wanted, discount: float, model: Model, state: PolicyAgentState, rows: Trajectory
) -> _Seen:
    latent = model.represent(normalised(state, rows.observation))
    prediction = model.predict(latent)
    behaviour_logits = rows.extras["behaviour_logits"]
    prior = distributions.mixture_prior(
        prediction.policy_logits, behaviour_logits, rows.legal_actions,
        config.prior.behaviour_share, config.prior.uniform_share,
    )  # fmt: skip
    behaviour = jax.nn.softmax(behaviour_logits)
    return _Seen(
        value=model.value_support.mean(prediction.value_logits),
        prior=prior,
        q=model.look_ahead(latent, discount) if wanted.look_ahead else None,
        ratio=distributions.select(prior, rows.action) / distributions.select(behaviour, rows.action),
    )


def _returns(
    config: PolicyAgentConfig, seen: _Seen, rows: Trajectory, ends: Bool[Array, "B R"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The value target of each root row, and how far it lies above v^ (for V-trace: the return of its gradient)."""
    reward, discounts = rows.reward[:, 1:], config.discount * rows.discount[:, 1:]
    lambda_, value = config.returns.lambda_, seen.value
    going = (~ends).astype(jnp.float32)
    # A sequence's last row belongs to what follows: its action's ratio and q are not used.
    c = going * lambda_ * jnp.minimum(seen.ratio, 1.0)
    if config.returns.kind == "gae":
        traces = lambda_ * going[:, 1:]
        advantage = jax.vmap(returns.generalised_advantages)(reward, discounts, traces, value[:, :-1], value[:, 1:])
        return advantage + value[:, :-1], advantage
    if config.returns.kind == "v_trace":
        rho = jnp.minimum(seen.ratio, 1.0)
        target, of_gradient = jax.vmap(returns.v_trace)(
            reward, discounts, value[:, :-1], value[:, 1:], rho[:, :-1], c[:, :-1], going[:, 1:]
        )
        return target, of_gradient - value[:, :-1]
    assert seen.q is not None
    taken, expected = distributions.select(seen.q, rows.action), (seen.prior * seen.q).sum(-1)
    target = jax.vmap(returns.retrace)(reward, discounts, taken[:, 1:], expected[:, 1:], c[:, 1:])
    return target, target - value[:, :-1]


def _normalisation(
    config: AdvantageConfig,
    normaliser: improvement.AdvantageNormaliser,
    advantage: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[Array, Array]:
    """What is subtracted from advantages, and what they are divided by."""
    shift, scale = jnp.zeros(()), jnp.ones(())
    if config.normalisation == "moving":
        scale = normaliser.scale(config.epsilon)
    elif config.normalisation == "batch":
        shift = losses.masked_mean(advantage, mask)
        scale = jnp.sqrt(losses.masked_mean(jnp.square(advantage - shift), mask)) + 1e-8
    return shift, scale / config.factor


def _q_advantage(config: CMPOConfig, seen: _Seen) -> Float[Array, "B R A"]:
    assert seen.q is not None
    baseline = (seen.prior * seen.q).sum(-1) if config.baseline == "expected_q" else seen.value
    return seen.q - baseline[..., None]


def _cmpo(config: CMPOConfig, prior: Array, q_advantage: Array, key: Key) -> PolicyTarget:
    if config.samples:
        assert config.clip_bound is not None
        return improvement.sampled_cmpo_target(key, prior, q_advantage, config.clip_bound, config.samples)
    return improvement.exact_target(improvement.cmpo_policy(prior, q_advantage, config.clip_bound))


def _observe(state: PolicyAgentState, rows: Trajectory, mask: Array) -> PolicyAgentState:
    if state.statistics is None:
        return state
    return PolicyAgentState(state.normaliser, state.statistics.update(rows.observation[:, :-1], mask))
