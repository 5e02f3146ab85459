"""Charts of a comparison, as SVG text that a page holds: curves with bands, and estimates with their intervals."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from bircher.comparison import Band, Estimate

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")


def bands(panels: Mapping[str, Mapping[str, Band]], xlabel: str) -> str:
    """A panel for each environment: the mean of each agent's runs as a line, their range as a shade."""
    figure = _figure(4.6 * len(panels), 3.4)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number, title=title, xlabel=xlabel)
        if number == 1:
            axes.set_ylabel("return of training episodes")
        for colour, (name, band) in zip(_colours(len(agents)), agents.items(), strict=True):
            axes.plot(band.x, band.mean, color=colour, linewidth=1.4, label=name)
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def intervals(panels: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A panel for each statistic: every agent's estimate as a point within its interval."""
    rows = max(len(agents) for agents in panels.values())
    figure = _figure(4.6 * len(panels), 1.0 + 0.45 * rows)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number, title=title)
        for place, (colour, (_, found)) in enumerate(zip(_colours(len(agents)), agents.items(), strict=True)):
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=6, alpha=0.4)
            axes.plot([found.value], [place], "o", color=colour)
        axes.set_yticks(range(len(agents)), list(agents))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


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
