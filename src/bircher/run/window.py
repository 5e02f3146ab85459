"""Frames on a screen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bircher.run.folder import RunFolderError
from bircher.viz import Frame

FPS = 30


class NoDisplay(ValueError):
    """There is no screen to open a window on."""


def require_display() -> None:
    """Raise NoDisplay where no window can be opened."""
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if sys.platform.startswith("linux") and not named:
        raise NoDisplay("there is no display to open a window on: write a video instead, with --video FILE.mp4")


def require_writable(path: Path) -> None:
    """Raise RunFolderError where a file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error


def show(frames: list[Frame], title: str) -> None:
    """Show frames in a window, until the last or until it is closed."""
    import pygame

    pygame.display.init()
    try:
        height, width, _ = frames[0].shape
        screen = pygame.display.set_mode((width, height))
        pygame.display.set_caption(title)
        clock = pygame.time.Clock()
        for frame in frames:
            if any(event.type == pygame.QUIT for event in pygame.event.get()):
                break
            pygame.surfarray.blit_array(screen, frame.swapaxes(0, 1))
            pygame.display.flip()
            clock.tick(FPS)
    finally:
        pygame.display.quit()
