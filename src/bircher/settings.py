"""Dotted settings: read from text, held against pydantic models, and refused in one sentence."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence: what was given, and what was expected."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, for which 2e6 and 1e-3 are numbers, as they are everywhere but in YAML 1.1."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(text: str) -> Any:
    """What a YAML text holds: plain data only."""
    return yaml.load(text, _Loader)  # noqa: S506, a SafeLoader


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as nested dictionaries; values are YAML, so `[64, 64]` is a list and `2e6` a number."""
    flat = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r} is no setting: expected KEY=VALUE, such as seed=3")
        try:
            flat[key.strip()] = load_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}={value} cannot be read: {value!r} is no YAML value") from error
    return nested(flat)


SHORTCUTS = {"agent": "agent.name", "loop": "loop.name", "observation": "observation.name"}
"""A value given to a group that has a name is that name."""


def nested(flat: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted keys, at any level, as nested dictionaries; `agent: NAME` stands for `agent.name: NAME`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if not isinstance(key, str):
            raise ConfigError(f"{key!r} is no setting: a key must be text")
        if isinstance(value, Mapping):
            value = nested(value)
        else:
            key = SHORTCUTS.get(key, key)
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


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
      ConfigError: an unknown key, or a value where a group of settings stands.
    """

    def walk(layer: Mapping[str, Any], part: type[BaseModel], prefix: str) -> dict[str, Any]:
        fields, result = _fields(part), {}
        for key, value in layer.items():
            if key not in fields:
                raise ConfigError(f"unknown setting {prefix}{key}{_near_setting(prefix + key, model)}{where}")
            group = _group(fields[key])
            if group and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{prefix}{key}={shown(value)}: {prefix}{key} is a group of settings "
                    f"({', '.join(_fields(group))}), not a value{where}"
                )
            result[key] = walk(value, group, f"{prefix}{key}.") if group else _converted(fields[key], value)
        return result

    return walk(layer, model, "")


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
    kinds = []
    for kind in _kinds(field):
        if typing.get_origin(kind) is typing.Literal:
            kinds.append("one of " + ", ".join(str(choice) for choice in typing.get_args(kind)))
        else:
            kinds.append(_WORDS.get(typing.get_origin(kind) or kind, "something else"))
    words = " or ".join(kinds)
    for limit in field.metadata:
        for name, text in _LIMITS.items():
            if getattr(limit, name, None) is not None:
                words += f", {text} {getattr(limit, name):,}"
    return words


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list of whole numbers, such as [128, 128]",
    dict: "a group of settings",
    type(None): "null",
}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def near(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest candidates, or nothing where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(by_lower[match] for match in found)}?" if found else ""


def _near_setting(key: str, model: type[BaseModel]) -> str:
    """The nearest setting: by its whole name, or by its last word for one given without its group."""
    known = names(model)
    last = key.split(".")[-1]
    ends = [name for name in known if name.split(".")[-1] == last]
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    by_end = {name.split(".")[-1]: name for name in known}
    ends = ends or found or [by_end[end] for end in difflib.get_close_matches(last, by_end, n=1, cutoff=0.7)]
    return f"; did you mean {', '.join(ends[:3])}?" if ends else "; `bircher config ENV` shows every setting"


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
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, float) and int in kinds and value.is_integer():
        return int(value)
    if isinstance(value, list) and any(typing.get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    return value


def shown(value: Any) -> str:
    """A value as it would be written in YAML, on one line."""
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
