"""The contract of a Gymnasium environment, checked at every reset and step.

Valid values pass a few comparisons of types and shapes.  A sentence is built only where one of them fails.  Nothing
here imports JAX, because worker processes load this module.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bircher.errors import ContractBreach
from bircher.spaces import MASK

Check = Callable[[Any], Any]
"""A function that returns an observation in the form that its space describes, or raises ContractBreach."""


def observation_check(space: spaces.Space, name: str = "the observation") -> Check:
    """Return the check for observations of a space; the check accepts anything for an unsupported space."""
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
            lost_value = array[converted != array].flat[0]
            raise ContractBreach(f"{name} contains {lost_value}, which its space's {dtype} cannot hold")
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
    """Return a function that yields the name and the array of every float leaf of an observation or a batch."""
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
    """Return the error sentence for an observation, or a part of it, that contains NaN or infinity."""
    return f"{name} contains a number that is not finite"


def describe(value: Any) -> str:
    """Describe a value in a few words, for an error."""
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
    """Return a value as an array, or None if it cannot be converted."""
    try:
        return np.asarray(value)
    except Exception:  # a foreign type may raise any exception when it is converted
        return None


RESET_VALUES = "2: observation, info"
STEP_VALUES = "5: observation, reward, terminated, truncated, info"
RESET_SIGNATURE = "reset(self, *, seed=None, options=None)"


class Contract:
    """Checks the values that one environment returns against its spaces.

    `reset` and `step` take the tuples that the environment returned. They return the same values, with rewards as
    floats, flags as Python booleans, and an `info` that contains only the mask of legal actions, if there is one.
    `numbers_as_flags` contains the names of the flags that the environment returned as 0 or 1.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self._observation = observation_check(observation_space)
        self._num_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else None
        self.numbers_as_flags: set[str] = set()

    def reset(self, result: Any) -> tuple[Any, dict[str, Any]]:
        """Check and return the values of a reset; raises ContractBreach."""
        observation, info = reset_values(result)
        return self._observation(observation), self._legal(info, last=False)

    def step(self, result: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Check and return the values of a step; raises ContractBreach."""
        if type(result) is not tuple or len(result) != 5 or type(result[4]) is not dict:
            result = step_values(result)
        observation, reward, terminated, truncated, info = result
        observation = self._observation(observation)
        if type(reward) is not float or not isfinite(reward):
            reward = finite_number(reward)
        if type(terminated) is not bool:
            terminated = self._boolean("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._boolean("truncated", truncated)
        return observation, reward, terminated, truncated, self._legal(info, terminated or truncated) if info else {}

    def without_observation(self, result: Any) -> tuple[float, bool, bool]:
        """Check and return the reward and the flags of a step that has no observation; raises ContractBreach."""
        reward, terminated, truncated = result
        return finite_number(reward), self._boolean("terminated", terminated), self._boolean("truncated", truncated)

    def _boolean(self, name: str, value: Any) -> bool:
        """Return a flag as a boolean; the numbers 0 and 1 are accepted too."""
        array = as_array(value)
        if array is None or array.size != 1 or array.dtype.kind not in "biu" or array.item() not in (0, 1):
            raise ContractBreach(f"{name} is {describe(value)}, expected True or False")
        if array.dtype.kind != "b":
            self.numbers_as_flags.add(name)
        return bool(array.item())

    def _legal(self, info: Mapping[str, Any], last: bool) -> dict[str, Any]:
        """Return an `info` with the mask of legal actions as booleans, or an empty one if there is no mask."""
        mask = info.get(MASK)
        if mask is None or self._num_actions is None:
            return {}
        if type(mask) is not np.ndarray or mask.dtype != np.bool_ or mask.shape != (self._num_actions,):
            mask = _boolean_mask(mask, self._num_actions)
        if not last and not mask.any():
            raise ContractBreach(
                f'info["{MASK}"] allows no action in the middle of an episode: allow one, or end the episode'
            )
        return {MASK: mask}


def call_reset(env: gymnasium.Env, kwargs: dict[str, Any]) -> Any:
    """Reset an environment and return its result.

    Raises ContractBreach if the `reset` of the environment, or of one inside it, does not take these arguments, or
    returned a different number of values than the wrapper around it unpacks.
    """
    try:
        return env.reset(**kwargs)
    except (TypeError, ValueError) as error:
        sentence = _unpacking_breach(error, "reset", RESET_VALUES)
        if sentence is None and isinstance(error, TypeError):
            reasons = (_argument_error(layer.reset, kwargs) for layer in _layers(env))
            reason = next((text for text in reasons if text), None)
            sentence = reason and f"reset cannot be called as Gymnasium calls it, {RESET_SIGNATURE}: {reason}"
        if sentence is None:
            raise
        raise ContractBreach(sentence) from error


def call_step(env: gymnasium.Env, action: Any) -> Any:
    """Step an environment and return its result.

    Raises ContractBreach if an environment inside it returned a different number of values than the wrapper around
    that one unpacks.
    """
    try:
        return env.step(action)
    except (TypeError, ValueError) as error:
        sentence = _unpacking_breach(error, "step", STEP_VALUES)
        if sentence is None:
            raise
        raise ContractBreach(sentence) from error


def _layers(env: Any) -> Iterator[Any]:
    """Yield an environment and every environment that it wraps, from the outside in."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _unpacking_breach(error: Exception, method: str, values: str) -> str | None:
    """Return the sentence about the result that a wrapper could not unpack; None for any other error.

    Such an error is recognized by Python's message and by the line where it occurred.  A check between all layers would
    cost time at every step and would hide an environment's own attributes from its wrapper.
    """
    origin = error.__traceback__
    while origin is not None and origin.tb_next is not None:
        origin = origin.tb_next
    wrapper = origin and origin.tb_frame.f_locals.get("self")
    if origin is None or not isinstance(wrapper, gymnasium.Wrapper) or origin.tb_frame.f_code.co_name != method:
        return None
    line = linecache.getline(origin.tb_frame.f_code.co_filename, origin.tb_lineno)
    if line and f"{method}(" not in line:
        return None
    count = _COUNT.search(str(error))
    if count is not None and count["expected"] == values[0]:
        returned = f"{count['got']} values" if count["got"] else f"more than {values[0]} values"
    elif (kind := _NOT_ITERABLE.search(str(error))) is not None:
        returned = f"an object of type {kind[1]}"
    else:
        return None
    inner = wrapper.env
    where = f" of {type(inner).__name__}" if isinstance(inner, gymnasium.Wrapper) else ""
    return f"{method}{where} returned {returned}, Gymnasium has {values}"


_COUNT = re.compile(r"values to unpack \(expected (?P<expected>\d+)(?:, got (?P<got>\d+))?\)")
_NOT_ITERABLE = re.compile(r"cannot unpack non-iterable (\w+) object")


def _argument_error(function: Callable[..., Any], kwargs: dict[str, Any]) -> str | None:
    """Return Python's message if the function cannot be called with these arguments, or None."""
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:  # a function in C may have no signature
        return None
    return None


def reset_values(result: Any) -> tuple[Any, Any]:
    """Return the two values of a reset; raises ContractBreach."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ContractBreach(f"reset returned {_count(result)}, Gymnasium has {RESET_VALUES}")
    if not isinstance(result[1], Mapping):
        raise ContractBreach(f"reset returned {describe(result[1])} as info, expected a dictionary")
    return tuple(result)


def step_values(result: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return the five values of a step; raises ContractBreach."""
    if not isinstance(result, (tuple, list)) or len(result) != 5:
        raise ContractBreach(f"step returned {_count(result)}, Gymnasium has {STEP_VALUES}")
    if not isinstance(result[4], Mapping):
        raise ContractBreach(f"step returned {describe(result[4])} as info, expected a dictionary")
    return tuple(result)


def finite_number(reward: Any) -> float:
    """Return a reward as a float; raises ContractBreach unless it is a finite number or an array of one."""
    array = as_array(reward)
    if array is None or array.size != 1 or array.dtype.kind not in "biuf":
        raise ContractBreach(f"the reward is {describe(reward)}, expected one number")
    number = float(array.item())
    if not isfinite(number):
        raise ContractBreach(f"the reward is {number}, expected a finite number")
    return number


def _boolean_mask(mask: Any, num_actions: int) -> np.ndarray:
    array = as_array(mask)
    if array is None or array.shape != (num_actions,) or array.dtype.kind not in "biuf":
        raise ContractBreach(
            f'info["{MASK}"] is {describe(mask)}, expected a truth value for each of {num_actions} actions'
        )
    if not ((array == 0) | (array == 1)).all():
        number = array[(array != 0) & (array != 1)][0]
        raise ContractBreach(f'info["{MASK}"] contains {number}, expected 1 for a legal action and 0 for every other')
    return array.astype(bool)


def _count(result: Any) -> str:
    if isinstance(result, (tuple, list)):
        return "1 value" if len(result) == 1 else f"{len(result)} values"
    return describe(result)
