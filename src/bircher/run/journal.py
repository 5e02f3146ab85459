"""What a run tells: metrics to every writer, sentences to the console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bircher import metrics as glossary
from bircher.config import Config
from bircher.evaluation import Report
from bircher.loops.base import Progress
from bircher.preset_files import CALLABLE
from bircher.run import doctoring, folder
from bircher.run.outcome import RunFailed
from bircher.writers import Console, JsonLines, TensorBoard, Writer, put_aside


class Averages:
    """What chunks of iterations measured: means over their iterations, and over their episodes where any ended."""

    def __init__(self) -> None:
        self._longest = 0

    def __call__(self, progress: Progress) -> dict[str, float]:
        """One chunk's, by name; it knows the longest episode of the run so far."""
        tally, metrics = progress.tally, {}
        if episodes := int(tally.episodes):
            metrics["act/episode_return"] = float(tally.return_sum) / episodes
            metrics["act/episode_length"] = float(tally.length_sum) / episodes
            metrics["act/last_reward"] = float(tally.last_reward_sum) / episodes
            self._longest = max(self._longest, int(tally.longest))
            died = int(tally.died_at_longest) if int(tally.longest) == self._longest else 0
            metrics["act/deaths_at_longest"] = died / episodes
            metrics["act/longest_episode"] = float(self._longest)
        return metrics | {name: float(total) / int(progress.iterations) for name, total in progress.metrics.items()}


def scores(report: Report) -> dict[str, float]:
    """An evaluation's numbers by their glossary names."""
    normalised, some = report.human_normalised, {}
    if normalised is not None:
        some["eval/human_normalised"] = normalised["mean"]
    if report.episodes > 1:
        some["eval/return_error"] = float(np.std(report.returns, ddof=1)) / report.episodes**0.5
    if report.cut_short:
        some["eval/cut_short"] = report.cut_short / report.episodes
    return some | {
        "eval/return_mean": report.mean,
        "eval/return_median": report.median,
        "eval/return_iqm": report.iqm,
        "eval/length_mean": report.env_steps / report.episodes,
    }


class Journal:
    """`metrics.jsonl`, TensorBoard events and the console, as one."""

    def __init__(self, path: Path, config: Config, restored_env_steps: int | None):
        file = path / folder.METRICS
        lines = JsonLines(file, restored_env_steps)
        self._watch = doctoring.Watch(doctoring.facts(config), glossary.read(file))
        name = config.env.id.removeprefix(CALLABLE)
        self._path = path
        self._console = Console(f"{name}, {config.agent.name}, seed {config.seed}: {path}", config.steps)
        self._writers: list[Writer] = [lines, TensorBoard(path, restored_env_steps), self._console]
        if lines.damaged:
            one = len(lines.damaged) == 1
            numbers = f"line{'' if one else 's'} {', '.join(str(number) for number in lines.damaged)}"
            self.say(f"{numbers} of {file} cannot be read, and {'is' if one else 'are'} now in {put_aside(file).name}")

    def write(self, counters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write one line of metrics.

        Raises:
          RunFailed: a file cannot be written, as on a full disk; later calls write to the console alone.
        """
        self._to_each(lambda writer: writer.write(counters, metrics))
        # An evaluation is worth a look at once.
        for flag in self._watch({**counters, **metrics}, "eval/return_mean" in metrics):
            self.say(doctoring.sentence(flag))

    def image(self, tag: str, picture: np.ndarray, counters: Mapping[str, Any]) -> None:
        """Write a picture [height, width, 3] of bytes; raises what `write` does."""
        self._to_each(lambda writer: writer.image(tag, picture, counters))

    def say(self, sentence: str) -> None:
        """A line for whoever watches."""
        self._console.message(sentence)

    def close(self) -> None:
        """Write what is held back; a file that does not take it is named on the console."""
        files = [writer for writer in self._writers if writer is not self._console]
        for error in _close(files):
            self.say(f"the last events of {self._path} are not written: {error.strerror}")
        self._console.close()

    def _to_each(self, act: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                act(writer)
            except OSError as error:
                # What these hold back is of the same disk, and cannot be written either.
                _close([writer for writer in self._writers if writer is not self._console])
                self._writers = [] if writer is self._console else [self._console]
                raise RunFailed(f"the metrics of {self._path} cannot be written: {error.strerror}") from error


def _close(writers: Iterable[Writer]) -> list[OSError]:
    """Close every writer; the errors of those that could not write what they held back."""
    errors = []
    for writer in writers:
        try:
            writer.close()
        except OSError as error:
            errors.append(error)
    return errors
