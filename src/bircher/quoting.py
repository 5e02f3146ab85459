"""User input quoted in error messages: on one line, printable and short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 80
"""Characters of a quoted value."""
LONGEST_MESSAGE = 1000
"""Characters of a whole message."""
MOST_ITEMS = 20
"""Items of a list or mapping that are quoted."""
DEEPEST = 6
"""Levels of a nested value that are quoted."""


def one_line(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """Return a text on one line, with control characters escaped and its middle left out beyond `limit` characters."""
    words = " ".join(text[: 2 * limit].split() if len(text) > 4 * limit else text.split())
    if len(text) > 4 * limit:
        words = f"{words[:limit]} {' '.join(text[-limit:].split())}"
    if len(words) > limit:
        half = (limit - 5) // 2
        words = f"{words[:half]} ... {words[-half:]}"
    return "".join(letter if letter.isprintable() else escaped(letter) for letter in words)


def escaped(letter: str) -> str:
    """Return a character that cannot be printed as an escape sequence."""
    return letter.encode("unicode_escape").decode("ascii")


def short(value: Any, limit: int = LONGEST) -> str:
    """Return the `repr` of a value on one line, abbreviated beyond `limit` characters."""
    return _abbreviated(repr(_pruned(value)), limit)


def short_text(text: str, limit: int = LONGEST) -> str:
    """Return a text without quotes on one line, abbreviated beyond `limit` characters."""
    return one_line(_abbreviated(text, limit), 4 * limit)


def short_written(value: Any, write: Callable[[Any], str], limit: int = LONGEST) -> str:
    """Return a value as `write` writes it, on one line and abbreviated beyond `limit` characters.

    Where `write` raises ValueError it is the value's `repr`.
    """
    pruned = _pruned(value)
    try:
        text = write(pruned)
    except ValueError:
        text = repr(pruned)
    return one_line(_abbreviated(text, limit), 4 * limit)


def _abbreviated(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text):,} characters)"


def _pruned(value: Any, depth: int = 0) -> Any:
    """Return a copy of a value with no more of it than a message can quote."""
    if isinstance(value, str):
        return _abbreviated(str(value), 4 * LONGEST)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1}..."
    if isinstance(value, list | tuple | Mapping) and depth == DEEPEST:
        return "..."
    if isinstance(value, list | tuple):
        items = [_pruned(item, depth + 1) for item in value[:MOST_ITEMS]]
        return items + [f"... {len(value):,} items"] * (len(value) > MOST_ITEMS)
    if isinstance(value, Mapping):
        items = list(value.items())[:MOST_ITEMS]
        pruned = {_pruned(key, DEEPEST): _pruned(item, depth + 1) for key, item in items}
        return pruned | ({"...": f"{len(value):,} items"} if len(value) > MOST_ITEMS else {})
    return value
