"""Draw the figures of the docs as SVG: python docs/images/figures.py (or `make reference`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from bircher.runs.bench import WorkerSpeeds

FOLDER = Path(__file__).resolve().parent
LEDGER = FOLDER.parents[1] / "benchmarks" / "ledger.jsonl"
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
INK, PALE = "#24292f", "#8c959f"
BLUE, GREEN, ORANGE, GRAY, WHITE = "#dbeafe", "#dcfce7", "#ffedd5", "#f3f4f6", "#ffffff"
"""Fills: networks, data, targets and losses, environments, the background."""

Point = tuple[float, float]


class Drawing:
    """Shapes of one figure, in the order in which they are drawn."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._parts = [f"<title>{escape(title)}</title>", f'<rect width="{width}" height="{height}" fill="{WHITE}"/>']

    def box(self, x: float, y: float, width: float, height: float, text: str, fill: str, size: int = 14) -> None:
        """Draw a rounded box with its text, one or more lines, in the middle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{INK}"/>'
        )
        lines = text.split("\n")
        for index, line in enumerate(lines):
            self.text(
                x + width / 2, y + height / 2 + (index - (len(lines) - 1) / 2) * (size + 3) + size * 0.35, line, size
            )

    def frame(self, x: float, y: float, width: float, height: float, text: str) -> None:
        """Draw a dashed frame around several boxes, with its name at the upper left."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="10" fill="none" stroke="{PALE}" '
            'stroke-dasharray="6 4"/>'
        )
        self.text(x + 10, y + 18, text, 13, "start", PALE)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 14,
        anchor: str = "middle",
        color: str = INK,
        bold: bool = False,
    ) -> None:
        """Draw one line of text; `x` is its middle, start or end."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{FONT}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{color}"{weight}>{escape(text)}</text>'
        )

    def arrow(self, *points: Point, text: str = "", at: Point | None = None, dashed: bool = False) -> None:
        """Draw an arrow along some points, and a label at `at`, by default above the middle of its first part."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.3"{dash} marker-end="url(#head)"/>'
        )
        if text:
            (x, y), (other_x, other_y) = points[:2]
            self.text(*(at or ((x + other_x) / 2, (y + other_y) / 2 - 6)), text, 12)

    def line(self, points: Sequence[Point], color: str = INK, dashed: bool = False) -> None:
        """Draw a line along some points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>')

    def dot(self, x: float, y: float) -> None:
        """Draw a point."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{INK}"/>')

    def svg(self) -> str:
        """The figure as SVG."""
        width, height = self._size
        head = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker></defs>'
        )
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        )
        return "\n".join([opening, head, *self._parts, "</svg>"]) + "\n"


def how_it_works() -> str:
    """The two programs of a run, and what passes between them."""
    d = Drawing(900, 400, "A rollout program collects rows, and a learning program turns rows into updates")
    d.frame(15, 15, 300, 300, "rollout: one compiled program")
    d.box(45, 50, 240, 60, "B environments", GRAY)
    d.box(45, 190, 240, 60, "agent.act\nnetwork, look-ahead or search", BLUE)
    d.arrow((105, 110), (105, 190), text="observations", at=(150, 155))
    d.arrow((255, 190), (255, 110), text="actions", at=(225, 155))
    d.text(190, 290, "T + 1 rows of each environment", 13)
    d.frame(345, 15, 540, 300, "learn: one compiled program")
    d.box(375, 50, 130, 60, "replay", GREEN)
    d.box(375, 190, 130, 60, "batch\nfresh + replayed", GREEN)
    d.arrow((285, 220), (375, 220), text="rows", at=(300, 213))
    d.arrow((330, 220), (330, 80), (375, 80))
    d.arrow((440, 110), (440, 190), text="sample", at=(468, 155))
    d.box(550, 50, 140, 60, "agent.targets\ntarget network", ORANGE)
    d.box(550, 190, 140, 60, "agent.loss\nterms × weights", ORANGE)
    d.arrow((505, 210), (525, 210), (525, 80), (550, 80))
    d.arrow((620, 110), (620, 190), text="targets", at=(648, 155))
    d.arrow((505, 230), (550, 230))
    d.box(735, 190, 130, 60, "optimizer", BLUE)
    d.arrow((690, 220), (735, 220), text="gradient", at=(712, 180))
    d.box(735, 50, 130, 60, "target network\nmoving average", BLUE)
    d.arrow((800, 190), (800, 110))
    d.arrow((735, 80), (690, 80))
    d.arrow((800, 250), (800, 350), (70, 350), (70, 250), text="new parameters", at=(480, 343))
    d.text(
        450,
        385,
        "checkpoint, evaluation, metrics and red flags are read from the state between the programs",
        13,
        color=PALE,
    )
    return d.svg()


def muesli_acting() -> str:
    """Which of Muesli's two networks acts, and what is stored."""
    d = Drawing(900, 330, "Muesli acts with its target network, without a search")
    d.box(15, 120, 105, 60, "environment", GRAY)
    d.frame(203, 60, 407, 180, "target network")
    d.box(220, 120, 90, 60, "encoder h", BLUE)
    d.box(345, 120, 90, 60, "latent", GREEN)
    d.box(475, 120, 110, 60, "policy head", BLUE)
    d.arrow((120, 150), (220, 150), text="observation", at=(162, 142))
    d.arrow((310, 150), (345, 150))
    d.arrow((435, 150), (475, 150))
    d.box(665, 120, 210, 60, "mask illegal actions,\nsample an action", ORANGE)
    d.arrow((585, 150), (665, 150), text="logits", at=(638, 142))
    d.arrow((770, 120), (770, 35), (68, 35), (68, 120), text="action", at=(450, 29))
    d.box(665, 225, 210, 70, "row: observation, action,\nreward, behavior logits", GREEN)
    d.arrow((770, 180), (770, 225))
    d.box(205, 265, 380, 40, "online network: learns, and does not act", BLUE)
    d.arrow((395, 265), (395, 240), text="moving average, rate 0.1", at=(480, 257))
    d.text(395, 215, "dynamics g and the other heads are not used to act", 13, color=PALE)
    return d.svg()


def muzero_acting() -> str:
    """Which of MuZero's two networks acts, and what is stored."""
    d = Drawing(900, 350, "MuZero acts with its online network, through a search")
    d.box(15, 120, 105, 60, "environment", GRAY)
    d.frame(203, 60, 437, 190, "online network")
    d.box(220, 120, 85, 60, "encoder h", BLUE)
    d.box(330, 120, 70, 60, "root\nlatent", GREEN)
    d.box(425, 95, 200, 110, "search\nN simulations, each one\nstep of dynamics g\nand heads f", ORANGE)
    d.arrow((120, 150), (220, 150), text="observation", at=(162, 142))
    d.arrow((305, 150), (330, 150))
    d.arrow((400, 150), (425, 150))
    d.box(690, 110, 190, 80, "choose an action\nMuZero: from visits\nGumbel: by the search", ORANGE, 13)
    d.arrow((625, 150), (690, 150))
    d.arrow((785, 110), (785, 35), (68, 35), (68, 120), text="action", at=(450, 29))
    d.box(690, 240, 190, 80, "row: observation, action,\nreward, search policy,\nsearch value", GREEN, 13)
    d.arrow((785, 190), (785, 240))
    d.box(203, 285, 437, 45, "target network: does not act; searches replayed rows again", BLUE, 13)
    d.arrow((410, 250), (410, 285), text="moving average", at=(465, 272))
    return d.svg()


def unroll(
    title: str,
    root: list[str],
    deep: list[str],
    root_targets: list[str],
    targets: list[str],
    source: str,
    consistent: bool,
) -> str:
    """The model along the actions that were taken, with the predictions of each depth below and targets above."""
    d = Drawing(960, 520, title)
    columns = [230, 440, 650, 860]
    steps = ["t", "t+1", "t+2", "t+K"]
    for index, (x, step) in enumerate(zip(columns, steps, strict=True)):
        names = [name.replace("{t}", step) for name in (targets if index else root_targets)]
        d.box(x - 80, 62, 160, 74, "\n".join(names), ORANGE, 13)
        d.box(x - 60, 180, 120, 40, f"row {step}", GREEN)
        d.arrow((x, 180), (x, 136))
        d.box(x - 50, 290, 100, 46, f"latent {min(index, 3) if index < 3 else 'K'}", BLUE)
        terms = root if index == 0 else deep
        d.box(x - 80, 385, 160, 30 + 18 * len(terms), "\n".join(["heads f", *terms]), BLUE, 13)
        d.arrow((x, 336), (x, 385))
    d.arrow((230, 220), (230, 290), text="encoder h", at=(195, 258))
    for left, right, action in zip(columns[:-1], columns[1:], ["a(t)", "a(t+1)", "…"], strict=True):
        d.arrow((left + 50, 313), (right - 50, 313), text=f"g, {action}" if action != "…" else "g, …")
        d.arrow((left + 60, 200), (right - 60, 200), text=action)
    if consistent:
        for x in columns[1:]:
            d.arrow((x, 290), (x, 220), dashed=True)
        d.text(755, 258, "consistency, off by default", 12, color=PALE)
    for y, text in (
        (95, "targets"),
        (202, "what happened"),
        (315, "what the model"),
        (332, "imagines"),
        (410, "losses"),
    ):
        d.text(20, y, text, 14, "start", bold=True)
    d.text(20, 112, source, 12, "start", PALE)
    d.text(20, 219, "rows of a sequence", 12, "start", PALE)
    d.text(20, 427, "online network", 12, "start", PALE)
    d.text(480, 30, title, 15, bold=True)
    d.text(
        480,
        505,
        "Each prediction is trained toward the target in its column. Depths 1 to K are averaged.",
        13,
        color=PALE,
    )
    return d.svg()


def muesli_unroll() -> str:
    """Muesli's unroll."""
    return unroll(
        "Muesli: the unroll and its targets",
        ["policy_gradient", "cmpo", "value"],
        ["model_policy", "model_value", "model_reward"],
        ["CMPO policy at {t}", "return G at {t}", "advantage at {t}"],
        ["CMPO policy at {t}", "return G at {t}", "reward on arriving"],
        "target network",
        False,
    )


def muzero_unroll() -> str:
    """MuZero's unroll."""
    return unroll(
        "MuZero: the unroll and its targets",
        ["policy", "value"],
        ["model_policy", "model_value", "model_reward"],
        ["search policy at {t}", "return at {t}"],
        ["search policy at {t}", "return at {t}", "reward on arriving"],
        "searches",
        True,
    )


def workers() -> str:
    """The speed of numbers of workers, beside the prediction, from the last measurement in the ledger."""
    lines = map(json.loads, LEDGER.read_text(encoding="utf-8").splitlines())
    results = [line["results"] for line in lines if line["name"] == "workers"][-1]
    model, rows = results["model"], results["rows"]
    most, top = rows[-1]["workers"], max(row[kind] for row in rows for kind in ("measured", "predicted"))
    top = 100 * math.ceil(1.25 * top / 100)  # with room for the legend
    drawing = Drawing(520, 330, "Steps a second by the number of workers")
    left, right, upper, lower = 70.0, 500.0, 20.0, 270.0

    def place(count: float, speed: float) -> Point:
        return left + (right - left) * count / most, lower - (lower - upper) * speed / top

    for speed in range(0, top + 1, 200 if top > 500 else 100):
        drawing.line([place(0, speed), place(most, speed)], "#d0d7de")
        drawing.text(left - 8, place(0, speed)[1] + 4, f"{speed}", 12, "end")
    for row in rows:
        drawing.text(place(row["workers"], 0)[0], lower + 18, f"{row['workers']}", 12)
    counts = [1 + step / 20 for step in range(20 * (most - 1) + 1)]
    drawing.line([place(1, rows[0]["measured"]), place(most, most * rows[0]["measured"])], PALE, dashed=True)
    predicted = [(count, WorkerSpeeds(**model).steps_per_second(int(count))) for count in counts]
    drawing.line([place(*each) for each in predicted], "#0969da")
    for row in rows:
        drawing.dot(*place(row["workers"], row["measured"]))
    drawing.text((left + right) / 2, lower + 44, "ray.workers; eight environments that sleep 10 ms a step", 13)
    drawing.text(
        left + 12, upper + 16, "steps a second: measured (dots), predicted (line), linear (dashed)", 13, "start"
    )
    return drawing.svg()


FIGURES: dict[str, Callable[[], str]] = {
    "how_it_works": how_it_works,
    "muesli_acting": muesli_acting,
    "muesli_unroll": muesli_unroll,
    "muzero_acting": muzero_acting,
    "muzero_unroll": muzero_unroll,
    "workers": workers,
}
"""Every figure by the name of its file."""


def main() -> None:
    """Write every figure."""
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
