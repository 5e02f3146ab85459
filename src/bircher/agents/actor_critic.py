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

from functools import partial
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import Field

from bircher import search
from bircher.agents import loss_terms, muzero
from bircher.agents.base import Agent, Carry, LookAhead, Mode, Term, initial_memory, memory_extras, require_discrete
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
from bircher.networks.layers import ObservationStatistics
from bircher.networks.model import Model, ModelConfig
from bircher.ops import distributions, improvement, losses, returns
from bircher.search import SearchConfig, SearchResult
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, PolicyTarget, Targets, TimeStep, Trajectory


class PolicyAgentState(eqx.Module):
    """What these agents keep beside their parameters."""

    normalizer: improvement.AdvantageNormalizer
    statistics: ObservationStatistics | None


class TargetSpec(NamedTuple):
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


def normalized(state: PolicyAgentState, observation: Array) -> Array:
    """Observations as the network is given them: as they were stored, or by their running mean and deviation."""
    return observation if state.statistics is None else state.statistics.normalize(observation)


def encoded(model: Model, state: PolicyAgentState, rows: Trajectory, burn_in: int = 0) -> Float[Array, "B R latent"]:
    """The latents of rows, with the memory that stands in them."""
    return model.encode_rows(normalized(state, rows.observation), initial_memory(rows), rows.first, burn_in)


def policy_targets(
    config: PolicyAgentConfig,
    wanted: TargetSpec,
    model_discount: float,
    burn_in: int,
    policy: Policy,
    batch: Batch,
    key: Key,
) -> tuple[Targets, PolicyAgentState]:
    """Multi-step returns, normalized advantages and improved policies, all from the target network.

    `model_discount` is gamma, negative where the next value is the opponent's; the discounts of the rows agree with it.
    `Targets.policy` covers all T + 1 rows, for the model's unroll may end on the last; the others T.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = root_mask(ends, burn_in)
    state = _observe(policy.state, rows, mask)
    seen = _seen(config, wanted, model_discount, policy.params, state, rows)
    value, raw_advantage = _returns(config, seen, rows, ends)
    normalizer, shift, scale = _normalization(config.advantage, state.normalizer, raw_advantage, mask)
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
    return jax.lax.stop_gradient(result), PolicyAgentState(normalizer, state.statistics)


def _seen(
    config: PolicyAgentConfig,
    wanted: TargetSpec,
    model_discount: float,
    model: Model,
    state: PolicyAgentState,
    rows: Trajectory,
) -> _Seen:
    latent = encoded(model, state, rows)
    prediction = model.predict(latent)
    behavior_logits = rows.extras["behavior_logits"]
    prior = distributions.mixture_prior(
        prediction.policy_logits, behavior_logits, rows.legal_actions,
        config.prior.behavior_share, config.prior.uniform_share,
    )  # fmt: skip
    behavior = jax.nn.softmax(behavior_logits)
    return _Seen(
        value=model.value_support.mean(prediction.value_logits),
        prior=prior,
        q=model.look_ahead(latent, model_discount) if wanted.look_ahead else None,
        ratio=distributions.select(prior, rows.action) / distributions.select(behavior, rows.action),
    )


def _returns(
    config: PolicyAgentConfig, seen: _Seen, rows: Trajectory, ends: Bool[Array, "B R"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The value target of each root row, and how far it lies above v^ (for V-trace: the return of its gradient)."""
    reward, discounts = rows.reward[:, 1:], config.gamma * rows.discount[:, 1:]
    lambda_, value = config.returns.lambda_, seen.value
    going = (~ends).astype(jnp.float32)
    # A sequence's last row belongs to what follows: its action's ratio and q are not used.
    c = going * lambda_ * jnp.minimum(seen.ratio, 1.0)
    if config.returns.kind == "gae":
        traces = lambda_ * going[:, 1:]
        advantage = jax.vmap(returns.generalized_advantages)(reward, discounts, traces, value[:, :-1], value[:, 1:])
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
    wanted: TargetSpec,
    state: PolicyAgentState,
    prior: Float[Array, "*B A"],
    q: Float[Array, "*B A"],
    value: Float[Array, "*B"],
) -> Float[Array, "*B A"]:
    """What a prior is drawn to, as `policy_targets` makes it, of single observations and by what the state knows.

    CMPO's policy over all actions (also where targets sample some), else MPO's, else the prior itself.  A batch's
    deviation is not known here: the moving one of all batches stands for it.
    """
    advantage = _q_advantage(config.cmpo, prior, q, value) / _known_scale(config.advantage, state.normalizer)
    if wanted.cmpo:
        return improvement.cmpo_policy(prior, advantage, config.cmpo.clip_bound)
    return _mpo(config, prior, advantage) if wanted.mpo else prior


def _normalization(
    config: AdvantageConfig,
    normalizer: improvement.AdvantageNormalizer,
    advantage: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[improvement.AdvantageNormalizer, Array, Array]:
    """The moving scale after this batch, what is subtracted from its advantages, and what they are divided by."""
    by_batch = config.normalization == "batch"
    shift = losses.masked_mean(advantage, mask) if by_batch else jnp.zeros(())
    normalizer = normalizer.update(advantage - shift, mask, config.decay)
    scale = _known_scale(config, normalizer)
    if by_batch:
        deviation = jnp.sqrt(losses.masked_mean(jnp.square(advantage - shift), mask)) + 1e-8
        scale = deviation / config.factor
    return normalizer, shift, scale


def _known_scale(config: AdvantageConfig, normalizer: improvement.AdvantageNormalizer) -> Array:
    """What advantages are divided by, as far as the state knows."""
    scale = jnp.ones(()) if config.normalization == "none" else normalizer.scale(config.epsilon)
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
    return PolicyAgentState(state.normalizer, state.statistics.update(rows.observation[:, :-1], mask))


def make(
    config: PolicyAgentConfig,
    model_config: ModelConfig,
    loss_config: PolicyLosses,
    search_config: SearchConfig | None = None,
    num_players: int = 1,
) -> Agent:
    """One of these agents as a tuple of pure functions.

    It learns and explores without a search; one with at least one simulation takes part in acting afterward only.
    """
    weights = loss_config.weights()
    enabled = frozenset(weights)
    wanted = products(config, enabled)
    imagines = wanted.look_ahead or loss_terms.need(enabled, "unroll")
    model_discount = muzero.model_discount_of(config.gamma, num_players)
    simulations = search_config.num_simulations if search_config is not None else 0
    if "model_reward" not in enabled:
        model_config = model_config.model_copy(update={"reward_head": False})  # nothing would ever move it

    def init(key: Key, spec: EnvSpec) -> Policy:
        require_discrete(config.name, spec)
        statistics = ObservationStatistics.of(spec) if config.normalize_observations else None
        model = Model(spec, model_config, key, loss_terms.need(enabled, "projection"), imagines)
        return Policy(model, PolicyAgentState(improvement.AdvantageNormalizer.zero(), statistics))

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        del progress
        model: Model = policy.params
        latent, memory = model.encode(normalized(policy.state, timestep.observation), carry.memory, timestep.first)
        logits = distributions.mask_logits(model.predict(latent).policy_logits, timestep.legal_actions)
        if mode != "explore" and simulations:
            action = searched(policy, latent, timestep.legal_actions, key, mode == "sample", False).action
        else:
            action = jnp.argmax(logits, -1) if mode == "greedy" else jax.random.categorical(key, logits)
        extras = {"behavior_logits": logits, **memory_extras(carry.memory)}
        return ActOutput(action.astype(jnp.int32), extras), carry._replace(memory=memory)

    def searched(
        policy: Policy, latent: Array, legal_actions: Array, key: Key, noise: bool = False, keep_tree: bool = True
    ) -> SearchResult:
        assert search_config is not None
        model: Model = policy.params
        root = muzero.search_root(model, latent, legal_actions)
        simulate = muzero.simulator(model, model_discount)
        return search.gumbel_search(search_config, root, simulate, key, simulations, noise, keep_tree)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, PolicyAgentState]:
        del minibatches  # every sequence is treated alike
        return policy_targets(config, wanted, model_discount, model_config.burn_in, policy, batch, key)

    loss = partial(policy_loss, config, model_config, enabled)
    look = partial(policy_look, config, wanted, model_discount)
    return Agent(
        config.name, init, lambda size: Carry(model_config.start(size)), act, targets, loss, policy_encode, weights,
        config.acts_with == "target", model_discount,
        look if imagines else None, searched if simulations else None, True,
    )  # fmt: skip


def policy_encode(policy: Policy, rows: Trajectory) -> Array:
    """The latents of rows [B, R], with the memory that stands in them."""
    return encoded(policy.params, policy.state, rows)


def products(config: PolicyAgentConfig, enabled: frozenset[str]) -> TargetSpec:
    """What the targets must hold for these terms."""
    cmpo = "cmpo" in enabled or ("model_policy" in enabled and config.policy_target == "cmpo")
    mpo = "mpo" in enabled
    looks = config.returns.kind == "retrace" or config.advantage.source == "look_ahead"
    return TargetSpec(look_ahead=cmpo or mpo or looks, cmpo=cmpo, mpo=mpo)


def policy_look(
    config: PolicyAgentConfig,
    wanted: TargetSpec,
    model_discount: float,
    policy: Policy,
    latent: Array,
    legal_actions: Array,
    key: Key,
) -> LookAhead:
    """The one-step look-ahead of B latents, and the policy learned toward where the network's own had acted."""
    del key
    model: Model = policy.params
    prediction = model.predict(latent)
    value, q = model.value_support.mean(prediction.value_logits), model.look_ahead(latent, model_discount)
    logits = distributions.mask_logits(prediction.policy_logits, legal_actions)
    shares = config.prior.behavior_share, config.prior.uniform_share
    prior = distributions.mixture_prior(logits, logits, legal_actions, *shares)
    improved = improved_policy(config, wanted, policy.state, prior, q, value)
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
    measured: Array | bool = True,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """The enabled terms, and what to log of them where it is measured."""
    del key
    rows = batch.trajectory
    # The last row is encoded for the consistency term alone; without a term of the model nothing looks below the root.
    used = slice(None if loss_terms.need(enabled, "projection") else -1)
    latent = encoded(model, state, jax.tree.map(lambda x: x[:, used], rows), model_config.burn_in)
    depth = model_config.unroll_steps if loss_terms.need(enabled, "unroll") else 0
    unrolled = unroll(model, latent[:, : target.value.shape[1]], rows, target, depth)
    clips = loss_terms.Clips(config.clip.ratio, config.clip.value)
    held = loss_terms.LossInputs(model, rows, target, unrolled, latent, model_config.policy_horizon, clips)
    seen = jax.lax.stop_gradient(held)
    metrics = compute_if(measured, lambda: policy_metrics(config.cmpo.clip_bound, config.clip.ratio, seen))
    return loss_terms.build(enabled, held), metrics


class BaselineConfig(PolicyAgentConfig):
    """The baselines' settings; the defaults are Muesli's."""

    policy_target: Literal["cmpo", "prior"] = "prior"


class BaselineLosses(PolicyLosses):
    """What Muesli's baselines have in common."""

    value: Term = Term(weight=0.25)
    model_policy: Term = Term()
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()


class PGConfig(BaselineConfig):
    """A policy gradient and nothing that holds it back."""

    name: Literal["pg"] = "pg"


class PGLosses(BaselineLosses):
    """Terms of the plain policy gradient."""

    policy_gradient: Term = Term()


class MPOConfig(BaselineConfig):
    """MPO: the root's policy is drawn to pi_prior exp(adv / eta) / z, unclipped."""

    name: Literal["mpo"] = "mpo"


class MPOLosses(BaselineLosses):
    """Terms of MPO."""

    mpo: Term = Term()


class TRPOPenaltyConfig(BaselineConfig):
    """A policy gradient with KL(pi_b, pi) as a penalty."""

    name: Literal["trpo_penalty"] = "trpo_penalty"


class TRPOPenaltyLosses(BaselineLosses):
    """Terms of the penalized policy gradient."""

    policy_gradient: Term = Term()
    kl_to_behavior: Term = Term()


class MuesliConfig(PolicyAgentConfig):
    """Muesli's own settings; the defaults are the paper's."""

    name: Literal["muesli"] = "muesli"


class MuesliLosses(PolicyLosses):
    """Muesli's loss terms."""

    policy_gradient: Term = Term()
    cmpo: Term = Term()
    value: Term = Term(weight=0.25)
    model_policy: Term = Term()
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()


class PPOConfig(PolicyAgentConfig):
    """PPO's own settings; the defaults are the paper's for Atari where it has them."""

    name: Literal["ppo"] = "ppo"
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    prior: PriorConfig = PriorConfig(behavior_share=0.0, uniform_share=0.0)
    returns: ReturnConfig = ReturnConfig.model_validate({"kind": "gae"})
    advantage: AdvantageConfig = AdvantageConfig(normalization="batch")
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    acts_with: Literal["target", "online"] = "online"
    policy_target: Literal["cmpo", "prior"] = "prior"


class PPOLosses(PolicyLosses):
    """PPO's loss terms."""

    ppo_clip: Term = Term()
    entropy: Term = Term(weight=0.01)
    value: Term = Term(weight=0.5)
