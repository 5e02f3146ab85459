"""Observations checked against their Gymnasium spaces.

Nothing here imports JAX: worker processes load this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from bircher.envs.failures import ContractBreach

Check = Callable[[Any], Any]
"""A function that returns an observation as its space describes it, or raises ContractBreach."""


def observation_check(space: spaces.Space, name: str = "the observation") -> Check:
    """The check of observations of one space; spaces that no adapter supports are not checked."""
    if isinstance(space, spaces.Discrete):
        return _discrete_check(space, name)
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return _multi_check(space, name)
    if isinstance(space, spaces.Box):
        return _array_check(space, name)
    if isinstance(space, spaces.Dict):
        parts = {key: observation_check(part, f"{name}[{key!r}]") for key, part in space.spaces.items()}
        return _dict_check(parts, name)
    if isinstance(space, spaces.Tuple):
        return _tuple_check([observation_check(part, f"{name}[{i}]") for i, part in enumerate(space.spaces)], name)
    return lambda value: value


def _array_check(space: spaces.Space, name: str) -> Check:
    shape, dtype = space.shape, np.dtype(space.dtype)
    floating = dtype.kind == "f"

    def check(value: Any) -> Any:
        if type(value) is np.ndarray and value.shape == shape:
            if value.dtype is dtype or value.dtype == dtype or (floating and value.dtype.kind == "f"):
                return value
        array = as_array(value)
        if array is None or array.shape != shape or array.dtype.kind not in ("biuf" if floating else "biu"):
            raise ContractBreach(f"{name} is {describe(value)}, its space has {dtype} {shape}")
        converted = array.astype(dtype)
        if not floating and not np.array_equal(converted, array):
            odd = array[converted != array].flat[0]
            raise ContractBreach(f"{name} contains {odd}, which its space's {dtype} cannot hold")
        return converted

    return check


def _discrete_check(space: spaces.Discrete, name: str) -> Check:
    first, last = int(space.start), int(space.start + space.n - 1)

    def check(value: Any) -> Any:
        if type(value) is not int:
            array = as_array(value)
            if array is None or array.shape != () or array.dtype.kind not in "iu":
                raise ContractBreach(f"{name} is {describe(value)}, its space has whole numbers from {first} to {last}")
            value = int(array)
        if not first <= value <= last:
            raise ContractBreach(f"{name} is {value}, its space has whole numbers from {first} to {last}")
        return value

    return check


def _multi_check(space: spaces.MultiDiscrete | spaces.MultiBinary, name: str) -> Check:
    check_array = _array_check(space, name)
    multi = isinstance(space, spaces.MultiDiscrete)
    first = np.asarray(getattr(space, "start", 0))
    end = first + (np.asarray(space.nvec) if multi else 2)

    def check(value: Any) -> Any:
        array = check_array(value)
        outside = (array < first) | (array >= end)
        if outside.any():
            where = tuple(int(i) for i in np.argwhere(outside)[0])
            least, most = np.broadcast_to(first, array.shape)[where], np.broadcast_to(end, array.shape)[where] - 1
            raise ContractBreach(
                f"{name} contains {array[where]} at {list(where)}, "
                f"its space has whole numbers from {least} to {most} there"
            )
        return array

    return check


def _dict_check(parts: Mapping[str, Check], name: str) -> Check:
    keys = parts.keys()

    def check(value: Any) -> Any:
        if not isinstance(value, Mapping) or value.keys() != keys:
            raise ContractBreach(f"{name} is {describe(value)}, its space is a dictionary with {_names(keys)}")
        return {key: part(value[key]) for key, part in parts.items()}

    return check


def _tuple_check(parts: list[Check], name: str) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            raise ContractBreach(f"{name} is {describe(value)}, its space is a tuple of {len(parts)} parts")
        return tuple(part(item) for part, item in zip(parts, value, strict=True))

    return check


def float_leaves(space: spaces.Space, name: str = "the observation") -> Callable[[Any], Iterator[tuple[str, Any]]]:
    """A function from an observation, or a batch of them, to its arrays of floats and their names."""
    children: list[tuple[Any, Any]] = []
    if isinstance(space, spaces.Dict):
        children = [(key, float_leaves(part, f"{name}[{key!r}]")) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        children = [(key, float_leaves(part, f"{name}[{key}]")) for key, part in enumerate(space.spaces)]
    floating = isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"

    def leaves(observation: Any) -> Iterator[tuple[str, Any]]:
        if floating:
            yield name, observation
        for key, child in children:
            yield from child(observation[key])

    return leaves


def not_finite(name: str) -> str:
    """The sentence about an observation, or a part of it, with NaN or infinity in it."""
    return f"{name} contains a number that is not finite"


def describe(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Mapping):
        return f"a dictionary with {_names(value)}" if value else "an empty dictionary"
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value.item() if isinstance(value, np.generic) else value)
    array = as_array(value)
    if array is not None and array.dtype.kind in "biufc":
        return f"an array {array.dtype} {array.shape}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"an object of type {type(value).__name__}"


def _names(keys: Any) -> str:
    return ", ".join(repr(key) for key in keys)


def as_array(value: Any) -> np.ndarray | None:
    """A value as an array; None where it is not one."""
    try:
        return np.asarray(value)
    except Exception:  # whatever a foreign type raises when it is converted
        return None
