"""Hypothesis strategies for wrong names and wrong values of settings, derived from the settings models themselves."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bircher.config.config import AGENTS

BRITISH_AND_AMERICAN = (
    ("optimiser", "optimizer"), ("normalise", "normalize"), ("normalisation", "normalization"), ("grey", "gray"),
    ("behaviour", "behavior"), ("reanalyse", "reanalyze"),
)  # fmt: skip


class Setting(NamedTuple):
    """A leaf of the settings of an agent's runs."""

    agent: str
    name: str
    """Its full dotted name."""
    field: FieldInfo


class Mutation(NamedTuple):
    """A changed setting, as a command line spells it."""

    agent: str
    original: str
    """The setting that was changed."""
    name: str
    value: str

    @property
    def pair(self) -> str:
        """The word of the command line."""
        return f"{self.name}={self.value}"


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every leaf of a settings model with its dotted name."""
    for key, field in model.model_fields.items():
        name, kind = prefix + (field.alias or key), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from walk(kind, f"{name}.")
        else:
            yield name, field


def groups(names: list[str]) -> list[str]:
    """Return every dotted prefix of some names."""
    return sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)})


SETTINGS = [Setting(agent, name, field) for agent, model in AGENTS.items() for name, field in walk(model)]
NAMES = sorted({setting.name for setting in SETTINGS})
GROUPS = groups(NAMES)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself, without what `Annotated` adds."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(part for member in typing.get_args(annotation) for part in alternatives(member))
    return (annotation,)


def bounds(field: FieldInfo) -> list[float]:
    """Return the numbers at and next to a field's bounds."""
    limits = [
        getattr(limit, name) for limit in field.metadata for name in ("gt", "ge", "lt", "le")
        if getattr(limit, name, None) is not None
    ]  # fmt: skip
    return [number for limit in limits for number in (limit - 1, limit, limit + 1)]


WRONG_ANYWHERE = (  # fmt: skip
    "", "null", "~", "nan", ".nan", "inf", "-inf", ".inf", "-.inf", "1e999", "-1e999", "{}", "[]", "[1", "{", "}", "]",
    "a: b: c", "a: 1", "\t1", "1\t2", "!!python/object:os.system x", "!!python/object/apply:os.getcwd []",
    "!!binary aGk=", "!!int a", "!!float x",
    "!!timestamp x", "!!set {1}", "!!omap [a: 1]", "!mine 3", "&a 3", "*a", "&a [*a]", "<<: {a: 1}",
    "yes", "no", "on", "Off", "true", "False", "1:30", "190:20:30", "0x1F", "0b11", "017", "0o17", "1_000",
    "2020-01-01",
    "2020-01-01T00:00:00Z", "2020-13-45", "'3'", '"3"', "'", '"', "a\nb", "a\r\nb", "\x00", "\x07", "\x1b[31mred",
    "\x7f", "\x85", "\u2028", "\ufeff1", "\udcff", "\U0001f600", "é", "@", "`", "%", "|", ">", "- 1", "? a",
    "---", "...",
    "--- 1\n--- 2", "#", " ", "=", "==", "[[[[1]]]]",
    "[" * 3000, "{a: " * 1000, "[" * 60 + "]" * 60, "[1, a]", "[null]",
    "[true]", "[1.5]", "[-1]", "[0]", "[1e999]", "{1: 2}", "{null: 1}", "{a: {b: {c: 1}}}", "{a.b: 1}", "[{a: 1}]",
    "0", "-0", "-0.0", "1", "-1", "0.5", "1.5", "1e-400", "1e-60", "1e300", "3.5e38", "2147483647", "2147483648",
    str(2**63), str(10**30), str(-(10**30)), "9" * 5000, "1e30", "1e5000", "x" * 10_000, "some text", "None", "nil",
)  # fmt: skip
"""YAML values that hardly any setting takes."""


@st.composite
def near_misses(draw: st.DrawFn, word: str) -> str:
    """Change a word a little: a letter dropped, doubled, replaced or swapped, or its case or its dashes."""
    place = draw(st.integers(0, max(len(word) - 1, 0)))
    before, letter, after = word[:place], word[place : place + 1], word[place + 1 :]
    changed = {
        "dropped": before + after,
        "doubled": before + 2 * letter + after,
        "replaced": before + draw(st.sampled_from("xq_0é ")) + after,
        "swapped": before + after[:1] + letter + after[1:],
        "upper case": word.upper(),
        "capital": word.capitalize(),
        "dashes": word.replace("_", "-"),
        "spaces": word.replace("_", " "),
        "camel case": word.title().replace("_", ""),
        "plural": word + "s",
        "spelling": spelled_otherwise(word),
    }
    return changed[draw(st.sampled_from(sorted(changed)))]


def spelled_otherwise(word: str) -> str:
    """Exchange the British and the American spelling."""
    for british, american in BRITISH_AND_AMERICAN:
        if british in word:
            return word.replace(british, american)
        if american in word:
            return word.replace(american, british)
    return word


@st.composite
def names(draw: st.DrawFn, name: str) -> str:
    """Return a wrong spelling of a dotted name, or another place for it."""
    parts = name.split(".")
    place = draw(st.integers(0, len(parts) - 1))
    group, last = ".".join(parts[:-1]), parts[-1]
    near = draw(near_misses(parts[place]))
    changed = {
        "near": ".".join([*parts[:place], near, *parts[place + 1 :]]),
        "wrong parent": f"{draw(st.sampled_from(GROUPS))}.{last}",
        "no parent": last,
        "group": group or last,
        "leaf as group": f"{name}.{draw(st.sampled_from(['x', 'weight', '0', '__class__', last]))}",
        "missing part": ".".join(parts[:place] + parts[place + 1 :]),
        "extra dots": name.replace(".", "..") if group else f".{name}",
        "leading dot": f".{name}",
        "trailing dot": f"{name}.",
        "dots": draw(st.sampled_from([".", "..", "..."])),
        "spaces": draw(st.sampled_from([f" {name}", f"{name} ", f"{group} . {last}", " ", "\t", f"{name}\n"])),
        "dunder": draw(st.sampled_from(["__class__", "model_fields", f"{group or name}.__class__", "model_config"])),
        "long": draw(st.sampled_from([name + "x" * 100_000, f"{name}." * 3000 + "x", "a." * 50_000 + "a"])),
        "control": name + draw(st.sampled_from(["\x00", "\x1b[31m", "\r", "\n", "\u2028", "\udcff", "\u202e"])),
        "index": f"{name}[0]",
        "slashes": name.replace(".", "/"),
        "text": draw(st.text(max_size=8)),
    }
    return changed[draw(st.sampled_from(sorted(changed)))]


def values(field: FieldInfo) -> st.SearchStrategy[str]:
    """Return values that a field may or may not take, the likely wrong ones first."""
    options: list[st.SearchStrategy[str]] = [st.sampled_from(WRONG_ANYWHERE), st.text(max_size=12)]
    for kind in alternatives(field.annotation):
        if typing.get_origin(kind) is typing.Literal:
            options += [near_misses(str(choice)) for choice in typing.get_args(kind)]
        elif kind is int:
            options.append(st.integers(-3, 70).map(str))
            options.append(st.integers(0, 40).map(lambda power: str(2**power)))
        elif kind is float:
            options.append(st.floats().map(repr))
        elif typing.get_origin(kind) is tuple:
            options.append(st.lists(st.integers(-1, 300), max_size=4).map(str))
    if near := bounds(field):
        options.append(st.sampled_from(near).map(str))
    return st.one_of(options)


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Return one setting with a wrong name or another value."""
    setting = draw(st.sampled_from(SETTINGS))
    if draw(st.booleans()):
        return Mutation(
            setting.agent, setting.name, draw(names(setting.name)), draw(st.sampled_from(["1", "x", "{a: 1}"]))
        )
    return Mutation(setting.agent, setting.name, setting.name, draw(values(setting.field)))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
"""A short text whose aliases stand for more than a thousand million values."""
MERGES = "a: &a {x: 1}\n" + "\n".join(
    f"b{n}: &b{n}\n  <<: [{f'*b{n - 1}, *b{n - 1}' if n else '*a, *a'}]" for n in range(40)
)
"""The same by merge keys."""

STRUCTURES = (
    b"", b"\n", b"# nothing\n", b"- 1\n- 2\n", b"text", b"3", b"null", b"\xff\xfe\x00", b"\xef\xbb\xbfseed: 1\n",
    b"seed: 1\r\nsteps: 10\r\n", b"seed: 1\nseed: 2\n", b"seed: 1\nseed: 1\n", b"model: {kernel: 3, kernel: 4}\n",
    b"model:\n", b"model: null\nloop: null\n", b"1: 2\n", b"null: 1\n", b"true: 1\n", b"2020-01-01: 1\n", b"[1]: 2\n",
    b"{a: 1}: 2\n", b"model: {1: 2}\n", b"unknown: {a: {b: 1}}\n", b"model.kernel: 3\nmodel: {kernel: 4}\n",
    b"model: 3\nmodel.kernel: 4\n", b"model.kernel.x: 3\nmodel.kernel: 4\n", b"\tseed: 1\n", b"seed: 1\n  steps: 2\n",
    b"seed: 1\n---\nseed: 2\n", b"--- \n...\n", b"%YAML 1.2\n---\nseed: 1\n", b"seed: !!python/name:os.system\n",
    b"a: &a [*a]\n", b"env: &e {options: {b: *e}}\n", b"model: &m {<<: *m}\n", LAUGHS.encode(), MERGES.encode(),
    b"<<: {seed: 3}\n", b"env: {options: {1: 2}}\n", b"extends: default\n", b"preset: 3\n", b"preset: [default]\n",
    b"[" * 5000, b"{a: " * 5000, b"- " * 5000, b"? " * 3000, ("a." * 5000 + "a: 1\n").encode(), b"seed: " + b"9" * 5000,
    b"seed: \x00\n", b"seed: '\\0'\n", b"seed: \"\\u2028\"\n", b"env: {id: 3}\n", b"env: {id: ''}\n", b"agent: []\n",
    b"agent: {name: null}\n", b"agent: null\n", b"agent: {name: {a: 1}}\n", b"observation: 3\n", b"loop: [a]\n",
)  # fmt: skip
"""Files whose structure is wrong, or unusual."""


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Return the content of a file of settings that is wrong or unusual."""
    if draw(st.booleans()):
        return draw(st.sampled_from(STRUCTURES))
    changed = [draw(mutations()) for _ in range(draw(st.integers(1, 3)))]
    lines = [f"{mutation.name}: {mutation.value}" for mutation in changed]
    if draw(st.booleans()):
        lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(changed[0].name.split(".")[:100])]
        lines[-1] += f" {changed[0].value}"
    return draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode(errors="surrogatepass")
