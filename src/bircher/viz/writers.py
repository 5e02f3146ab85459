"""Writers of metrics: JSON lines, TensorBoard events, and a display in the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np

from bircher import metrics as glossary

Numbers = Mapping[str, Any]
"""A mapping from names to numbers, or to values that ``float`` accepts, such as arrays of one element."""


@runtime_checkable
class Writer(Protocol):
    """The interface through which a training run outputs its metrics."""

    def write(self, counters: Numbers, metrics: Numbers) -> None:
        """Write the metrics of one moment, with the counters (``bircher.metrics.COUNTERS``) of that moment."""
        ...

    def image(self, tag: str, array: np.ndarray, counters: Numbers) -> None:
        """Write a picture ``[height, width, 3]`` of bytes, such as an evaluation's last frame."""
        ...

    def close(self) -> None:
        """Write buffered output and free all resources; nothing is written afterward."""
        ...


class JsonLines:
    """Writes one JSON object per line: the counters, then the metrics, with NaN and infinities as null.

    ``restored_env_steps`` is None for a new run, whose file must not exist.  For a resumed run it is the number of
    steps in its checkpoint; later lines are dropped, because the run repeats their steps.  Lines that cannot be read
    are moved to a separate file next to this one; ``damaged`` contains their numbers.
    """

    def __init__(self, path: str | Path, restored_env_steps: int | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.damaged: tuple[int, ...] = ()
        if restored_env_steps is not None and path.exists():
            self.damaged = _cut(path, restored_env_steps)
        # There is no buffer, so that closing the file after a full disk has nothing to write and cannot fail again.
        self._file = path.open("xb" if restored_env_steps is None else "ab", buffering=0)

    def write(self, counters: Numbers, metrics: Numbers) -> None:
        """Append one line; it is in the file when this method returns."""
        line = {name: _json_number(value) for name, value in {**counters, **metrics}.items()}
        remaining = (json.dumps(line, allow_nan=False) + "\n").encode()
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def image(self, tag: str, array: np.ndarray, counters: Numbers) -> None:
        """Ignore the picture, since a file of lines cannot contain it."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes TensorBoard events over environment steps.

    ``restored_env_steps`` hides the older events of the steps that a resumed run repeats.  The calling thread writes
    the events, so that a full disk raises an error in the call.  tensorboardX's own SummaryWriter writes them in a
    separate thread; when a full disk has ended that thread, later calls block forever.
    """

    def __init__(self, folder: str | Path, restored_env_steps: int | None = None) -> None:
        # These modules are imported only when they are used, because their import takes time.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

        self._summary, self._event = summary, Event
        # The path is absolute, since one that begins with `gs:` or `s3:` would be read as a cloud address.
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._events = event_file_writer.EventsWriter(str(folder / "events"))
        self._flushed = -math.inf
        if restored_env_steps is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(restored_env_steps + 1, session_log=start)

    def write(self, counters: Numbers, metrics: Numbers) -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._add(int(counters["env_steps"]), summary=self._summary.scalar(name, float(value)))

    def image(self, tag: str, array: np.ndarray, counters: Numbers) -> None:
        """Write one picture ``[height, width, 3]`` of bytes."""
        self._add(int(counters["env_steps"]), summary=self._summary.image(tag, array, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close the events."""
        try:
            self._events.close()
        except OSError:
            # tensorboardX leaves the file open if the flush fails, and Python 3.13 would report that at exit.
            with contextlib.suppress(OSError):
                self._events._py_recordio_writer.close()
            raise

    def _add(self, env_steps: int, **content: Any) -> None:
        """Append one event; every ten seconds all events are flushed to the disk."""
        self._events.write_event(self._event(step=env_steps, wall_time=time.time(), **content))
        if time.monotonic() - self._flushed >= 10.0:
            self._events.flush()
            self._flushed = time.monotonic()


class Console:
    """Shows a live display if the output is a terminal, and otherwise prints a plain line every few seconds.

    It draws only within ``write`` and at most every ``every_seconds`` (by default 1 for the live display, 5 for plain
    lines), so that a training run is hardly slower.  ``total_env_steps`` is needed to show progress and time left.
    """

    def __init__(
        self,
        title: str,
        total_env_steps: int | None = None,
        stream: TextIO | None = None,
        every_seconds: float | None = None,
    ) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        self._title = title
        self._total = total_env_steps
        self._terminal = Terminal(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        live = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        self._live = Live(console=self._terminal, auto_refresh=False) if live else None
        self._every = every_seconds if every_seconds is not None else (1.0 if live else 5.0)
        self._last_draw = -math.inf
        self._start: tuple[float, float] | None = None
        self._counters: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        if self._live:
            self._live.start()

    def write(self, counters: Numbers, metrics: Numbers) -> None:
        """Store the newest value of each metric, and draw if enough time has passed."""
        self._counters = {name: float(value) for name, value in counters.items()}
        self._metrics |= {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        self._start = self._start or (now, self._counters["env_steps"])
        if now - self._last_draw >= self._every:
            self._draw(now)

    def image(self, tag: str, array: np.ndarray, counters: Numbers) -> None:
        """Ignore the picture, since a terminal cannot show it."""

    def message(self, text: str) -> None:
        """Print a permanent line above the display."""
        self._terminal.print(_printable(text), markup=False, emoji=False)

    def close(self) -> None:
        """Draw the last values and end the live display."""
        if self._counters:
            self._draw(time.monotonic())
        if self._live:
            self._live.stop()
        self._counters = {}

    def _draw(self, now: float) -> None:
        self._last_draw = now
        if self._live:
            self._live.update(self._panel(now), refresh=True)
        else:
            self.message(self._line(now))

    def _seconds_left(self, now: float) -> float | None:
        """Estimate the remaining time from the mean speed of this process.

        Returns None before the first steps, or if the total number of steps is not set.
        """
        if self._total is None or self._start is None:
            return None
        start, first_steps = self._start
        done = self._counters["env_steps"] - first_steps
        left = max(self._total - self._counters["env_steps"], 0)
        return left * (now - start) / done if done > 0 else None

    def _line(self, now: float) -> str:
        steps = int(self._counters["env_steps"])
        shown = [f"{steps:,} steps" + (f" ({steps / self._total:.0%})" if self._total else "")]
        if (left := self._seconds_left(now)) is not None:
            shown.append(f"{_clock(left)} left")
        for name, label in _LINE.items():
            if name in self._metrics:
                shown.append(f"{label} {_number(name, self._metrics[name])}")
        return " | ".join(shown)

    def _panel(self, now: float) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        steps, left = int(self._counters["env_steps"]), self._seconds_left(now)
        head = Table.grid(padding=(0, 2))
        cells: list[Any] = [f"{steps:,}" + (f" / {self._total:,}" if self._total else "") + " environment steps"]
        if self._total:
            cells.insert(0, ProgressBar(self._total, min(steps, self._total), width=30))
            cells.append(f"{_clock(left)} left" if left is not None else "")
        cells.append(f"{_clock(self._counters.get('wall_seconds', 0.0))} gone")
        head.add_row(*cells)
        body = Table.grid(padding=(0, 2))
        body.add_column()
        body.add_column(justify="right", min_width=10)
        body.add_column(style="dim")
        for group in glossary.GROUPS:
            for name in sorted(name for name in self._metrics if name.startswith(f"{group}/") and name not in _QUIET):
                unit = glossary.GLOSSARY[name].unit if name in glossary.GLOSSARY else ""
                body.add_row(name, _number(name, self._metrics[name]), "" if unit in ("1", "bytes") else unit)
        # The title is a Text, because in a string the words in brackets would be read as a style.
        return Panel(Group(head, "", body), title=Text(_printable(self._title)), title_align="left", expand=False)


_LINE = {
    "act/episode_return": "return",
    "eval/return_mean": "evaluation",
    "speed/env_steps_per_second": "steps/s",
    "speed/updates_per_second": "updates/s",
    "speed/memory_bytes": "memory",
} | {f"loss/{term}": term for term in glossary.TERMS}
"""The metrics in a plain line, with their labels."""

_QUIET = {f"weighted/{term}" for term in glossary.TERMS}
"""Metrics that the live display omits: they are the losses times constants, and the files contain them."""


def _printable(text: str) -> str:
    """Escape the parts of a text that a terminal cannot print: bytes in a path that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def damaged_path(path: Path) -> Path:
    """Return the path of the file for the unreadable lines of a file of metrics."""
    return path.with_name(path.name + ".damaged")


def _cut(path: Path, env_steps: int) -> tuple[int, ...]:
    """Drop the lines beyond ``env_steps`` and an incomplete last line, and return the numbers of damaged lines.

    The file is replaced in one step, so that an interruption leaves the old or the new file.
    """
    lines, damaged = glossary.salvage(path)
    remaining = [line for line in lines if line["env_steps"] <= env_steps]
    if damaged:
        with damaged_path(path).open("ab") as file:
            file.writelines(text + b"\n" for text in damaged.values())
    temporary = path.with_name(path.name + ".unfinished")
    with temporary.open("w", encoding="utf-8") as file:
        for line in remaining:
            file.write(json.dumps({name: _json_number(value) for name, value in line.items()}) + "\n")
    os.replace(temporary, path)
    return tuple(damaged)


def _json_number(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) or math.isfinite(number) else None


def _number(name: str, value: float) -> str:
    if name == "speed/memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if name.startswith("speed/"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
