"""Blocks of Markdown, and the docstrings that stand under fields."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable

NOTE = "<!-- Written by docs/reference/generate.py: change the code, then run `make reference`. -->"
"""The first lines of every generated page."""


def joined(*parts: str | Iterable[str]) -> str:
    """Paragraphs and tables with an empty line between each two."""
    blocks = [part if isinstance(part, str) else "\n".join(part) for part in parts]
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def one_line(text: str | None) -> str:
    """A docstring in one line, with the code's double backquotes as single ones."""
    return re.sub(r"\s+", " ", (text or "").replace("``", "`")).strip()


def docstrings_of_fields(model: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not kind.__module__.startswith("bircher"):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        except (OSError, TypeError):
            continue  # a class made by `create_model` has no source; its bases have
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    found[field.target.id] = one_line(str(text.value.value))
    return found
