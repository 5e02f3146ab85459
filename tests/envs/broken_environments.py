"""Gymnasium environments that each break the contract in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Valid(gymnasium.Env):
    """Episodes of 5 steps with rewards of 1, whose observation is the time."""

    observation_space: spaces.Space = spaces.Box(0, 9, (3,), np.float32)
    action_space: spaces.Space = spaces.Discrete(4)

    def observation(self) -> Any:
        return np.full(3, self.time, np.float32)

    def info(self) -> Any:
        return {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation(), self.info()

    def step(self, action):
        self.time += 1
        return self.observation(), 1.0, self.time >= 5, False, self.info()


def breaking(space: spaces.Space | None = None, at: int = 3, **changes: Callable[[Any], Any]) -> type[Valid]:
    """Return a class that returns a changed observation, mask, reward, terminated, truncated or info at time `at`.

    Each change is a function of the valid value.
    """

    def changed(env: Valid, name: str, value: Any) -> Any:
        return changes[name](value) if name in changes and env.time == at else value

    class Broken(Valid):
        observation_space = space or Valid.observation_space

        def observation(self):
            valid = super().observation()
            if space is not None:
                valid = space.sample()
            return changed(self, "observation", valid)

        def info(self):
            mask = {"action_mask": changed(self, "mask", np.ones(4, bool))} if "mask" in changes else {}
            return changed(self, "info", mask)

        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            reward = changed(self, "reward", reward)
            terminated = changed(self, "terminated", terminated)
            return observation, reward, terminated, changed(self, "truncated", truncated), info

    return Broken
