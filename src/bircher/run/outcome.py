"""Where a run begins, and what comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bircher.learner import TrainState
from bircher.run.loaded import LoadedAgent


class RunFailed(RuntimeError):
    """A run that could not go on; what it had learnt is in its last checkpoint."""


class Run(NamedTuple):
    """A run that has ended."""

    path: Path
    agent: LoadedAgent
    counters: dict[str, int | float]
    stopped: bool
    """Whether the user ended it before its steps were done."""


class Origin(NamedTuple):
    """Where a run goes on from: the start, or a checkpoint."""

    train: TrainState | None = None
    actor: Any = None
    """The loop's state: where the environments stood; None where they begin anew."""
    env_steps: int | None = None
    wall_seconds: float = 0.0
    generation: int = 0
    """How often the run was resumed: environments that begin anew have other seeds each time."""
