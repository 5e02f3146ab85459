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

from bircher.agents.base import remembered
from bircher.agents.policy_config import AdvantageConfig, CMPOConfig, PolicyAgentConfig
from bircher.agents.unrolling import episode_ends, learnt_from
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


def encoded(model: Model, state: PolicyAgentState, rows: Trajectory, burn_in: int = 0) -> Float[Array, "B R latent"]:
    """The latents of rows, with the memory that stands in them."""
    return model.encode_rows(normalised(state, rows.observation), remembered(rows), rows.first, burn_in)


def policy_targets(
    config: PolicyAgentConfig, wanted: Wanted, discount: float, burn_in: int, policy: Policy, batch: Batch, key: Key
) -> tuple[Targets, PolicyAgentState]:
    """Multi-step returns, normalised advantages and improved policies, all from the target network.

    `discount` is gamma, negative where the next value is the opponent's; the rows' own discounts tell the same.
    `Targets.policy` covers all T + 1 rows, for the model's unroll may end on the last; the others T.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = learnt_from(ends, burn_in)
    state = _observe(policy.state, rows, mask)
    seen = _seen(config, wanted, discount, policy.params, state, rows)
    value, raw_advantage = _returns(config, seen, rows, ends)
    normaliser, shift, scale = _normalisation(config.advantage, state.normaliser, raw_advantage, mask)
    chosen = raw_advantage
    if config.advantage.source == "look_ahead":
        assert seen.q is not None
        chosen = (distributions.select(seen.q, rows.action) - seen.value)[:, :-1]
    extras = {"prior": seen.prior, "advantage_scale": scale, "old_value": seen.value[:, :-1]}
    target = improvement.exact_target(seen.prior)
    if wanted.cmpo or wanted.mpo:
        assert seen.q is not None
        q_advantage = _q_advantage(config.cmpo, seen.prior, seen.q, seen.value) / scale
        extras["q_advantage"] = q_advantage
        if wanted.cmpo:
            target = _cmpo(config.cmpo, seen.prior, q_advantage, key)
        if wanted.mpo:
            extras["mpo_policy"] = _mpo(config, seen.prior, q_advantage)[:, :-1]
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
    latent = encoded(model, state, rows)
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


def improved_policy(
    config: PolicyAgentConfig,
    wanted: Wanted,
    state: PolicyAgentState,
    prior: Float[Array, "*B A"],
    q: Float[Array, "*B A"],
    value: Float[Array, "*B"],
) -> Float[Array, "*B A"]:
    """What a prior is drawn to, as `policy_targets` makes it, of single observations and by what the state knows.

    CMPO's policy over all actions (also where targets sample some), else MPO's, else the prior itself.  A batch's
    deviation is not known here: the moving one of all batches stands for it.
    """
    advantage = _q_advantage(config.cmpo, prior, q, value) / _known_scale(config.advantage, state.normaliser)
    if wanted.cmpo:
        return improvement.cmpo_policy(prior, advantage, config.cmpo.clip_bound)
    return _mpo(config, prior, advantage) if wanted.mpo else prior


def _normalisation(
    config: AdvantageConfig,
    normaliser: improvement.AdvantageNormaliser,
    advantage: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[improvement.AdvantageNormaliser, Array, Array]:
    """The moving scale after this batch, what is subtracted from its advantages, and what they are divided by."""
    by_batch = config.normalisation == "batch"
    shift = losses.masked_mean(advantage, mask) if by_batch else jnp.zeros(())
    normaliser = normaliser.update(advantage - shift, mask, config.decay)
    scale = _known_scale(config, normaliser)
    if by_batch:
        deviation = jnp.sqrt(losses.masked_mean(jnp.square(advantage - shift), mask)) + 1e-8
        scale = deviation / config.factor
    return normaliser, shift, scale


def _known_scale(config: AdvantageConfig, normaliser: improvement.AdvantageNormaliser) -> Array:
    """What advantages are divided by, as far as the state knows."""
    scale = jnp.ones(()) if config.normalisation == "none" else normaliser.scale(config.epsilon)
    return scale / config.factor


def _q_advantage(
    config: CMPOConfig, prior: Float[Array, "*B A"], q: Float[Array, "*B A"], value: Float[Array, "*B"]
) -> Float[Array, "*B A"]:
    baseline = (prior * q).sum(-1) if config.baseline == "expected_q" else value
    return q - baseline[..., None]


def _mpo(
    config: PolicyAgentConfig, prior: Float[Array, "*B A"], q_advantage: Float[Array, "*B A"]
) -> Float[Array, "*B A"]:
    return improvement.cmpo_policy(prior, q_advantage / config.mpo.temperature, None)


def _cmpo(config: CMPOConfig, prior: Array, q_advantage: Array, key: Key) -> PolicyTarget:
    if config.samples:
        assert config.clip_bound is not None
        return improvement.sampled_cmpo_target(key, prior, q_advantage, config.clip_bound, config.samples)
    return improvement.exact_target(improvement.cmpo_policy(prior, q_advantage, config.clip_bound))


def _observe(state: PolicyAgentState, rows: Trajectory, mask: Array) -> PolicyAgentState:
    if state.statistics is None:
        return state
    return PolicyAgentState(state.normaliser, state.statistics.update(rows.observation[:, :-1], mask))
