"""The page of settings, from the configuration models."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from blocks import NOTE, docstrings_of_fields, joined, one_line, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bircher.config.config import AGENTS
from bircher.config.entries import entry_model

SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
"""How a limit of a setting is shown, by the class that states it."""


def settings_page() -> str:
    """Every setting by group, with its type, default and meaning."""
    muesli = AGENTS["muesli"]
    groups = [name for name, field in muesli.model_fields.items() if model_of(field)]
    shared = [name for name in groups if name not in ("agent", "losses")]
    top = [(name, field) for name, field in muesli.model_fields.items() if name not in groups]
    return joined(
        "# Settings",
        NOTE,
        "Give a setting as `KEY=VALUE` on the command line, as a keyword argument or a dictionary in Python, or in a "
        "YAML file with `--config`. `bircher config ENV` prints every setting with the value that it has for an "
        "environment. The defaults here are those of the code. Presets change some of them.",
        "## General",
        setting_table(muesli, "", top),
        *[part for name in shared for part in (f"## {name}", group_table(name, muesli))],
        *agent_sections(),
        "## losses",
        "Each term has a weight, `losses.TERM.weight`, and two more settings:",
        setting_table(term_model(), "losses.TERM."),
        "The default weights by agent. A dash means that the agent has no such term. [Metrics](metrics.md#loss) says "
        "what each term is.",
        weight_table(),
    )


def group_table(name: str, config: type[BaseModel]) -> str:
    """The settings of a group that all agents share."""
    model = model_of(config.model_fields[name])
    assert model is not None
    text = one_line(model.__doc__)
    if name == "search":
        zero = "Agents that learn without a search have the default 0 for `num_simulations`."
        text = f"{text} {zero}"
        config = AGENTS["muzero"]
    return joined(text, setting_table(model, f"{name}.", default=default_group(config, name)))


def default_group(config: type[BaseModel], name: str) -> Any:
    """A group's defaults in a configuration, or None where it has none because a setting of it is required."""
    field = config.model_fields[name]
    return None if field.is_required() else field.default


def agent_sections() -> Iterator[str]:
    """The settings of each class of agents."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name, config in AGENTS.items():
        model = model_of(config.model_fields["agent"])
        assert model is not None
        families.setdefault(tuple(model.model_fields), []).append(name)
    for agents in families.values():
        yield f"## agent: {', '.join(agents)}"
        model, base = agent_model(agents[0]), agent_defaults(agents[0])
        yield setting_table(model, "agent.", default=base)
        others = {name: differences(base, agent_defaults(name)) for name in agents[1:]}
        rows = [
            (f"`{name}`", ", ".join(f"`agent.{key}={shown(value)}`" for key, value in changed.items()))
            for name, changed in others.items()
            if changed
        ]
        if rows:
            yield joined(
                f"The defaults above are those of `{agents[0]}`. Others have:", table(("agent", "defaults"), rows)
            )


def agent_model(name: str) -> type[BaseModel]:
    """The class of an agent's settings."""
    model = model_of(AGENTS[name].model_fields["agent"])
    assert model is not None
    return model


def agent_defaults(name: str) -> BaseModel:
    """The default settings of an agent."""
    return AGENTS[name].model_fields["agent"].default


def differences(base: BaseModel, other: BaseModel) -> dict[str, Any]:
    """The values of `other` that differ from those of `base`, by dotted name, without the agent's name."""
    first, second = flat(base.model_dump(by_alias=True)), flat(other.model_dump(by_alias=True))
    return {key: value for key, value in second.items() if value != first[key] and key != "name"}


def flat(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in layer.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def term_model() -> type[BaseModel]:
    """The class of a loss term's settings."""
    losses = model_of(AGENTS["muesli"].model_fields["losses"])
    assert losses is not None
    model = model_of(losses.model_fields["value"])
    assert model is not None
    return model


def weight_table() -> str:
    """The default weight of each term for each agent."""
    weights = {
        name: {term: value["weight"] for term, value in config.model_fields["losses"].default.model_dump().items()}
        for name, config in AGENTS.items()
    }
    terms = dict.fromkeys(term for mine in weights.values() for term in mine)
    rows = [[f"`{term}`", *(shown(mine[term]) if term in mine else "—" for mine in weights.values())] for term in terms]
    return table(("term", *weights), rows)


def setting_table(
    model: type[BaseModel],
    prefix: str,
    fields: Iterable[tuple[str, FieldInfo]] | None = None,
    default: Any = None,
) -> str:
    """A table of a model's settings; those of nested models follow with their dotted names."""
    return table(("setting", "type", "default", "meaning"), setting_rows(model, prefix, fields, default))


def setting_rows(
    model: type[BaseModel], prefix: str, fields: Iterable[tuple[str, FieldInfo]] | None = None, default: Any = None
) -> Iterator[tuple[str, str, str, str]]:
    """One row for each setting of a model; `default` is an instance with other defaults than the class."""
    texts = docstrings_of_fields(model)
    for name, field in model.model_fields.items() if fields is None else fields:
        value = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        inner = model_of(field)
        if inner is not None:
            yield from setting_rows(inner, f"{prefix}{field.alias or name}.", None, value)
        else:
            given = "required" if field.is_required() and default is None else f"`{shown(value)}`"
            yield f"`{prefix}{field.alias or name}`", type_of(field), given, texts.get(name, "")
            entry = entry_model(field)
            if entry is not None:
                yield from setting_rows(entry, f"{prefix}{field.alias or name}.NAME.")


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a group of settings, or None."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def type_of(field: FieldInfo) -> str:
    """The type of a setting with its limits, as a reader would say it."""
    limits = [limit for kind in limits_of(field) for limit in kind]
    kinds = typing.get_args(field.annotation) if is_union(field.annotation) else (field.annotation,)
    names = [name_of(kind) for kind in kinds if kind is not type(None)]
    text = " or ".join(names) + (f" {', '.join(limits)}" if limits else "")
    return f"{text}, or null" if type(None) in kinds else text


def is_union(kind: Any) -> bool:
    """Whether a type is a union of others."""
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def limits_of(field: FieldInfo) -> Iterator[list[str]]:
    """The limits that a field and the members of its union state."""
    inner = [arg for arg in typing.get_args(field.annotation) if typing.get_origin(arg) is typing.Annotated]
    metadata = [*field.metadata, *(item for arg in inner for item in typing.get_args(arg)[1:])]
    for item in metadata:
        for one in item.metadata if isinstance(item, FieldInfo) else [item]:
            if type(one) in SIGNS:
                (limit,) = (
                    vars(one).values() if hasattr(one, "__dict__") else [getattr(one, type(one).__name__.lower())]
                )
                yield [
                    f"{SIGNS[type(one)]} {limit:,g}" if isinstance(limit, float) else f"{SIGNS[type(one)]} {limit:,}"
                ]


def name_of(kind: Any) -> str:
    """A type's name; the values of a choice."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return name_of(typing.get_args(kind)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if origin in (tuple, list):
        inner = [name_of(arg) for arg in typing.get_args(kind) if arg is not ...]
        return f"list of {inner[0]}" if ... in typing.get_args(kind) else f"[{', '.join(inner)}]"
    if origin is dict:
        return "dictionary"
    return {"str": "text", "bool": "true or false"}.get(kind.__name__, kind.__name__)


def shown(value: Any) -> str:
    """A default as it would be written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
