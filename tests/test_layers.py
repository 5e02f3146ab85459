"""The layout of the architecture page: which package may import which, how large files may be, what loads when."""

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
PAGE = ROOT / "docs" / "design" / "architecture.md"

ADAPTERS = {
    "mctx": {"search"},
    "flashbax": {"replay"},
    "orbax": {"training"},
    "envpool": {"envs"},
    "gymnax": {"envs"},
    "pgx": {"envs"},
    "gymnasium": {"envs", "viz", "spaces"},
    "mettagrid": {"envs"},
    "cloudpickle": {"envs"},
    "ray": {"training"},
    "tensorboardX": {"viz"},
    "matplotlib": {"viz", "experiments"},
    "PIL": {"viz"},
    "imageio_ffmpeg": {"viz"},
    "rlax": set(),
    "rliable": set(),
}
"""Third-party packages, and the packages of bircher that may import them."""
# 90 of the plan, two for the bonus for exploring (networks/exploration, agents/exploration), three for observations of
# several arrays (networks/observations, envs/minigrid, config/entries), three for actions of any kind
# (agents/candidates, agents/policy_targets, agents/model_search), three for workers (training/workers,
# training/remote_worker, training/cluster), one each for several devices (training/sharding), for speeds (runs/bench),
# for processes of comparisons (experiments/commands) and for 64-bit values (envs/float64), seven for several agents
# (envs/agents, envs/callback, envs/parallel_sources, envs/parallel_pool, envs/pettingzoo, envs/jaxmarl, runs/inputs),
# four for mettagrid (envs/mettagrid, envs/mettagrid_maps, envs/mettagrid_env, networks/token_grid), four for games of
# three (ops/turns, envs/three_players, games/enumeration, games/seats), one for several learners (training/learners)
# and one for evaluations on a cluster (runs/remote_evaluation).
MOST_MODULES, MOST_IN_ROOT, MOST_LAYERS, MOST_LINES, LONGEST_FUNCTION = 122, 8, 8, 500, 60

LOADED_WHEN_USED = (
    "envpool",
    "gymnax",
    "pgx",
    "gymnasium",
    "pygame",
    "mettagrid",
    "tensorboardX",
    "matplotlib",
    "PIL",
    "imageio_ffmpeg",
    "ray",
)


def read_layers() -> dict[str, int]:
    """Return the layer of each package, or file of the root, from the table in the architecture page."""
    layers = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (\d+) \| ([^|]+) \|", line):
            for package in re.findall(r"`([\w/]+?)(?:\.py|/)`", row[2]):
                layers[package] = int(row[1])
    layers["__main__"] = max(layers.values()) + 1  # `python -m bircher` starts the command line
    return layers


LAYERS = read_layers()


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports, anywhere in it, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else str(node.module)), node.lineno


def test_the_table_names_the_packages_and_their_sizes_are_bounded() -> None:
    assert LAYERS["types"] == 0 and LAYERS["ops"] == 1 and LAYERS["agents"] == 2 and LAYERS["cli"] == 7
    assert len(set(LAYERS.values()) - {LAYERS["__main__"]}) <= MOST_LAYERS
    modules = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    root = [path for path in modules if path.parent == SOURCE]
    assert len(modules) <= MOST_MODULES and len(root) <= MOST_IN_ROOT, (len(modules), len(root))


def test_packages_have_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        package = package_of(module_of(path))
        imported = {package_of(name) for name, _ in imports_of(path) if name in MODULES}
        graph.setdefault(package, set()).update(imported - {package})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_downward(path: Path) -> None:
    module = module_of(path)
    package = package_of(module)
    assert package in LAYERS, f"{path.name} is in no layer of {PAGE.name}"
    for imported, line in imports_of(path):
        if imported.split(".")[0] == "bircher":
            layer = LAYERS.get(package_of(imported))
            assert layer is not None, f"{module}:{line} imports {imported}, which is in no layer of {PAGE.name}"
            assert layer <= LAYERS[package], f"{module}:{line} (layer {LAYERS[package]}) imports {imported}"


def test_imports_have_no_circle() -> None:
    graph = {module_of(path): {name for name, _ in imports_of(path) if name in MODULES} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_adapters_keep_to_their_packages(path: Path) -> None:
    package = package_of(module_of(path))
    for imported, line in imports_of(path):
        allowed = ADAPTERS.get(imported.split(".")[0])
        assert allowed is None or package in allowed, f"{path.name}:{line} imports {imported}, which {package} may not"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES, f"{path.name} has {text.count(chr(10))} lines, more than {MOST_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{path.name}: {node.name} has {lines} lines"


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
