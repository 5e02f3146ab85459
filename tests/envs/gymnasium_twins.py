"""Gymnasium environments whose rows are all known, for the tests of the adapter."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from bircher.envs.toys import counter_reward


class Counter(gymnasium.Env):
    """``toy/counter`` as a Gymnasium environment; the k-th one made by a ``counters`` function has index k."""

    def __init__(self, index: int = 0, length: int = 5, truncates: bool = False):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.index, self.length, self.truncates = index, length, truncates
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.array([self.index, 0.0, 0.0]), {}

    def step(self, action):
        self.time += 1
        over = self.time >= self.length
        observation = np.array([self.index, self.time, action], np.float64)
        reward = counter_reward(self.index, self.time, float(action))
        return observation, reward, over and not self.truncates, over and self.truncates, {}


def counters(**options):
    """Return a function that makes Counters with indices 0, 1, 2 …; the first one, for the probe, also has index 0."""
    made = -2

    def make():
        nonlocal made
        made += 1
        return Counter(max(made, 0), **options)

    return make


class Raises(Counter):
    """An environment that raises at step ``at``, counted over all episodes, if its index is 1."""

    def __init__(self, index: int = 1, at: int = 8):
        super().__init__(index)
        self.at, self.taken = at, 0

    def step(self, action):
        self.taken += 1
        if self.index == 1 and self.taken == self.at:
            raise ZeroDivisionError("the mill is broken")
        return super().step(action)


class NotANumber(Counter):
    """An environment that returns a NaN reward on step 3 of each episode."""

    def step(self, action):
        observation, reward, terminal, truncated, info = super().step(action)
        return observation, float("nan") if self.time == 3 else reward, terminal, truncated, info


class Masked(Counter):
    """Only action ``time % 3`` is legal; actions are -1, 0 and 1."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(3, start=-1)

    def _mask(self):
        return {"action_mask": np.arange(3, dtype=np.int8) == self.time % 3}

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, self._mask()

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        observation, reward, terminal, truncated, _ = super().step(action)
        return observation, reward, terminal, truncated, self._mask()


class Spaces(Counter):
    """A counter with any observation and action space; observations are samples of the space."""

    def __init__(self, observation_space=None, action_space=None):
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), 1.0, self.time >= self.length, False, {}


class Painted(Counter):
    """A counter whose picture [20, 30, 3] has one color: red 10 times the time, green 10 times the index, blue 100."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, index: int = 0, render_mode=None, **options):
        super().__init__(index, **options)
        self.render_mode = render_mode

    def render(self):
        return np.broadcast_to(np.array([10 * self.time, 10 * self.index, 100], np.uint8), (20, 30, 3))


class Indexed(Painted):
    """A painted counter whose index is bits 1 to 4 of its first seed."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.index = seed // 2 % 16
        return super().reset(seed=seed, options=options)
