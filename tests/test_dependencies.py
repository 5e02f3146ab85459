"""A plain installation has every package that is imported: by this package, and by the packages that it uses."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    module: frozenset(map(canonicalize_name, names))
    for module, names in importlib.metadata.packages_distributions().items()
}
"""The distributions that provide a top-level module."""

BROUGHT_BY_IMPORTER = {("jax", "tensorstore")}
"""Imports that need no declaration: Orbax declares tensorstore, and only Orbax loads JAX's module that imports it."""

ENVIRONMENTS = ("toy/chain", "CartPole-v1", "tic_tac_toe", "LunarLander-v3", "FrozenLake-v1")
"""One environment of each adapter."""

LOAD_EVERYTHING = """
import importlib, json, pkgutil, sys
import bircher
for module in pkgutil.walk_packages(bircher.__path__, "bircher."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from bircher.envs.config import EnvRequest
modules, environments = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
for env_id in environments:
    bircher.envs.registry.spec(EnvRequest.of(env_id))
files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
print(json.dumps({name: file for name, file in files.items() if file and file.endswith(".py")}))
"""


class Import(NamedTuple):
    """An import of a module of another distribution."""

    importer: str
    """The importing distribution."""
    module: str
    """The top-level module that is imported."""
    file: str


def imported_names(statements: Iterable[ast.AST]) -> Iterator[str]:
    """The full names of the modules that absolute import statements name."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def is_optional(node: ast.AST) -> bool:
    """Whether a statement continues where an import within it fails."""
    if isinstance(node, ast.With):
        return "suppress(ImportError)" in ast.unparse(node.items[0])
    return isinstance(node, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in node.handlers)


def required_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement below a node, except within optional ones."""
    for child in ast.iter_child_nodes(node):
        if not is_optional(child):
            yield child
            yield from required_statements(child)


def third_party(name: str) -> bool:
    """Whether a module belongs to neither Python nor this package."""
    return name.split(".")[0] not in {*sys.stdlib_module_names, "bircher", "__main__"}


def declared_dependencies() -> frozenset[str]:
    """What pyproject.toml requires, and what the extras that it asks of these add."""
    found = set()
    for one in map(Requirement, PROJECT["dependencies"]):
        extras = requirements(one.name, tuple(one.extras)) - requirements(one.name, ())
        found |= {canonicalize_name(one.name), *(name for name, _ in extras)}
    return frozenset(found)


def extras() -> frozenset[str]:
    """What the extras for users require, and a plain installation does not."""
    optional = PROJECT["optional-dependencies"]
    lines = [line for extra, wanted in optional.items() if extra not in ("test", "dev") for line in wanted]
    plain = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    return frozenset(canonicalize_name(Requirement(line).name) for line in lines) - plain


def of_extra(name: str) -> bool:
    """Whether a module is that of an extra, which functions import where it is asked for."""
    return canonicalize_name(name.split(".")[0]) in extras()


def import_lines(source: str) -> set[str]:
    """The top-level modules in the lines that look like module-level imports."""
    lines = re.findall(r"^(?:from[ \t]+([\w.]+)|import[ \t]+([\w., \t]+))", source, re.MULTILINE)
    names = [name for single, several in lines for name in (single, *several.split(","))]
    return {match[0] for name in names if (match := re.match(r"\w+", name.strip()))}


def module_level_imports(source: str) -> set[str]:
    """The top-level modules that a file imports unconditionally when it is loaded."""
    return {name.split(".")[0] for name in imported_names(ast.parse(source).body)}


def requirements(distribution: str, extras: tuple[str, ...]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """The distributions that one requires here with these extras, and the extras that it asks of each."""
    lines = importlib.metadata.distribution(distribution).requires or []
    wanted = (Requirement(line) for line in lines)
    return frozenset(
        (canonicalize_name(one.name), tuple(sorted(one.extras)))
        for one in wanted
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    )


@functools.cache
def closure(distribution: str) -> frozenset[str]:
    """Everything that installing a distribution without extras installs."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    rest: list[tuple[str, tuple[str, ...]]] = [(distribution, ())]
    while rest:
        one = rest.pop()
        if one not in seen:
            seen.add(one)
            rest += requirements(*one)
    return frozenset(name for name, _ in seen)


def undeclared(loaded: Mapping[str, str], declared: frozenset[str]) -> list[Import]:
    """Imports of what neither the importing distribution's requirements bring, nor `declared` names.

    `loaded` are the files of modules by name.
    """
    found = set()
    for name, file in loaded.items():
        top = name.split(".")[0]
        owners = DISTRIBUTIONS.get(top, frozenset())
        if not third_party(name) or not owners:
            continue
        brought, importer = declared.union(*map(closure, owners)), min(owners)

        def missing(module: str, top: str = top, brought: frozenset[str] = brought, importer: str = importer) -> bool:
            known = module == top or not third_party(module) or (importer, module) in BROUGHT_BY_IMPORTER
            return not known and not DISTRIBUTIONS.get(module, frozenset()) & brought

        source = Path(file).read_text(encoding="utf-8-sig")
        # Parsing three thousand files takes half a minute; few have a line that can be one of these imports.
        if any(map(missing, import_lines(source))):
            found |= {Import(importer, module, file) for module in filter(missing, module_level_imports(source))}
    return sorted(found)


@pytest.fixture(scope="module")
def loaded() -> dict[str, str]:
    """The file of every module that this package and its adapters load, by the module's name."""
    names = {name for path in SOURCES for name in imported_names(required_statements(ast.parse(path.read_bytes())))}
    modules = sorted(name for name in names if third_party(name) and not of_extra(name))
    arguments = json.dumps([modules, ENVIRONMENTS])
    result = subprocess.run(
        [sys.executable, "-c", LOAD_EVERYTHING, arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_imports_of_the_package_are_declared_dependencies():
    missing, declared = {}, declared_dependencies()
    for path in SOURCES:
        at_once = module_level_imports(path.read_text(encoding="utf-8"))
        assert not any(map(of_extra, at_once)), f"{path.name} cannot be imported without an extra"
        for name in imported_names(required_statements(ast.parse(path.read_bytes()))):
            if of_extra(name):
                continue
            if third_party(name) and not DISTRIBUTIONS.get(name.split(".")[0], frozenset()) & declared:
                missing[name] = str(path.relative_to(ROOT))
    assert not missing, f"imported, and not among the dependencies in pyproject.toml: {missing}"


@pytest.mark.slow
def test_undeclared_imports_of_dependencies_are_declared_here(loaded):
    missing = undeclared(loaded, declared_dependencies())
    assert not missing, f"their own requirements do not bring these, nor does pyproject.toml: {missing}"


def test_an_undeclared_import_is_found(tmp_path: Path):
    """A module of six that imports rlax, which six does not require."""
    file = tmp_path / "six.py"
    file.write_text("import types\nimport rlax\n", encoding="utf-8")
    found = undeclared({"six": str(file)}, declared_dependencies())
    assert [(one.importer, one.module) for one in found] == [("six", "rlax")]
    assert not undeclared({"six": str(file)}, declared_dependencies() | {"rlax"})


@pytest.mark.slow
def test_the_modules_of_every_adapter_are_examined(loaded):
    for module in ("gymnax.environments", "pgx.tic_tac_toe", "envpool.box2d", "gymnasium.envs.toy_text.frozen_lake"):
        assert module in loaded
