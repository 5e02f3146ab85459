"""How many iterations the device is given at a time, and when Python must look."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from bircher.loops.base import Progress

SECONDS = 1.0
"""How long the device should be busy with one chunk: Python wakes about so often."""


class PendingChunk(NamedTuple):
    """A chunk that the device was given, and what will be read of it."""

    progress: Progress
    state: tuple[Any, jax.Array]
    """(counters, updates that were not finite) after it"""
    iterations: int
    seconds: Callable[[], float]
    """Return what it took, after waiting until that is known."""


class Pace:
    """Chunks of iterations that take about a second each, and never pass a goal by more than one iteration.

    An iteration takes at most `steps` environment steps and ends at most `episodes` episodes; less where
    environments are reset.  So a goal is reached at the same iteration whatever the chunks are.
    """

    def __init__(self, num_envs: int, rollout_length: int):
        self.steps = num_envs * rollout_length
        # The shortest episode is one action and one reset.
        self.episodes = num_envs * -(-rollout_length // 2)
        self._chunk = 1

    def chunk(self, steps_left: int, episodes_left: int | None, known: bool) -> int:
        """Iterations for the next chunk, given what may be left when all that was begun is done.

        0 where that may reach a goal already: then wait until it is `known`, when at least one is given.
        """
        safe = steps_left // self.steps
        if episodes_left is not None:
            safe = min(safe, episodes_left // self.episodes)
        return min(self._chunk, max(safe, 1 if known else 0))

    def measured(self, iterations: int, seconds: float) -> None:
        """Learn from a chunk how long an iteration takes."""
        wanted = round(iterations * SECONDS / max(seconds, 1e-6))
        # A first measurement may be of a machine that is still warming up.
        self._chunk = max(1, min(wanted, 8 * iterations))


class Clock:
    """What each chunk takes, from when it could begin, by a thread that waits for its end.

    When a chunk is read says little: some loops hold Python up until the next one has nearly ended.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "clock")
        self._ended = time.monotonic()

    def begin(self) -> Callable[[jax.Array], Callable[[], float]]:
        """Now a chunk is given to the device; what is returned is to be told what it gives, and returns its seconds."""
        at = time.monotonic()
        return lambda array: self._thread.submit(self._wait, array, at).result

    def close(self) -> None:
        """Once all has ended."""
        self._thread.shutdown()

    def _wait(self, array: jax.Array, at: float) -> float:
        jax.block_until_ready(array)
        before, self._ended = self._ended, time.monotonic()
        return max(self._ended - max(at, before), 1e-9)
