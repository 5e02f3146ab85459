"""Gymnasium's registry of ids, and its spaces as specifications.

A module that registers ids when it is imported is imported here.  An unknown id is answered with the nearest ids.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import load_env_creator

from bircher.envs import atari, minigrid
from bircher.envs.rendering import takes_render_mode
from bircher.errors import UnknownEnvironment
from bircher.spaces import Encoding, LayoutSetting, UnsupportedSpace, encoding_of
from bircher.types import Continuous, Discrete, EnvSpec, MultiDiscrete, Unsupported, part_names

LISTED = 5
"""Number of a module's ids that an error lists."""

_registered_by: dict[str, frozenset[str]] = {}
"""The ids that each module registered during its import."""


def list_ids() -> list[str]:
    """Return every id that is currently registered."""
    return list(gymnasium.registry)


def find_registration(env_id: str) -> GymnasiumSpec:
    """Return Gymnasium's registration of an id; for ``module:Name-v0`` import the module first, which registers it.

    Modules in the current folder are found too.

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
    """Import a module and record the ids that it registers.

    Raises:
      UnknownEnvironment: the module cannot be imported; the message contains the reason.
    """
    before = frozenset(gymnasium.registry)
    _add_current_folder()
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the module may raise anything, and a script may exit
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{module} cannot be imported: {reason}"
        if isinstance(error, ModuleNotFoundError) and error.name is not None and _is_within(module, error.name):
            message += f"; modules are found in {os.getcwd()} and in installed packages{_without_suffix(env_id)}"
        raise UnknownEnvironment(message) from error
    if new := frozenset(gymnasium.registry) - before:
        _registered_by[module] = new


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Return at most three names that are similar to a name, ignoring case."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]


def _add_current_folder() -> None:
    # At the end of the path, so that a file in the folder does not hide an installed package of the same name.
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def _is_within(module: str, missing: str) -> bool:
    """Return whether the missing module is the requested one or a package that contains it."""
    return module == missing or module.startswith(f"{missing}.")


def _without_suffix(env_id: str) -> str:
    module, _, name = env_id.rpartition(":")
    if not module.endswith(".py"):
        return ""
    return f"; write the module without its suffix: {module.removesuffix('.py').replace('/', '.')}:{name}"


def _alternatives(module: str, name: str) -> str:
    ids = sorted(_registered_by.get(module, frozenset()) | _of_module(module))
    if not ids:
        return ": its import registered no environment, add gymnasium.register(...) to it"
    close = close_names(name, ids)
    if close:
        return f"; did you mean {', '.join(f'{module}:{env_id}' for env_id in close)}?"
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return f"; it registers {', '.join(ids[:LISTED])}{more}"


def _of_module(module: str) -> frozenset[str]:
    """Return the registered ids whose environment is defined in a module or in one of its submodules."""

    def origin(spec: GymnasiumSpec) -> str:
        entry = spec.entry_point
        return entry.split(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")

    origins = {env_id: origin(spec) for env_id, spec in gymnasium.registry.items()}
    return frozenset(env_id for env_id, name in origins.items() if name == module or name.startswith(f"{module}."))


ATARI_SUFFIXES = re.compile(r"(?:-ramDeterministic|-ramNoFrameskip|-ram|Deterministic|NoFrameskip)?(?:-v\d+)?$")
"""Suffixes of other packages for the names of Atari games."""


def advice_for(env_id: str, known_ids: Sequence[str]) -> str:
    """Return the end of the error sentence for an unknown id, with the nearest ids or the way to get it."""
    game = atari_game(env_id)
    if game in known_ids:
        screen = " and show their screen, not their memory" if "-ram" in env_id else ""
        return f"; Atari games are named like {game} here{screen}, and env.protocol=dqn plays them as DQN did"
    close = close_names(env_id, known_ids)
    if env_id.startswith(minigrid.PREFIXES):
        near = f"; did you mean {', '.join(close)}?" if close else ""
        return f"{near}; for other ids install the package minigrid and write minigrid:{env_id}"
    return f"; did you mean {', '.join(close)}?" if close else "; `bircher envs` lists the known ids"


def atari_game(env_id: str) -> str | None:
    """Return the id of an Atari game from another package's name, such as PongNoFrameskip-v4; None for other ids."""
    name = ATARI_SUFFIXES.sub("", env_id.removeprefix(atari.ALIAS)).replace("_", "").lower()
    return next((game for game in atari.ids() if game.removesuffix("-v5").lower() == name), None)


def can_draw(env_id: str) -> bool:
    """Return whether Gymnasium has an environment with this id that may draw to arrays; this imports its module.

    A class lists its render modes. For a function, and for a class that lists none, the answer is certain only after
    an environment is made.
    """
    try:
        entry = find_registration(env_id).entry_point
        creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    except (gymnasium.error.Error, ImportError, UnknownEnvironment):
        return False
    if creator is None:
        return False
    modes = getattr(creator, "metadata", {}).get("render_modes", ())
    return "rgb_array" in modes if modes else takes_render_mode(creator)


@contextmanager
def quiet_bounds():
    """Silence two of Gymnasium's warnings.

    One says that the bounds of a Box lose precision, but these bounds are not used here. The other is about a render
    mode that a class does not list, but the class may be able to draw in that mode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*initiali[sz]ed with render_mode='rgb_array' that is not in.*")
        warnings.filterwarnings("ignore", message=".*Box (low|high)'s precision lowered.*")
        yield


MOST_CHOICES = 2**16
"""The largest number of choices of one dimension of a multi-discrete action."""


def action_spec(space: spaces.Space, bound: float | None = None) -> Discrete | MultiDiscrete | Continuous | Unsupported:
    """Return the action specification of a Gymnasium space.

    A Box of whole numbers is multi-discrete.  Infinite bounds are replaced by ± `bound`.  Dict, Tuple, Text and so on,
    spaces without a number, and infinite bounds without a `bound` are Unsupported, with the reason.
    """
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n), int(space.start))
    if not isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        return Unsupported(f"action space {space}")
    shape, dtype = tuple(space.shape), str(np.dtype(space.dtype))
    if not math.prod(shape):
        return Unsupported(f"action space {space}, which has no numbers")
    if isinstance(space, spaces.MultiBinary):
        return MultiDiscrete((2,) * math.prod(shape), shape, (0,) * math.prod(shape), dtype)
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start = (tuple(int(x) for x in np.ravel(numbers)) for numbers in (space.nvec, space.start))
        return MultiDiscrete(sizes, shape, start, dtype)
    return _box_spec(space, shape, dtype, bound)


def _box_spec(
    space: spaces.Box, shape: tuple[int, ...], dtype: str, bound: float | None
) -> MultiDiscrete | Continuous | Unsupported:
    """Return the action specification of a Box, which has at least one number."""
    low, high = (np.asarray(x, np.float64).ravel() for x in (space.low, space.high))
    if np.dtype(dtype).kind != "f":
        sizes = high - low + 1
        if (sizes > MOST_CHOICES).any():
            return Unsupported(f"action space {space}, a dimension of which has more than {MOST_CHOICES:,} choices")
        return MultiDiscrete(tuple(map(int, sizes)), shape, tuple(map(int, low)), dtype)
    if bound is not None:
        low, high = (np.where(_is_endless(x), np.sign(x) * bound, x) for x in (low, high))
    if (_is_endless(low) | _is_endless(high)).any():
        return Unsupported(
            f"action space {space}, whose bounds are not finite: set env.action_bound to a number that replaces them, "
            "such as env.action_bound=1"
        )
    if (low > high).any():
        return Unsupported(f"action space {space}, a bound of which lies beyond env.action_bound={bound:g}")
    return Continuous(shape, tuple(low.tolist()), tuple(high.tolist()), dtype)


def _is_endless(bounds: np.ndarray) -> np.ndarray:
    """Return which bounds are infinite, or so large that a float32 cannot hold the distance between two of them."""
    return np.abs(bounds) > np.finfo(np.float32).max / 4


def observation_spec(space: spaces.Space, layout: LayoutSetting = "auto") -> tuple[Any, Any]:
    """Return the observation specification of a Gymnasium space and its encoding.

    They are a pytree of shapes and a pytree of Encodings. Dict and Tuple become pytrees of their parts. If a part is
    not an array, or if there are no numbers, the specification is Unsupported and the encoding None.
    """
    encoding = encoding_of(space, layout)
    parts = jax.tree.leaves(encoding)
    unsupported = [part for part in parts if isinstance(part, UnsupportedSpace)]
    if unsupported:
        return Unsupported(f"observation space {_with_reason(space, unsupported[0])}"), None
    names = part_names(encoding)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return Unsupported(f"observation space {space}, of which two parts have the name {twice}"), None
    if not any(math.prod(part.encoded_shape) for part in parts):
        return Unsupported(f"observation space {space}, which has no numbers"), None
    return jax.tree.map(encoded_shape, encoding), encoding


def _with_reason(space: spaces.Space, part: UnsupportedSpace) -> str:
    """Return the space as Gymnasium prints it, and the part of it that is not supported."""
    return part.text if part.text.startswith(str(space)) else f"{space}, because of {part.text}"


def encoded_shape(encoding: Encoding) -> jax.ShapeDtypeStruct:
    """Return the shape and type of the array that the agent receives."""
    return jax.ShapeDtypeStruct(encoding.encoded_shape, np.dtype(encoding.dtype))


def with_spaces(spec: EnvSpec, observation_space: spaces.Space, action_space: spaces.Space) -> EnvSpec:
    """Add to a specification its spaces as Gymnasium prints them, and advice about an observation space."""
    return spec._replace(
        observation_space=str(observation_space),
        action_space=str(action_space),
        advice=_advice(observation_space),
    )


def _advice(space: spaces.Space) -> str:
    """Return what helps with the first part of a space that no agent can read, or nothing where all can be read."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return next((advice for advice in map(_advice, parts) if advice), "")
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ""
    wrapper = "gymnasium.wrappers.TransformObservation"
    if isinstance(space, spaces.Text):
        return (
            f"leave the text out, or give its bytes by {wrapper} as a Box of uint8 with a fixed length, filled up with "
            "0, and set model.encoders.PART=text"
        )
    if isinstance(space, spaces.Graph | spaces.Sequence):
        return (
            f"give a fixed number of rows by {wrapper} as a Box, filled up with rows of one number, and set "
            "model.encoders.PART={kind: tokens, padding: NUMBER}"
        )
    return f"give arrays of a fixed shape by {wrapper}"
