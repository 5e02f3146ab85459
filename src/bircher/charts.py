"""Charts of a comparison, as SVG text that a page holds: curves with bands, and estimates with their intervals."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from bircher.comparison import Band, Estimate

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
DASHES = ("-", "--", ":")
"""For more agents than there are colours."""
COLUMNS, CROWDED = 3, 5
"""Most panels side by side; and the agents from which on shades would hide each other, and names the curves."""

LONGEST = 40
"""Characters of an agent's name in a picture; tables have it whole."""


def bands(panels: Mapping[str, Mapping[str, Band]], xlabel: str) -> str:
    """A panel for each environment: the mean of each agent's runs as a line, their range as a shade (of a few)."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    crowded = max(len(agents) for agents in panels.values()) >= CROWDED
    figure = _figure(4.6 * columns + 2.0 * crowded, 3.4 * rows)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, title=title, xlabel=xlabel)
        if number % columns == 1 % columns:
            axes.set_ylabel("return of training episodes")
        for index, (name, band) in enumerate(agents.items()):
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            axes.plot(band.x, band.mean, dash, color=_colour(index), linewidth=1.4, label=_label(name))
            if not crowded:
                axes.fill_between(band.x, band.low, band.high, color=_colour(index), alpha=0.18, linewidth=0)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        if not crowded:
            axes.legend(frameon=False, fontsize=8)
        elif number == min(columns, len(panels)):
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def intervals(panels: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A panel for each statistic: every agent's estimate as a point within its interval."""
    rows = max(len(agents) for agents in panels.values())
    figure = _figure(4.6 * len(panels), 0.9 + 0.35 * rows)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number, title=title)
        for place, found in enumerate(agents.values()):
            axes.plot([found.low, found.high], [place, place], color=_colour(place), linewidth=6, alpha=0.4)
            axes.plot([found.value], [place], "o", color=_colour(place))
        axes.set_yticks(range(len(agents)), [_label(name) for name in agents])
        axes.set_ylim(len(agents) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def _label(name: str) -> str:
    """An agent's name as there is room for it: of many settings the first and the last."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _figure(width: float, height: float) -> Any:
    # Without pyplot: no window system is touched and no figure outlives the call.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    """The drawing alone, without the file's preamble and with nothing that differs from call to call."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bircher"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)
