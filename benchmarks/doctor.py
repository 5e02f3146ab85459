"""The doctor: whether it names planted faults, and what its checks and the metrics of a run cost.

python benchmarks/doctor.py planted
python benchmarks/doctor.py planted 1 7
python benchmarks/doctor.py measures LunarLander-v3
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
import programs
import runner
from runner import Result, Study

import bircher
from bircher.config import config
from bircher.runs import launch, logger
from bircher.training import learner
from bircher.training.rollout import collect_rollout


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


def planted(options: argparse.Namespace) -> Iterator[Result]:
    """Plant each of the doctor's faults in a real run: the doctor must name that one and no other.

    A fault is a setting or an environment.  Plant 0 is a task of fixed length, which has no fault.  Each run takes
    about a minute on two cores.
    """
    for number in options.numbers or PLANTS:
        plant = PLANTS[number]
        with runner.scratch() as folder:
            bircher.train(plant.env, seed=options.seed, out=folder / "run", **plant.settings)
            flags = logger.examine(folder / "run")
        raised, evidence = [flag.number for flag in flags], [flag.evidence for flag in flags]
        expected = [number] if number else []
        verdict = "as planted" if raised == expected else "NOT NAMED" if number not in raised else "named, and others"
        print(f"{number:2d}: {verdict} {raised} " + "; ".join(evidence), flush=True)
        yield Result({"planted": number, "raised": raised, "evidence": evidence}, seeds=(options.seed,))


def _planted_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", nargs="*", type=int, help="of the flags; all where none is given")
    parser.add_argument("--seed", type=int, default=0)


TIMED = {
    "measured": (logger.GradientMonitor, "__call__"),
    "doctor": (logger.DoctorMonitor, "__call__"),
}


def timing(spent: dict[str, float], name: str, function: Callable) -> Callable:
    """The function, and its seconds added up."""

    @wraps(function)
    def timed(*arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **more)
        finally:
            spent[name] += time.perf_counter() - began

    return timed


def run_seconds(env: str, settings: list[str], out: Path) -> dict[str, float]:
    """Of a whole run, and within it of each measure."""
    spent = dict.fromkeys(TIMED, 0.0)
    originals = {name: getattr(owner, method) for name, (owner, method) in TIMED.items()}
    for name, (owner, method) in TIMED.items():
        setattr(owner, method, timing(spent, name, originals[name]))
    began = time.perf_counter()
    try:
        launch.start(config.compose(env, settings), None, out).run()
    finally:
        for name, (owner, method) in TIMED.items():
            setattr(owner, method, originals[name])
    return {"run": time.perf_counter() - began, **spent}


def start_seconds(env: str, settings: list[str], folder: Path, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Of processes that compile, learn a little and measure once: with the gauge and without, cold cache and warm."""
    found: dict[str, dict[str, list[float]]] = {cache: {"with": [], "without": []} for cache in ("cold", "warm")}
    short = ["steps=4096", "evaluation.count=1", "evaluation.episodes=1", "evaluation.diagnose=false"]
    for number in range(pairs):
        for name in ("with", "without") if number % 2 else ("without", "with"):
            environment = {**os.environ, "BIRCHER_CACHE": str(folder / f"cache-{name}-{number}")}
            gauge = f"evaluation.gradients={'true' if name == 'with' else 'false'}"
            for cache in found:
                out = folder / f"start-{name}-{cache}-{number}"
                command = ["-m", "bircher", "train", env, *settings, *short, gauge, "--out", str(out)]
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
                found[cache][name].append(time.perf_counter() - began)
    return found


def update_seconds(settings: config.Config, repeats: int) -> dict[str, list[float]]:
    """Of a rollout's updates with their numbers and without, and of a rollout."""
    env, parts, loop, (train, state, progress) = programs.start(settings)
    train, state, progress = loop.advance(train, state, progress, 4)  # the replay has something
    roll = jax.jit(
        lambda policy, state: collect_rollout(parts.agent, env, policy, state, settings.loop.rollout_length, 0.0)
    )
    with_numbers = jax.jit(parts.learner.update)
    without = jax.jit(lambda *arguments: parts.learner.update(*arguments)[0])
    timed = programs.Times()
    for _ in range(repeats + 1):
        state, rows, tally = timed("rollout", roll, learner.acting_policy(parts.agent, train), state)
        timed("with", with_numbers, train, rows, tally)
        timed("without", without, train, rows, tally)
    env.close()
    return timed.after_the_first()


def measures(options: argparse.Namespace) -> Iterator[Result]:
    """Measure what a run's measures cost: gradients by term, the doctor's checks, and the metrics of every update.

    Two runs are made, the first with an empty compilation cache, and their monitors are timed in place.  The gradient
    monitor is compiled in a thread, so what it adds to the wall time is the difference between short runs with it and
    without, which take turns.  Then the updates of a rollout take turns with the same updates without metrics.
    """
    with runner.scratch() as folder:
        os.environ["BIRCHER_CACHE"] = str(folder / "cache")
        starts = start_seconds(options.env, options.settings, folder, options.pairs)
        runs = {name: run_seconds(options.env, options.settings, folder / name) for name in ("cold", "warm")}
    updates = update_seconds(config.compose(options.env, options.settings), options.repeats)
    median = {name: statistics.median(values) for name, values in updates.items()}
    numbers = (median["with"] - median["without"]) / (median["with"] + median["rollout"])
    for name, seconds in runs.items():
        start = {which: statistics.median(values) for which, values in starts[name].items()}
        seconds["compiled"] = max(start["with"] - start["without"], 0.0)
        share = {part: value / seconds["run"] for part, value in seconds.items() if part != "run"}
        total = sum(share.values()) + numbers
        parts = ", ".join(f"{part} {value:.2%}" for part, value in share.items())
        print(
            f"{options.env}, {name} cache, {seconds['run']:.0f} s: {parts}, numbers {numbers:.2%}; together {total:.2%}"
        )
    rounded = {name: {part: round(value, 3) for part, value in seconds.items()} for name, seconds in runs.items()}
    times = {name: round(value, 6) for name, value in median.items()}
    yield Result({"runs": rounded, "starts": starts, "updates": times}, options.env)


def _measures_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3, help="short runs with the gauge and without")


if __name__ == "__main__":
    runner.main(
        __doc__,
        {"planted": Study(planted, _planted_arguments), "measures": Study(measures, _measures_arguments)},
    )
