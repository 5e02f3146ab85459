"""What every loop is to a run: programs, and what they tell of the iterations that they ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bircher.actor import ActorState
from bircher.learner import TrainState
from bircher.types import Tally


class Progress(eqx.Module):
    """Sums over the iterations since they were last read; on the device, so that nothing waits for Python."""

    iterations: Int[Array, ""]
    tally: Tally
    metrics: dict[str, Float[Array, ""]]
    failed_at: Int[Array, ""]
    """Environment steps of the run when an environment first failed; -1 while none did."""

    @classmethod
    def zero(cls, metrics: dict[str, Any]) -> Progress:
        """Of nothing yet, for metrics of these shapes."""
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return cls(jnp.zeros((), jnp.int32), Tally.zero(), blank, jnp.full((), -1, jnp.int32))

    def then(self, tally: Tally, metrics: dict[str, Array], env_steps: Array) -> Progress:
        """With one more iteration, after which the run has this many environment steps."""
        newly = (self.tally.failed < 0) & (tally.failed >= 0)
        return Progress(
            self.iterations + 1,
            self.tally.then(tally),
            jax.tree.map(jnp.add, self.metrics, metrics),
            jnp.where(newly, env_steps, self.failed_at),
        )


class Programs(NamedTuple):
    """A loop's functions.  Its state is where the environments stand, and whatever else it must hold to go on."""

    begin: Callable[[TrainState, ActorState], PyTree]
    """(train, environments at their start) -> the loop's state; traceable, so that its shapes are known at once"""
    advance: Callable[[TrainState, Any, Progress, int], tuple[TrainState, Any, Progress]]
    """(train, state, progress, iterations): runs them and returns without waiting; its arguments are donated"""
    fresh_progress: Callable[[TrainState, PyTree], Progress]
    """(train, state or its shapes) -> zeros of the right shapes; traces, does not compile"""
    compile: Callable[[TrainState, PyTree, Progress], int]
    """compiles what `begin` and `advance` will run for arguments of these shapes, several programs at once where there
    are any, and returns the bytes that they take while they run; optional: else they compile at their first call"""
    stopwatch: Stopwatch | None = None
    """None where acting and learning are one program, whose parts nobody can tell apart"""


def temporary_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes while it runs, besides what it is given and returns; 0 where unknown."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else int(memory.temp_size_in_bytes)


class Stopwatch:
    """Times an iteration now and then, by waiting for it: what share of it is acting."""

    SECONDS = 10.0
    """Between two that are timed; in between nothing waits."""

    def __init__(self) -> None:
        self.acting_share: float | None = None
        self._next = 0.0

    def due(self) -> bool:
        """Whether to time the iteration that begins."""
        return time.monotonic() >= self._next

    def record(self, acting: float, learning: float) -> None:
        """What was measured, in seconds."""
        self.acting_share = acting / max(acting + learning, 1e-9)
        self._next = time.monotonic() + self.SECONDS


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, when it is there, and the seconds that took."""
    began = time.monotonic()
    result = jax.block_until_ready(call())
    return result, time.monotonic() - began
