"""Plants each of the doctor's sixteen faults in a real run, and asks the doctor: it must name that one and no other.

    python benchmarks/planted.py
    python benchmarks/planted.py 1 7

A fault is a setting or an environment.  Plant 0 is a task of fixed length, which has no fault.  Each run is one
process's work of about a minute on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from ledger import append, commit, machine

import bircher
from bircher.runs import logger


class Corridor(gymnasium.Env):
    """Six states that look alike, and the second turns both actions round (Sutton and Barto, example 13.1, longer).

    No certain policy reaches the end; one that mostly goes right does.
    """

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.place = self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: int):
        right = (action == 1) != (self.place == 1)
        self.place = max(self.place + (1 if right else -1), 0)
        self.steps += 1
        return np.ones(1, np.float32), -1.0, self.place == 6, self.steps == 200, {}


class Tide(gymnasium.Env):
    """What an observation is worth turns round with every rollout of 32 rows, and nothing tells.

    Whatever a value learns of one rollout is wrong in the next; the action's worth stays.
    """

    observation_space = gymnasium.spaces.Box(-5, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    rows = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.rows, self.steps = self.rows + 1, 0
        self.worth = np.clip(self.np_random.normal(size=1), -5, 5).astype(np.float32)
        return self.worth, {}

    def step(self, action: int):
        reward = float(self.worth[0]) * (1 if self.rows // 32 % 2 else -1) + 0.2 * float(action)
        self.rows, self.steps = self.rows + 1, self.steps + 1
        return self.worth, reward, False, self.steps == 20, {}


class Prices(gymnasium.Env):
    """A point that is to be held at 0, seen as numbers near 30,000."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps, self.place, self.speed = 0, float(self.np_random.uniform(-1, 1)), 0.0
        return self._seen(), {}

    def _seen(self) -> np.ndarray:
        return np.array([30_000 + 50 * self.place, 30_000 + 50 * self.speed], np.float32)

    def step(self, action: int):
        self.speed = 0.8 * self.speed + (0.1 if action else -0.1) + 0.02 * float(self.np_random.normal())
        self.place, self.steps = self.place + self.speed, self.steps + 1
        return self._seen(), max(0.0, 1 - abs(self.place)), False, self.steps >= 25, {}


class Buttons(gymnasium.Env):
    """Presses of the button that is lit, always the same number of them, then the end."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, reward: float, presses: int):
        self._reward, self._presses = reward, presses

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps, self.lit = 0, self.np_random.integers(3)
        return np.eye(3, dtype=np.float32)[self.lit], {}

    def step(self, action: int):
        reward = self._reward * float(action == self.lit)
        self.steps, self.lit = self.steps + 1, self.np_random.integers(3)
        return np.eye(3, dtype=np.float32)[self.lit], reward, self.steps == self._presses, False, {}


class Faint(gymnasium.ObservationWrapper):
    """CartPole-v1 as a bright picture of which four pixels differ a little: its four numbers."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = gymnasium.spaces.Box(0, 255, (10, 10, 1), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        picture = np.full((10, 10, 1), 255, np.uint8)
        picture[2:8:5, 2:8:5, 0] = np.clip(128 + 4 * observation, 0, 255).reshape(2, 2)
        return picture


class Pole(gymnasium.Wrapper):
    """CartPole-v1 with a fault in it."""

    def __init__(self, end: int | None = None, sleep: float = 0.0, burst: int | None = None):
        super().__init__(gymnasium.make("CartPole-v1"))
        self._end, self._sleep, self._burst = end, sleep, burst
        self._steps = self._total = 0

    def reset(self, **arguments: Any):
        self._steps = 0
        return self.env.reset(**arguments)

    def step(self, action: Any):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps, self._total = self._steps + 1, self._total + 1
        if self._sleep:
            time.sleep(self._sleep)
        if self._burst is not None and self._total == self._burst:
            reward = 2e3
        if self._end is not None and self._steps >= self._end:
            return observation, reward, True, False, info
        return observation, reward, terminated, truncated, info


class Plant(NamedTuple):
    """A run with a fault."""

    env: str | Callable[[], gymnasium.Env]
    settings: dict[str, Any]


POLE = {"preset": "cartpole", "agent": "ppo", "steps": 60_000}
MUESLI = {"evaluation.count": 10, "evaluation.diagnose": False}
PLANTS = {
    0: Plant(lambda: Buttons(1.0, 20), {"steps": 20_000}),
    1: Plant("CartPole-v1", {"steps": 30_000, "losses.model_policy.weight": 1000}),
    2: Plant(
        "CartPole-v1",
        {**POLE, "losses.ppo_clip.weight": 0, "losses.policy_gradient.weight": 100, "optimizer.learning_rate": 1e-2},
    ),
    3: Plant("CartPole-v1", {**POLE, "losses.entropy.weight": 30}),
    4: Plant(
        Tide,
        {
            **POLE,
            "steps": 20_000,
            "agent.gamma": 0.1,
            "optimizer.minibatches": 4,
            "losses.value.weight": 0.1,
            "losses.entropy.weight": 0.1,
        },
    ),
    5: Plant("CartPole-v1", {**MUESLI, "agent.cmpo.clip_bound": 1e-6}),
    6: Plant("CartPole-v1", {**POLE, "losses.value.weight": 0}),
    7: Plant(
        lambda: Pole(burst=5_000),
        {**POLE, "model.value_head": "scalar", "losses.value.weight": 0, "losses.ppo_value.weight": 0.03},
    ),
    8: Plant("LunarLander-v3", {"steps": 100_000, "model.support": 2}),
    9: Plant("CartPole-v1", {**MUESLI, "agent": "mpo", "agent.mpo.temperature": 0.01, "agent.prior.uniform_share": 0}),
    10: Plant(Corridor, {**POLE, "evaluation.mode": "greedy", "losses.value.weight": 0.05}),
    11: Plant(lambda: Pole(sleep=1e-3), {**POLE, "steps": 20_000}),
    12: Plant(lambda: Pole(end=40), POLE),
    13: Plant(Faint, POLE),
    14: Plant(Prices, {"steps": 12_000, "env.num_envs": 8}),
    15: Plant(lambda: Buttons(1e-3, 5), {"agent": "gumbel_muzero", "steps": 8_000}),
    16: Plant("toy/recall", {"agent": "ppo", "steps": 60_000, "model.memory": "none"}),
}
"""By the number of the flag; 0 for none."""


def main() -> None:
    """Run the plants asked for, and say for each what the doctor said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of the flags; all where none is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    for number in options.numbers or PLANTS:
        plant = PLANTS[number]
        with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
            path = Path(folder) / "run"
            bircher.train(plant.env, seed=options.seed, out=path, **plant.settings)
            flags = logger.examine(path)
        raised = [flag.number for flag in flags]
        expected = [number] if number else []
        verdict = "as planted" if raised == expected else "NOT NAMED" if number not in raised else "named, and others"
        print(f"{number:2d}: {verdict} {raised} " + "; ".join(flag.evidence for flag in flags), flush=True)
        if not options.dry:
            append(
                {
                    "name": "planted", "command": f"python benchmarks/planted.py {number}", "commit": commit(),
                    "machine": machine(), "seed": options.seed, "planted": number, "raised": raised,
                    "evidence": [flag.evidence for flag in flags],
                }
            )  # fmt: skip


if __name__ == "__main__":
    main()
