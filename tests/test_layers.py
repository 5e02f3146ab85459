"""The house as docs/design/architecture.md draws it: who may import whom, how large a room may be, what loads when."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "bircher"
FILES = sorted(SOURCE.rglob("*.py"))

ADAPTERS = {
    "mctx": {"search"},
    "flashbax": {"replay"},
    "orbax": {"array_files"},
    "envpool": {"envs"},
    "gymnax": {"envs"},
    "pgx": {"envs"},
    "gymnasium": {"envs", "viz"},
    "cloudpickle": {"envs"},
    "tensorboardX": {"writers"},
    "matplotlib": {"viz", "charts"},
    "PIL": {"panels"},
    "imageio_ffmpeg": {"viz"},
    "ray": {"cluster"},
    "rlax": set(),
    "rliable": set(),
}
"""A third party's package, and the rooms that may import it."""

LOADED_WHEN_USED = (
    "envpool",
    "gymnax",
    "pgx",
    "gymnasium",
    "pygame",
    "tensorboardX",
    "matplotlib",
    "PIL",
    "imageio_ffmpeg",
)


def read_levels() -> dict[str, int]:
    """Level by room, from the table in the architecture page; a room is a file or a folder of the package."""
    levels = {}
    for line in (ROOT / "docs" / "design" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (\d+) \| ([^|]+) \|", line):
            for room in re.findall(r"`([\w/]+?)(?:\.py|/)`", row[2]):
                levels[room] = int(row[1])
    levels["__main__"] = max(levels.values()) + 1  # `python -m bircher` opens a front door
    return levels


LEVELS = read_levels()


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else str(node.module)), node.lineno


def test_the_table_names_the_rooms() -> None:
    assert LEVELS["types"] == 0 and LEVELS["ops"] == 1 and LEVELS["search"] == 3 and LEVELS["cli"] == 11
    assert len(LEVELS) >= 20


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_downward(path: Path) -> None:
    module = module_of(path)
    room = room_of(module)
    assert room in LEVELS, f"{path.name} is in no room of docs/design/architecture.md"
    for imported, line in imports_of(path):
        if imported.split(".")[0] != "bircher" or room_of(imported) == room:
            continue
        below = LEVELS.get(room_of(imported))
        assert below is not None, f"{module}:{line} imports {imported}, in no room of docs/design/architecture.md"
        assert below < LEVELS[room], f"{module}:{line} (level {LEVELS[room]}) imports {imported}"


def test_imports_have_no_circle() -> None:
    graph = {module_of(path): {name for name, _ in imports_of(path) if name in MODULES} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_adapters_keep_to_their_rooms(path: Path) -> None:
    room = room_of(module_of(path))
    for imported, line in imports_of(path):
        allowed = ADAPTERS.get(imported.split(".")[0])
        assert allowed is None or room in allowed, f"{path.name}:{line} imports {imported}, which is not its business"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, f"{path.name} has {text.count(chr(10))} lines, more than 300"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines, more than 60"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.stat().st_size == 0 or ast.get_docstring(tree), f"{path.name} has no docstring"
    # A method of a class with bases may be one whose docstring stands in the protocol.
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases)
    for owner in [tree, *classes]:
        for node in owner.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


def test_importing_bircher_loads_no_adapter() -> None:
    script = f"import bircher, sys; print([name for name in {LOADED_WHEN_USED!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
