"""The docs: generated pages are up to date, links lead somewhere, and the commands that they show are accepted."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])


def script(path: Path) -> ModuleType:
    """A script of the docs as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script: modules next to it are found
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


REFERENCE = script(DOCS / "reference" / "generate.py")
FIGURES = script(DOCS / "images" / "figures.py")


@pytest.mark.parametrize("path", REFERENCE.pages(), ids=lambda path: path.name)
def test_reference_pages_are_up_to_date(path: Path) -> None:
    expected = REFERENCE.pages()[path]
    assert path.read_text(encoding="utf-8") == expected, f"{path.name} is older than the code: run `make reference`"


@pytest.mark.parametrize("name", FIGURES.FIGURES)
def test_figures_are_up_to_date(name: str) -> None:
    drawn = FIGURES.FIGURES[name]()
    path = DOCS / "images" / f"{name}.svg"
    assert path.read_text(encoding="utf-8") == drawn, f"{path.name} is older than its script: run `make reference`"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), (
            f"{page.name} links to {target}, and {path.name} has no such heading"
        )


def test_pages_named_in_the_code_exist() -> None:
    files = [*(ROOT / "src").rglob("*"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for path in (ROOT / "Makefile", *files):
        if path.suffix in (".py", ".yaml", "") and path.is_file():
            for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}, which does not exist"


def test_every_page_is_linked_from_another() -> None:
    linked = {ROOT / "README.md"}
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        linked |= {(page.parent / target).resolve() for target in targets}
    assert not set(PAGES) - linked


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_settings_in_the_docs_exist() -> None:
    """Every dotted setting that a guide or the README gives a value is one of some agent's."""
    from bircher.config import settings
    from bircher.config.config import AGENTS

    known = {name for config in AGENTS.values() for name in settings.names(config)}
    left_out = {"notebook", "reference", "CONTRIBUTING.md"}  # old trials, generated pages, settings that one might add
    pages = [page for page in PAGES if not left_out & set(page.parts)]
    groups = "agent|env|evaluation|losses|loop|model|observation|optimizer|optimizer|replay|search|checkpoint"
    for page in pages:
        for name in re.findall(rf"`(?:[^`\n]* )?((?:{groups})(?:\.\w+)+)=", page.read_text(encoding="utf-8")):
            if "TERM" not in name and not name.startswith("env.options."):
                assert name in known, f"{page.name} sets {name}, which does not exist"


def shown_commands() -> list[str]:
    """Every line of the pages' code that starts with `bircher`, without its comment."""
    pages = [page for page in PAGES if "notebook" not in page.parts]
    blocks = [
        block for page in pages for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    ]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("bircher ") and "[OPTIONS]" not in line})


def test_commands_and_options_in_the_docs_exist() -> None:
    sections = dict(re.findall(r"^## bircher (\w+)\n(.*?)(?=^## |\Z)", REFERENCE.cli_page(), re.MULTILINE | re.DOTALL))
    for line in shown_commands():
        command = line.split()[1]
        assert command in sections, f"{line!r} names a command that does not exist"
        for option in re.findall(r" (--[a-z-]+)", line):
            assert option in sections[command], f"{line!r} has an option that bircher {command} has not"


def test_trainings_in_the_docs_are_accepted() -> None:
    """Each `bircher train ENV KEY=VALUE...` composes; a run's own folder and modules of the reader are left out."""
    from bircher.config import config

    accepted = 0
    for line in shown_commands():
        words = shlex.split(line)[2:]
        if words and line.split()[1] in ("train", "config") and not words[0].startswith("--") and "orridor" not in line:
            config.compose(words[0], [word for word in words[1:] if "=" in word])
            accepted += 1
    assert accepted > 20
