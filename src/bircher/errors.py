"""Every error that bircher raises on purpose, and the words of their messages.

Each class has one meaning, and each message is one sentence.  The functions quote user input on one line and find the
names that a user may have meant.  Nothing here imports JAX or Gymnasium, because worker processes load this module.
"""

from __future__ import annotations

import difflib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bircher.renamed import SPELLINGS


class UnsupportedEnvironment(ValueError):
    """The agents cannot learn the environment; the message gives the reason in one sentence."""


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message is one sentence for the user."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing, or has changed since it was written."""


class MismatchedCheckpoint(CheckpointError):
    """A checkpoint is intact, but its tree, shapes or types are not those of the template."""


class UnknownEnvironment(ValueError):
    """There is no environment of this name; the message gives the nearest names."""


class EnvContractError(AssertionError):
    """An environment violates the protocol of rows; the message gives the environment, the row and the field."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception or violated its contract; the message gives its index and step."""


class ContractBreach(Exception):
    """An environment returned a value that Gymnasium's API or its own spaces do not allow; the message gives it."""


class EvaluationFailed(RuntimeError):
    """An environment raised an exception or returned a number that is not finite, while an agent was evaluated."""


class EvaluationStopped(Exception):
    """The caller asked an evaluation to stop before its last episode ended."""


class MoveError(ValueError):
    """The text that a player typed is not a legal move; the message is one sentence."""


class UnknownOpponent(ValueError):
    """There is no opponent of this name; the message gives all names and the nearest."""


class UnsuitableOpponent(ValueError):
    """The opponent cannot play the game, or the game has no opponents; the message is one sentence."""


class DeviceError(ValueError):
    """The requested device is not available, or its memory is too small."""


class BadYAML(ValueError):
    """A text is not YAML of plain data; the message is a short reason."""


class UnsupportedPlatform(ImportError):
    """Python has no module of this name on this operating system, and the package needs it."""

    def __init__(self, module: str):
        system = platform.system() or "this platform"
        super().__init__(f"bircher supports Linux and macOS: Python has no module {module} on {system}", name=module)


class NotEnoughMemory(ValueError):
    """A replay does not fit into memory; the message gives the sizes."""


class RunFolderError(ValueError):
    """A folder is not a run directory, or a run cannot be written to it."""


class RunFailed(RuntimeError):
    """A run could not continue; the state of its training is in its last checkpoint."""


class LearnerLost(RunFailed):
    """One of several learners ended; the state of the training that they shared is lost, up to the last checkpoint."""


class CheckFailed(Exception):
    """A check failed; the message describes the failure."""


class NoDisplay(ValueError):
    """No display is available to open a window."""


class ConfigError(ValueError):
    """A setting is invalid; the message is one sentence with the given value and the expected values."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


LONGEST = 80
"""Largest number of characters of a quoted value."""
LONGEST_MESSAGE = 1000
"""Largest number of characters of a whole message."""
MOST_ITEMS = 20
"""Largest number of quoted items of a list or mapping."""
DEEPEST = 6
"""Largest number of quoted levels of a nested value."""


_printed: set[str] = set()
"""The sentences that this process has printed."""


def say_once(sentence: str) -> None:
    """Print a sentence to the standard error stream, unless it is empty or this process has printed it before."""
    if sentence and sentence not in _printed:
        _printed.add(sentence)
        print(f"bircher: {one_line(sentence)}", file=sys.stderr)


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


def near(name: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean …?` with the nearest candidates, or an empty string where no candidate is near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(by_lower[match] for match in matches)}?" if matches else ""


def near_setting(key: str, known: Sequence[str], here: str | None = None) -> str:
    """Return the end of a message about an unknown setting, with the setting that the user may have meant.

    In this order it is a setting with another spelling of the name, `here`, a setting with the same last part in
    another group, or the one with the most similar name.

    Args:
      key: the unknown name.
      known: the names of all settings.
      here: the name of this package's setting, where `key` is the name of another code's setting.
    """
    by_spelling: dict[str, list[str]] = {}
    for name in known:
        by_spelling.setdefault(_spelling(name), []).append(name)
    key = _spelling(key[-200:])
    last = key.split(".")[-1]
    if here is not None and key not in by_spelling:
        return f"; here: {here}"
    matches = by_spelling.get(key) or [name for name in known if _spelling(name).split(".")[-1] == last]
    if len(matches) > 3:
        matches = difflib.get_close_matches(key, matches, n=3, cutoff=0.0)
    if not matches:
        ends: dict[str, list[str]] = {}
        for spelling in by_spelling:
            ends.setdefault(spelling.split(".")[-1], []).append(spelling)
        candidates = difflib.get_close_matches(key, by_spelling, n=10, cutoff=0.6)
        candidates += [name for end in difflib.get_close_matches(last, ends, n=3, cutoff=0.7) for name in ends[end]]
        nearest = max(
            candidates, key=lambda name: _likeness(key, name) + _likeness(last, name.split(".")[-1]), default=""
        )
        matches = by_spelling.get(nearest, [])
    return f"; did you mean {', '.join(matches[:3])}?" if matches else "; `bircher config ENV` shows every setting"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _spelling(name: str) -> str:
    """Return a name in lower case, with American spelling, underscores between words and single dots between parts."""
    name = name.strip().lower()
    for variant, spelling in SPELLINGS:
        name = name.replace(variant, spelling)
    return ".".join(part for part in name.split(".") if part)
