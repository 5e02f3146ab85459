"""Write the reference pages from the code: python docs/reference/generate.py (or `make reference`).

Settings come from the configuration models, metrics from the glossary, the command line from Typer, and the Python
interface from docstrings. A test compares the pages with what this script would write.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from blocks import NOTE, joined, one_line, table
from from_models import settings_page
from from_signatures import api_page, cli_page

from bircher import metrics

DOCS = Path(__file__).resolve().parents[1]
FOREIGN_BEGIN, FOREIGN_END = "<!-- foreign names: written by make reference -->", "<!-- end of foreign names -->"


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """The text of every generated page by its path."""
    folder = DOCS / "reference"
    written = {
        folder / "settings.md": settings_page(),
        folder / "metrics.md": metrics_page(),
        folder / "cli.md": cli_page(),
        folder / "api.md": api_page(),
    }
    if foreign := foreign_names():
        path = DOCS / "guide" / "coming_from.md"
        written[path] = with_foreign_names(path.read_text(encoding="utf-8"), foreign)
    return written


def metrics_page() -> str:
    """Every metric by group."""
    sections = []
    for group, text in metrics.GROUPS.items():
        sections += [f"## {group}", f"{text[0].upper()}{text[1:]}.", metric_table(group)]
    return joined(
        "# Metrics",
        NOTE,
        "Every line of a run's `metrics.jsonl` has the counters and some of the metrics. TensorBoard shows the same "
        "names. [It does not learn](../guide/it_does_not_learn.md) says which to look at first.",
        "## Counters",
        table(("counter", "meaning"), ((f"`{name}`", text) for name, text in metrics.COUNTERS.items())),
        *sections,
        "## Pictures",
        "Pictures are for TensorBoard alone.",
        table(("tag", "meaning"), ((f"`{name}`", text) for name, text in metrics.PICTURES.items())),
    )


def metric_table(group: str) -> str:
    """The metrics of a group; those of every term and part are one row each."""
    if group == "gradient":
        parts = table(("PART", "meaning"), ((f"`{name}`", text) for name, text in metrics.PARTS.items()))
        rows = (
            ("`gradient/TERM_PART`", "1", "norm of the weighted term's gradient for a part of the network"),
            ("`gradient/TERM_share`", "share", "of the term in the sum of the terms' norms at the encoder"),
            ("`gradient/cosine_A_B`", "1", "between the gradients of two terms at the encoder; below 0 they conflict"),
        )
        return joined(table(("metric", "unit", "meaning"), rows), parts)
    if group == "weighted":
        return "`weighted/TERM`, in nats, for every term of the table above."
    found = [metric for name, metric in metrics.GLOSSARY.items() if name.startswith(f"{group}/")]
    return table(("metric", "unit", "meaning"), ((f"`{m.name}`", m.unit, one_line(m.text)) for m in found))


def foreign_names() -> dict[str, str]:
    """Other projects' names and what they are here; empty where the package has no such table."""
    if importlib.util.find_spec("bircher.config.foreign_names") is None:
        return {}
    return importlib.import_module("bircher.config.foreign_names").FOREIGN


def with_foreign_names(text: str, names: Mapping[str, str]) -> str:
    """A page with the table of other projects' names, by what they are here, between its two markers."""
    before, rest = text.split(FOREIGN_BEGIN, 1)
    after = rest.split(FOREIGN_END, 1)[1]
    elsewhere: dict[str, list[str]] = {}
    for name, here in names.items():
        elsewhere.setdefault(here, []).append(f"`{name}`")
    rows = table(("here", "elsewhere"), ((as_code(here), ", ".join(found)) for here, found in elsewhere.items()))
    sentence = "A name from elsewhere is refused, and the message has the name here."
    return f"{before}{FOREIGN_BEGIN}\n\n{sentence}\n\n{rows}\n\n{FOREIGN_END}{after}"


def as_code(here: str) -> str:
    """Settings, options and commands as code; a sentence as it is."""
    parts = here.split(" and ")
    if any(" " in part and not part.startswith("bircher ") for part in parts):
        return here
    return " and ".join(f"`{part}`" for part in parts)


if __name__ == "__main__":
    main()
