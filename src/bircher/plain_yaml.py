"""YAML restricted to plain data of bounded size: all YAML is read and written here."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

DEEPEST = 50
"""Levels of nesting."""
MOST_VALUES = 100_000
"""Values of a document, with those that aliases repeat counted each time."""


class BadYAML(ValueError):
    """Text that is not YAML of plain data; the message is a short reason."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with limits, and with numbers as they are everywhere but in YAML 1.1.

    2e6 and 1e-3 are numbers.  1:30 is not one in base 60, and 017 not one in base 8.  2020-01-01 is text.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise BadYAML(f"it is nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadYAML(f"the key {twice[:80]!r} is given twice")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise BadYAML(f"it holds more than {MOST_VALUES:,} values")


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_NUMBERS, "tag:yaml.org,2002:timestamp")]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in zip(
    _NUMBERS,
    (
        r"^[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$",
        r"^([-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)?|[-+]?\.\d[\d_]*([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
    ),
    strict=True,
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which quotes all text that `load` or a reader of YAML 1.1 would take for another type."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is yaml.ScalarNode and tag == self.DEFAULT_SCALAR_TAG:
            return _RESOLVER.resolve(kind, value, implicit)
        return tag


_RESOLVER = _Loader("")


def dump(value: Any) -> str:
    """Write plain data as YAML; `load` returns an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def dump_on_one_line(value: Any) -> str:
    """Write plain data as YAML on one line, for people.

    Raises:
      BadYAML: the value is not plain data.
    """
    try:
        text = yaml.dump(
            value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=math.inf, allow_unicode=True
        )
    except (yaml.YAMLError, UnicodeError) as error:
        raise BadYAML(str(error)) from error
    return text.removesuffix("...\n").strip()


def load(text: str) -> Any:
    """Read YAML text that holds plain data.

    Raises:
      BadYAML: it is malformed, holds anything but plain data, gives a key twice, or is too large or too deep.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except BadYAML:
        raise
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f" (line {place.line + 1}, column {place.column + 1})" if place else ""
        raise BadYAML(f"{error.problem or error.context}{where}") from error
    except yaml.YAMLError as error:
        raise BadYAML("it holds characters that YAML does not allow") from error
    except Exception as error:  # constructors of dates, numbers and tags raise whatever Python raises
        raise BadYAML(f"{error or type(error).__name__}") from error
    _measure(value, {})
    return value


class _Size(NamedTuple):
    values: int
    depth: int


def _measure(value: Any, known: dict[int, _Size | None]) -> _Size:
    """Measure a document; `known` holds the sizes of collections by identity, None while they are measured.

    Raises:
      BadYAML: it is too large or too deep, or a collection contains itself.
    """
    if not isinstance(value, list | dict | set | tuple):
        return _Size(1, 0)
    if id(value) not in known:
        known[id(value)] = None
        parts = [_measure(item, known) for item in (value.values() if isinstance(value, dict) else value)]
        size = _Size(1 + sum(part.values for part in parts), 1 + max((part.depth for part in parts), default=0))
        if size.values > MOST_VALUES:
            raise BadYAML(f"it holds more than {MOST_VALUES:,} values")
        if size.depth > DEEPEST:
            raise BadYAML(f"it is nested more than {DEEPEST} levels deep")
        known[id(value)] = size
    found = known[id(value)]
    if found is None:
        raise BadYAML("a collection contains itself")
    return found


def from_python(value: Any, depth: int = 0) -> Any:
    """Return a value given from Python as YAML would hold it; what has no such form is returned as it is.

    Raises:
      BadYAML: it is nested too deep.
    """
    if depth > DEEPEST:
        raise BadYAML(f"it is nested more than {DEEPEST} levels deep")
    if isinstance(value, enum.Enum):
        return from_python(value.value, depth + 1)
    if isinstance(value, bool | int | float | str | None):
        for kind in (bool, int, float, str):  # without a subclass, such as NumPy's float64
            if isinstance(value, kind):
                return kind(value)
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # NumPy's and JAX's numbers and arrays
        return from_python(value.tolist(), depth + 1)
    if isinstance(value, Mapping):
        return {key: from_python(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [from_python(item, depth + 1) for item in value]
    return value
