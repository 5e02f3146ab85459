"""From PPO to Muesli in five steps: what each of Muesli's parts adds, on any environment."""

from __future__ import annotations

from bircher.run.cells import Variant

_POLICY_MODEL = ("losses.model_policy.weight=0.001", "model.policy_horizon=1")
_CMPO = ("losses.cmpo.weight=0.01",)
_VALUES = ("losses.model_value.weight=1.0", "losses.model_reward.weight=1.0")

STEPS = (
    Variant("1 ppo", ("agent=ppo",)),
    Variant("2 + policy model", ("agent=ppo", "agent.policy_target=prior", "model.unroll_steps=1", *_POLICY_MODEL)),
    Variant("3 + cmpo", ("agent=ppo", "model.unroll_steps=1", *_POLICY_MODEL, *_CMPO, *_VALUES)),
    Variant("4 + model of 3 steps", ("agent=ppo", "model.unroll_steps=3", *_POLICY_MODEL, *_CMPO, *_VALUES)),
    Variant("5 muesli", ("agent=muesli",)),
)
"""Each with the settings that make it."""

NOTES = (
    "Steps 2 to 4 cut rollouts into longer pieces than step 1, for a model is unrolled within one.",
    "Step 2 has no improved policy to learn yet: its model of policies learns the prior's.",
    "CMPO looks one step ahead, so that step 3 learns rewards and values one step deep; step 4 learns them three.",
)
