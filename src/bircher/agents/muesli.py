"""Muesli: policy optimisation with a learned model and one-step look-ahead.

"Muesli: Combining Improvements in Policy Optimization" by Hessel et al. 2021 (https://arxiv.org/abs/2104.06159).
Equation numbers are that paper's.  Its machinery is in `policy_targets.py` and `policy.py`, which it shares with PPO
and the paper's baselines: what makes it Muesli are the settings and weights here.
"""

from __future__ import annotations

from typing import Literal

from bircher.agents.base import Term
from bircher.agents.policy_config import PolicyAgentConfig, PolicyLosses


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
