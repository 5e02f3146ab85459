"""Layouts of pictures: which axes of an observation are height, width and channels.

The agent's pictures are [height, width, channels].  A layout is recognized by the shape, and for small, flat or stacked
arrays also by being a picture: uint8 with the bounds 0 and 255.  The rules stand in docs/guide/pixels_and_atari.md.
"""

from __future__ import annotations

from typing import Any, Literal

Layout = Literal[
    "as_given", "channels_first", "channels_middle", "no_channels", "frames_first", "frames_channels_first"
]

SIDE = 16
"""Least height and width from which a shape alone tells where the channels are."""
CHANNELS = 4
"""A last axis of at most this many is taken for channels."""
SUSPICIOUS_CHANNELS = 16
"""More channels than this, of a grid that has a shorter side, are worth a sentence."""


def layout_of(shape: tuple[int, ...], is_picture: bool) -> Layout:
    """The layout of an observation; `as_given` where nothing is to be turned."""
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


def turned_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape of a picture [height, width, channels] that has this shape and layout in its environment."""
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


def turn(value: Any, layout: Layout) -> Any:
    """Pictures [..., height, width, channels] from arrays of a layout, of NumPy or JAX, with any leading axes.

    Stacked frames become channels, the oldest frame's first.
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
            moved = value.transpose(*lead, n + 1, n + 2, n, n + 3)
        case "frames_channels_first":
            moved = value.transpose(*lead, n + 2, n + 3, n, n + 1)
        case _:
            return value
    return moved.reshape(*moved.shape[:-2], moved.shape[-2] * moved.shape[-1])


def notes(shape: tuple[int, ...], layout: Layout) -> list[str]:
    """How an observation of this shape is taken, in a sentence, where that is not as it is given."""
    turned, leave = turned_shape(shape, layout), "set env.layout=as_given to leave them as they are"
    match layout:
        case "channels_first":
            how = f"{shape[0]} channels first and turned to {turned}"
        case "channels_middle":
            how = f"{shape[1]} channels between height and width and turned to {turned}"
        case "no_channels":
            how = f"grey pictures without a channel and become {turned}"
        case "frames_first":
            how = f"{shape[0]} stacked frames and turned to {turned}"
        case "frames_channels_first":
            how = f"{shape[0]} stacked frames with {shape[1]} channels first and turned to {turned}"
        case _:
            return _suspicion(shape)
    return [f"observations {shape} are taken as {how}; {leave}"]


def _suspicion(shape: tuple[int, ...]) -> list[str]:
    if len(shape) == 3 and shape[2] > max(SUSPICIOUS_CHANNELS, min(shape[:2])) and max(shape[:2]) >= SIDE:
        height, width, channels = shape
        return [f"observations {shape} are taken as height {height}, width {width} and {channels} channels"]
    if len(shape) > 3:
        return [f"observations {shape} have {len(shape)} axes and are taken as numbers without an order"]
    return []
