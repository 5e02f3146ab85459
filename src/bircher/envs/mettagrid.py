"""mettagrid: a grid world of many agents, whose observations are tokens.

This module has the ids, the sentences about ids and settings that cannot run, and the reading of tokens.  It imports
nothing of the package, so that every refusal comes before anything is compiled.  `mettagrid_maps` has the maps and
their rewards, in the configuration language of the package, and `mettagrid_env` the environment.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import platform
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from bircher.errors import UnknownEnvironment, UnsupportedEnvironment, near, short

PREFIX = "mettagrid/"
"""What the ids of these environments begin with."""
INSTALL = "pip install 'bircher[mettagrid]'"


class GatherMap(NamedTuple):
    """The numbers of a map on which agents gather ore, carry it, and deliver it to a depot."""

    num_agents: int
    size: int
    """Height and width, with the wall around the map."""
    mines: int
    depots: int
    walls: int
    """Walls of one cell within the map."""
    num_tokens: int
    """Number of tokens of an observation: as many as can be in sight of one agent with up to four agents.  With 24 it
    is more than all of them in one place have; the package raises an error where there are more."""


GATHER = {
    "gather-1": GatherMap(1, size=12, mines=3, depots=1, walls=6, num_tokens=48),
    "gather-4": GatherMap(4, size=16, mines=6, depots=2, walls=14, num_tokens=72),
    "gather-24": GatherMap(24, size=32, mines=24, depots=8, walls=60, num_tokens=160),
}
"""The maps of this package, by the part of the id after the prefix."""

BUILDERS = {
    "arena/basic": "an arena without combat",
    "arena/combat": "an arena with attacks, as far as agents have lasers",
    "navigation/basic": "an empty room",
}
"""The builders of the package, by the part of the id after the prefix."""
IDS = tuple(PREFIX + name for name in (*GATHER, *BUILDERS))

ABSENT = {
    "arena/tag": "the package mettagrid has no map of tag; jaxmarl/MPE_simple_tag_v3 has hunters that chase a prey",
}
"""Maps that the package is expected to have and does not, with the sentence about each."""
MISSIONS = ("tutorial", "mission", "machina", "cogsguard", "cogs", "training_facility", "hello_world")
"""What the names of missions of the game contain, and of the game itself."""
OPTIONS = ("num_agents", "num_cogs", "max_steps", "num_tokens", "overrides")
"""Keyword arguments of these environments, `env.options`."""

PADDING = 255
"""The number that fills all columns of a token that is not there."""
EVERYWHERE = 254
"""The position of tokens about the agent as a whole."""


def is_id(source: object) -> bool:
    """Return whether this is an id of mettagrid, known or not."""
    return isinstance(source, str) and source.startswith(PREFIX)


def require_known(env_id: str) -> None:
    """Require that there is an environment of this id.

    Raises:
      UnsupportedEnvironment: it is a map or a mission that the package does not have.
      UnknownEnvironment: there is none; the error has the nearest ids.
    """
    if env_id in IDS:
        return
    name = env_id.removeprefix(PREFIX)
    if name in ABSENT:
        raise UnsupportedEnvironment(f"{env_id} does not exist: {ABSENT[name]}")
    if any(word in name for word in MISSIONS):
        raise UnsupportedEnvironment(
            f"{short(env_id)} does not exist: missions and their variants are parts of a game built on mettagrid, and "
            f"the package mettagrid does not contain them; its ids here are {', '.join(IDS)}"
        )
    meant = near(env_id[:100], IDS) or f"; expected one of {', '.join(IDS)}"
    raise UnknownEnvironment(f"unknown environment {short(env_id)}{meant}")


def require_available() -> None:
    """Require the package mettagrid, which exists for two versions of Python on Linux and macOS.

    Raises:
      UnsupportedEnvironment: this platform or version of Python is not supported, or the package is not installed.
    """
    version = sys.version_info[:2]
    if version not in ((3, 11), (3, 12)):
        raise UnsupportedEnvironment(
            f"mettagrid needs Python 3.11 or 3.12, and this is Python {version[0]}.{version[1]}"
        )
    if sys.platform not in ("linux", "darwin"):
        raise UnsupportedEnvironment(f"mettagrid needs Linux or macOS, and this is {platform.system() or sys.platform}")
    if sys.platform == "linux" and (old := _old_glibc()):
        raise UnsupportedEnvironment(f"mettagrid needs the C library glibc 2.34 or later, and this is {old}")
    if importlib.util.find_spec("mettagrid") is None:
        raise UnsupportedEnvironment(f"environments of mettagrid need the package mettagrid: {INSTALL}")


def load() -> None:
    """Import the package mettagrid, without the handler and the level that it gives to the root logger.

    Raises:
      UnsupportedEnvironment: this platform or version of Python is not supported, or the package is not installed.
    """
    require_available()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    importlib.import_module("mettagrid")
    root.setLevel(level)
    root.handlers[:] = handlers


def _old_glibc() -> str | None:
    """Return the name of a C library for which mettagrid has no wheel; None where it has one."""
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "glibc" and numbers >= (2, 34):
        return None
    return f"{name or 'another C library'} {version}".strip()


def checked_options(env_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an environment by the names of this package, where `num_cogs` is `num_agents`.

    Raises:
      UnsupportedEnvironment: an option is unknown, of the wrong type, or fixed by the map.
    """
    for name in options:
        if name not in OPTIONS:
            meant = near(name[:100], OPTIONS) or f"; expected {', '.join(OPTIONS)}"
            raise UnsupportedEnvironment(f"{env_id} has no option {short(name)}{meant}")
    checked = dict(options)
    if "num_cogs" in checked:  # the word of the game's missions
        if "num_agents" in checked:
            raise UnsupportedEnvironment(f"{env_id}: num_cogs and num_agents are the same number; give one of them")
        checked["num_agents"] = checked.pop("num_cogs")
    for name in ("num_agents", "max_steps", "num_tokens"):
        value = checked.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsupportedEnvironment(f"{env_id}: option {name} must be a number of at least 1, not {short(value)}")
    gather = GATHER.get(env_id.removeprefix(PREFIX))
    if gather is not None and checked.get("num_agents", gather.num_agents) != gather.num_agents:
        others = ", ".join(f"{PREFIX}{name}" for name in GATHER if name != env_id.removeprefix(PREFIX))
        raise UnsupportedEnvironment(
            f"{env_id} has {gather.num_agents} agents, not {checked['num_agents']}; {others} have other numbers"
        )
    overrides = checked.get("overrides", {})
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise UnsupportedEnvironment(
            f"{env_id}: option overrides must be settings of the package by dotted name, such as "
            "{game.obs.width: 9}, not " + short(overrides)
        )
    return checked


class Token(NamedTuple):
    """One token: a number about a cell in sight, or about the agent as a whole."""

    row: int | None
    """Rows from the top of what is in sight; None for a token about the agent as a whole."""
    column: int | None
    feature: int
    value: int


def read_tokens(observation: UInt8[np.ndarray, "N 3"]) -> list[Token]:
    """Return the tokens of an observation, without those that are not there.

    Where the numbers of a token say a position, the upper four bits of the first are its row, the lower four its
    column.  The agent is in the middle.
    """
    tokens = []
    for position, feature, value in observation.tolist():
        if position == PADDING:
            continue
        row, column = (None, None) if position == EVERYWHERE else divmod(position, 16)
        tokens.append(Token(row, column, feature, value))
    return tokens
