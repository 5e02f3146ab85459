"""From PPO to Muesli in five steps: what each of Muesli's parts adds, on any environment."""

from __future__ import annotations

from collections.abc import Sequence

from bircher.config import compose
from bircher.run.cells import Variant
from bircher.settings import shown

_POLICY_MODEL = ("losses.model_policy.weight=0.001", "model.policy_horizon=1")
_CMPO = ("losses.cmpo.weight=0.01",)
_VALUES = ("losses.model_value.weight=1.0", "losses.model_reward.weight=1.0")
_FOURTH = ("agent=ppo", "model.unroll_steps=3", *_POLICY_MODEL, *_CMPO, *_VALUES)


def steps(env: str, settings: Sequence[str] = ()) -> list[Variant]:
    """Each with the settings that make it; `settings` are those that all five are given besides.

    A model is unrolled within a piece of a rollout, and a deeper one gets longer pieces: steps 2 and 3 have those of
    step 4, so that each adds one thing only.

    Raises:
      ConfigError, UnknownEnvironment: step 4 cannot be composed.
    """
    pieces = f"optimiser.pieces={shown(compose(env, [*_FOURTH, *settings]).optimiser.pieces)}"
    prior = ("agent=ppo", "agent.policy_target=prior", "model.unroll_steps=1", pieces, *_POLICY_MODEL)
    return [
        Variant("1 ppo", ("agent=ppo",)),
        Variant("2 + policy model", prior),
        Variant("3 + cmpo", ("agent=ppo", "model.unroll_steps=1", pieces, *_POLICY_MODEL, *_CMPO, *_VALUES)),
        Variant("4 + model of 3 steps", _FOURTH),
        Variant("5 muesli", ("agent=muesli",)),
    ]


NOTES = (
    "Steps 2 to 4 cut rollouts into pieces of one length, longer than step 1's, for a model is unrolled within one.",
    "Step 2 has no improved policy to learn yet: its model of policies learns the prior's.",
    "CMPO looks one step ahead, so that step 3 learns rewards and values one step deep; step 4 learns them three.",
)
