"""The red flags of a run: while it learns, and afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bircher import doctor
from bircher.agents.base import weights_at
from bircher.config import Config
from bircher.run import folder
from bircher.series import Line, Packed, episodes_ended, series

SECONDS, SHARE = 10.0, 0.01
"""Between two looks at a run that learns, and the most of its time that they may take."""
EPISODES = 20
"""Fewest training episodes that a return is judged by."""
LINES = 2_000
"""Most that a watch remembers, some 1 MB; of more, every second is forgotten, but for evaluations."""


def facts(config: Config) -> doctor.Facts:
    """What the flags must know besides the metrics."""
    weights = config.losses.weights()
    replay, model = config.replay, config.model
    categorical = model.value_head == "categorical"
    return doctor.Facts(
        steps=config.steps,
        support=model.support,
        terms=tuple(weights),
        weights=tuple(max(float(weights_at(weights, share)[name]) for share in (0.0, 1.0)) for name in weights),
        replay_capacity=replay.capacity,
        replay_fraction=replay.fraction,
        rewards_clipped=config.env.reward_clip is not None,
        normalizes_observations=getattr(config.agent, "normalise_observations", None),
        atom_distance=model.make_support().width if categorical else 0.0,
        transform=model.transform,
        memory=model.memory != "none",
        stack=config.env.stack,
    )


def examine(path: str | Path) -> list[doctor.Flag]:
    """The flags that a run's metrics raise, by number.

    Raises:
      RunFolderError: there is no run, or no metrics of it yet.
    """
    config, lines = _read(Path(path))
    return doctor.examine(lines, facts(config))


def _read(path: Path) -> tuple[Config, list[dict[str, Any]]]:
    return folder.read_config(path), folder.read_metrics(path)


def questions(path: str | Path) -> list[tuple[str, str]]:
    """What is usually asked of a run, each with this run's numbers and what could be changed.

    Raises:
      RunFolderError: as `examine`.
    """
    config, lines = _read(Path(path))

    def usual(name: str) -> float:
        values = series(lines, name).values
        return float(np.median(values)) if len(values) else math.nan

    acting, memory = usual("speed/acting_share"), series(lines, "speed/memory_bytes").values
    norms = series(lines, "model/gradient_norm").values
    speed = [f"{usual(f'speed/{name}_per_second'):,.0f} {word}" for name, word in _SPEEDS]
    replay, optimiser = config.replay, config.optimiser
    share = "" if math.isnan(acting) else f", {acting:.0%} of it acting"
    gradients = f"gradients of {np.median(norms):.3g}, at most {norms.max():.3g}: " if len(norms) else ""
    return [
        ("too slow?", f"{' and '.join(speed)} a second{share}: {', '.join(quicker(config, acting > 0.5))}"),
        (
            "out of memory?",
            (f"{memory.max() / 2**20:,.0f} MiB at most: " if len(memory) else "")
            + f"lower replay.capacity (now {replay.capacity:,}), env.num_envs (now {config.env.num_envs}), "
            + (
                "more optimiser.minibatches" if _deals(config) else f"optimiser.batch_size (now {optimiser.batch_size})"
            ),
        ),
        (
            "the loss explodes?",
            f"{gradients}lower optimiser.learning_rate (now {optimiser.learning_rate:g}), or "
            + (
                f"optimiser.gradient_clip_bound (now {optimiser.gradient_clip_bound:g})"
                if optimiser.gradient_clip == "norm"
                else f"optimiser.gradient_clip=norm (now {optimiser.gradient_clip})"
            ),
        ),
        (
            "nothing is learnt?",
            f"{course(lines)}an act/entropy_share near 1 was taught nothing, near 0 it stopped exploring "
            "(losses.entropy.weight); then more steps, and `bircher diagnose` for the model",
        ),
    ]


def course(lines: Sequence[Line]) -> str:
    """How returns went: by the evaluations where there are two or more, else by training's first and last episodes.

    A line of metrics may hold a single episode, so that lines are taken together until they hold enough.
    """
    tested = series(lines, "eval/return_mean").values
    if len(tested) > 1:
        best = f", {tested.max():.4g} at best" if tested.max() > tested[-1] else ""
        return f"evaluations of {tested[0]:.4g} at first and {tested[-1]:.4g} at last{best}: "
    counted = [line for line in lines if not math.isnan(line.get("act/episode_return", math.nan))]
    if not counted:
        return ""
    ended = episodes_ended(counted)
    returns = np.array([line["act/episode_return"] for line in counted])
    least = max(ended.sum() / 10, EPISODES)
    first, last = (_mean_of_first(returns[::way], ended[::way], least) for way in (1, -1))
    return f"training returns of {first:.4g} at first and {last:.4g} at last: "


def _mean_of_first(returns: np.ndarray, ended: np.ndarray, least: float) -> float:
    """The mean of the first `least` episodes or more, of lines that hold `ended` episodes each."""
    count = int(np.searchsorted(np.cumsum(ended), least)) + 1
    return float(np.average(returns[:count], weights=ended[:count]))


def _deals(config: Config) -> bool:
    """Whether rollouts are dealt out in epochs, from which updates and batches follow."""
    return config.optimiser.epochs > 1


def quicker(config: Config, acts: bool) -> list[str]:
    """What would make a run quicker that mostly acts, or mostly learns."""
    updates = f"optimiser.epochs (now {config.optimiser.epochs})" if _deals(config) else "optimiser.updates_per_step"
    advice = ["more env.num_envs or env.num_threads" if acts else f"fewer {updates}"]
    advice += [] if config.loop.name == "pipeline" else ["loop=pipeline"]
    evaluations = config.evaluation.count
    return [*advice, "a smaller network", *([f"a lower evaluation.count (now {evaluations})"] if evaluations else [])]


_SPEEDS = (("env_steps", "environment steps"), ("updates", "updates"))


class Watch:
    """Raises each flag once while a run learns."""

    def __init__(self, known: doctor.Facts, lines: list[dict[str, Any]] | None = None):
        self._facts = known
        self._names: dict[tuple[str, ...], dict[str, int]] = {}
        self._lines = [self._packed(line) for line in lines or []]
        self._raised: set[int] = set()
        self._next = time.monotonic() + SECONDS

    def __call__(self, line: Mapping[str, Any], at_once: bool = False) -> list[doctor.Flag]:
        """Flags that are new with this line; looks only now and then, unless it is to `at_once`."""
        self._lines.append(self._packed(line))
        if len(self._lines) > LINES:
            self._lines = [kept for at, kept in enumerate(self._lines) if at % 2 or "eval/return_mean" in kept]
        began = time.monotonic()
        if not at_once and began < self._next:
            return []
        new = [flag for flag in doctor.examine(self._lines, self._facts) if flag.number not in self._raised]
        self._raised |= {flag.number for flag in new}
        ended = time.monotonic()
        self._next = ended + max(SECONDS, (ended - began) / SHARE)
        return new

    def _packed(self, line: Mapping[str, Any]) -> Packed:
        names = self._names.setdefault(tuple(line), {name: place for place, name in enumerate(line)})
        return Packed(names, line)


def sentence(flag: doctor.Flag) -> str:
    """A flag in one line, for the console."""
    return f"red flag {flag.number}, {flag.name}: {flag.evidence}; {flag.cause}: {flag.advice}"
