"""Gymnasium's registry: ids, and modules that register ids when they are imported."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from bircher.envs.base import UnknownEnvironment

LISTED = 5
"""Ids of a module that an error names."""

_registered_by: dict[str, frozenset[str]] = {}
"""The ids that each module registered while it was imported."""


def ids() -> list[str]:
    """Every id that is registered now."""
    return list(gymnasium.registry)


def registered(env_id: str) -> GymnasiumSpec:
    """Gymnasium's registration of an id; ``module:Name-v0`` imports the module first, which registers it.

    Modules are found in the current folder too.

    Raises:
      UnknownEnvironment: the id is not registered, or its module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, env_id)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        if not module:
            raise UnknownEnvironment(f"unknown environment {env_id!r}") from error
        raise UnknownEnvironment(f"{module} does not register {name}{_alternatives(module, name)}") from error


def import_module(module: str, env_id: str) -> None:
    """Import a module and note the ids that it registers.

    Raises:
      UnknownEnvironment: it cannot be imported; the message gives the reason.
    """
    before = frozenset(gymnasium.registry)
    _add_current_folder()
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module raises, also a script that ends itself
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{module} cannot be imported: {reason}"
        if isinstance(error, ModuleNotFoundError) and error.name is not None and _is_within(module, error.name):
            message += f"; modules are found in {os.getcwd()} and in installed packages{_without_suffix(env_id)}"
        raise UnknownEnvironment(message) from error
    if new := frozenset(gymnasium.registry) - before:
        _registered_by[module] = new


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """At most three names that are close to one, in any case."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]


def _add_current_folder() -> None:
    # At the end: a file there that has the name of an installed package must not take its place.
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def _is_within(module: str, missing: str) -> bool:
    """Whether the missing module is the one that was asked for, or a package around it."""
    return module == missing or module.startswith(f"{missing}.")


def _without_suffix(env_id: str) -> str:
    module, _, name = env_id.rpartition(":")
    if not module.endswith(".py"):
        return ""
    return f"; write the module without its suffix: {module.removesuffix('.py').replace('/', '.')}:{name}"


def _alternatives(module: str, name: str) -> str:
    ids = sorted(_registered_by.get(module, frozenset()) | _of_module(module))
    if not ids:
        return ": importing it registered nothing, add gymnasium.register(...) to it"
    close = close_names(name, ids)
    if close:
        return f"; did you mean {', '.join(f'{module}:{env_id}' for env_id in close)}?"
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return f"; it registers {', '.join(ids[:LISTED])}{more}"


def _of_module(module: str) -> frozenset[str]:
    """The registered ids whose environment is defined in a module or below it."""

    def origin(spec: GymnasiumSpec) -> str:
        entry = spec.entry_point
        return entry.split(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")

    origins = {env_id: origin(spec) for env_id, spec in gymnasium.registry.items()}
    return frozenset(env_id for env_id, name in origins.items() if name == module or name.startswith(f"{module}."))
