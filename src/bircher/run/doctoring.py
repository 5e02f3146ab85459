"""The red flags of a run: while it learns, and afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bircher import doctor, metrics
from bircher.config import Config
from bircher.run import folder

SECONDS, SHARE = 10.0, 0.01
"""Between two looks at a run that learns, and the most of its time that they may take."""
LINES = 20_000
"""Most that a watch remembers; of more, every second is forgotten, but for evaluations."""


def facts(config: Config) -> doctor.Facts:
    """What the flags must know besides the metrics."""
    terms = tuple(name for name, weight in config.losses.weights().items() if weight != 0.0)
    return doctor.Facts(config.steps, config.model.support, terms, config.replay.capacity, config.replay.fraction)


def examine(path: str | Path) -> list[doctor.Flag]:
    """The flags that a run's metrics raise, by number.

    Raises:
      RunFolderError: there is no run, or no metrics of it yet.
    """
    path = Path(path)
    config = folder.read_config(path)
    try:
        lines = metrics.read(path / folder.METRICS)
    except (OSError, ValueError) as error:
        raise folder.RunFolderError(f"{path} has no {folder.METRICS} that can be read: {error}") from error
    return doctor.examine(lines, facts(config))


class Watch:
    """Raises each flag once while a run learns."""

    def __init__(self, known: doctor.Facts, lines: list[dict[str, Any]] | None = None):
        self._facts, self._lines = known, lines or []
        self._raised: set[int] = set()
        self._next = time.monotonic() + SECONDS

    def __call__(self, line: Mapping[str, Any], at_once: bool = False) -> list[doctor.Flag]:
        """Flags that are new with this line; looks only now and then, unless it is to `at_once`."""
        self._lines.append(dict(line))
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


def sentence(flag: doctor.Flag) -> str:
    """A flag in one line, for the console."""
    return f"red flag {flag.number}, {flag.name}: {flag.evidence}; {flag.cause}: {flag.advice}"
