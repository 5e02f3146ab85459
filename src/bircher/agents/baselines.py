"""The baselines of Muesli's figure 1a on the same parts: a policy gradient, the same with a penalty, and MPO.

Hessel et al. 2021 (https://arxiv.org/abs/2104.06159), section 5.  How exactly its baselines were updated could not be
read; assumed is: the same network, model, replay, returns and normalisation as Muesli's, and another loss of the root's
policy.  None of them distils a policy into the model: their `model_policy` learns the prior.
"""

from __future__ import annotations

from typing import Literal

from bircher.agents.base import Term
from bircher.agents.policy_config import PolicyAgentConfig, PolicyLosses


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
    """Terms of the penalised policy gradient."""

    policy_gradient: Term = Term()
    kl_to_behaviour: Term = Term()
