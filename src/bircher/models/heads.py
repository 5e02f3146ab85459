"""Prediction heads: policy, value, categorical reward."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax

from bircher.models.layers import MLP
from bircher.types import Key


class Heads(eqx.Module):
    """One MLP each.  Last layers begin at zero: a uniform policy, and values and rewards of exactly 0."""

    policy: MLP
    value: MLP
    reward: MLP | None

    def __init__(
        self, inputs: int, num_actions: int, value_size: int, reward_size: int, widths: Sequence[int], key: Key
    ):
        policy_key, value_key, reward_key = jax.random.split(key, 3)
        self.policy = MLP(inputs, (*widths, num_actions), policy_key, last_scale=0.0)
        self.value = MLP(inputs, (*widths, value_size), value_key, last_scale=0.0)
        self.reward = MLP(inputs, (*widths, reward_size), reward_key, last_scale=0.0) if reward_size else None
