"""The names that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def near(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest candidates, or nothing where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(by_lower[match] for match in found)}?" if found else ""


def near_setting(key: str, known: Sequence[str], here: str | None = None) -> str:
    """The setting that was meant: in another spelling, `here`, in another group, or the nearest by the whole name.

    Args:
      here: what a name from elsewhere is called here, if it is such a name.
    """
    by_spelling: dict[str, list[str]] = {}
    for name in known:
        by_spelling.setdefault(_spelling(name), []).append(name)
    key = _spelling(key[-200:])
    last = key.split(".")[-1]
    if here is not None and key not in by_spelling:
        return f"; here: {here}"
    found = by_spelling.get(key) or [name for name in known if _spelling(name).split(".")[-1] == last]
    if len(found) > 3:
        found = difflib.get_close_matches(key, found, n=3, cutoff=0.0)
    if not found:
        ends: dict[str, list[str]] = {}
        for spelling in by_spelling:
            ends.setdefault(spelling.split(".")[-1], []).append(spelling)
        candidates = difflib.get_close_matches(key, by_spelling, n=10, cutoff=0.6)
        candidates += [name for end in difflib.get_close_matches(last, ends, n=3, cutoff=0.7) for name in ends[end]]
        nearest = max(
            candidates, key=lambda name: _likeness(key, name) + _likeness(last, name.split(".")[-1]), default=""
        )
        found = by_spelling.get(nearest, [])
    return f"; did you mean {', '.join(found[:3])}?" if found else "; `bircher config ENV` shows every setting"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


_SPELLINGS = (("-", "_"), (" ", "_"), ("/", "."), ("isation", "ization"), ("ise", "ize"), ("yse", "yze"),
              ("our", "or"), ("grey", "gray"))  # fmt: skip


def _spelling(name: str) -> str:
    """A name in lower case, with American spelling, underscores between words and single dots between parts."""
    name = name.strip().lower()
    for variant, spelling in _SPELLINGS:
        name = name.replace(variant, spelling)
    return ".".join(part for part in name.split(".") if part)
