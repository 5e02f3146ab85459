"""Record a run on two Ray nodes, one of which is killed, as a GIF of what the run prints.

python benchmarks/recording.py docs/images/node_lost.gif

Both nodes are on this machine, with two places for workers each.  The second one and all of its processes are killed
after the first evaluation, and the run continues on the other one.  Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import runner
from PIL import Image, ImageDraw, ImageFont
from runner import Result, Study
from scaling import ray_nodes

COLUMNS, ROWS, SIZE = 112, 26, 13
INK, PAPER, RED = "#e6edf3", "#0d1117", "#ff7b72"
PAUSE = 2500
"""Milliseconds for which the last frame stays."""


class Printed(NamedTuple):
    """A line, and when it came."""

    seconds: float
    text: str
    stands_out: bool = False


def run_and_kill(words: Sequence[str], cores: Sequence[int]) -> list[Printed]:
    """What the run printed, and the moment of the node's death."""
    with runner.scratch() as folder, ray_nodes(cores, 2) as nodes:
        command = ["bircher", "train", *words, f"ray.address={nodes.address}"]
        began = time.monotonic()
        printed = [
            Printed(0.0, f"$ ray start --head --port={nodes.address.rpartition(':')[2]}"),
            Printed(0.0, f"$ ray start --address={nodes.address}"),
            Printed(0.0, f"$ {' '.join(command)}"),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--out", str(folder / "run")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=nodes.environment,
        )  # fmt: skip
        assert process.stdout is not None
        killed = False
        for line in process.stdout:
            text = re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip().expandtabs(2).replace(f"{folder}/", "")
            print(text, flush=True)
            printed.append(Printed(time.monotonic() - began, text, "is replaced" in text))
            if "evaluation" in text and not killed:
                os.killpg(nodes.processes[1].pid, signal.SIGKILL)
                killed = True
                printed.append(Printed(time.monotonic() - began, "# the second node is killed", True))
        if process.wait() or not killed:
            raise SystemExit(f"the run ended with {process.returncode}, the node was {'' if killed else 'not '}killed")
    return printed


def rows(printed: Sequence[Printed]) -> Iterator[Printed]:
    """The lines of a terminal of so many columns."""
    for seconds, text, stands_out in printed:
        for start in range(0, max(len(text), 1), COLUMNS):
            yield Printed(seconds, text[start : start + COLUMNS], stands_out)


def frame(visible: Sequence[Printed]) -> Image.Image:
    """A picture of the last lines."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), SIZE)
    width, height = int(font.getlength("x") * COLUMNS) + 24, (SIZE + 4) * ROWS + 20
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(visible[-ROWS:]):
        draw.text((12, 10 + row * (SIZE + 4)), line.text, RED if line.stands_out else INK, font)
    return picture.quantize(16)


def record(options: argparse.Namespace) -> Iterator[Result]:
    """Record and draw; the moments are those of the run, `--faster` times as quick."""
    words = ["CartPole-v1", "loop=ray", "ray.workers=2", f"steps={options.steps}", *options.settings]
    printed = run_and_kill(words, options.cores)
    lines = list(rows(printed))
    moments = sorted({line.seconds for line in lines})
    frames = [frame([line for line in lines if line.seconds <= moment]) for moment in moments]
    waits = [
        max(int(1000 * (later - now) / options.faster), 60) for now, later in zip(moments, moments[1:], strict=False)
    ]
    frames[0].save(
        options.picture, save_all=True, append_images=frames[1:], duration=[*waits, PAUSE], loop=0, optimize=True
    )
    yield Result({"lines": [line._asdict() for line in printed], "faster": options.faster}, "CartPole-v1", "muesli")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as for bircher train")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--faster", type=float, default=4.0)


if __name__ == "__main__":
    runner.main(__doc__, {"recording": Study(record, _arguments)})
