"""Agents that learn a policy without a search: Muesli, PPO, and the baselines of Muesli's paper.

They share one set of pure functions: how they act, their targets, their loss.  They differ in settings and in the
weights of the loss terms.

- Muesli: "Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021 (https://arxiv.org/abs/2104.06159).
  Equation numbers are those of this paper.
- PPO: "Proximal Policy Optimization Algorithms" by Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), with
  fresh data only, generalized advantages, and several epochs of shuffled minibatches.  Each of Muesli's terms can be
  added to it by a weight.
- The baselines of Muesli's figure 1a (section 5): a policy gradient, the same with a penalty, and MPO.  The paper does
  not say exactly how they were updated.  Assumed is: the network, model, replay, returns and normalization of Muesli,
  and another loss of the root's policy.  None of them distills a policy into the model: their `model_policy` learns
  the prior.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree
from pydantic import Field

from bircher import search
from bircher.agents import loss_terms, muzero
from bircher.agents.base import Agent, Carry, LookAhead, Mode, Term, initial_memory, model_of, require_discrete
from bircher.agents.config import (
    AdvantageConfig,
    CMPOConfig,
    PolicyAgentConfig,
    PolicyLosses,
    PriorConfig,
    ReturnConfig,
)
from bircher.agents.metrics import compute_if, policy_metrics
from bircher.agents.unroll import episode_ends, root_mask, unroll
from bircher.networks.layers import ObservationStatistics, PartStatistics
from bircher.networks.model import Model, ModelConfig
from bircher.ops import distributions, improvement, losses, returns
from bircher.search import SearchConfig, SearchResult
from bircher.types import (
    ActOutput,
    Batch,
    EnvSpec,
    Extras,
    Key,
    Policy,
    PolicyTarget,
    TargetExtras,
    Targets,
    TimeStep,
    Trajectory,
)


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
    q: Float[Array, "B R A"] | None
    ratio: Float[Array, "B R"]
    """pi_prior(a|s) / pi_b(a|s) of the actions that were taken."""


def normalize_observation(state: PolicyAgentState, observation: PyTree[Array]) -> PyTree[Array]:
    """Return observations as the network takes them: unchanged, or scaled by their running mean and deviation."""
    return observation if state.statistics is None else state.statistics.normalize(observation)


def encode_rows(
    model: Model, state: PolicyAgentState, rows: Trajectory, burn_in: int = 0
) -> Float[Array, "B R latent"]:
    """Encode rows into latents, starting from the memory that is stored in the first row of each sequence."""
    return model.encode_rows(normalize_observation(state, rows.observation), initial_memory(rows), rows.first, burn_in)


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
    outputs = _target_outputs(config, target_spec, model_discount, model_of(policy), state, rows)
    value, raw_advantage = _returns(config, outputs, rows, ends)
    normalizer, shift, scale = _normalization(config.advantage, state.normalizer, raw_advantage, mask)
    chosen = raw_advantage
    if config.advantage.source == "look_ahead":
        assert outputs.q is not None
        chosen = (distributions.select(outputs.q, rows.action) - outputs.value)[:, :-1]
    per_transition, per_row = {"old_value": outputs.value[:, :-1]}, {"prior": outputs.prior}
    target = improvement.exact_target(outputs.prior)
    if target_spec.cmpo or target_spec.mpo:
        assert outputs.q is not None
        q_advantage = _q_advantage(config.cmpo, outputs.prior, outputs.q, outputs.value) / scale
        per_row["q_advantage"] = q_advantage
        if target_spec.cmpo:
            target = _cmpo(config.cmpo, outputs.prior, q_advantage, key)
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
) -> _TargetOutputs:
    """Apply the target network to every row."""
    latent = encode_rows(model, state, rows)
    prediction = model.predict(latent)
    behavior_logits = rows.extras.per_action["behavior_logits"]
    prior = distributions.mixture_prior(
        prediction.policy_logits, behavior_logits, rows.legal_actions,
        config.prior.behavior_share, config.prior.uniform_share,
    )  # fmt: skip
    behavior = jax.nn.softmax(behavior_logits)
    return _TargetOutputs(
        value=model.value_support.mean(prediction.value_logits),
        prior=prior,
        q=model.look_ahead(latent, model_discount) if target_spec.look_ahead else None,
        ratio=distributions.select(prior, rows.action) / distributions.select(behavior, rows.action),
    )


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
    assert outputs.q is not None
    taken, expected = distributions.select(outputs.q, rows.action), (outputs.prior * outputs.q).sum(-1)
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


def _cmpo(config: CMPOConfig, prior: Array, q_advantage: Array, key: Key) -> PolicyTarget:
    """Return the CMPO target, exact or by samples from the prior."""
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


def make(
    config: PolicyAgentConfig,
    model_config: ModelConfig,
    loss_config: PolicyLosses,
    search_config: SearchConfig | None = None,
    num_players: int = 1,
) -> Agent:
    """Build one of these agents as a tuple of pure functions.

    It learns and explores without a search.  A search with simulations is used only when it acts outside training.
    """
    weights = loss_config.weights()
    enabled = frozenset(weights)
    target_spec = required_targets(config, enabled)
    uses_model = target_spec.look_ahead or loss_terms.any_needs(enabled, "unroll")
    model_discount = muzero.model_discount_of(config.gamma, num_players)
    simulations = search_config.num_simulations if search_config is not None else 0
    if "model_reward" not in enabled:
        model_config = model_config.model_copy(update={"reward_head": False})  # no term would train it

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        del progress
        model = model_of(policy)
        observation = normalize_observation(policy.state, timestep.observation)
        latent, memory = model.encode(observation, carry.memory, timestep.first)
        logits = distributions.mask_logits(model.predict(latent).policy_logits, timestep.legal_actions)
        if mode != "explore" and simulations:
            action = run_search(policy, latent, timestep.legal_actions, key, mode == "sample", False).action
        else:
            action = jnp.argmax(logits, -1) if mode == "greedy" else jax.random.categorical(key, logits)
        extras = Extras(per_action={"behavior_logits": logits})
        return ActOutput(action.astype(jnp.int32), extras, carry.memory), carry._replace(memory=memory)

    def run_search(
        policy: Policy, latent: Array, legal_actions: Array, key: Key, noise: bool = False, keep_tree: bool = True
    ) -> SearchResult:
        assert search_config is not None
        root = muzero.search_root(model_of(policy), latent, legal_actions)
        simulate = muzero.simulator(model_of(policy), model_discount)
        return search.gumbel_search(search_config, root, simulate, key, simulations, noise, keep_tree)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, PolicyAgentState]:
        del minibatches  # all sequences have the same kind of targets
        return policy_targets(config, target_spec, model_discount, model_config.burn_in, policy, batch, key)

    init = partial(_init, config, model_config, enabled, uses_model)
    loss = partial(policy_loss, config, model_config, enabled)
    look_ahead = partial(policy_look_ahead, config, target_spec, model_discount)
    return Agent(
        config.name, init, lambda size: Carry(model_config.start(size)), act, targets, loss, policy_encode, weights,
        config.acts_with == "target", model_discount,
        look_ahead if uses_model else None, run_search if simulations else None,
        model_config.value_unit == "returns", True,
    )  # fmt: skip


def _init(
    config: PolicyAgentConfig, model_config: ModelConfig, enabled: frozenset[str], uses_model: bool, key: Key,
    spec: EnvSpec,
) -> Policy:  # fmt: skip
    """Return the first parameters and state; `uses_model` is whether a term or a target needs the dynamics."""
    require_discrete(config.name, spec)
    statistics = ObservationStatistics.of(spec) if config.normalize_observations else None
    model = Model(spec, model_config, key, loss_terms.any_needs(enabled, "projection"), uses_model)
    normalizer = improvement.AdvantageNormalizer.zero()
    return Policy(model, PolicyAgentState(normalizer, statistics, model_config.no_return()))


def policy_encode(policy: Policy, rows: Trajectory) -> Array:
    """Encode rows [B, R] into latents, starting from the memory that is stored in the first row of each sequence."""
    return encode_rows(policy.params, policy.state, rows)


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
    del key
    model = model_of(policy)
    prediction = model.predict(latent)
    value, q = model.value_support.mean(prediction.value_logits), model.look_ahead(latent, model_discount)
    logits = distributions.mask_logits(prediction.policy_logits, legal_actions)
    shares = config.prior.behavior_share, config.prior.uniform_share
    prior = distributions.mixture_prior(logits, logits, legal_actions, *shares)
    improved = improved_policy(config, target_spec, policy.state, prior, q, value)
    return LookAhead(value, jax.nn.softmax(logits), q, improved)


def policy_loss(
    config: PolicyAgentConfig,
    model_config: ModelConfig,
    enabled: frozenset[str],
    model: Model,
    state: PolicyAgentState,
    batch: Batch,
    target: Targets,
    key: Key,
    with_metrics: Array | bool = True,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """Return the enabled loss terms, and the metrics to log; the metrics are zeros unless `with_metrics`."""
    del key
    model, rows = model.following(state.largest_return), batch.trajectory
    # Only the consistency term needs the last row encoded.  Without a term of the model there is no unroll.
    used_rows = slice(None if loss_terms.any_needs(enabled, "projection") else -1)
    latent = encode_rows(model, state, jax.tree.map(lambda x: x[:, used_rows], rows), model_config.burn_in)
    depth = model_config.unroll_steps if loss_terms.any_needs(enabled, "unroll") else 0
    unrolled = unroll(model, latent[:, : target.value.shape[1]], rows, target, depth)
    clips = loss_terms.Clips(config.clip.ratio, config.clip.value)
    inputs = loss_terms.LossInputs(model, rows, target, unrolled, latent, model_config.policy_horizon, clips)
    constant = jax.lax.stop_gradient(inputs)
    metrics = compute_if(with_metrics, lambda: policy_metrics(config.cmpo.clip_bound, config.clip.ratio, constant))
    return loss_terms.build(enabled, inputs), metrics


class BaselineConfig(PolicyAgentConfig):
    """Settings of the baselines; the defaults are those of Muesli."""

    policy_target: Literal["cmpo", "prior"] = "prior"


class BaselineLosses(PolicyLosses):
    """Loss terms that Muesli's baselines have in common."""

    value: Term = Term(weight=0.25)
    model_policy: Term = Term()
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()


class PGConfig(BaselineConfig):
    """Settings of a policy gradient without a penalty or a trust region."""

    name: Literal["pg"] = "pg"


class PGLosses(BaselineLosses):
    """Loss terms of the plain policy gradient."""

    policy_gradient: Term = Term()


class MPOConfig(BaselineConfig):
    """Settings of MPO, which trains the root's policy toward pi_prior exp(adv / eta) / z, unclipped."""

    name: Literal["mpo"] = "mpo"


class MPOLosses(BaselineLosses):
    """Loss terms of MPO."""

    mpo: Term = Term()


class TRPOPenaltyConfig(BaselineConfig):
    """Settings of a policy gradient with KL(pi_b, pi) as a penalty."""

    name: Literal["trpo_penalty"] = "trpo_penalty"


class TRPOPenaltyLosses(BaselineLosses):
    """Loss terms of the penalized policy gradient."""

    policy_gradient: Term = Term()
    kl_to_behavior: Term = Term()


class MuesliConfig(PolicyAgentConfig):
    """Settings of Muesli; the defaults are those of the paper."""

    name: Literal["muesli"] = "muesli"


class MuesliLosses(PolicyLosses):
    """Loss terms of Muesli."""

    policy_gradient: Term = Term()
    cmpo: Term = Term()
    value: Term = Term(weight=0.25)
    model_policy: Term = Term()
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()


class PPOConfig(PolicyAgentConfig):
    """Settings of PPO; the defaults are those of the paper for Atari, where it gives them."""

    name: Literal["ppo"] = "ppo"
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    prior: PriorConfig = PriorConfig(behavior_share=0.0, uniform_share=0.0)
    returns: ReturnConfig = ReturnConfig.model_validate({"kind": "gae"})
    advantage: AdvantageConfig = AdvantageConfig(normalization="batch")
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    acts_with: Literal["target", "online"] = "online"
    policy_target: Literal["cmpo", "prior"] = "prior"


class PPOLosses(PolicyLosses):
    """Loss terms of PPO."""

    ppo_clip: Term = Term()
    entropy: Term = Term(weight=0.01)
    value: Term = Term(weight=0.5)
