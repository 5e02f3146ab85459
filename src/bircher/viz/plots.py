"""Learning curves, videos of episodes, and frames in a window."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from bircher import metrics as glossary
from bircher.envs import atari
from bircher.envs.base import Env
from bircher.envs.config import ObservationConfig
from bircher.envs.registry import EnvSource
from bircher.errors import NoDisplay, RunFolderError
from bircher.metrics import by_span
from bircher.spaces import decode_action, encode_observation
from bircher.types import EnvSpec

if TYPE_CHECKING:
    from bircher.envs.subprocess_pool import CheckedEnv


Frame = UInt8[np.ndarray, "height width 3"]
"""One picture, red, green and blue."""

Act = Callable[[Any, Any], Any]
"""(an encoded observation, its legal actions or None for all) to an action counted from 0; batches of 1."""

_SPANS = 100
"""Means of a learning curve that has more than twice as many points."""
_SIDE = 320
"""Pixels that the longer side of a drawn grid has at least."""


def learning_curve(metrics_path: str | Path, picture_path: str | Path, title: str = "") -> Path:
    """Draw the returns of a ``metrics.jsonl`` over environment steps: training as a line, evaluations as points.

    Of a long run the line is the mean over a hundred spans, every episode counted once, before all of it.

    The picture's kind is by its suffix, such as ``.png``; returns its path.

    Raises:
      ValueError: the file holds no return yet.
    """
    lines = glossary.read(metrics_path)
    training = _columns(lines, "env_steps", "act/episode_return", "episodes")
    evaluation = _columns(lines, "env_steps", "eval/return_mean")
    if not training and not evaluation:
        raise ValueError(f"{metrics_path} holds no return yet: no episode has ended")
    # Without pyplot: no window system is touched and no figure outlives the call.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="environment steps", ylabel="episode return")
    if training:
        _training_curve(axes, *(np.array(column, float) for column in zip(*training, strict=True)))
    if evaluation:
        axes.plot(*zip(*evaluation, strict=True), "o", color="tab:orange", markersize=5, label="evaluation, mean")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture_path, dpi=120)
    return Path(picture_path)


def _training_curve(
    axes: Any, steps: Float[np.ndarray, " N"], returns: Float[np.ndarray, " N"], episodes: Float[np.ndarray, " N"]
) -> None:
    """Mean returns, and how many episodes had ended by then."""
    if len(steps) > 2 * _SPANS:
        axes.plot(steps, returns, color="tab:blue", linewidth=0.6, alpha=0.25)
        steps, returns = by_span(steps, returns, np.diff(episodes, prepend=0.0), _SPANS)
    axes.plot(steps, returns, color="tab:blue", linewidth=1.2, label="training")


def curves_by_depth(
    panels: Mapping[str, tuple[list[tuple[str, list[float | None]]], float | None]],
    depths: list[int],
    learned: int,
    title: str,
    picture_path: str | Path,
) -> Path:
    """Draw named lines over the model's depth, a panel each, with the level of knowing nothing where there is one.

    None leaves a gap. `learned` is the depth that training unrolls to. Returns the picture's path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for number, (name, (lines, level)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number, title=name, xlabel="steps of the model")
        for label, values in lines:
            axes.plot(depths, np.array(values, float), "o-", markersize=3, linewidth=1.2, label=label)
        if level is not None:
            axes.axhline(level, color="tab:gray", linestyle="--", linewidth=1, label="standard deviation")
        axes.axvline(learned + 0.5, color="tab:gray", linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture_path, dpi=120)
    return Path(picture_path)


def write_video(frames: Iterable[Frame], path: str | Path, fps: float = 30) -> Path:
    """Write frames, all of one size, as an H.264 video of ``fps`` frames a second; returns its path.

    A size that is not even, which H.264 refuses, gets its last row or column twice.

    Raises:
      ValueError: there is no frame, or they differ in size.
      OSError: the file cannot be written; the message holds the encoder's own words.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    height, width, _ = first.shape
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    with tempfile.TemporaryFile() as words:
        encoder = _encoder(path, width + width % 2, height + height % 2, fps, words)
        # A broken pipe is an encoder that has ended, and says why; leaving the block waits for its end.
        with suppress(BrokenPipeError), encoder as process:
            assert process.stdin is not None
            for frame in chain([first], remaining):
                if frame.shape != first.shape:
                    raise ValueError(f"a video's frames have one shape, not {first.shape} and {frame.shape}")
                process.stdin.write(np.pad(frame, padding, mode="edge").tobytes())
        if encoder.returncode:
            words.seek(0)
            raise OSError(f"cannot write the video {path}: {words.read().decode(errors='replace').strip()}")
    return path


def _encoder(path: Path, width: int, height: int, fps: float, words: IO[bytes]) -> subprocess.Popen[bytes]:
    """ffmpeg, waiting for frames; what it has to say goes to ``words``.

    The program comes with imageio-ffmpeg; started here because that package's own writer forks, which a
    process that runs JAX must not.
    """
    import imageio_ffmpeg

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
    # Else ffmpeg reads a leading dash as an option, and what stands before a colon as a protocol.
    target.append(f"file:{path.absolute()}")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words)


def render_episode(
    source: EnvSource,
    act: Act,
    seed: int,
    max_steps: int,
    make: Callable[[], Env] | None = None,
    options: Mapping[str, Any] | None = None,
    stack: int = 1,
    observation: ObservationConfig | None = None,
    action_repeat: int = 1,
    spec: EnvSpec | None = None,
) -> list[Frame]:
    """The frames of one episode, of at most ``max_steps`` actions, each of ``action_repeat`` steps.

    Environments of Gymnasium draw themselves where they can: those that it has under an id, made with ``options`` as
    keyword arguments, and those that a callable makes.  Of others the observations are drawn, of Atari games their
    screens: ``make`` makes one such environment, already seeded.  ``act`` is given the last ``stack`` observations
    joined along the last axis, as in training, and pictures where ``observation`` says so.  ``spec`` says how
    observations of Gymnasium's environment are encoded, and where its actions begin.

    Raises:
      ValueError: neither can be done.
    """
    if atari.canonical(source) is None:
        from bircher.envs.gymnasium import drawing_env

        drawing = drawing_env(source, dict(options or {}), observation, action_repeat)
        if drawing is not None:
            return _render_gymnasium(drawing, act, seed, max_steps, stack, spec)
    if make is None:
        raise ValueError(f"{source} cannot be drawn: Gymnasium has no picture of it, and no environment was given")
    env = make()
    try:
        return _render_observations(env, act, max_steps, stack)
    finally:
        env.close()


def draw_observation(observation: Any) -> Frame:
    """One observation ``[height, width]`` or ``[height, width, channels]`` as a picture, enlarged.

    Bytes of 1 or 3 channels are taken as pixels; else each channel has its color, and where several are set
    the last one shows.

    Raises:
      ValueError: the observation is no grid.
    """
    grid = np.asarray(observation)
    if grid.ndim == 2:
        grid = grid[..., None]
    if grid.ndim != 3:
        raise ValueError(
            f"only grids [height, width, channels] can be drawn, no observation of shape {grid.shape}: an environment "
            'of Gymnasium draws itself where it takes render_mode="rgb_array"'
        )
    if grid.dtype == np.uint8 and grid.shape[-1] in (1, 3):
        picture = np.broadcast_to(grid, (*grid.shape[:2], 3))
    else:
        picture = np.full((*grid.shape[:2], 3), 16, np.uint8)
        for channel, color in enumerate(_colors(grid.shape[-1])):
            picture[grid[..., channel] > 0] = color
    scale = math.ceil(_SIDE / max(picture.shape[:2]))
    return np.ascontiguousarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))


def _columns(lines: list[dict[str, Any]], *names: str) -> list[tuple[float, ...]]:
    """These numbers of the lines that have the second."""
    return [tuple(line[name] for name in names) for line in lines if math.isfinite(line.get(names[1], math.nan))]


def _colors(count: int) -> np.ndarray:
    """Well-separated hues, [count, 3] bytes."""
    from matplotlib.colors import hsv_to_rgb

    hues = np.stack([np.arange(count) / count, np.full(count, 0.65), np.full(count, 0.95)], axis=-1)
    return (255 * hsv_to_rgb(hues)).astype(np.uint8)


def _render_gymnasium(
    env: CheckedEnv, act: Act, seed: int, max_steps: int, stack: int, spec: EnvSpec | None
) -> list[Frame]:
    encoding = None if spec is None or spec.encoding is None else dataclasses.replace(spec.encoding, stack=1)
    start = 0 if spec is None else spec.action_start

    def encoded(given: Any) -> np.ndarray:
        return np.asarray(given if encoding is None else encode_observation(encoding, given))

    try:
        given, info = env.reset(seed=seed)
        # A first observation stands for those that it has not had, as in training.
        recent = deque([encoded(given)] * stack, maxlen=stack)
        frames = [env.picture()]
        for _ in range(max_steps):
            seen = recent[-1] if stack == 1 else np.concatenate(recent, axis=-1)
            action = decode_action(start, act(seen[None], info.get("action_mask")))[0]
            given, _, terminated, truncated, info = env.step(action)
            recent.append(encoded(given))
            frames.append(env.picture())
            if terminated or truncated:
                break
        return frames
    finally:
        env.close()


def _render_observations(env: Env, act: Act, max_steps: int, stack: int) -> list[Frame]:
    if env.num_envs != 1:
        raise ValueError(f"one environment is drawn at a time, not {env.num_envs}")

    inner: Any = env
    while hasattr(inner, "env"):
        inner = inner.env
    screens = getattr(inner, "pictures", lambda: None)

    def draw(observation: Any) -> Frame:
        newest, shown = np.asarray(observation)[0], screens()
        if shown is not None:
            return shown[0]
        return draw_observation(newest[..., -(newest.shape[-1] // stack) :] if newest.ndim else newest)

    import jax

    # Traced once: a gymnax environment would otherwise be traced anew at every step.
    step = jax.jit(env.step)
    state, row = env.reset()
    frames = [draw(row.observation)]
    for _ in range(max_steps):
        state, row = step(state, act(row.observation, row.legal_actions))
        frames.append(draw(row.observation))
        if bool(row.last[0]):
            break
    return frames


FPS = 30


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
