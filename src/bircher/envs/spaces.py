"""Gymnasium's spaces as specifications and as arrays."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from bircher.envs.base import UnknownEnvironment
from bircher.envs.encoding import Encoding, LayoutSetting, UnsupportedSpace, encoding_of
from bircher.envs.registration import registered
from bircher.envs.single import takes_render_mode
from bircher.types import Continuous, Discrete, EnvSpec, Unsupported


def draws(env_id: str) -> bool:
    """Whether Gymnasium has an environment of this id that may draw to arrays; its module is imported.

    A class lists its modes. Of a function, and of a class that lists none, it is known once an environment is made.
    """
    try:
        entry = registered(env_id).entry_point
        creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    except (gymnasium.error.Error, ImportError, UnknownEnvironment):
        return False
    if creator is None:
        return False
    modes = getattr(creator, "metadata", {}).get("render_modes", ())
    return "rgb_array" in modes if modes else takes_render_mode(creator)


@contextmanager
def quiet_bounds():
    """Silence Gymnasium's warning that a Box's bounds lose precision; nobody here reads the bounds.

    And the one about a render mode that a class does not list, which may draw all the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*initialised with render_mode='rgb_array' that is not in.*")
        warnings.filterwarnings("ignore", message=".*Box (low|high)'s precision lowered.*")
        yield


def action_spec(space: spaces.Space) -> Discrete | Continuous | Unsupported:
    """The action specification of a Gymnasium space; anything but Discrete and a float Box is Unsupported."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n), int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(np.asarray(bound, np.float64).ravel().tolist()) for bound in (space.low, space.high))
        return Continuous(tuple(space.shape), low, high)
    return Unsupported(f"action space {space}")


def observation_spec(space: spaces.Space, layout: LayoutSetting = "auto") -> tuple[Any, Any]:
    """The observation specification of a Gymnasium space, and its encoding: a pytree of shapes and one of Encodings.

    Dict and Tuple become pytrees of their parts; one part that is no array makes the specification Unsupported, and the
    encoding None.
    """
    encoding = encoding_of(space, layout)
    refused = [part for part in jax.tree.leaves(encoding) if isinstance(part, UnsupportedSpace)]
    if refused:
        return Unsupported(f"observation space {_whole(space, refused[0])}"), None
    return jax.tree.map(encoded_shape, encoding), encoding


def _whole(space: spaces.Space, part: UnsupportedSpace) -> str:
    """The space as Gymnasium prints it, and the part of it that is the reason."""
    return part.text if part.text.startswith(str(space)) else f"{space}, because of {part.text}"


def encoded_shape(encoding: Encoding) -> jax.ShapeDtypeStruct:
    """Shape and type of the array that the agent is given."""
    return jax.ShapeDtypeStruct(encoding.encoded_shape, np.dtype(encoding.dtype))


def described(spec: EnvSpec, observation_space: spaces.Space, action_space: spaces.Space) -> EnvSpec:
    """The specification with its spaces as Gymnasium prints them, and what to do about an observation space."""
    return spec._replace(
        observation_space=str(observation_space),
        action_space=str(action_space),
        advice="" if isinstance(observation_space, spaces.Box) else _advice(observation_space),
    )


def _advice(space: spaces.Space) -> str:
    if space.is_np_flattenable:
        advice = "wrap it by gymnasium.wrappers.FlattenObservation"
    else:
        advice = "wrap it by gymnasium.wrappers.TransformObservation with a function that gives one array"
    if isinstance(space, spaces.Dict) and any("mask" in str(key) for key in space.spaces):
        advice += '; a mask of legal actions belongs in info["action_mask"]'
    return advice
