"""Pictures of Gymnasium environments as observations, drawn in the process that steps them.

Nothing here imports JAX: worker processes load this module, and little else.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8

from bircher.envs.contract import as_array, describe
from bircher.errors import ContractBreach

Frame = UInt8[np.ndarray, "_ _ _"]
"""A picture [height, width, channels] with red, green and blue channels, or one gray channel."""

LUMA = np.array([77, 150, 29], np.uint16)
"""Weights of red, green and blue in gray, in 256ths (ITU-R BT.601: 0.299, 0.587, 0.114)."""

SHRUNK_SURFACES = (
    "gymnasium.envs.box2d.lunar_lander",
    "gymnasium.envs.classic_control.acrobot",
    "gymnasium.envs.classic_control.cartpole",
    "gymnasium.envs.classic_control.mountain_car",
)
"""Modules whose `render` ends by copying a whole pygame surface to an array.  For LunarLander this copy takes more than
half of the time of a frame."""

_drawing = threading.Lock()


class Pixels(gymnasium.Wrapper):
    """An environment whose observations are its pictures, uint8 [height, width, 3], or [height, width, 1] if gray.

    The environment must draw to arrays (`render_mode="rgb_array"`). With `keep_whole`, `whole` is the last picture at
    its original size. Videos use it, since a second drawing may differ from the first.
    """

    def __init__(self, env: gymnasium.Env, size: tuple[int, int], gray: bool, keep_whole: bool = False):
        super().__init__(env)
        self._size, self._gray = size, gray
        self._shrink_surface = type(env.unwrapped).__module__ in SHRUNK_SURFACES and not keep_whole
        self._keep_whole = keep_whole
        self.whole: Frame | None = None
        self.observation_space = spaces.Box(0, 255, (*size, 1 if gray else 3), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[Frame, dict[str, Any]]:
        """Start an episode and return its first picture."""
        _, info = self.env.reset(**kwargs)
        return self._observation(), info

    def step(self, action: Any) -> tuple[Frame, Any, bool, bool, dict[str, Any]]:
        """Take a step and return the picture after it."""
        _, reward, terminal, truncated, info = self.env.step(action)
        return self._observation(), reward, terminal, truncated, info

    def _observation(self) -> Frame:
        picture = self._draw()
        return (picture @ LUMA >> 8).astype(np.uint8)[..., None] if self._gray else picture

    def _draw(self) -> Frame:
        with _shrink_surfaces(self._size) if self._shrink_surface else nullcontext():
            picture = as_picture(self.env.render())
        if picture.shape == (*self._size, 3) and self._shrink_surface:
            return picture
        if self._keep_whole:
            self.whole = picture
        return resize(picture, self._size)


def as_picture(rendered: Any) -> Frame:
    """Return the result of `render` as an array; raises ContractBreach if it is not a picture."""
    picture = as_array(rendered)
    if picture is None or picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise ContractBreach(f"render returned {describe(rendered)}, expected a picture uint8 (height, width, 3)")
    return picture


def resize(picture: Frame, size: tuple[int, int]) -> Frame:
    """Resize a picture of three colors to another height and width, by averages over areas if it gets smaller."""
    import pygame

    height, width, _ = picture.shape
    surface = pygame.image.frombuffer(np.ascontiguousarray(picture).data, (width, height), "RGB")
    return _shrink(surface, size)


def _shrink(surface: Any, size: tuple[int, int]) -> Frame:
    import pygame

    small = pygame.transform.smoothscale(surface, size[::-1])
    return np.frombuffer(pygame.image.tobytes(small, "RGB"), np.uint8).reshape(*size, 3)


@contextmanager
def _shrink_surfaces(size: tuple[int, int]) -> Iterator[None]:
    """Make pygame return surfaces as arrays of `size`, so that an environment's `render` copies a small picture.

    A frame of LunarLander, including its resizing, takes 0.8 ms inside this context and 1.9 ms without it. One thread
    draws at a time.
    """
    import pygame

    with _drawing:
        original = pygame.surfarray.pixels3d
        pygame.surfarray.pixels3d = lambda surface: _shrink(surface, size).swapaxes(0, 1)
        try:
            yield
        finally:
            pygame.surfarray.pixels3d = original


def quieten() -> None:
    """Stop pygame, which draws most frames, from printing a greeting, catching signals, and opening sound or a screen.

    Processes started afterward inherit these settings.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def takes_render_mode(source: Any) -> bool:
    """Return whether the source takes `render_mode`: every id does, and a callable if its signature has it."""
    if isinstance(source, str):
        return True
    try:
        parameters = inspect.signature(source).parameters
    except ValueError:  # a class or function in C may have no signature
        return False
    return "render_mode" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
