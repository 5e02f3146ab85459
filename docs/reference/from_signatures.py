"""The pages of the command line and of the Python interface, from signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any

from blocks import NOTE, docstrings_of_fields, joined, one_line, table
from typer.models import ArgumentInfo, OptionInfo

import bircher
from bircher.cli import app


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
