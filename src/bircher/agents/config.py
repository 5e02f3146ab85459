"""Settings of the agents that learn a policy without a search: Muesli, PPO and the baselines of its paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.agents import loss_terms
from bircher.agents.base import AgentConfig, LossTable, Term

OFF = Term(weight=0.0)
"""A term that an agent does not have unless it is given a weight."""


class CMPOConfig(BaseModel):
    """The clipped MPO target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_bound: Annotated[float, Field(gt=0)] | None = 1.0
    """c of equation 7; null leaves advantages unclipped."""
    samples: Annotated[int, Field(ge=0, le=100_000)] = 0
    """0 takes the exact policy over all actions; N samples N actions from the prior (the paper: 16)."""
    baseline: Literal["value", "expected_q"] = "value"
    """What q^ is compared with: v^_prior (the paper) or the prior's expectation of q^."""

    @model_validator(mode="after")
    def _samples_are_clipped(self) -> CMPOConfig:
        if self.samples and self.clip_bound is None:
            raise ValueError("samples need a clip_bound: without one a single sample's weight has no limit")
        return self


class MPOTargetConfig(BaseModel):
    """The unclipped target of the `mpo` term."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """eta: normalized advantages are divided by it."""


class ClipConfig(BaseModel):
    """How far PPO lets ratio and value go from where they were when the rollout was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: Annotated[float, Field(gt=0)] = 0.2
    value: Annotated[float, Field(gt=0)] | None = None
    """null does not clip the value."""


class PriorConfig(BaseModel):
    """The mixture that makes the prior policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    behavior_share: Annotated[float, Field(ge=0, le=1)] = 0.03
    uniform_share: Annotated[float, Field(ge=0, le=1)] = 0.003

    @model_validator(mode="after")
    def _leaves_the_target_a_share(self) -> PriorConfig:
        if self.behavior_share + self.uniform_share > 1:
            raise ValueError(
                f"behavior_share + uniform_share must be at most 1, not {self.behavior_share + self.uniform_share:g}"
            )
        return self


class ReturnConfig(BaseModel):
    """The multi-step return: the value target, and what advantages are made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["retrace", "v_trace", "gae"] = "retrace"
    """Retrace with the model's q^ (Muesli); V-trace with v^ alone; or generalized advantages, for fresh data only."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95


class AdvantageConfig(BaseModel):
    """What advantages are, and the scale that they are divided by (section 4.5)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["return", "look_ahead"] = "return"
    """What the policy gradient compares with v^: the multi-step return, or the model's own q^(s, a)."""
    normalization: Literal["moving", "batch", "none"] = "moving"
    """By the moving second moment (Muesli), by a batch's mean and deviation (PPO), or not at all."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """beta_var of the moving second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-12
    factor: Annotated[float, Field(gt=0)] = 1.0
    """What normalized advantages are multiplied by: for finding out what depends on their scale."""


class PolicyAgentConfig(AgentConfig):
    """What these agents' settings are; each has its own defaults."""

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.995
    cmpo: CMPOConfig = CMPOConfig()
    mpo: MPOTargetConfig = MPOTargetConfig()
    clip: ClipConfig = ClipConfig()
    prior: PriorConfig = PriorConfig()
    returns: ReturnConfig = ReturnConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    acts_with: Literal["target", "online"] = "target"
    """Which network acts, in training and evaluation."""
    policy_target: Literal["cmpo", "prior"] = "cmpo"
    """What the model's policies learn: the improved policy, or the prior's own; with the cmpo term always the first."""
    normalize_observations: bool = False
    """Whether observations are scaled by their running mean and deviation."""


class PolicyLosses(LossTable):
    """The loss terms of these agents in their order; each agent has its own weights."""

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
    """Refuse a mixture in which something has no source, or no use, with its name and what it needs.

    `names` are those of the terms that take part.

    Raises:
      ValueError: says which setting needs which terms.
    """
    if config.clip.value is not None and "ppo_value" not in names:
        raise ValueError(
            f"agent.clip.value={config.clip.value:g} clips the ppo_value term alone, which takes no part: give "
            "losses.ppo_value a weight above 0, or leave it out"
        )
    wants = [f"losses.{name}" for name in loss_terms.needing("look_ahead") if name in names]
    if "model_policy" in names and config.policy_target == "cmpo":
        wants.append("losses.model_policy with agent.policy_target=cmpo")
    if config.returns.kind == "retrace":
        wants.append("agent.returns.kind=retrace")
    if config.advantage.source == "look_ahead":
        wants.append("agent.advantage.source=look_ahead")
    if simulations:
        wants.append(f"search.num_simulations={simulations}")
    missing = loss_terms.unlearned(names, reward_head)
    if wants and missing:
        raise ValueError(f"{wants[0]} needs the look-ahead of a model that is learned: give {missing} a weight above 0")
