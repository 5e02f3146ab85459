"""A complete environment of your own: a corridor with a door, and only the legal actions allowed.

bircher train corridor:Corridor-v0 steps=20000        # in the folder of this file
python corridor.py                                    # the same from Python, and on from there
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LEFT, RIGHT, OPEN = range(3)


class Corridor(gymnasium.Env):
    """Walk to the door, open it, walk on to the end: each step costs 0.05, the end rewards 1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, length: int = 8, render_mode: str | None = None):
        self.length, self.render_mode = length, render_mode
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; `super().reset(seed=seed)` seeds `self.np_random`, the only random numbers used."""
        super().reset(seed=seed)
        self.place, self.is_open = 0, False
        self.door = int(self.np_random.integers(1, self.length - 1))
        return self._observation(), self._info()

    def step(self, action: int):
        """Move or open the door."""
        if action == OPEN:
            self.is_open = True
        else:
            self.place += 1 if action == RIGHT else -1
        terminated = self.place == self.length
        reward = 1.0 if terminated else -0.05
        return self._observation(), reward, terminated, False, self._info()

    def render(self) -> np.ndarray:
        """The corridor as a picture: uint8, height, width and the three colors."""
        row = np.zeros((self.length + 1, 3), np.uint8)
        row[self.door] = (0, 160, 0) if self.is_open else (160, 0, 0)
        row[self.place] = 255
        return row[None].repeat(16, 0).repeat(16, 1)

    def _observation(self) -> np.ndarray:
        return np.array([self.place / self.length, self.door / self.length, self.is_open], np.float32)

    def _info(self) -> dict[str, Any]:
        """The legal actions: not through the left wall, not through the closed door."""
        at_door = self.place == self.door and not self.is_open
        return {"action_mask": np.array([self.place > 0, not at_door, at_door])}


gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=50)


def main(steps: int = 20_000) -> float:
    """Train on the class itself, continue for as long again, and return the mean return of 20 fresh episodes."""
    import bircher

    run = bircher.train(Corridor, steps=steps, **{"env.max_steps": 50})
    run = bircher.resume(run.path, env=Corridor, steps=2 * steps)
    return bircher.evaluate(run.agent, episodes=20, greedy=True).mean


if __name__ == "__main__":
    print(main())
