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
from typing import Annotated, Literal

import jax
from jaxtyping import Array, Float
from pydantic import Field

from bircher.agents import loss_terms, muzero
from bircher.agents.base import Agent, Carry, Mode, Term, model_of, require_supported
from bircher.agents.candidates import lists_probabilities
from bircher.agents.config import AdvantageConfig, PolicyAgentConfig, PolicyLosses, PriorConfig, ReturnConfig
from bircher.agents.metrics import compute_if, policy_metrics
from bircher.agents.model_search import Proposal, take_actions
from bircher.agents.policy_targets import (
    PolicyAgentState,
    encode_rows,
    normalize_observation,
    policy_encode,
    policy_look_ahead,
    policy_targets,
    required_targets,
)
from bircher.agents.unroll import unroll
from bircher.errors import ConfigError
from bircher.networks.layers import ObservationStatistics
from bircher.networks.model import Model, ModelConfig
from bircher.ops import improvement
from bircher.ops.distributions import distribution_of
from bircher.search import SearchConfig, SearchResult
from bircher.types import (
    ActOutput,
    Batch,
    EnvSpec,
    Extras,
    Key,
    Policy,
    Targets,
    TimeStep,
)


def require_candidates(config: PolicyAgentConfig, spec: EnvSpec) -> None:
    """Require that the settings hold for actions of which only candidates are known.

    Raises:
      ConfigError: a setting is one of few discrete actions; the message names it.
    """
    if config.cmpo.samples:
        raise ConfigError(
            f"agent.cmpo.samples={config.cmpo.samples} is for few discrete actions, and those of {spec.id} are "
            f"{spec.action}: set agent.num_candidates instead, and leave agent.cmpo.samples at 0"
        )


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
    plan = None
    if search_config is not None and search_config.num_simulations:
        proposal = Proposal(config.num_candidates, 0.0, config.enumerate_actions)
        plan = muzero.gumbel_planner(search_config, proposal, model_discount)
    if "model_reward" not in enabled:
        model_config = model_config.model_copy(update={"reward_head": False})  # no term would train it

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        del progress
        model = model_of(policy)
        observation = normalize_observation(policy.state, timestep.observation)
        latent, memory = model.encode(observation, carry.memory, timestep.first)
        distribution = model.distribution
        params = distribution.restrict(model.predict(latent).policy_logits, timestep.legal_actions)
        searched = Extras()
        if mode != "explore" and plan is not None:
            action, searched = _choice(plan(model, latent, timestep.legal_actions, key, mode))
        else:
            action = distribution.mode(params) if mode == "greedy" else distribution.sample(params, key)
        if lists_probabilities(distribution, config):
            extras = Extras(per_action={"behavior_logits": params})
        else:
            log_prob = {"behavior_log_prob": distribution.log_prob(params, action)}
            extras = Extras({**log_prob, **searched.per_row}, searched.per_action)
        return ActOutput(action, extras, carry.memory), carry._replace(memory=memory)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, PolicyAgentState]:
        del minibatches  # all sequences have the same kind of targets
        return policy_targets(config, target_spec, model_discount, model_config.burn_in, policy, batch, key)

    init = partial(_init, config, model_config, enabled, uses_model)
    loss = partial(policy_loss, config, model_config, enabled)
    look_ahead = partial(policy_look_ahead, config, target_spec, model_discount)
    return Agent(
        config.name, init, lambda size: Carry(model_config.start(size)), act, targets, loss, policy_encode, weights,
        config.acts_with == "target", model_discount,
        look_ahead if uses_model else None, partial(muzero.search_with, plan) if plan is not None else None,
        model_config.value_unit == "returns", True,
    )  # fmt: skip


def _choice(result: SearchResult) -> tuple[Array, Extras]:
    """Return the actions of a search, and what rows store of it where it has candidates."""
    if result.actions is None:
        return result.action, Extras()
    return take_actions(result.actions, result.action), muzero.search_extras(result)


def _init(
    config: PolicyAgentConfig, model_config: ModelConfig, enabled: frozenset[str], uses_model: bool, key: Key,
    spec: EnvSpec,
) -> Policy:  # fmt: skip
    """Return the first parameters and state; `uses_model` is whether a term or a target needs the dynamics."""
    require_supported(config.name, spec)
    if not lists_probabilities(distribution_of(spec.action), config):
        require_candidates(config, spec)
    statistics = ObservationStatistics.of(spec) if config.normalize_observations else None
    model = Model(spec, model_config, key, loss_terms.any_needs(enabled, "projection"), uses_model)
    normalizer = improvement.AdvantageNormalizer.zero()
    return Policy(model, PolicyAgentState(normalizer, statistics, model_config.no_return()))


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
