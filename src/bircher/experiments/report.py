"""A comparison as a Markdown table, and as an HTML page with its charts, in one file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any, NamedTuple

from bircher.experiments.statistics import Band, Estimate, format_return

COLORS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
DASHES = ("-", "--", ":")
"""Line styles for more agents than there are colors."""
COLUMNS, CROWDED = 3, 5
"""Maximum number of panels in a row, and the number of agents from which on a chart has no shaded ranges and its legend
is outside, because they would hide the curves."""

LONGEST = 40
"""Maximum number of characters of an agent's name in a picture; tables contain the whole name."""


def bands(panels: Mapping[str, Mapping[str, Band]], xlabel: str) -> str:
    """Draw a panel for each environment, with the mean of each agent's runs as a line.

    With few agents the range of their runs is shaded.
    """
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    crowded = max(len(agents) for agents in panels.values()) >= CROWDED
    figure = _figure(4.6 * columns + 2.0 * crowded, 3.4 * rows)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, title=title, xlabel=xlabel)
        if number % columns == 1 % columns:
            axes.set_ylabel("return of training episodes")
        for index, (name, band) in enumerate(agents.items()):
            dash = DASHES[index // len(COLORS) % len(DASHES)]
            axes.plot(band.x, band.mean, dash, color=_color(index), linewidth=1.4, label=_label(name))
            if not crowded:
                axes.fill_between(band.x, band.low, band.high, color=_color(index), alpha=0.18, linewidth=0)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        if agents and not crowded:
            axes.legend(frameon=False, fontsize=8)
        elif agents and number == min(columns, len(panels)):
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def intervals(panels: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Draw a panel for each statistic, with every agent's estimate as a point within its interval."""
    rows = max(len(agents) for agents in panels.values())
    figure = _figure(4.6 * len(panels), 0.9 + 0.35 * rows)
    for number, (title, agents) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number, title=title)
        for place, estimate in enumerate(agents.values()):
            axes.plot([estimate.low, estimate.high], [place, place], color=_color(place), linewidth=6, alpha=0.4)
            axes.plot([estimate.value], [place], "o", color=_color(place))
        axes.set_yticks(range(len(agents)), [_label(name) for name in agents])
        axes.set_ylim(len(agents) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def _label(name: str) -> str:
    """Shorten an agent's name to the available room: of a long name keep the beginning and the end."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _figure(width: float, height: float) -> Any:
    # Without pyplot no window system is used, and the figure is freed after the call.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    """Return the figure as an SVG element without the preamble of a file; equal figures give equal texts."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bircher"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)


class Row(NamedTuple):
    """The results of one agent on one environment."""

    env: str
    agent: str
    mean: Estimate
    """Mean over the means of the runs, with its bootstrap interval."""
    runs: tuple[float, ...]
    """The mean return of each run, by seed."""
    env_steps: int
    wall_seconds: float
    """Mean over the runs."""
    agents: Mapping[str, float] | None = None
    """The mean return of each of several agents over the runs, whose sum is a run's return; None for one agent."""


class ProgressRow(NamedTuple):
    """The results of one agent on one environment of a suite."""

    env: str
    agent: str
    zero: float
    one: float
    """`zero` and `one` are the returns with these normalized scores."""
    threshold: float
    score: Estimate
    """Normalized score."""
    steps: tuple[int, ...]
    """Steps to the threshold of each run, or all steps of a run that never reached it."""
    solved: int
    """Number of runs that reached it."""


class Progress(NamedTuple):
    """Normalized scores and steps to thresholds on a suite, and how the first agent compares with each other one."""

    rows: Sequence[ProgressRow]
    difference: Mapping[tuple[str, str], Estimate]
    """Mean normalized score of the first agent minus that of another."""
    ratio: Mapping[tuple[str, str], Estimate]
    """Steps to the threshold of the first agent divided by those of another."""


class LossRow(NamedTuple):
    """The magnitude of one loss term of one agent on one environment, as means over runs of the end of training."""

    env: str
    agent: str
    term: str
    loss: float
    """Without its weight."""
    weighted: float
    share: float
    """The term's share of the sum of the magnitudes of all weighted terms."""


class Findings(NamedTuple):
    """The contents of a page of results."""

    title: str
    rows: Sequence[Row]
    aggregates: Mapping[str, Mapping[str, Estimate]]
    """By statistic, then by agent."""
    improvement: Mapping[tuple[str, str], Estimate]
    """Probability that a run of the first agent beats one of the second."""
    over_steps: Mapping[str, Mapping[str, Band]]
    """By environment, then by agent."""
    over_seconds: Mapping[str, Mapping[str, Band]]
    commands: Sequence[str]
    notes: Sequence[str]
    progress: Progress | None = None
    """Of a suite only."""
    losses: Sequence[LossRow] = ()


def markdown(findings: Findings) -> str:
    """Return the tables, notes and commands as Markdown."""
    parts = [f"# {findings.title}", "", *_markdown_table(*_scores(findings))]
    if findings.aggregates:
        parts += ["", *_markdown_table(*_aggregates(findings))]
    if findings.progress:
        parts += ["", *_markdown_table(*_suite(findings.progress))]
        if findings.progress.difference:
            parts += ["", *_markdown_table(*_against(findings.progress, findings.rows))]
    if findings.improvement:
        parts += ["", *_markdown_table(*_improvement(findings))]
    if findings.losses:
        parts += ["", *_markdown_table(*_losses(findings))]
    parts += ["", *(f"- {note}" for note in findings.notes), "", "```", *findings.commands, "```", ""]
    return "\n".join(parts)


def html(findings: Findings) -> str:
    """Return the findings of a comparison as an HTML page: tables, charts, notes, and the commands of its runs."""
    body = [f"<h1>{escape(findings.title)}</h1>", _html_table(*_scores(findings))]
    if findings.aggregates:
        body += [
            f"<h2>{'Normalized scores' if findings.progress else 'Interquartile mean and median'}</h2>",
            intervals(findings.aggregates),
            _html_table(*_aggregates(findings)),
        ]
    if findings.progress:
        body += ["<h2>Environments of the suite</h2>", _html_table(*_suite(findings.progress))]
        if findings.progress.difference:
            table = _html_table(*_against(findings.progress, findings.rows))
            body += ["<h2>The first agent against the others</h2>", table]
    if findings.improvement:
        body += ["<h2>Probability of improvement</h2>", _html_table(*_improvement(findings))]
    if findings.over_steps:
        body += ["<h2>By environment steps</h2>", bands(findings.over_steps, "environment steps")]
    if findings.over_seconds:
        body += ["<h2>By wall time</h2>", bands(findings.over_seconds, "seconds")]
    if findings.losses:
        body += ["<h2>Loss terms</h2>", _html_table(*_losses(findings))]
    body += ["<ul>", *(f"<li>{escape(note)}</li>" for note in findings.notes), "</ul>"]
    body += ["<h2>Commands</h2>", "<pre>", *(escape(command) for command in findings.commands), "</pre>"]
    return _PAGE.format(title=escape(findings.title), body="\n".join(body))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body>
{body}
</body></html>
"""


def _scores(findings: Findings) -> tuple[list[str], list[list[str]]]:
    heads = ["environment", "agent", "mean return", "95 % interval", "runs", "steps", "seconds a run"]
    return heads, [
        [
            row.env, row.agent, format_return(row.mean.value),
            f"{format_return(row.mean.low)} to {format_return(row.mean.high)}" if len(row.runs) > 1 else "one run",
            ", ".join(format_return(value) for value in row.runs), f"{row.env_steps:,}", f"{row.wall_seconds:.0f}",
        ]
        for row in findings.rows
    ]  # fmt: skip


def _aggregates(findings: Findings) -> tuple[list[str], list[list[str]]]:
    statistics = list(findings.aggregates)
    agents = list(findings.aggregates[statistics[0]])
    cells = [[agent, *(_interval(findings.aggregates[name][agent]) for name in statistics)] for agent in agents]
    return ["agent", *statistics], cells


def _suite(progress: Progress) -> tuple[list[str], list[list[str]]]:
    heads = ["environment", "agent", "normalized score", "0", "1", "threshold", "median steps to it", "reached", "runs"]
    return heads, [
        [
            row.env, row.agent, _interval(row.score), f"{row.zero:g}", f"{row.one:g}", f"{row.threshold:g}",
            f"{median(row.steps):,.0f}", f"{row.solved} of {len(row.steps)}",
            ", ".join(f"{steps:,}" for steps in row.steps),
        ]
        for row in progress.rows
    ]  # fmt: skip


def _against(progress: Progress, totals: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return a line for each pair of agents and each environment that both have, after one for all of them."""
    heads = ["agent", "against", "environment", "difference of normalized scores", "ratio of steps", "ratio of seconds"]
    cells, rows = [], {(row.agent, row.env): row for row in progress.rows}
    seconds = {(row.agent, row.env): row.wall_seconds for row in totals}
    for (ours, theirs), difference in progress.difference.items():
        shared = [env for agent, env in rows if agent == ours and (theirs, env) in rows]
        apart, ratio = _interval(difference), _interval(progress.ratio[ours, theirs])
        spent, other = (sum(seconds[agent, env] for env in shared) for agent in (ours, theirs))
        cells.append([ours, theirs, "all", apart, ratio, _ratio(spent, other)])
        for env in shared:
            mine, their = rows[ours, env], rows[theirs, env]
            apart = f"{mine.score.value - their.score.value:.2f}"
            ratio = _ratio(median(mine.steps), median(their.steps))
            cells.append([ours, theirs, env, apart, ratio, _ratio(seconds[ours, env], seconds[theirs, env])])
    return heads, cells


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other else "–"


def _improvement(findings: Findings) -> tuple[list[str], list[list[str]]]:
    return ["agent", "over", "probability"], [
        [ours, theirs, _interval(estimate)] for (ours, theirs), estimate in findings.improvement.items()
    ]


def _losses(findings: Findings) -> tuple[list[str], list[list[str]]]:
    heads = ["environment", "agent", "loss term", "loss", "weighted", "share"]
    return heads, [
        [row.env, row.agent, row.term, f"{row.loss:.3g}", f"{row.weighted:.3g}", f"{row.share:.0%}"]
        for row in findings.losses
    ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _html_table(heads: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(heads, "th"), *(line(row, "td") for row in rows), "</table>"])


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the numbers, commands and notes as one JSON object."""
    return {
        "title": findings.title,
        "rows": [_row_json(row) for row in findings.rows],
        "aggregates": {
            name: {agent: estimate._asdict() for agent, estimate in agents.items()}
            for name, agents in findings.aggregates.items()
        },
        "probability_of_improvement": [
            {"agent": ours, "over": theirs, **estimate._asdict()}
            for (ours, theirs), estimate in findings.improvement.items()
        ],
        **({} if findings.progress is None else {"suite": _progress_json(findings.progress)}),
        "losses": [row._asdict() for row in findings.losses],
        "commands": list(findings.commands),
        "notes": list(findings.notes),
    }


def _row_json(row: Row) -> dict[str, Any]:
    fields = {**row._asdict(), "mean": row.mean._asdict(), "runs": list(row.runs)}
    if row.agents is None:
        del fields["agents"]
    return fields


def _progress_json(progress: Progress) -> dict[str, Any]:
    pairs = {"difference": progress.difference, "ratio_of_steps": progress.ratio}
    return {
        "rows": [{**row._asdict(), "score": row.score._asdict(), "steps": list(row.steps)} for row in progress.rows],
        **{
            name: [{"agent": ours, "against": theirs, **estimate._asdict()} for (ours, theirs), estimate in by.items()]
            for name, by in pairs.items()
        },
    }
