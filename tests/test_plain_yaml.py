"""YAML of plain data: what it is read as, what is refused, and how values are quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bircher import errors
from bircher.config import settings
from bircher.config.settings import dump, load
from bircher.errors import BadYAML
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
        (LAUGHS, "more than 100,000 settings"),
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


TEXTS = st.text() | st.text("0123456789eE+-._xXbainfNF:~ ", max_size=8)
SCALARS = TEXTS | st.booleans() | st.none() | st.integers() | st.floats(allow_nan=False)


def typed(value: object) -> object:
    """The value with the type of each of its parts, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


@given(st.recursive(SCALARS, lambda part: st.lists(part) | st.dictionaries(TEXTS, part), max_leaves=8))
def test_values_are_read_back_with_their_types(value: object) -> None:
    assert typed(load(dump(value))) == typed(value)


@pytest.mark.parametrize("text", ["1e5", "1e-3", "-2E+7", "017", "9_000", "1:30", "yes", "2020-01-01", "<<", "~", ""])
def test_text_that_a_reader_would_take_for_another_type_is_quoted(text: str) -> None:
    assert dump({"a": text}) == f"a: '{text}'\n"
    assert settings.as_text(text) == f"'{text}'"


def test_values_are_quoted_on_one_short_line() -> None:
    assert settings.as_text([64, 64]) == "[64, 64]" and settings.as_text({"a": None}) == "{a: null}"
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
        for text in (settings.as_text(value), errors.short(value)):
            assert text.isprintable() and 0 < len(text) <= 4 * errors.LONGEST, text
    assert settings.as_text("x" * 10**4).endswith("characters)") and len(settings.as_text("x" * 10**4)) < 100
    assert errors.one_line("a\nb\x00c" + "d" * 9000).startswith("a b\\x00cd")
    assert len(errors.one_line("a" * 10**6)) <= errors.LONGEST_MESSAGE


def test_merged_keys_stay_few() -> None:
    """PyYAML before 6.0.4 doubles the keys at every level, and is stopped; later ones keep one of each."""
    try:
        mapping = load(MERGES)
    except BadYAML as error:
        assert "more than 100,000 settings" in str(error)
    else:
        assert len(mapping) == 41 and all(value == {"x": 1} for value in mapping.values())
