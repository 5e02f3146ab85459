"""Settings as nested dictionaries: read from YAML and dotted overrides, and checked against pydantic models.

YAML from users is read here and nowhere else.  It is restricted to plain data of bounded size.  A setting that is wrong
is refused in one sentence.
"""

from __future__ import annotations

import enum
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bircher import renamed
from bircher.config import foreign_names
from bircher.errors import BadYAML, ConfigError, near_setting, say_once, short, short_text, short_written

MOST_LEVELS = 50
"""Levels of nesting."""
MOST_VALUES = 100_000
"""Values of a document, with those that aliases repeat counted each time."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with limits, and with numbers as they are everywhere but in YAML 1.1.

    2e6 and 1e-3 are numbers.  1:30 is not one in base 60, and 017 not one in base 8.  2020-01-01 is text.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MOST_LEVELS:
            raise BadYAML(f"it is nested more than {MOST_LEVELS} levels deep")
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
        if size.depth > MOST_LEVELS:
            raise BadYAML(f"it is nested more than {MOST_LEVELS} levels deep")
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
    if depth > MOST_LEVELS:
        raise BadYAML(f"it is nested more than {MOST_LEVELS} levels deep")
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


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as nested dictionaries; values are YAML, so `[64, 64]` is a list and `2e6` a number."""
    flat = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{short(pair)} is no setting: expected KEY=VALUE, such as seed=3")
        try:
            flat[key] = load(value)
        except BadYAML as error:
            name, text = short_text(key), short_text(value)
            raise ConfigError(f"{name}={text} cannot be read: the value is not valid YAML, {error}") from error
    return nested(flat)


SHORTCUTS = {"agent": "agent.name", "loop": "loop.name", "observation": "observation.name"}
"""A value given to a group that has a name is that name."""
DEEPEST = 50
"""Levels of nested settings."""


def nested(flat: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, at any level, as nested dictionaries; `agent: NAME` stands for `agent.name: NAME`.

    Values are plain data: NumPy's numbers and arrays, paths, enumerations and tuples become what YAML would hold.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if not isinstance(key, str):
            where = f" in {short_text(prefix[:-1])}" if prefix else ""
            raise ConfigError(f"the key {short(key)}{where} is no setting: a key must be text")
        name = prefix + key
        if name.count(".") > DEEPEST:
            raise ConfigError(f"unknown setting {short_text(name)}; `bircher config ENV` shows every setting")
        if isinstance(value, Mapping):
            value = nested(value, f"{name}.")
        else:
            key = key if prefix else SHORTCUTS.get(key, key)
            value = _plain(name, value)
        for part in reversed(key.split(".")):
            value = {part: value}
        _require_separate(tree, value, prefix)
        tree = merge(tree, value)
    if prefix:
        return tree
    tree, notes = renamed.with_new_names(tree)
    say_once(f"old names of settings: {'; '.join(notes)}" if notes else "")
    return tree


def _plain(name: str, value: Any) -> Any:
    try:
        return from_python(value)
    except BadYAML as error:
        raise ConfigError(f"{short_text(name)}={short(value)} is not possible: {error}") from None


def _require_separate(tree: Mapping[str, Any], added: Mapping[str, Any], prefix: str) -> None:
    """Refuse a group given once as a value and once by its settings, of which one would be dropped silently."""
    for key, value in added.items():
        if key not in tree:
            continue
        if isinstance(value, Mapping) and isinstance(tree[key], Mapping):
            _require_separate(tree[key], value, f"{prefix}{key}.")
        elif isinstance(value, Mapping) or isinstance(tree[key], Mapping):
            name, both = short_text(prefix + key), (shown(tree[key]), shown(value))
            raise ConfigError(f"{name} is given both as {both[0]} and as {both[1]}: leave one of them out")


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `layer` over it."""
    result = dict(base)
    for key, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The values of every setting that has one: without them a group set in part would forget its other defaults."""
    found: dict[str, Any] = {}
    for key, field in _fields(model).items():
        group = _group(field)
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            found[key] = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
        elif group:
            found[key] = defaults(group)
    return found


def names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted setting of a model."""
    found = []
    for key, field in _fields(model).items():
        group = _group(field)
        found += names(group, f"{prefix}{key}.") if group else [prefix + key]
    return found


def leaves(layer: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of what a layer sets."""
    found = []
    for key, value in layer.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


def checked(layer: Mapping[str, Any], model: type[BaseModel], where: str = "") -> dict[str, Any]:
    """A layer whose every key exists, with values brought to their fields' types where nothing is lost.

    Raises:
      ConfigError: an unknown key, a value where a group of settings stands, or a number that 32 bits do not hold.
    """

    def walk(layer: Mapping[str, Any], part: type[BaseModel], prefix: str) -> dict[str, Any]:
        fields, result = _fields(part), {}
        for key, value in layer.items():
            name = prefix + key
            if key not in fields:
                name = next(iter(leaves({key: value}, prefix)), name)
                advice = near_setting(name, names(model), _here(name, model))
                raise ConfigError(f"unknown setting {short_text(name) or short(name)}{advice}{where}")
            group = _group(fields[key])
            if group and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{name}={shown(value)}: {name} is a group of settings "
                    f"({', '.join(_fields(group))}), not a value{where}"
                )
            result[key] = walk(value, group, f"{name}.") if group else _converted(fields[key], value)
            unfit = None if group else _unfit(fields[key], result[key])
            if unfit:
                expectation = f"{expected(fields[key])}, {unfit}"
                raise ConfigError(f"{name}={shown(value)} is not possible: expected {expectation}{where}")
        return result

    return walk(layer, model, "")


def _here(name: str, model: type[BaseModel]) -> str | None:
    """What a name from other code is called here, and whether the model has that; None for any other name."""
    target = foreign_names.of_setting(name)
    if target is None:
        return None
    known = {*names(model), *SHORTCUTS}
    missing = not known.issuperset(foreign_names.settings_in(target))
    return f"{target}, which this agent does not have" if missing else target


def sentence(error: ValidationError, layer: Mapping[str, Any], model: type[BaseModel]) -> str:
    """The first of pydantic's complaints about a layer, as `key=value: expected …`."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        text = str(first.get("ctx", {}).get("error"))
        prefix = ".".join(str(part) for part in first["loc"])
        return f"{prefix}.{text}" if prefix else text
    location: list[str] = []
    field, value = None, layer
    for part in first["loc"]:
        fields = _fields(model)
        # What is no field is a place within a list; a missing one has no value.
        if part not in fields or part not in value:
            break
        location.append(str(part))
        field, value = fields[str(part)], value[part]
        model = _group(field) or model
    if field is None or (first["type"] == "missing" and isinstance(first["loc"][-1], str)):
        return f"{'.'.join(str(part) for part in first['loc'])} is missing"
    return f"{'.'.join(location)}={shown(value)} is not possible: expected {expected(field)}"


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: `a number, above 0, at most 1`."""
    kinds, limits = [], list(field.metadata)
    for kind in _kinds(field):
        if typing.get_origin(kind) is typing.Annotated:
            kind, *annotations = typing.get_args(kind)
            limits += [limit for found in annotations for limit in getattr(found, "metadata", [found])]
        if typing.get_origin(kind) is typing.Literal:
            kinds.append("one of " + ", ".join(str(choice) for choice in typing.get_args(kind)))
        elif typing.get_origin(kind) is tuple:
            kinds.append(_list_words(typing.get_args(kind)))
        else:
            kinds.append(_WORDS[typing.get_origin(kind) or kind])
    words = " or ".join(kinds)
    for limit in limits:
        for name, text in _LIMITS.items():
            if getattr(limit, name, None) is not None:
                words += f", {text} {getattr(limit, name):,}"
    return words


def _list_words(items: tuple[Any, ...]) -> str:
    """What a tuple of these types takes, in words."""
    noun, example = ("numbers", "[1.0, 0.5]") if items[0] is float else ("whole numbers", "[128, 128]")
    count = "" if Ellipsis in items else {2: "two "}.get(len(items), f"{len(items)} ")
    return f"a list of {count}{noun}, such as {example}"


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a group of settings",
    type(None): "null",
}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}

GREATEST_FLOAT, LEAST_FLOAT = 3.4e38, 1.2e-38
"""Magnitudes between which numbers of 32 bits have all of their digits."""
GREATEST_INT = 2**31 - 1
"""The greatest whole number of 32 bits; a field that takes more has a bound that says so."""
LONGEST_LIST = 100
"""Items of a setting that is a list."""


def _unfit(field: FieldInfo, value: Any) -> str | None:
    """Why a number, or one in a list, cannot be computed with in 32 bits; None where it can or its type is wrong."""
    kinds = _kinds(field)
    if isinstance(value, tuple):
        items = {item for kind in kinds if typing.get_origin(kind) is tuple for item in typing.get_args(kind)}
        if len(value) > LONGEST_LIST:
            return f"of at most {LONGEST_LIST} items"
        found = (_beyond_32_bits(item, float in items, True) for item in value)
        return next((text for text in found if text), None)
    bounded = any(getattr(limit, name, None) is not None for limit in field.metadata for name in ("lt", "le"))
    scalars = {typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind for kind in kinds}
    return _beyond_32_bits(value, float in scalars, int in scalars and not bounded)


def _beyond_32_bits(value: Any, is_float: bool, is_int: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if is_float and value and not LEAST_FLOAT <= abs(value) <= GREATEST_FLOAT:
        return f"0 or of a magnitude from {LEAST_FLOAT:g} to {GREATEST_FLOAT:g}"
    return f"at most {GREATEST_INT:,}" if is_int and not is_float and abs(value) > GREATEST_INT else None


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    kind = field.annotation
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _converted(field: FieldInfo, value: Any) -> Any:
    """2e6 where a whole number is wanted, and a list where a tuple is; anything else is left for pydantic to judge."""
    kinds = _kinds(field)
    tuples = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, float) and int in kinds and value.is_integer():
        return int(value)
    if isinstance(value, list) and tuples:
        whole = float not in typing.get_args(tuples[0])
        return tuple(_item(item, whole) for item in value)
    return value


def _item(value: Any, whole: bool) -> Any:
    """A number of a list, as a type that pydantic takes or refuses."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return int(value) if isinstance(value, float) and whole and value.is_integer() else value


def shown(value: Any) -> str:
    """A value as it would be written in YAML, on one line and abbreviated."""
    return short_written(value, dump_on_one_line)
