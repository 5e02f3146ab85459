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
from bircher.config.entries import entry_model, flat_entries
from bircher.errors import BadYAML, ConfigError, near_setting, say_once, short, short_text, short_written

MOST_LEVELS = 50
"""The largest number of levels of nesting in a document."""
MOST_VALUES = 100_000
"""The largest number of values in a document; a value that aliases repeat is counted each time."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with limits of size, and without the unusual numbers and dates of YAML 1.1.

    2e6 and 1e-3 are numbers.  1:30 is not a number in base 60, and 017 is not a number in base 8.  2020-01-01 is text.
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
            raise BadYAML(f"a group in it has more than {MOST_VALUES:,} settings, which no configuration has")


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
    """YAML's safe dumper, which quotes all text that `load` or a reader of YAML 1.1 would read as another type."""

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
    """Read YAML text that contains plain data.

    Raises:
      BadYAML: it is malformed, contains anything but plain data, gives a key twice, or is too large or too deep.
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
        raise BadYAML("it contains characters that YAML does not allow") from error
    except Exception as error:  # constructors of dates, numbers and tags raise errors of any type
        raise BadYAML(f"{error or type(error).__name__}") from error
    _measure(value, {})
    return value


class _Size(NamedTuple):
    values: int
    depth: int


def _measure(value: Any, known: dict[int, _Size | None]) -> _Size:
    """Return the size of a document.

    `known` has the sizes of collections by identity, with None for those that are being measured.

    Raises:
      BadYAML: the document is too large or too deep, or a collection contains itself.
    """
    if not isinstance(value, list | dict | set | tuple):
        return _Size(1, 0)
    if id(value) not in known:
        known[id(value)] = None
        parts = [_measure(item, known) for item in (value.values() if isinstance(value, dict) else value)]
        size = _Size(1 + sum(part.values for part in parts), 1 + max((part.depth for part in parts), default=0))
        if size.values > MOST_VALUES:
            raise BadYAML(f"a group in it has more than {MOST_VALUES:,} settings, which no configuration has")
        if size.depth > MOST_LEVELS:
            raise BadYAML(f"it is nested more than {MOST_LEVELS} levels deep")
        known[id(value)] = size
    found = known[id(value)]
    if found is None:
        raise BadYAML("a collection contains itself")
    return found


def from_python(value: Any, depth: int = 0) -> Any:
    """Return a Python value as the plain data that YAML would contain; a value without such a form is unchanged.

    Raises:
      BadYAML: the value is nested too deep.
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
    """Return `KEY=VALUE` texts as nested dictionaries.

    Values are YAML, so that `[64, 64]` is a list and `2e6` a number.

    Raises:
      ConfigError: a text is not of this form, or a value is not valid YAML.
    """
    flat = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"invalid override {short(pair)}: expected KEY=VALUE, such as seed=3")
        try:
            flat[key] = load(value)
        except BadYAML as error:
            name, text = short_text(key), short_text(value)
            raise ConfigError(f"{name}={text} cannot be read: the value is not valid YAML, {error}") from error
    return nested(flat)


SHORTCUTS = {"agent": "agent.name", "loop": "loop.name", "observation": "observation.name"}
"""Groups of settings with a name: a value for the group sets its name."""
DEEPEST = 50
"""The largest number of dots in the name of a setting."""


def nested(flat: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries from dotted keys, which may be at any level; `agent: NAME` sets `agent.name`.

    Values become plain data, as YAML would contain them, from NumPy's numbers and arrays, paths, enumerations and
    tuples.

    Raises:
      ConfigError: a key is not text, a name is too long, or a group is given both as a value and by its settings.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if type(key) is int and prefix.startswith("model.encoders."):
            key = str(key)  # the position of a part of an observation
        if not isinstance(key, str):
            where = f" in {short_text(prefix[:-1])}" if prefix else ""
            raise ConfigError(f"invalid key {short(key)}{where}: the name of a setting must be text")
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
    """Raise if a group is given both as a value and by its settings, because one of them would be lost silently."""
    for key, value in added.items():
        if key not in tree:
            continue
        if isinstance(value, Mapping) and isinstance(tree[key], Mapping):
            _require_separate(tree[key], value, f"{prefix}{key}.")
        elif isinstance(value, Mapping) or isinstance(tree[key], Mapping):
            name, both = short_text(prefix + key), (as_text(tree[key]), as_text(value))
            raise ConfigError(f"{name} is given both as {both[0]} and as {both[1]}: remove one of them")


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with its values replaced by those of `layer`, group by group."""
    result = dict(base)
    for key, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return the default of every setting that has one.

    They are the lowest layer, so that a group that is set in part keeps its other defaults.
    """
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
    """Return the dotted names of all settings of a model."""
    found = []
    for key, field in _fields(model).items():
        group = _group(field)
        found += names(group, f"{prefix}{key}.") if group else [prefix + key]
    return found


def leaves(layer: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the settings in a layer."""
    found = []
    for key, value in layer.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


def checked(layer: Mapping[str, Any], model: type[BaseModel], where: str = "") -> dict[str, Any]:
    """Return the layer with values converted to the types of their fields, where nothing is lost by it.

    Raises:
      ConfigError: a key is unknown, a value is given for a group of settings, or a number does not fit into 32 bits.
    """

    def walk(layer: Mapping[str, Any], part: type[BaseModel], prefix: str) -> dict[str, Any]:
        fields, result = _fields(part), {}
        for key, value in layer.items():
            name = prefix + key
            if key not in fields:
                name, known = next(iter(leaves({key: value}, prefix)), name), names(model)
                known += [own for own in names(part, prefix) if own not in known]
                advice = near_setting(name, known, _here(name, model))
                raise ConfigError(f"unknown setting {short_text(name) or short(name)}{advice}{where}")
            group, entry = _group(fields[key]), entry_model(fields[key])
            if entry and isinstance(value, Mapping):
                found = flat_entries(value, entry)
                result[key] = {part: walk(item, entry, f"{name}.{part}.") for part, item in found.items()}
                continue
            if group and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{name}={as_text(value)}: {name} is a group of settings "
                    f"({', '.join(_fields(group))}), not a value{where}"
                )
            result[key] = walk(value, group, f"{name}.") if group else _converted(fields[key], value)
            range_text = None if group else _unfit(fields[key], result[key])
            if range_text:
                expectation = f"{expected(fields[key])}, {range_text}"
                raise ConfigError(f"{name}={as_text(value)} is not possible: expected {expectation}{where}")
        return result

    return walk(layer, model, "")


def _here(name: str, model: type[BaseModel]) -> str | None:
    """Return what replaces a name from other code, with a note if this model does not have it.

    It is None for a name that is not in the table of foreign names.
    """
    target = foreign_names.of_setting(name)
    if target is None:
        return None
    known = {*names(model), *SHORTCUTS}
    missing = not known.issuperset(foreign_names.settings_in(target))
    return f"{target}, which this agent does not have" if missing else target


def sentence(error: ValidationError, layer: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return the first error of pydantic about a layer as one sentence, `key=value is not possible: expected …`."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        text = str(first.get("ctx", {}).get("error"))
        prefix = ".".join(str(part) for part in first["loc"])
        return f"{prefix}.{text}" if prefix else text
    location: list[str] = []
    field, value, entry = None, layer, None
    for part in first["loc"]:
        fields = _fields(model)
        # A part that is not a field is an index into a list, and a missing field has no value.
        if (entry is None and part not in fields) or part not in value:
            break
        location.append(str(part))
        value = value[str(part)]
        if entry is not None:
            model, entry = entry, None
            continue
        field = fields[str(part)]
        model, entry = _group(field) or model, entry_model(field)
    if field is None or (first["type"] == "missing" and isinstance(first["loc"][-1], str)):
        return f"{'.'.join(str(part) for part in first['loc'])} is missing"
    return f"{'.'.join(location)}={as_text(value)} is not possible: expected {expected(field)}"


def expected(field: FieldInfo) -> str:
    """Return what a field accepts in words, such as `a number, above 0, at most 1`."""
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
    """Return what a tuple of these types accepts, in words."""
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
"""The magnitudes between which floating-point numbers of 32 bits have full precision."""
GREATEST_INT = 2**31 - 1
"""The largest whole number of 32 bits; a field with a larger range has an explicit upper bound."""
LONGEST_LIST = 100
"""The largest number of items in a setting that is a list."""


def _unfit(field: FieldInfo, value: Any) -> str | None:
    """Return the expected range if a number, or one in a list, does not fit into 32 bits, else None.

    A value of a wrong type also gives None: pydantic reports it.
    """
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
    """Convert 2e6 to a whole number for an int field, and a list to a tuple; leave any other value to pydantic."""
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
    """Convert a number of a list to the type that pydantic accepts, or to one that it refuses."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return int(value) if isinstance(value, float) and whole and value.is_integer() else value


def as_text(value: Any) -> str:
    """Return a value as YAML on one line, abbreviated."""
    return short_written(value, dump_on_one_line)
