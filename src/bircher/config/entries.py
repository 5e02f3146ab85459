"""Settings that are a dictionary of groups by name, as `model.encoders` is by parts of an observation.

A name may contain dots.  So `model.encoders.sensors.camera.width=8` is first read as groups within groups, and the name
ends where a setting of the group begins.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SHORT = "kind"
"""The setting of a group for which a single value may stand: `NAME=VALUE` is `NAME.kind=VALUE`."""


def entry_model(field: FieldInfo | None) -> type[BaseModel] | None:
    """Return the model of each group of a field that is a dictionary of groups, or None for another field."""
    if field is None or typing.get_origin(field.annotation) is not dict:
        return None
    kind = typing.get_args(field.annotation)[1]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def flat_entries(value: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return the groups by their whole names, from groups that are nested as their names have dots."""
    return dict(_entries(value, set(model.model_fields), ""))


def _entries(value: Mapping[str, Any], fields: set[str], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = prefix + key
        if not isinstance(item, Mapping):
            yield name, {SHORT: item}
        elif fields.intersection(item) or not item:
            yield name, item
        else:
            yield from _entries(item, fields, f"{name}.")
