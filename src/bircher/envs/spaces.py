"""Gymnasium's spaces as specifications and as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from bircher.envs.base import UnknownEnvironment, array_dtype
from bircher.envs.registration import registered
from bircher.types import Continuous, Discrete, Unsupported


def draws(env_id: str) -> bool:
    """Whether Gymnasium has an environment of this id that draws to arrays; its module is imported."""
    try:
        entry = registered(env_id).entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except (gymnasium.error.Error, ImportError, UnknownEnvironment):
        return False
    return "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())


@contextmanager
def quiet_bounds():
    """Silence Gymnasium's warning that a Box's bounds lose precision; nobody here reads the bounds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box (low|high)'s precision lowered.*")
        yield


def action_spec(space: spaces.Space) -> Discrete | Continuous | Unsupported:
    """The action specification of a Gymnasium space; anything but Discrete and a float Box is Unsupported."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(np.asarray(bound, np.float64).ravel().tolist()) for bound in (space.low, space.high))
        return Continuous(tuple(space.shape), low, high)
    return Unsupported(f"action space {space}")


def observation_spec(space: spaces.Space) -> Any:
    """The observation specification of a Gymnasium space: a pytree of shapes, or Unsupported.

    A Discrete(n) observation is one-hot, float32[n]: a number that only names a state is no magnitude. Dict and Tuple
    become pytrees of their parts; one part that is no array makes the whole Unsupported.
    """
    parts, problem = _observation(space)
    return Unsupported(f"observation space {problem}") if problem else parts


def _observation(space: spaces.Space) -> tuple[Any, str]:
    if isinstance(space, spaces.Discrete):
        return jax.ShapeDtypeStruct((int(space.n),), np.float32), ""
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return jax.ShapeDtypeStruct(tuple(space.shape), array_dtype(space.dtype)), ""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = {key: _observation(part) for key, part in items}
        problem = next((problem for _, problem in parts.values() if problem), "")
        if isinstance(space, spaces.Dict):
            return {key: part for key, (part, _) in parts.items()}, problem
        return tuple(part for part, _ in parts.values()), problem
    return None, str(space)


def observation_arrays(space: spaces.Space) -> Callable[[Any], Any]:
    """A function from a batched observation of ``space`` to the arrays that ``observation_spec`` promises."""

    def convert(space: spaces.Space, value: Any) -> Any:
        if isinstance(space, spaces.Discrete):
            index = np.asarray(value).astype(np.int64) - int(space.start)
            return np.eye(int(space.n), dtype=np.float32)[index]
        if isinstance(space, spaces.Dict):
            return {key: convert(part, value[key]) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(convert(part, item) for part, item in zip(space.spaces, value, strict=True))
        return np.asarray(value).astype(array_dtype(space.dtype))

    return lambda value: convert(space, value)
