"""The language of the pages: American spelling, and none of the phrases that readers have to decode."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").rglob("*.md") if "notebook" not in path.parts),
    *(path for path in (ROOT / "src").rglob("*.py") if path.name != "renamed.py"),
    *(ROOT / "src").rglob("*.yaml"),
]
"""The files that are checked. Dated notes are left as they were written, and renamed.py lists former names."""
LATER: list[Path] = []
"""Pages that are still to be rewritten."""

PHRASES = {
    r"\bis no (?:run|setting|folder|image|picture|comparison|measure|evidence|number|line)\b": "is not a …",
    r"\b(?:are|is) (?-i:none)\b(?! of)(?<!there is none)": "is undefined, or is not a …",
    r"\bof (?:its|their|one's|his|our) own\b": "separate",
    r"\bat once\b": "immediately, or together",
    r"\bnobody\b|\bno one\b": "no … , or the agent alone",
    r"\bof now\b": "current",
    r"\bbeside(?: it| them| that| this| other)\b": "next to",
    r"\bheld against\b|\bholds? against\b": "compared with",
    r"\bWhat (?:updates|a run|every update|an agent) tells?\b": "the noun: update metrics",
    r"\b(?:programs?|runs?|metrics|tests?|tables?|pages?) (?:tells?|knows?)\b": "a verb for things: log, contain, show",
    r"\bhand-made\b": "built-in",
    r"\bsays so of\b|\bwhatever else\b": "one idea a sentence",
    r"\b(?:the|this|in) house\b": "the package",
    r"\bjournal\b|\bgauge\b": "logger, monitor",
    r"\bthrough and through\b|\bfor want of\b": "plain words",
    r"\bin the order of their coming\b": "plain words",
    r"\bis said once\b|\bthat is said\b": "is printed",
}
"""What pages must not contain, as regular expressions, and what to write instead."""

BRITISH = (
    "optimis", "normalis", "behaviour", "colour", r"analyse(?!s)", "analysing", "penalis", "prioritis",
    "generalis", "recognis", "initialis", "minimis", "maximis", "organis", "summaris", "visualis", "learnt",
    "grey", "favour", "neighbour", "centre", "artefact", "catalogue", "judgement", "licence", "modelling",
    "labelled", "travelled", "cancelled",
)  # fmt: skip
"""Beginnings of words in British spelling."""


def prose(text: str, suffix: str = ".md") -> str:
    """A file without what must stay as it is: code, targets of links, comments, and titles of papers in quotes.

    Of Python only strings and comments are left, and of YAML only comments, each on its line.
    """
    if suffix == ".py":
        text = words_of_python(text)
    elif suffix == ".yaml":
        text = "\n".join(line.partition("#")[2] for line in text.splitlines())
    for pattern in (r"```.*?```", r"``[^`]*``", r"`[^`]*`", r"\]\([^)]*\)", r"<[^>]*>", r'"[A-Z][^"]*"'):
        text = re.sub(pattern, lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)
    return text


def words_of_python(source: str) -> str:
    """The strings and comments of a program, each on its line."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            for number, line in enumerate(token.string.splitlines(), start=token.start[0] - 1):
                lines[number] += " " + line.replace('"""', "").strip("\"'")
    return "\n".join(lines)


def findings(text: str) -> list[str]:
    """What is wrong with a text, with the line and what to write instead."""
    patterns = {**PHRASES, rf"\b(?:re|de|un)?(?:{'|'.join(BRITISH)})": "American spelling"}
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group()!r}: {instead}"
        for pattern, instead in patterns.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path not in LATER], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_are_in_plain_american_english(path: Path) -> None:
    found = findings(prose(path.read_text(encoding="utf-8"), path.suffix))
    assert not found, "\n".join([str(path.relative_to(ROOT)), *found])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x is no setting", 1),
        ("a folder of its own", 1),
        ("Nobody asks at once", 2),
        ("normalised by the policy of now", 2),
        ("reanalyses are analyses, and `normalise` in code stays", 0),
        ("normalized behavior of its owner", 0),
        ('"Maximum a Posteriori Policy Optimisation"', 0),
        ("```\noptimiser.learning_rate\n```\nlearnt", 1),
    ],
)
def test_phrases_are_found_without_false_alarms(text: str, count: int) -> None:
    assert len(findings(prose(text))) == count


def test_in_programs_only_strings_and_comments_are_read() -> None:
    source = """optimiser = 1  # what is learnt

def f(x):
    'Nobody
    normalises.'
    return f"{x} at once"
""".replace("'", '"' * 3)
    assert sorted(found.split(":")[0] for found in findings(prose(source, ".py"))) == [
        "line 1",
        "line 4",
        "line 5",
        "line 6",
    ]
