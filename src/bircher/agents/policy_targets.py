"""The targets of agents that learn a policy without a search: returns, advantages, and improved policies.

Equation numbers are those of "Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021
(https://arxiv.org/abs/2104.06159).

Few discrete actions have a probability and a q^ each, and arrays [..., A] of them.  For all other actions the same
quantities are computed for `Candidates`, and the prior's expectation of q^ is that over the candidates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from bircher.agents import candidates as candidate_actions
from bircher.agents.base import LookAhead, initial_memory, model_of
from bircher.agents.candidates import Candidates
from bircher.agents.config import AdvantageConfig, CMPOConfig, PolicyAgentConfig
from bircher.agents.unroll import episode_ends, root_mask
from bircher.networks.layers import ObservationStatistics, PartStatistics
from bircher.networks.model import Model
from bircher.ops import distributions, improvement, losses, returns
from bircher.types import Batch, Key, Policy, PolicyTarget, Prediction, TargetExtras, Targets, Trajectory


class PolicyAgentState(eqx.Module):
    """The state of these agents next to their parameters."""

    normalizer: improvement.AdvantageNormalizer
    statistics: ObservationStatistics | PartStatistics | None
    largest_return: Float[Array, ""] | None = None
    """The largest discounted return of training so far; None where the unit of values does not follow it."""


class TargetSpec(NamedTuple):
    """The quantities that the enabled loss terms need; nothing else is computed."""

    look_ahead: bool
    """Whether q^ of every action is needed."""
    cmpo: bool
    """Whether the policy target is the CMPO policy; otherwise it is the prior."""
    mpo: bool
    """Whether the policy target of MPO is needed."""


class _TargetOutputs(NamedTuple):
    """The outputs of the target network for every row."""

    value: Float[Array, "B R"]
    prior: Float[Array, "B R A"]
    """The prior's weight of each action: probabilities of few discrete actions, or the weights of candidates."""
    q: Float[Array, "B R A"] | None
    """q^ of each action; None where no term looks ahead."""
    ratio: Float[Array, "B R"]
    """pi_prior(a|s) / pi_b(a|s) of the actions that were taken."""
    q_taken: Float[Array, "B R"] | None
    """q^ of the actions that were taken."""
    candidates: Candidates | None
    """None for few discrete actions."""
    params: Float[Array, "B R P"]
    """Parameters of the target network's own policy."""


def normalize_observation(state: PolicyAgentState, observation: PyTree[Array]) -> PyTree[Array]:
    """Return observations as the network takes them: unchanged, or scaled by their running mean and deviation."""
    return observation if state.statistics is None else state.statistics.normalize(observation)


def encode_rows(
    model: Model, state: PolicyAgentState, rows: Trajectory, burn_in: int = 0
) -> Float[Array, "B R latent"]:
    """Encode rows into latents, starting from the memory that is stored in the first row of each sequence."""
    return model.encode_rows(normalize_observation(state, rows.observation), initial_memory(rows), rows.first, burn_in)


def policy_encode(policy: Policy, rows: Trajectory) -> Array:
    """Encode rows [B, R] into latents, starting from the memory that is stored in the first row of each sequence."""
    return encode_rows(policy.params, policy.state, rows)


def policy_targets(
    config: PolicyAgentConfig,
    target_spec: TargetSpec,
    model_discount: float,
    burn_in: int,
    policy: Policy,
    batch: Batch,
    key: Key,
) -> tuple[Targets, PolicyAgentState]:
    """Compute multi-step returns, normalized advantages and improved policies with the target network.

    `model_discount` is gamma, negative where the next value is the opponent's. The discounts of the rows agree with it.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = root_mask(ends, burn_in)
    state = _observe(policy.state, rows, mask)
    # A separate key: that of sampled CMPO over few discrete actions stays what it is without candidates.
    outputs = _target_outputs(
        config, target_spec, model_discount, model_of(policy), state, rows, jax.random.fold_in(key, 1)
    )
    value, raw_advantage = _returns(config, outputs, rows, ends)
    normalizer, shift, scale = _normalization(config.advantage, state.normalizer, raw_advantage, mask)
    chosen = raw_advantage
    if config.advantage.source == "look_ahead":
        assert outputs.q_taken is not None
        chosen = (outputs.q_taken - outputs.value)[:, :-1]
    per_transition, per_row = {"old_value": outputs.value[:, :-1]}, _prior_for_metrics(outputs)
    target = _prior_target(outputs)
    if target_spec.cmpo or target_spec.mpo:
        assert outputs.q is not None
        q_advantage = _q_advantage(config.cmpo, outputs.prior, outputs.q, outputs.value) / scale
        per_row["q_advantage"] = q_advantage
        if target_spec.cmpo:
            target = _cmpo(config.cmpo, outputs, q_advantage, key)
        if target_spec.mpo:
            per_transition["mpo_policy"] = _mpo(config, outputs.prior, q_advantage)[:, :-1]
    result = Targets(
        value=value,
        reward=rows.reward[:, 1:],
        advantage=(chosen - shift) / scale,
        policy=target,
        mask=mask,
        priority=jnp.abs(jnp.where(mask, raw_advantage, 0.0)).max(-1),
        extras=TargetExtras(per_transition, per_row, {"advantage_scale": scale}),
    )
    return jax.lax.stop_gradient(result), replace(state, normalizer=normalizer)


def _target_outputs(
    config: PolicyAgentConfig,
    target_spec: TargetSpec,
    model_discount: float,
    model: Model,
    state: PolicyAgentState,
    rows: Trajectory,
    key: Key,
) -> _TargetOutputs:
    """Apply the target network to every row."""
    latent = encode_rows(model, state, rows)
    prediction = model.predict(latent)
    if not candidate_actions.lists_probabilities(model.distribution, config):
        return _candidate_outputs(config, target_spec, model_discount, model, rows, latent, prediction, key)
    behavior_logits = rows.extras.per_action["behavior_logits"]
    prior = distributions.mixture_prior(
        prediction.policy_logits, behavior_logits, rows.legal_actions,
        config.prior.behavior_share, config.prior.uniform_share,
    )  # fmt: skip
    behavior = jax.nn.softmax(behavior_logits)
    q = model.look_ahead(latent, model_discount) if target_spec.look_ahead else None
    return _TargetOutputs(
        value=model.value_support.mean(prediction.value_logits),
        prior=prior,
        q=q,
        ratio=distributions.select(prior, rows.action) / distributions.select(behavior, rows.action),
        q_taken=None if q is None else distributions.select(q, rows.action),
        candidates=None,
        params=prediction.policy_logits,
    )


def _candidate_outputs(
    config: PolicyAgentConfig,
    target_spec: TargetSpec,
    model_discount: float,
    model: Model,
    rows: Trajectory,
    latent: Float[Array, "B R latent"],
    prediction: Prediction,
    key: Key,
) -> _TargetOutputs:
    """Return the outputs for every row where candidates stand for the actions."""
    distribution, taken = model.distribution, rows.action
    params = distribution.restrict(prediction.policy_logits, rows.legal_actions)
    chosen = candidate_actions.choose_candidates(distribution, config, params, taken, key)
    q = q_taken = None
    if target_spec.look_ahead:
        axis = -1 - len(distribution.action_shape)
        every = jnp.concatenate([chosen.actions, jnp.expand_dims(taken, axis)], axis)
        q_all = model.look_ahead(latent, model_discount, every)
        q, q_taken = q_all[..., :-1], q_all[..., -1]
    behavior_log_prob = rows.extras.per_row["behavior_log_prob"]
    return _TargetOutputs(
        value=model.value_support.mean(prediction.value_logits),
        prior=chosen.weights,
        q=q,
        ratio=candidate_actions.prior_ratio(distribution, config.prior, params, taken, behavior_log_prob),
        q_taken=q_taken,
        candidates=chosen,
        params=params,
    )


def _prior_target(outputs: _TargetOutputs) -> PolicyTarget:
    """Return the prior as the target of a policy."""
    if outputs.candidates is None:
        return improvement.exact_target(outputs.prior)
    return candidate_actions.target_of(outputs.candidates, outputs.prior)


def _prior_for_metrics(outputs: _TargetOutputs) -> dict[str, Array]:
    """Return what metrics need of the prior for every row: its probabilities, or what is known of candidates."""
    if outputs.candidates is None:
        return {"prior": outputs.prior}
    return {"prior_params": outputs.params, "candidate_log_prior": outputs.candidates.log_prior}


def _returns(
    config: PolicyAgentConfig, outputs: _TargetOutputs, rows: Trajectory, ends: Bool[Array, "B R"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Return the value target of each root row, and its advantage over v^.

    For V-trace the advantage is that of the return in its policy gradient.
    """
    reward, discounts = rows.reward[:, 1:], config.gamma * rows.discount[:, 1:]
    lambda_, value = config.returns.lambda_, outputs.value
    continues = (~ends).astype(jnp.float32)
    # The action of a sequence's last row belongs to the next sequence, so its ratio and q are not used.
    c = continues * lambda_ * jnp.minimum(outputs.ratio, 1.0)
    if config.returns.kind == "gae":
        traces = lambda_ * continues[:, 1:]
        advantage = jax.vmap(returns.generalized_advantages)(reward, discounts, traces, value[:, :-1], value[:, 1:])
        return advantage + value[:, :-1], advantage
    if config.returns.kind == "v_trace":
        rho = jnp.minimum(outputs.ratio, 1.0)
        target, gradient_return = jax.vmap(returns.v_trace)(
            reward, discounts, value[:, :-1], value[:, 1:], rho[:, :-1], c[:, :-1], continues[:, 1:]
        )
        return target, gradient_return - value[:, :-1]
    assert outputs.q is not None and outputs.q_taken is not None
    taken, expected = outputs.q_taken, (outputs.prior * outputs.q).sum(-1)
    target = jax.vmap(returns.retrace)(reward, discounts, taken[:, 1:], expected[:, 1:], c[:, 1:])
    return target, target - value[:, :-1]


def improved_policy(
    config: PolicyAgentConfig,
    target_spec: TargetSpec,
    state: PolicyAgentState,
    prior: Float[Array, "*B A"],
    q: Float[Array, "*B A"],
    value: Float[Array, "*B"],
) -> Float[Array, "*B A"]:
    """Return the policy that single observations are trained toward, as `policy_targets` computes it for a batch.

    It is the CMPO policy over all actions (also where targets sample some of them), else the MPO policy, else the
    prior itself.  The deviation of a batch is not available here, so the moving one over all batches replaces it.
    """
    advantage = _q_advantage(config.cmpo, prior, q, value) / _moving_scale(config.advantage, state.normalizer)
    if target_spec.cmpo:
        return improvement.cmpo_policy(prior, advantage, config.cmpo.clip_bound)
    return _mpo(config, prior, advantage) if target_spec.mpo else prior


def _normalization(
    config: AdvantageConfig,
    normalizer: improvement.AdvantageNormalizer,
    advantage: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[improvement.AdvantageNormalizer, Array, Array]:
    """Return the moving scale after this batch, and the shift and the scale of the batch's advantages.

    An advantage is normalized by subtracting the shift and dividing by the scale.
    """
    by_batch = config.normalization == "batch"
    shift = losses.masked_mean(advantage, mask) if by_batch else jnp.zeros(())
    normalizer = normalizer.update(advantage - shift, mask, config.decay)
    scale = _moving_scale(config, normalizer)
    if by_batch:
        deviation = jnp.sqrt(losses.masked_mean(jnp.square(advantage - shift), mask)) + 1e-8
        scale = deviation / config.factor
    return normalizer, shift, scale


def _moving_scale(config: AdvantageConfig, normalizer: improvement.AdvantageNormalizer) -> Array:
    """Return the divisor of advantages, from the agent's state alone."""
    scale = jnp.ones(()) if config.normalization == "none" else normalizer.scale(config.epsilon)
    return scale / config.factor


def _q_advantage(
    config: CMPOConfig, prior: Float[Array, "*B A"], q: Float[Array, "*B A"], value: Float[Array, "*B"]
) -> Float[Array, "*B A"]:
    """Return the advantage of every action, q^ minus the baseline."""
    baseline = (prior * q).sum(-1) if config.baseline == "expected_q" else value
    return q - baseline[..., None]


def _mpo(
    config: PolicyAgentConfig, prior: Float[Array, "*B A"], q_advantage: Float[Array, "*B A"]
) -> Float[Array, "*B A"]:
    """Return the MPO policy: pi_prior exp(adv / eta) / z."""
    return improvement.cmpo_policy(prior, q_advantage / config.mpo.temperature, None)


def _cmpo(config: CMPOConfig, outputs: _TargetOutputs, q_advantage: Array, key: Key) -> PolicyTarget:
    """Return the CMPO target, exact or by samples from the prior."""
    prior = outputs.prior
    if outputs.candidates is not None:
        return candidate_actions.cmpo_target(outputs.candidates, q_advantage, config.clip_bound)
    if config.samples:
        assert config.clip_bound is not None
        return improvement.sampled_cmpo_target(key, prior, q_advantage, config.clip_bound, config.samples)
    return improvement.exact_target(improvement.cmpo_policy(prior, q_advantage, config.clip_bound))


def _observe(state: PolicyAgentState, rows: Trajectory, mask: Array) -> PolicyAgentState:
    """Add the observations of root rows to the running statistics, if the agent has them."""
    if state.statistics is None:
        return state
    without_last = jax.tree.map(lambda x: x[:, :-1], rows.observation)
    return replace(state, statistics=state.statistics.update(without_last, mask))


def required_targets(config: PolicyAgentConfig, enabled: frozenset[str]) -> TargetSpec:
    """Return the quantities that targets must contain for these terms."""
    cmpo = "cmpo" in enabled or ("model_policy" in enabled and config.policy_target == "cmpo")
    mpo = "mpo" in enabled
    uses_q = config.returns.kind == "retrace" or config.advantage.source == "look_ahead"
    return TargetSpec(look_ahead=cmpo or mpo or uses_q, cmpo=cmpo, mpo=mpo)


def policy_look_ahead(
    config: PolicyAgentConfig,
    target_spec: TargetSpec,
    model_discount: float,
    policy: Policy,
    latent: Array,
    legal_actions: Array,
    key: Key,
) -> LookAhead:
    """Return the one-step look-ahead of B latents.

    Its improved policy is computed as if the network's own policy had acted.
    """
    model = model_of(policy)
    prediction = model.predict(latent)
    value, logits = model.value_support.mean(prediction.value_logits), prediction.policy_logits
    logits = model.distribution.restrict(logits, legal_actions)
    if not candidate_actions.lists_probabilities(model.distribution, config):
        chosen = candidate_actions.choose_candidates(model.distribution, config, logits, None, key)
        q = model.look_ahead(latent, model_discount, chosen.actions)
        improved = improved_policy(config, target_spec, policy.state, chosen.weights, q, value)
        return LookAhead(value, chosen.weights, q, improved, chosen.actions)
    q = model.look_ahead(latent, model_discount)
    shares = config.prior.behavior_share, config.prior.uniform_share
    prior = distributions.mixture_prior(logits, logits, legal_actions, *shares)
    improved = improved_policy(config, target_spec, policy.state, prior, q, value)
    return LookAhead(value, jax.nn.softmax(logits), q, improved)
