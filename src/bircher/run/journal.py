"""What a run tells: metrics to every writer, sentences to the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bircher.config import CALLABLE, Config
from bircher.evaluation import Report
from bircher.loops.base import Progress
from bircher.run import folder
from bircher.writers import Console, JsonLines, TensorBoard, Writer

OVERFLOW = 0.001
"""Share of targets beyond the support from which on a warning is due."""


def averages(progress: Progress) -> dict[str, float]:
    """What a chunk of iterations measured: means over its iterations, and over its episodes where any ended."""
    tally, metrics = progress.tally, {}
    if episodes := int(tally.episodes):
        metrics["act/episode_return"] = float(tally.return_sum) / episodes
        metrics["act/episode_length"] = float(tally.length_sum) / episodes
    return metrics | {name: float(total) / int(progress.iterations) for name, total in progress.metrics.items()}


def scores(report: Report) -> dict[str, float]:
    """An evaluation's numbers by their glossary names."""
    return {
        "eval/return_mean": report.mean,
        "eval/return_median": report.median,
        "eval/return_iqm": report.iqm,
        "eval/length_mean": report.env_steps / report.episodes,
    }


class Journal:
    """`metrics.jsonl`, TensorBoard events and the console, as one."""

    def __init__(self, path: Path, config: Config, restored_env_steps: int | None):
        self._support = config.model.support
        self._warned = False
        name = config.env.id.removeprefix(CALLABLE)
        self._console = Console(f"{name}, {config.agent.name}, seed {config.seed}: {path}", config.steps)
        self._writers: list[Writer] = [
            JsonLines(path / folder.METRICS, restored_env_steps),
            TensorBoard(path, restored_env_steps),
            self._console,
        ]

    def write(self, counters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """One line of metrics."""
        for writer in self._writers:
            writer.write(counters, metrics)
        overflow = metrics.get("target/support_overflow", 0.0)
        if overflow > OVERFLOW and not self._warned:
            self._warned = True
            self.say(
                f"warning: {overflow:.1%} of the value and reward targets lie beyond what model.support="
                f"{self._support:g} can tell, and are clipped: raise it"
            )

    def image(self, tag: str, picture: np.ndarray, counters: Mapping[str, Any]) -> None:
        """A picture [height, width, 3] of bytes."""
        for writer in self._writers:
            writer.image(tag, picture, counters)

    def say(self, sentence: str) -> None:
        """A line for whoever watches."""
        self._console.message(sentence)

    def close(self) -> None:
        """Write what is held back."""
        for writer in self._writers:
            writer.close()
