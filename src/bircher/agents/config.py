"""Settings of the agents that learn a policy without a search: Muesli, PPO and the baselines of its paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.agents import loss_terms
from bircher.agents.base import AgentConfig, LossTable, Term

OFF = Term(weight=0.0)
"""A term that is left out unless it gets a weight."""


class CMPOConfig(BaseModel):
    """The target policy of clipped MPO (CMPO)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_bound: Annotated[float, Field(gt=0)] | None = 1.0
    """The bound c of equation 7, to which normalized advantages are clipped; null does not clip them."""
    samples: Annotated[int, Field(ge=0, le=100_000)] = 0
    """The number of actions that are sampled from the prior (the paper: 16); 0 computes the exact policy over all
    actions."""
    baseline: Literal["value", "expected_q"] = "value"
    """The baseline that is subtracted from q^: `value` is v^_prior (the paper), `expected_q` the expectation of q^
    under the prior."""

    @model_validator(mode="after")
    def _samples_are_clipped(self) -> CMPOConfig:
        if self.samples and self.clip_bound is None:
            raise ValueError("samples need a clip_bound: without one a single sample's weight has no limit")
        return self


class MPOTargetConfig(BaseModel):
    """The unclipped target of the `mpo` term."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The temperature eta, by which normalized advantages are divided."""


class ClipConfig(BaseModel):
    """Bounds of the change that PPO allows since the rollout was collected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: Annotated[float, Field(gt=0)] = 0.2
    """The probability ratio is clipped to 1 ± this."""
    value: Annotated[float, Field(gt=0)] | None = None
    """The value is clipped to its old value ± this; null does not clip it."""


class PriorConfig(BaseModel):
    """The prior policy, which is a mixture: the target network's policy has the share that is left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    behavior_share: Annotated[float, Field(ge=0, le=1)] = 0.03
    """The share of the policy that acted."""
    uniform_share: Annotated[float, Field(ge=0, le=1)] = 0.003
    """The share of the uniform policy over legal actions."""

    @model_validator(mode="after")
    def _leaves_the_target_a_share(self) -> PriorConfig:
        if self.behavior_share + self.uniform_share > 1:
            raise ValueError(
                f"behavior_share + uniform_share must be at most 1, not {self.behavior_share + self.uniform_share:g}"
            )
        return self


class ReturnConfig(BaseModel):
    """The multi-step return, from which value targets and advantages are computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["retrace", "v_trace", "gae"] = "retrace"
    """The estimator: `retrace` with the model's q^ (Muesli), `v_trace` with v^ alone, or `gae` (generalized
    advantages), which is for fresh data only."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95
    """The weight lambda of longer returns."""


class AdvantageConfig(BaseModel):
    """Advantages, and their normalization (section 4.5)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["return", "look_ahead"] = "return"
    """The estimate from which the policy gradient subtracts v^: the multi-step return, or the model's q^(s, a)."""
    normalization: Literal["moving", "batch", "none"] = "moving"
    """How advantages are normalized: by their moving second moment (Muesli), by the mean and standard deviation of the
    batch (PPO), or not at all."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """The decay beta_var of the moving second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-12
    """The constant that is added to the moving second moment."""
    factor: Annotated[float, Field(gt=0)] = 1.0
    """The factor by which normalized advantages are multiplied, to test what depends on their scale."""


class PolicyAgentConfig(AgentConfig):
    """Settings of the agents without a search; each agent has its own defaults."""

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.995
    cmpo: CMPOConfig = CMPOConfig()
    mpo: MPOTargetConfig = MPOTargetConfig()
    clip: ClipConfig = ClipConfig()
    prior: PriorConfig = PriorConfig()
    returns: ReturnConfig = ReturnConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    acts_with: Literal["target", "online"] = "target"
    """The network that acts, in training and evaluation."""
    enumerate_actions: Annotated[int, Field(ge=0, le=100_000)] = 64
    """The largest number of different actions that are all weighed. Of more actions, and of continuous ones,
    `num_candidates` are sampled from the prior in each state."""
    num_candidates: Annotated[int, Field(ge=1, le=100_000)] = 16
    """The number N of sampled actions in each state, for the improved policy and the expectation of q^ (the paper: 16).
    It has no effect where all actions are weighed."""
    policy_target: Literal["cmpo", "prior"] = "cmpo"
    """The target of the model's policies: the improved policy or the prior. With the cmpo term it is always the
    improved policy."""
    normalize_observations: bool = False
    """Whether observations are normalized by their running mean and standard deviation."""


class PolicyLosses(LossTable):
    """Loss terms of the agents without a search; each agent has its own default weights."""

    policy_gradient: Term = OFF
    ppo_clip: Term = OFF
    cmpo: Term = OFF
    mpo: Term = OFF
    kl_to_behavior: Term = OFF
    entropy: Term = OFF
    value: Term = OFF
    ppo_value: Term = OFF
    model_policy: Term = OFF
    model_value: Term = OFF
    model_reward: Term = OFF
    consistency: Term = OFF


def requirements(config: PolicyAgentConfig, names: frozenset[str], reward_head: bool, simulations: int) -> None:
    """Check that every setting has the loss terms that it needs.

    `names` are the loss terms that are used.

    Raises:
      ValueError: a setting needs a term that is not used; the message names both.
    """
    if config.clip.value is not None and "ppo_value" not in names:
        raise ValueError(
            f"agent.clip.value={config.clip.value:g} clips the ppo_value term, which is not used: give "
            "losses.ppo_value a weight above 0, or remove agent.clip.value"
        )
    users = [f"losses.{name}" for name in loss_terms.terms_that_need("look_ahead") if name in names]
    if "model_policy" in names and config.policy_target == "cmpo":
        users.append("losses.model_policy with agent.policy_target=cmpo")
    if config.returns.kind == "retrace":
        users.append("agent.returns.kind=retrace")
    if config.advantage.source == "look_ahead":
        users.append("agent.advantage.source=look_ahead")
    if simulations:
        users.append(f"search.num_simulations={simulations}")
    missing = loss_terms.missing_for_look_ahead(names, reward_head)
    if users and missing:
        raise ValueError(
            f"{users[0]} looks ahead with a model, which is not learned with these settings: give {missing} a weight "
            "above 0"
        )
