"""PPO as its users know it: fresh data only, generalised advantages, several epochs of shuffled minibatches.

"Proximal Policy Optimization Algorithms" by Schulman et al. 2017 (https://arxiv.org/abs/1707.06347).  Any of Muesli's
terms can be given a weight beside its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bircher.agents.base import Term
from bircher.agents.policy_config import AdvantageConfig, PolicyAgentConfig, PolicyLosses, PriorConfig, ReturnConfig


class PPOConfig(PolicyAgentConfig):
    """PPO's own settings; the defaults are the paper's for Atari where it has them."""

    name: Literal["ppo"] = "ppo"
    discount: Annotated[float, Field(ge=0, le=1)] = 0.99
    prior: PriorConfig = PriorConfig(behaviour_share=0.0, uniform_share=0.0)
    returns: ReturnConfig = ReturnConfig.model_validate({"kind": "gae"})
    advantage: AdvantageConfig = AdvantageConfig(normalisation="batch")
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    acts_with: Literal["target", "online"] = "online"
    policy_target: Literal["cmpo", "prior"] = "prior"


class PPOLosses(PolicyLosses):
    """PPO's loss terms."""

    ppo_clip: Term = Term()
    entropy: Term = Term(weight=0.01)
    value: Term = Term(weight=0.5)
