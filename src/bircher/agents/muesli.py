"""Muesli: policy optimisation with a learned model and one-step look-ahead.

"Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021 (https://arxiv.org/abs/2104.06159).
Equation numbers are that paper's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher import search
from bircher.agents import searching, terms
from bircher.agents.base import Agent, AgentConfig, Look, LossTable, Mode, Term, require_discrete
from bircher.agents.diagnostics import of_cmpo
from bircher.agents.unrolling import episode_ends, unroll
from bircher.models.model import Model, ModelConfig
from bircher.models.statistics import ObservationStatistics
from bircher.ops import distributions, improvement, returns
from bircher.search import SearchConfig, SearchResult
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory


class CMPOConfig(BaseModel):
    """The clipped MPO target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_bound: Annotated[float, Field(gt=0)] = 1.0
    """c of equation 7."""
    samples: Annotated[int, Field(ge=0)] = 0
    """0 takes the exact policy over all actions; N samples N actions from the prior (the paper: 16)."""
    baseline: Literal["value", "expected_q"] = "value"
    """What q^ is compared with: v^_prior (the paper) or the prior's expectation of q^."""


class PriorConfig(BaseModel):
    """The mixture that makes the prior policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    behaviour_share: Annotated[float, Field(ge=0, le=1)] = 0.03
    uniform_share: Annotated[float, Field(ge=0, le=1)] = 0.003

    @model_validator(mode="after")
    def _leaves_the_target_a_share(self) -> PriorConfig:
        if self.behaviour_share + self.uniform_share > 1:
            raise ValueError(
                f"behaviour_share + uniform_share must be at most 1, not {self.behaviour_share + self.uniform_share:g}"
            )
        return self


class RetraceConfig(BaseModel):
    """The multi-step return."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95


class AdvantageConfig(BaseModel):
    """The scale that advantages are divided by (section 4.5)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """beta_var of the moving second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-12


class MuesliConfig(AgentConfig):
    """Muesli's own settings; the defaults are the paper's."""

    name: Literal["muesli"] = "muesli"
    discount: Annotated[float, Field(ge=0, le=1)] = 0.995
    cmpo: CMPOConfig = CMPOConfig()
    prior: PriorConfig = PriorConfig()
    retrace: RetraceConfig = RetraceConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    acts_with: Literal["target", "online"] = "target"
    """Which network acts, in training and evaluation."""
    normalise_observations: bool = False
    """Whether observations are scaled by their running mean and deviation."""


class MuesliLosses(LossTable):
    """Muesli's loss terms in their order."""

    policy_gradient: Term = Term()
    cmpo: Term = Term()
    model_policy: Term = Term()
    value: Term = Term(weight=0.25)
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()
    entropy: Term = Term(weight=0.0)
    additions = frozenset({"entropy"})


class MuesliState(eqx.Module):
    """What Muesli keeps beside its parameters."""

    normaliser: improvement.AdvantageNormaliser
    statistics: ObservationStatistics | None


def make(
    config: MuesliConfig,
    model_config: ModelConfig,
    loss_config: MuesliLosses,
    search_config: SearchConfig | None = None,
    num_players: int = 1,
) -> Agent:
    """Muesli as a tuple of pure functions.

    It learns and explores without a search; one with at least one simulation takes part in acting afterwards only.
    """
    weights = loss_config.weights()
    discount = searching.signed_discount(config.discount, num_players)
    simulations = search_config.num_simulations if search_config is not None else 0

    def init(key: Key, spec: EnvSpec) -> Policy:
        require_discrete("muesli", spec)
        statistics = ObservationStatistics.zero(spec) if config.normalise_observations else None
        return Policy(Model(spec, model_config, key), MuesliState(improvement.AdvantageNormaliser.zero(), statistics))

    def act(
        policy: Policy, carry: tuple, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, tuple]:
        del progress
        model: Model = policy.params
        latent = model.represent(_normalised(policy.state, timestep.observation))
        logits = distributions.mask_logits(model.predict(latent).policy_logits, timestep.legal_actions)
        if mode != "explore" and simulations:
            found = searched(policy, timestep.observation, timestep.legal_actions, key, mode == "sample", False)
            return ActOutput(found.action.astype(jnp.int32), {"behaviour_logits": logits}), carry
        action = jnp.argmax(logits, -1) if mode == "greedy" else jax.random.categorical(key, logits)
        return ActOutput(action.astype(jnp.int32), {"behaviour_logits": logits}), carry

    def searched(
        policy: Policy, observation: Array, legal_actions: Array, key: Key, noise: bool = False, keep_tree: bool = True
    ) -> SearchResult:
        assert search_config is not None
        model: Model = policy.params
        root = searching.root(model, model.represent(_normalised(policy.state, observation)), legal_actions)
        simulate = searching.simulator(model, discount)
        return search.gumbel_search(search_config, root, simulate, key, simulations, noise, keep_tree)

    def targets(policy: Policy, batch: Batch, key: Key) -> tuple[Targets, MuesliState]:
        return muesli_targets(config, discount, policy, batch, key)

    def loss(
        params: Model, state: MuesliState, batch: Batch, target: Targets, key: Key
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        del key
        return muesli_loss(config, model_config, frozenset(weights), params, state, batch, target)

    def look(policy: Policy, observation: Array, legal_actions: Array, key: Key) -> Look:
        del key
        return muesli_look(config, discount, policy, observation, legal_actions)

    return Agent(
        "muesli", init, lambda _: (), act, targets, loss, weights, config.acts_with == "target", discount, look,
        searched if simulations else None,
    )  # fmt: skip


def _normalised(state: MuesliState, observation: Array) -> Array:
    observation = observation.astype(jnp.float32)
    return observation if state.statistics is None else state.statistics.normalise(observation)


def muesli_targets(
    config: MuesliConfig, discount: float, policy: Policy, batch: Batch, key: Key
) -> tuple[Targets, MuesliState]:
    """One-step look-ahead, Retrace, normalised advantages and the CMPO policy, from the target network.

    `discount` is gamma, negative where the next value is the opponent's; the rows' own discounts tell the same.
    `Targets.policy` covers all T + 1 rows, for the model's unroll may end on the last; the others T.
    """
    model: Model = policy.params
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = ~ends[:, :-1]
    state = _observe(policy.state, rows, mask)

    latent = model.represent(_normalised(state, rows.observation))
    prediction = model.predict(latent)
    v_prior = model.value_support.mean(prediction.value_logits)
    q = model.look_ahead(latent, discount)
    behaviour_logits = rows.extras["behaviour_logits"]
    prior = distributions.mixture_prior(
        prediction.policy_logits, behaviour_logits, rows.legal_actions,
        config.prior.behaviour_share, config.prior.uniform_share,
    )  # fmt: skip
    expected_q = (prior * q).sum(-1)

    # A sequence's last row belongs to what follows: `retrace` drops its trace itself.
    behaviour = jax.nn.softmax(behaviour_logits)
    ratio = distributions.select(prior, rows.action) / distributions.select(behaviour, rows.action)
    c = jnp.where(ends, 0.0, config.retrace.lambda_ * jnp.minimum(ratio, 1.0))
    value = jax.vmap(returns.retrace)(
        rows.reward[:, 1:],
        config.discount * rows.discount[:, 1:],
        distributions.select(q, rows.action)[:, 1:],
        expected_q[:, 1:],
        c[:, 1:],
    )
    raw_advantage = value - v_prior[:, :-1]
    normaliser = state.normaliser.update(raw_advantage, mask, config.advantage.decay)
    scale = normaliser.scale(config.advantage.epsilon)

    baseline = expected_q if config.cmpo.baseline == "expected_q" else v_prior
    q_advantage = (q - baseline[..., None]) / scale
    if config.cmpo.samples:
        target = improvement.sampled_cmpo_target(key, prior, q_advantage, config.cmpo.clip_bound, config.cmpo.samples)
    else:
        target = improvement.exact_target(improvement.cmpo_policy(prior, q_advantage, config.cmpo.clip_bound))
    result = Targets(
        value=value,
        reward=rows.reward[:, 1:],
        advantage=raw_advantage / scale,
        policy=target,
        mask=mask,
        priority=jnp.abs(jnp.where(mask, raw_advantage, 0.0)).max(-1),
        extras={"prior": prior, "q_advantage": q_advantage, "advantage_scale": scale},
    )
    return jax.lax.stop_gradient(result), MuesliState(normaliser, state.statistics)


def muesli_look(
    config: MuesliConfig, discount: float, policy: Policy, observation: Array, legal_actions: Array
) -> Look:
    """The one-step look-ahead and the CMPO policy of B observations, without the behaviour that only replay knows."""
    model: Model = policy.params
    latent = model.represent(_normalised(policy.state, observation))
    prediction = model.predict(latent)
    value, q = model.value_support.mean(prediction.value_logits), model.look_ahead(latent, discount)
    prior = jax.nn.softmax(distributions.mask_logits(prediction.policy_logits, legal_actions))
    advantage = (q - value[..., None]) / policy.state.normaliser.scale(config.advantage.epsilon)
    return Look(latent, value, prior, q, improvement.cmpo_policy(prior, advantage, config.cmpo.clip_bound))


def _observe(state: MuesliState, rows: Trajectory, mask: Array) -> MuesliState:
    if state.statistics is None:
        return state
    return MuesliState(state.normaliser, state.statistics.update(rows.observation[:, :-1], mask))


def muesli_loss(
    config: MuesliConfig,
    model_config: ModelConfig,
    enabled: frozenset[str],
    model: Model,
    state: MuesliState,
    batch: Batch,
    target: Targets,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """The enabled terms of equations 9 and 13, and what to log of them."""
    rows = batch.trajectory
    latent = model.represent(_normalised(state, rows.observation[:, :-1]))
    # Without a term that learns the model, nothing looks below the root.
    depth = model_config.unroll_steps if any(name.startswith("model_") for name in enabled) else 0
    unrolled = unroll(model, latent, rows, target, depth)
    logits = unrolled.prediction.policy_logits[0]
    builders = {
        "policy_gradient": lambda: terms.policy_gradient(
            logits, rows.action[:, :-1], rows.extras["behaviour_logits"][:, :-1], target.advantage
        ),
        "cmpo": lambda: terms.policy(unrolled),
        "model_policy": lambda: terms.model_policy(unrolled),
        "value": lambda: terms.value(unrolled, model.value_support),
        "model_value": lambda: terms.model_value(unrolled, model.value_support),
        "model_reward": lambda: terms.model_reward(unrolled, model.reward_support),
        "entropy": lambda: terms.entropy(unrolled),
    }
    metrics = of_cmpo(config.cmpo.clip_bound, model, unrolled, target)
    return {name: builders[name]() for name in builders if name in enabled}, jax.lax.stop_gradient(metrics)
