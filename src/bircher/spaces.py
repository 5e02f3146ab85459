"""Conversion between an environment's own observations and actions and the agent's arrays.

The adapters use these functions in training and evaluation, and a loaded agent uses them when it acts.  Nothing here
imports JAX, because worker processes load this module.

Pictures are [height, width, channels] for the agent.  The layout of an environment's pictures is recognized by the
shape, and for small, flat or stacked arrays also by being a picture: uint8 with the bounds 0 and 255.  The rules are in
docs/guide/pixels_and_atari.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

Layout = Literal[
    "as_given", "channels_first", "channels_middle", "no_channels", "frames_first", "frames_channels_first"
]

SIDE = 16
"""Smallest height and width from which the shape alone determines which axis is the channels."""
CHANNELS = 4
"""A last axis of at most this length is taken for channels."""
SUSPICIOUS_CHANNELS = 16
"""A grid with more channels than this and with a shorter side is reported to the user."""


def layout_of(shape: tuple[int, ...], is_picture: bool) -> Layout:
    """Return the layout of an observation, or `as_given` where its axes stay as they are."""
    if len(shape) == 2:
        return "no_channels" if is_picture and min(shape) >= SIDE else "as_given"
    if len(shape) == 3:
        first, second, third = shape
        large = 2 * first <= min(second, third) and third > CHANNELS
        if large and (is_picture or min(second, third) >= SIDE):
            return "channels_first"
        narrow = second <= CHANNELS and min(first, third) >= SIDE
        return "channels_middle" if narrow and is_picture else "as_given"
    if len(shape) == 4 and is_picture:
        frames, second, third, last = shape
        if last <= CHANNELS and frames <= min(second, third):
            return "frames_first"
        if second <= CHANNELS and 2 * second <= min(third, last):
            return "frames_channels_first"
    return "as_given"


def channels_last_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Return the shape [height, width, channels] of a picture that has this shape and layout in its environment."""
    match layout:
        case "channels_first":
            return (shape[1], shape[2], shape[0])
        case "channels_middle":
            return (shape[0], shape[2], shape[1])
        case "no_channels":
            return (*shape, 1)
        case "frames_first":
            return (shape[1], shape[2], shape[0] * shape[3])
        case "frames_channels_first":
            return (shape[2], shape[3], shape[0] * shape[1])
    return shape


def to_channels_last(value: Any, layout: Layout) -> Any:
    """Convert arrays of a layout to pictures [..., height, width, channels].

    Stacked frames become channels, and the channels of the oldest frame are the first ones.

    Args:
      value: an array of NumPy or JAX, with any leading axes.
      layout: the layout of its other axes.
    """
    lead = tuple(range(value.ndim - {"no_channels": 2, "channels_first": 3, "channels_middle": 3}.get(layout, 4)))
    n = len(lead)
    match layout:
        case "channels_first":
            return value.transpose(*lead, n + 1, n + 2, n)
        case "channels_middle":
            return value.transpose(*lead, n, n + 2, n + 1)
        case "no_channels":
            return value[..., None]
        case "frames_first":
            frames_last = value.transpose(*lead, n + 1, n + 2, n, n + 3)
        case "frames_channels_first":
            frames_last = value.transpose(*lead, n + 2, n + 3, n, n + 1)
        case _:
            return value
    return frames_last.reshape(*frames_last.shape[:-2], frames_last.shape[-2] * frames_last.shape[-1])


def layout_notes(shape: tuple[int, ...], layout: Layout) -> list[str]:
    """Return a sentence about how an observation of this shape is read, or nothing where it is used as it is given."""
    result, leave = channels_last_shape(shape, layout), "set env.layout=as_given to leave them as they are"
    match layout:
        case "channels_first":
            how = f"{shape[0]} channels first and converted to {result}"
        case "channels_middle":
            how = f"{shape[1]} channels between height and width and converted to {result}"
        case "no_channels":
            how = f"gray pictures without a channel and converted to {result}"
        case "frames_first":
            how = f"{shape[0]} stacked frames and converted to {result}"
        case "frames_channels_first":
            how = f"{shape[0]} stacked frames with {shape[1]} channels first and converted to {result}"
        case _:
            return _unusual_shape_notes(shape)
    return [f"observations {shape} are taken as {how}; {leave}"]


def _unusual_shape_notes(shape: tuple[int, ...]) -> list[str]:
    if len(shape) == 3 and shape[2] > max(SUSPICIOUS_CHANNELS, min(shape[:2])) and max(shape[:2]) >= SIDE:
        height, width, channels = shape
        return [f"observations {shape} are taken as height {height}, width {width} and {channels} channels"]
    if len(shape) > 3:
        return [f"observations {shape} have {len(shape)} axes and are taken as numbers without an order"]
    return []


Kind = Literal["array", "index", "one_hot"]
LayoutSetting = Literal["auto", "as_given"]

INT32 = np.iinfo(np.int32)
MASK = "action_mask"
"""The key of `info` for the mask of legal actions."""
EXACT = 2**24
"""Up to this number float32 represents every whole number."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The conversion of one observation array of an environment to the agent's array.

    A Discrete observation, whose number is only the name of a state, has the kind `index`.  The agent's array is then
    [1], int32, and the network looks up a row of weights.  With the kind `one_hot` the agent's array is a one-hot
    vector, float32.
    """

    shape: tuple[int, ...]
    """The environment's own shape; () for a Discrete observation."""
    dtype: str
    """The type of the agent's array."""
    own_dtype: str
    """The environment's own type."""
    kind: Kind = "array"
    layout: Layout = "as_given"
    """The order of a picture's axes in the environment's own array."""
    start: int = 0
    """The least value of a Discrete observation, or of an array with `num_values`."""
    num_values: int = 0
    """Number of values of a Discrete observation, or of an array of whole numbers with bounds; 0 for others."""
    stack: int = 1
    """Number of observations that are joined along the last axis."""
    names: bool = False
    """Whether the whole numbers of an array are only names, as those of MultiDiscrete."""

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Return the shape of the agent's array."""
        one = {"index": (1,), "one_hot": (self.num_values,)}.get(self.kind) or channels_last_shape(
            self.shape, self.layout
        )
        if self.stack == 1:
            return one
        return (*one[:-1], self.stack * one[-1]) if one else (self.stack,)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Return the shape of the environment's observation, or of `stack` of them joined along the last axis."""
        if self.stack == 1:
            return self.shape
        return (*self.shape[:-1], self.stack * self.shape[-1]) if self.shape else (self.stack,)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Encoding:
        """Return the encoding that `to_json` wrote."""
        return cls(**{**saved, "shape": tuple(saved["shape"])})


@dataclasses.dataclass(frozen=True)
class UnsupportedSpace:
    """A space that cannot become an array."""

    text: str


def encoding_of(space: Any, layout: LayoutSetting = "auto") -> Any:
    """Return the Encoding of a Gymnasium observation space, or a pytree of them for Dict and Tuple.

    A part that is not an array becomes an UnsupportedSpace.  With `layout=as_given` the axes of pictures stay as they
    are, Discrete observations are one-hot, and every integer is int32.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = {str(key): encoding_of(part, layout) for key, part in space.spaces.items()}
        if len(parts) < len(space.spaces):
            return UnsupportedSpace(f"{space}, two parts of which have the same name as text")
        return parts
    if isinstance(space, spaces.Tuple):
        return tuple(encoding_of(part, layout) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        if layout == "as_given":
            kind: Kind = "one_hot"
        elif int(space.n) > INT32.max:
            return UnsupportedSpace(f"{space}, which has more values than a network can have weights for")
        else:
            kind = "index"
        dtype = "int32" if kind == "index" else "float32"
        return Encoding((), dtype, str(space.dtype), kind, start=int(space.start), num_values=int(space.n))
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        dtype = device_dtype(space.dtype) if layout == "as_given" else _fitting_dtype(space)
        own, shape = np.dtype(space.dtype), tuple(space.shape)
        if layout == "as_given":
            return Encoding(shape, str(dtype), str(own))
        start, num_values = _range_of(space) if dtype.kind in "iu" else (0, 0)
        return Encoding(
            shape, str(dtype), str(own), "array", layout_of(shape, _is_picture(space)), start, num_values,
            names=isinstance(space, spaces.MultiDiscrete) and num_values > 0,
        )  # fmt: skip
    return UnsupportedSpace(str(space))


def device_dtype(dtype: Any) -> np.dtype:
    """Return the type of an observation on the device.

    bool and uint8 stay, floats become float32, and other integers become int32.
    """
    dtype = np.dtype(dtype)
    if dtype in (np.dtype(np.bool_), np.dtype(np.uint8)):
        return dtype
    return np.dtype(np.float32 if np.issubdtype(dtype, np.floating) else np.int32)


def _fitting_dtype(space: Any) -> np.dtype:
    """Return `device_dtype` of the space's type, or float32 for integers whose bounds exceed int32."""
    dtype = device_dtype(space.dtype)
    if dtype != np.int32 or not hasattr(space, "low"):
        largest = np.max(space.nvec) + np.max(space.start) if hasattr(space, "nvec") else 0
        return np.dtype(np.float32) if largest > INT32.max else dtype
    below = space.bounded_below & (space.low.astype(object) < INT32.min)
    above = space.bounded_above & (space.high.astype(object) > INT32.max)
    return np.dtype(np.float32) if below.any() or above.any() else dtype


MOST_VALUES = 2**16
"""Arrays of whole numbers with more values have no names to learn."""


def _range_of(space: Any) -> tuple[int, int]:
    """Return the least value and the number of values of an array of whole numbers; (0, 0) where there are many."""
    if np.dtype(space.dtype).kind not in "iu" or not math.prod(space.shape):
        return 0, 0
    if hasattr(space, "nvec"):
        low, high = int(np.min(space.start)), int(np.max(space.start + space.nvec)) - 1
    elif hasattr(space, "low"):
        low, high = int(space.low.min()), int(space.high.max())
    else:
        low, high = 0, 1
    return (low, high - low + 1) if high - low < MOST_VALUES else (0, 0)


def _is_picture(space: Any) -> bool:
    return space.dtype == np.uint8 and hasattr(space, "high") and bool((space.high == 255).all())


def encode_observation(encoding: Any, observation: Any) -> Any:
    """Convert an environment's observation to the agent's arrays.

    Arrays of JAX stay arrays of JAX.  Values that do not fit are converted without an error; `misfit` finds them.

    Args:
      encoding: an `Encoding`, or a pytree of them.
      observation: the observation, with any leading batch axes.
    """
    if isinstance(encoding, Mapping):
        return {key: encode_observation(part, part_of(observation, key)) for key, part in encoding.items()}
    if isinstance(encoding, tuple):
        return tuple(encode_observation(part, item) for part, item in zip(encoding, observation, strict=True))
    value = observation if hasattr(observation, "reshape") else np.asarray(observation)
    if encoding.stack == 1:
        return _encode_one(encoding, value)
    single = dataclasses.replace(encoding, stack=1)
    size = value.shape[-1] // encoding.stack
    parts = [value[..., i * size : (i + 1) * size] for i in range(encoding.stack)]
    encoded = [_encode_one(single, part if encoding.shape else part[..., 0]) for part in parts]
    return _joined(encoded if single.encoded_shape else [part[..., None] for part in encoded])


def part_of(observation: Mapping[Any, Any], key: str) -> Any:
    """Return the part of a dictionary whose key is this text, or is another value that is written so."""
    return observation[key] if key in observation else next(observation[k] for k in observation if str(k) == key)


def _encode_one(encoding: Encoding, value: Any) -> Any:
    if encoding.kind == "array":
        return to_channels_last(value, encoding.layout).astype(encoding.dtype)
    index = (value - encoding.start)[..., None]
    if encoding.kind == "one_hot":
        index = index == np.arange(encoding.num_values)
    return index.astype(encoding.dtype)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=-1)
    import jax.numpy as jnp

    return jnp.concatenate(parts, axis=-1)


def misfit(encoding: Any, observation: Any) -> str | None:
    """Return a description of a value that the agent's array would silently change, or None where all values fit.

    Such a value is a Discrete value outside its space, a whole number outside int32, or a finite number that is
    infinite in float32.
    """
    if isinstance(encoding, Mapping):
        texts = (misfit(part, part_of(observation, key)) for key, part in encoding.items())
        return next((text for text in texts if text), None)
    if isinstance(encoding, tuple):
        texts = (misfit(part, item) for part, item in zip(encoding, observation, strict=True))
        return next((text for text in texts if text), None)
    if isinstance(encoding, UnsupportedSpace):
        return None
    value = np.atleast_1d(np.asarray(observation))
    if encoding.kind != "array":
        low, high = encoding.start, encoding.start + encoding.num_values - 1
        outside = (value < low) | (value > high) | (value != np.floor(value))
        return f"{_first(value, outside)}, expected a whole number from {low} to {high}" if outside.any() else None
    if value.dtype == encoding.dtype or not value.size:
        return None
    outside = np.zeros(1, bool)
    if value.dtype.kind in "iu" and encoding.dtype in ("int32", "uint8"):
        limits = np.iinfo(encoding.dtype)
        outside = (value < limits.min) | (value > limits.max)
    if value.dtype.kind == "f" and encoding.dtype == "float32":
        with np.errstate(over="ignore"):
            outside = np.isfinite(value) & ~np.isfinite(value.astype(np.float32))
    return f"{_first(value, outside)}, which the agent's {encoding.dtype} cannot hold" if outside.any() else None


def fit_check(encoding: Any) -> Callable[[Any], str | None]:
    """Return a function that describes a value of an observation that the agent's array would silently change.

    The observation has been compared with its space.  So only numbers of other types than the agent's are looked at.
    """
    parts = list(_convertible(encoding, (), "the observation"))

    def check(observation: Any) -> str | None:
        for path, part, name in parts:
            value = observation
            for key in path:
                value = value[key] if isinstance(key, int) else part_of(value, key)
            if getattr(value, "dtype", None) != part.dtype:
                text = misfit(part, value)
                if text is not None:
                    return f"{name} contains {text}"
        return None

    return check


def _convertible(encoding: Any, path: tuple[Any, ...], name: str) -> Iterator[tuple[tuple[Any, ...], Encoding, str]]:
    """Yield path, encoding and name of the parts whose numbers may not fit.

    These are floats, which may have any width in an observation, and integers of a wider type than the agent's.
    """
    if isinstance(encoding, Mapping | tuple):
        pairs = encoding.items() if isinstance(encoding, Mapping) else enumerate(encoding)
        for key, part in pairs:
            yield from _convertible(part, (*path, key), f"{name}[{key!r}]")
    elif isinstance(encoding, Encoding) and encoding.kind == "array":
        own = np.dtype(encoding.own_dtype)
        if own.kind == "f" or not np.can_cast(own, encoding.dtype):
            yield path, encoding, name


def _first(value: np.ndarray, where: np.ndarray) -> Any:
    return value[where][0].item()


def notes(encoding: Any, name: str = "") -> list[str]:
    """Return one sentence for each conversion of an environment's observations that its user should know of.

    `name` is that of a part of an observation.
    """
    if isinstance(encoding, Mapping):
        masks = [
            f'{name} is a part of the observation and restricts no action: a mask belongs in info["{MASK}"]'
            for name in encoding
            if MASK in name
        ]
        return masks + [text for key, part in encoding.items() for text in notes(part, f"{name}.{key}".lstrip("."))]
    if isinstance(encoding, tuple):
        return [text for i, part in enumerate(encoding) for text in notes(part, f"{name}.{i}".lstrip("."))]
    if not isinstance(encoding, Encoding):
        return []
    sentences = layout_notes(encoding.shape, encoding.layout)
    if encoding.kind == "array" and np.dtype(encoding.own_dtype).kind in "iu" and encoding.dtype == "float32":
        sentences.append(
            f"observations of {encoding.own_dtype} have bounds beyond int32 and are taken as float32, which is exact "
            f"up to {EXACT:,} only"
        )
    return [text.replace("observations", f"observations in {name}", 1) if name else text for text in sentences]
