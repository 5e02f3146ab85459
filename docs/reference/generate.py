"""Write the reference pages from the code: python docs/reference/generate.py (or `make reference`).

Settings come from the configuration models, metrics from the glossary, the command line from Typer, and the Python
interface from docstrings. A test compares the pages with what this script would write.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

import bircher
from bircher import metrics
from bircher.cli import app
from bircher.config import AGENTS

DOCS = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by docs/reference/generate.py: change the code, then run `make reference`. -->"
FOREIGN_BEGIN, FOREIGN_END = "<!-- foreign names: written by make reference -->", "<!-- end of foreign names -->"
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
"""How a limit of a setting is shown, by the class that states it."""


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """The text of every generated page by its path."""
    folder = DOCS / "reference"
    written = {
        folder / "settings.md": settings_page(),
        folder / "metrics.md": metrics_page(),
        folder / "cli.md": cli_page(),
        folder / "api.md": api_page(),
    }
    if foreign := foreign_names():
        path = DOCS / "guide" / "coming_from.md"
        written[path] = with_foreign_names(path.read_text(encoding="utf-8"), foreign)
    return written


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


# Settings


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


# Metrics


def metrics_page() -> str:
    """Every metric by group."""
    sections = []
    for group, text in metrics.GROUPS.items():
        sections += [f"## {group}", f"{text[0].upper()}{text[1:]}.", metric_table(group)]
    return joined(
        "# Metrics",
        NOTE,
        "Every line of a run's `metrics.jsonl` has the counters and some of the metrics. TensorBoard shows the same "
        "names. [It does not learn](../guide/it_does_not_learn.md) says which to look at first.",
        "## Counters",
        table(("counter", "meaning"), ((f"`{name}`", text) for name, text in metrics.COUNTERS.items())),
        *sections,
        "## Pictures",
        "Pictures are for TensorBoard alone.",
        table(("tag", "meaning"), ((f"`{name}`", text) for name, text in metrics.PICTURES.items())),
    )


def metric_table(group: str) -> str:
    """The metrics of a group; those of every term and part are one row each."""
    if group == "gradient":
        parts = table(("PART", "meaning"), ((f"`{name}`", text) for name, text in metrics.PARTS.items()))
        rows = (
            ("`gradient/TERM_PART`", "1", "norm of the weighted term's gradient for a part of the network"),
            ("`gradient/TERM_share`", "share", "of the term in the sum of the terms' norms at the encoder"),
            ("`gradient/cosine_A_B`", "1", "between the gradients of two terms at the encoder; below 0 they conflict"),
        )
        return joined(table(("metric", "unit", "meaning"), rows), parts)
    if group == "weighted":
        return "`weighted/TERM`, in nats, for every term of the table above."
    found = [metric for name, metric in metrics.GLOSSARY.items() if name.startswith(f"{group}/")]
    return table(("metric", "unit", "meaning"), ((f"`{m.name}`", m.unit, one_line(m.text)) for m in found))


# The command line


def cli_page() -> str:
    """Every command with its arguments and options."""
    commands = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    return joined(
        "# Command line",
        NOTE,
        "Exit status: 0 done, 1 failed while running, 2 refused before it began, 3 for `bircher doctor` where it "
        "raises a flag, 130 stopped by the user. `bircher COMMAND --help` shows the same.",
        *(command_section(name, function) for name, function in commands.items()),
    )


def command_section(name: str, function: Any) -> str:
    """One command: usage, help with its examples, and a table of parameters."""
    arguments, options = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, info = typing.get_args(hints[parameter.name])[:2]
        if isinstance(info, ArgumentInfo):
            arguments.append((str(info.metavar or parameter.name.upper()), "", one_line(info.help)))
        else:
            # Within Annotated, Typer takes an option's first name for its default.
            names = [name for name in (info.default, *(info.param_decls or ())) if str(name).startswith("-")]
            option = ", ".join(names or [f"--{parameter.name.replace('_', '-')}"])
            default = names[0].split("/")[0] if parameter.default is True else parameter.default
            value = "" if default is None or default is False else f"`{default}`"
            options.append((f"{option}{placeholder(info, kind)}", value, one_line(info.help)))
    usage = " ".join([f"bircher {name}", *(word for word, *_ in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [(f"`{word}`", *rest) for word, *rest in (*arguments, *options)]
    parameters = table(("parameter", "default", "meaning"), rows) if rows else ""
    return joined(f"## bircher {name}", f"```\n{usage}\n```", help_text(function.__doc__), parameters)


def placeholder(info: OptionInfo, kind: Any) -> str:
    """What stands for an option's value; a flag has none."""
    kinds = [one for one in (typing.get_args(kind) or (kind,)) if one is not type(None)]
    return "" if kinds == [bool] else f" {info.metavar or {int: 'INTEGER', Path: 'PATH'}.get(kinds[0], 'TEXT')}"


def help_text(text: str | None) -> str:
    """A command's help: paragraphs as they are, and those that Typer is told to leave alone as code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return joined(
        *(f"```\n{block[2:].strip()}\n```" if block.startswith("\b\n") else one_line(block) for block in blocks)
    )


# Python


def api_page() -> str:
    """The functions of `bircher.__all__`, and the classes that they return."""
    names = [name for name in bircher.__all__ if not name.startswith("__")]
    returned = [found for name in names if (found := returned_class(getattr(bircher, name))) is not None]
    return joined(
        "# Python",
        NOTE,
        "```python\nimport bircher\n```",
        *(function_section(f"bircher.{name}", getattr(bircher, name)) for name in names),
        *(class_section(kind) for kind in dict.fromkeys(returned)),
    )


def returned_class(function: Any) -> type | None:
    """The class that a function of the package returns, which its annotation names."""
    name = str(inspect.signature(function).return_annotation)
    source = ast.parse(Path(str(bircher.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return getattr(importlib.import_module(str(node.module)), name)
    return None


def function_section(name: str, function: Any, heading: str = "##") -> str:
    """A function's signature and docstring."""
    return joined(f"{heading} {name}", signature_block(name, function), docstring(function))


def signature_block(name: str, function: Any) -> str:
    """The signature as code, one parameter a line where it is long."""
    signature = inspect.signature(function)
    parameters = [declared(parameter) for parameter in signature.parameters.values() if parameter.name != "self"]
    answer = (
        "" if signature.return_annotation is inspect.Signature.empty else f" -> {plain(signature.return_annotation)}"
    )
    short = name.split(".", 1)[-1]
    line = f"{short}({', '.join(parameters)}){answer}"
    if len(line) > 100:
        line = "\n".join([f"{short}(", *(f"    {parameter}," for parameter in parameters), f"){answer}"])
    return f"```python\n{line}\n```"


def declared(parameter: inspect.Parameter) -> str:
    """A parameter as it would be written."""
    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {plain(parameter.annotation)}{default}"


def plain(annotation: Any) -> str:
    """An annotation as it is written in the source."""
    text = getattr(annotation, "__forward_arg__", annotation)
    return text if isinstance(text, str) else getattr(text, "__name__", str(text))


def docstring(thing: Any) -> str:
    """A docstring as Markdown: its sections of arguments and errors become lists."""
    text = inspect.getdoc(thing) or ""
    lines, items = [], []
    for line in text.split("\n"):
        if line.rstrip() in ("Args:", "Raises:", "Returns:"):
            lines.append(f"**{ {'Args:': 'Arguments', 'Raises:': 'Errors', 'Returns:': 'Returns'}[line.rstrip()] }**\n")
            items.append(True)
        elif items and re.match(r"  \S", line):
            name, _, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`: {meaning}" if meaning else f"- {name}")
        else:
            lines.append(line.strip() if not items else f"  {line.strip()}".rstrip())
    return "\n".join(lines).replace("``", "`")


def class_section(kind: type) -> str:
    """A class: its docstring, its fields and its public methods."""
    texts = docstrings_of_fields(kind)
    fields = getattr(kind, "_fields", ())
    rows = [(f"`{name}`", f"`{plain(kind.__annotations__[name])}`", texts.get(name, "")) for name in fields]
    methods = [
        (name, member)
        for name, member in vars(kind).items()
        if not name.startswith("_")
        and name not in fields
        and (inspect.isfunction(member) or isinstance(member, property))
    ]
    sections = [
        joined(f"### {kind.__name__}.{name}", docstring(member))
        if isinstance(member, property)
        else function_section(f"{kind.__name__}.{name}", member, "###")
        for name, member in methods
    ]
    return joined(
        f"## {kind.__name__}",
        docstring(kind),
        table(("field", "type", "meaning"), rows) if rows else "",
        *sections,
    )


# Names that people bring from other code


def foreign_names() -> dict[str, str]:
    """Other projects' names and what they are here; empty where the package has no such table."""
    if importlib.util.find_spec("bircher.foreign_names") is None:
        return {}
    return importlib.import_module("bircher.foreign_names").FOREIGN


def with_foreign_names(text: str, names: Mapping[str, str]) -> str:
    """A page with the table of other projects' names between its two markers."""
    before, rest = text.split(FOREIGN_BEGIN, 1)
    after = rest.split(FOREIGN_END, 1)[1]
    rows = table(("there", "here"), ((f"`{name}`", here) for name, here in names.items()))
    return f"{before}{FOREIGN_BEGIN}\n\n{rows}\n\n{FOREIGN_END}{after}"


if __name__ == "__main__":
    main()
