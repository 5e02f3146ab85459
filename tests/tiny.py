"""Runs so small that they end in seconds: settings, and a Gymnasium environment whose episodes are known."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SETTINGS: dict[str, Any] = {
    "env.num_envs": 4,
    "loop.rollout_length": 4,
    "optimizer.batch_size": 4,
    "optimizer.updates_per_step": 1 / 16,
    "replay.capacity": 256,
    "model.torso_widths": [8],
    "model.latent_width": 8,
    "model.dynamics_widths": [8],
    "model.num_atoms": 11,
    "model.unroll_steps": 2,
    "evaluation.count": 0,
}
"""16 environment steps and one update an iteration."""

WORDS = [f"{key}={value}" for key, value in SETTINGS.items()]
"""The same for the command line."""


class Countdown(gymnasium.Env):
    """Each episode lasts 1 to 30 steps, drawn at its reset; every step rewards 1."""

    observation_space = gymnasium.spaces.Box(0, 30, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 31))
        self.start = self.left
        return np.array([self.left, self.start], np.float32), {}

    def step(self, action: int):
        self.left -= 1
        return np.array([self.left, self.start], np.float32), 1.0, self.left == 0, False, {}


class BadReward(Countdown):
    """Gives a reward that is not a number at the 40th step of all its episodes."""

    steps = 0

    def step(self, action: int):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.steps == 40 else reward, *rest


class Raises(Countdown):
    """Raises at the 40th step of all its episodes."""

    steps = 0

    def step(self, action: int):
        self.steps += 1
        if self.steps == 40:
            raise RuntimeError("the wheel came off")
        return super().step(action)


class Halves(gymnasium.Env):
    """One half of a picture is bright: 1 for naming it, and the episode is over."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, shape: tuple[int, int, int] = (8, 8, 2)):
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action: int):
        right = float(action == self.side)
        return self._show(), right, True, False, {}

    def _show(self) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        picture = self.np_random.integers(0, 100, self.observation_space.shape, np.uint8)
        half = picture.shape[1] // 2
        picture[:, self.side * half : (self.side + 1) * half] += 100
        return picture


class Catch(gymnasium.Env):
    """A ball falls a square a step down a column that is drawn at each reset; 1 if the paddle is below it at the end.

    Only its picture tells where they are.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(3)
    ROWS, COLUMNS, SIDE = 6, 5, 8

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.row, self.ball, self.paddle = 0, int(self.np_random.integers(self.COLUMNS)), self.COLUMNS // 2
        return 0, {}

    def step(self, action: int):
        self.row += 1
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self.COLUMNS - 1))
        end = self.row == self.ROWS - 1
        return 0, float(end and self.ball == self.paddle), end, False, {}

    def render(self) -> np.ndarray:
        squares = np.zeros((self.ROWS, self.COLUMNS, 3), np.uint8)
        squares[-1, self.paddle] = 0, 160, 255
        squares[self.row, self.ball] = 255
        return squares.repeat(self.SIDE, 0).repeat(self.SIDE, 1)
