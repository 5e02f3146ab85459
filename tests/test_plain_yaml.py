"""YAML of plain data: what it is read as, what is refused, and how values are quoted."""

from __future__ import annotations

import pytest

from bircher import quoting
from bircher.plain_yaml import BadYAML, load
from mutations import LAUGHS, MERGES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("2020-13-45", "2020-13-45"),
        ("017", 17), ("2e6", 2e6), ("1e-3", 1e-3), ("9_000", 9000), ("0x1F", 31), ("+3", 3),
        (".5", 0.5), ("-.inf", -float("inf")), ("true", True), ("null", None), ("[1, 2.5]", [1, 2.5]),
        ("{a: &a [1], b: *a}", {"a": [1], "b": [1]}), ("{<<: {a: 1}, a: 2}", {"a": 2}),
    ],
)  # fmt: skip
def test_plain_data_is_read(text: str, value: object) -> None:
    assert load(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{a: 1, a: 2}", "the key 'a' is given twice"),
        ("[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        ("\n".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]" for n in range(60)), "nested more than 50 levels deep"),
        (LAUGHS, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        ("&a [*a]", "contains itself"),
        ("!!timestamp 2020-13-45", "month must be in 1..12"),
        ("!!int a", "invalid literal"),
        ("!!timestamp a", "NoneType"),
        ("!!python/object:os.system a", "could not determine a constructor"),
        ("[1", "line 1, column 3"),
        ("a\x00", "characters that YAML does not allow"),
    ],
)
def test_everything_else_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(BadYAML, match=reason):
        load(text)


def test_values_are_quoted_on_one_short_line() -> None:
    assert quoting.as_yaml([64, 64]) == "[64, 64]" and quoting.as_yaml({"a": None}) == "{a: null}"
    endless: list = [1]
    endless.append(endless)
    for value in (
        "x" * 10**7,
        [[1] * 10**5] * 3,
        10**5000,
        -(10**5000),
        endless,
        {"a" * 1000: "\x1b[31m\n\u202e"},
        object(),
    ):
        for text in (quoting.as_yaml(value), quoting.short(value)):
            assert text.isprintable() and 0 < len(text) <= 4 * quoting.LONGEST, text
    assert quoting.as_yaml("x" * 10**4).endswith("characters)") and len(quoting.as_yaml("x" * 10**4)) < 100
    assert quoting.one_line("a\nb\x00c" + "d" * 9000).startswith("a b\\x00cd")
    assert len(quoting.one_line("a" * 10**6)) <= quoting.LONGEST_MESSAGE
