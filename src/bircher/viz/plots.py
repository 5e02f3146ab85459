"""Learning curves, videos of episodes, and frames in a window."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from bircher import metrics as glossary
from bircher.envs import atari
from bircher.envs.agents import moment_of
from bircher.envs.base import Env
from bircher.envs.config import EnvRequest
from bircher.errors import NoDisplay, RunFolderError
from bircher.metrics import by_span
from bircher.spaces import encode_observation
from bircher.types import EnvSpec
from bircher.viz.panels import Density, Thought, select_actions

if TYPE_CHECKING:
    from bircher.envs.subprocess_pool import CheckedEnv


Frame = UInt8[np.ndarray, "height width 3"]
"""One picture with red, green and blue channels."""

Act = Callable[..., Any]
"""(an encoded observation, its legal actions or None for all) -> an action counted from 0; batches of 1.  Of several
agents there is a row for each, and a third argument that is True where an agent arrives."""

_SPANS = 100
"""Number of means that a learning curve shows if it has more than twice as many points."""
_SIDE = 320
"""Minimum length in pixels of the longer side of a picture of a grid."""


def learning_curve(metrics_path: str | Path, picture_path: str | Path, title: str = "") -> Path:
    """Draw the returns in a ``metrics.jsonl`` over environment steps: training as a line, evaluations as points.

    For a long run the line shows means over a hundred spans, with equal weight for every episode, and a thin line shows
    all returns. The suffix of the picture's path, such as ``.png``, sets its format. Returns this path.

    Raises:
      ValueError: the file does not contain a return yet.
    """
    lines = glossary.read(metrics_path)
    training = _columns(lines, "env_steps", "act/episode_return", "episodes")
    evaluation = _columns(lines, "env_steps", "eval/return_mean")
    if not training and not evaluation:
        raise ValueError(
            f"{metrics_path} does not contain a return yet, because no episode has ended: train for longer"
        )
    # Without pyplot no window system is used, and the figure is freed after the call.
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
    """Plot mean returns over steps; `episodes` are the numbers of episodes that had ended by then."""
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
    decisions: Sequence[tuple[str, Thought]] = (),
) -> Path:
    """Draw panels of named lines over the model's depth, with a horizontal line at the level of an uninformed model.

    A panel without such a level has None instead of it. A value of None leaves a gap in its line. `learned` is the
    depth to which training unrolls the model. `decisions`, with their names, are drawn below. Returns the picture's
    path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = max((_decision_rows(thought) for _, thought in decisions), default=0)
    size = 4.2 * max(len(panels), len(decisions)), 3.6 + DECISION_HEIGHT * rows
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    upper: Any = figure
    if decisions:
        halves: Any = figure.subfigures(2, 1, height_ratios=(3.6, DECISION_HEIGHT * rows))
        upper, lower = halves
        _draw_decisions(lower, decisions, rows)
    for number, (name, (lines, level)) in enumerate(panels.items(), start=1):
        axes = upper.add_subplot(1, len(panels), number, title=name, xlabel="steps of the model")
        for label, values in lines:
            axes.plot(depths, np.array(values, float), "o-", markersize=3, linewidth=1.2, label=label)
        if level is not None:
            axes.axhline(level, color="tab:gray", linestyle="--", linewidth=1, label="standard deviation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axvline(learned + 0.5, color="tab:gray", linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture_path, dpi=120)
    return Path(picture_path)


DECISION_HEIGHT, MOST_DIMENSIONS, MOST_BARS = 1.8, 4, 12
"""Height in inches of one dimension of a decision, and the greatest numbers of dimensions and bars that are drawn."""


def _decision_rows(thought: Thought) -> int:
    """Return the number of strips of a decision: one of bars, or one for each dimension of a density."""
    return 1 if thought.density is None else min(len(thought.density.mean), MOST_DIMENSIONS)


def _draw_decisions(figure: Any, decisions: Sequence[tuple[str, Thought]], rows: int) -> None:
    """Draw decisions side by side: the policy before and after looking ahead, and green what was chosen."""
    grid = figure.subplots(rows, len(decisions), squeeze=False)
    for column, (name, thought) in enumerate(decisions):
        grid[0, column].set_title(f"{name}, value {thought.value:.3g}")
        if thought.density is None:
            _draw_bars(grid[0, column], thought)
            continue
        more = len(thought.density.mean) - rows
        for row in range(rows):
            _draw_density(grid[row, column], thought, thought.density, row)
        grid[-1, column].set_xlabel("action" + (f" ({more} more dimensions)" if more else ""))
    grid[0, 0].legend(frameon=False, fontsize=8)


def _draw_bars(axes: Any, thought: Thought) -> None:
    shown = select_actions(thought, MOST_BARS)
    places = np.arange(len(shown))
    axes.bar(places - 0.2, thought.prior[shown], 0.4, color="tab:blue", label="prior")
    axes.bar(places + 0.2, thought.improved[shown], 0.4, color="tab:orange", label="after looking ahead")
    names = [str(action) if thought.names is None else thought.names[action] for action in shown]
    axes.set_xticks(places, names, fontsize=8)
    axes.get_xticklabels()[shown.index(thought.action)].set_color("tab:green")


def _draw_density(axes: Any, thought: Thought, density: Density, dimension: int) -> None:
    """Draw the density of one dimension with its samples, each as high as its weight after looking ahead."""
    low, high = density.low[dimension], density.high[dimension]
    values = np.linspace(low, high, 200)
    shares = thought.improved / max(float(thought.improved.max()), 1e-12)
    samples = density.samples[:, dimension]
    axes.plot(values, density.curve(dimension, len(values)), color="tab:blue", label="prior")
    axes.vlines(samples, 0, np.maximum(shares, 0.02), color="tab:orange", label="after looking ahead")
    axes.vlines(samples[thought.action], 0, 1, color="tab:green", linewidth=2, label="chosen")
    axes.set(xlim=(low, high), ylim=(0, 1.1), yticks=[])


FPS = 30.0
"""Frames a second, where nothing else is asked for."""


def write_video(frames: Iterable[Frame], path: str | Path, fps: float = FPS) -> Path:
    """Write frames, all of one size, as a video with ``fps`` frames per second, and return its path.

    It is a GIF where the name ends with `.gif`, and H.264 otherwise.  That needs an even height and width, so the last
    row or column is repeated if necessary.

    Raises:
      ValueError: there are no frames, or they differ in size.
      OSError: the file cannot be written; the message contains the encoder's output.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    height, width, _ = first.shape
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    with tempfile.TemporaryFile() as output:
        encoder = _encoder(path, width + width % 2, height + height % 2, fps, output)
        # A broken pipe means that the encoder has ended with a message; leaving the block waits for its end.
        with suppress(BrokenPipeError), encoder as process:
            assert process.stdin is not None
            for frame in chain([first], remaining):
                if frame.shape != first.shape:
                    raise ValueError(f"a video's frames have one shape, not {first.shape} and {frame.shape}")
                process.stdin.write(np.pad(frame, padding, mode="edge").tobytes())
        if encoder.returncode:
            output.seek(0)
            raise OSError(f"cannot write the video {path}: {output.read().decode(errors='replace').strip()}")
    return path


H264 = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
GIF = ["-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none", "-loop", "0"]
"""Options of ffmpeg.  A GIF has the 256 colors that fit its frames best."""


def _encoder(path: Path, width: int, height: int, fps: float, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ffmpeg, which reads frames from its input and writes its messages to ``output``.

    The program comes with imageio-ffmpeg. It is started here because that package's own writer forks, and a process
    that runs JAX must not fork.
    """
    import imageio_ffmpeg

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = GIF if path.suffix.lower() == ".gif" else H264
    # Without the prefix ffmpeg reads a leading dash as an option, and the text before a colon as a protocol.
    name = f"file:{path.absolute()}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output)


def render_episode(
    request: EnvRequest,
    act: Act,
    seed: int,
    max_steps: int,
    make: Callable[[], Env] | None = None,
    spec: EnvSpec | None = None,
) -> list[Frame]:
    """Return the frames of one episode of at most ``max_steps`` actions.

    A Gymnasium environment draws itself if it can.  For every other environment the frames are drawn from its
    observations, for Atari games from their screens; ``make`` makes one such environment with its seed.

    ``act`` receives the last ``env.stack`` observations concatenated along the last axis, as in training.  ``spec``
    contains the encoding of a Gymnasium environment's observations and the number of its first action.

    Raises:
      ValueError: the environment does not draw itself, and no ``make`` was passed.
    """
    source, stack = request.source, request.config.stack
    if atari.canonical(source) is None and (spec is None or not spec.agents):
        from bircher.envs.gymnasium import drawing_env

        drawing = drawing_env(request)
        if drawing is not None:
            return _render_gymnasium(drawing, act, seed, max_steps, stack, spec)
    if make is None:
        raise ValueError(f"{source} cannot be drawn: Gymnasium has no picture of it, and `make` was not passed")
    env = make()
    try:
        return _render_observations(env, act, max_steps, stack)
    finally:
        env.close()


def _picture_in(observation: Any) -> np.ndarray:
    """Return the part of a batch of observations that can be drawn: the first grid, or the first part."""
    import jax

    parts = [np.asarray(part) for part in jax.tree.leaves(observation)]
    return next((part for part in parts if part.ndim == 4), parts[0])


def draw_observation(observation: Any) -> Frame:
    """Draw one observation ``[height, width]`` or ``[height, width, channels]`` as an enlarged picture.

    Bytes with 1 or 3 channels are pixels. In other observations each channel has a color, and where several channels
    are set the last one is shown.

    Raises:
      ValueError: the observation is not a grid.
    """
    grid = np.asarray(observation)
    if grid.ndim == 2:
        grid = grid[..., None]
    if grid.ndim != 3:
        raise ValueError(
            f"an observation of shape {grid.shape} cannot be drawn, only a grid [height, width, channels]: a Gymnasium "
            'environment draws itself if it takes render_mode="rgb_array"'
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
    """Return the values of these names in every line in which the second name has a finite value."""
    return [tuple(line[name] for name in names) for line in lines if math.isfinite(line.get(names[1], math.nan))]


def _colors(count: int) -> np.ndarray:
    """Return colors with well-separated hues, bytes [count, 3]."""
    from matplotlib.colors import hsv_to_rgb

    hues = np.stack([np.arange(count) / count, np.full(count, 0.65), np.full(count, 0.95)], axis=-1)
    return (255 * hsv_to_rgb(hues)).astype(np.uint8)


def _render_gymnasium(
    env: CheckedEnv, act: Act, seed: int, max_steps: int, stack: int, spec: EnvSpec | None
) -> list[Frame]:
    import jax

    single = None if spec is None else jax.tree.map(lambda part: dataclasses.replace(part, stack=1), spec.encoding)

    def encode(value: Any) -> Any:
        return jax.tree.map(np.asarray, value if single is None else encode_observation(single, value))

    try:
        observation, info = env.reset(seed=seed)
        # The first observation fills the whole stack, as in training.
        recent = deque([encode(observation)] * stack, maxlen=stack)
        frames = [env.picture()]
        for _ in range(max_steps):
            # A number without an axis gets one, as in training.
            stacked = jax.tree.map(lambda *x: np.concatenate(np.atleast_1d(*x), -1) if stack > 1 else x[0], *recent)
            batch = jax.tree.map(lambda x: x[None], stacked)
            action = np.asarray(act(batch, info.get("action_mask")))
            action = (action if spec is None else spec.own_action(action))[0]
            observation, _, terminated, truncated, info = env.step(action)
            recent.append(encode(observation))
            frames.append(env.picture())
            if terminated or truncated:
                break
        return frames
    finally:
        env.close()


def _render_observations(env: Env, act: Act, max_steps: int, stack: int) -> list[Frame]:
    if env.num_envs != 1:
        raise ValueError(f"expected 1 environment to draw, not {env.num_envs}")

    inner: Any = env
    while hasattr(inner, "env"):
        inner = inner.env
    screens = getattr(inner, "pictures", lambda: None)

    def draw(observation: Any) -> Frame:
        screen = screens()
        if screen is not None:
            return screen[0]
        newest = _picture_in(observation)[0]
        return draw_observation(newest[..., -(newest.shape[-1] // stack) :] if newest.ndim else newest)

    import jax

    # The step is traced once: a gymnax environment would otherwise be traced again at every step.
    step = jax.jit(env.step)
    state, row = env.reset()
    frames = [draw(row.observation)]
    for _ in range(max_steps):
        arrivals = () if row.valid is None else (np.asarray(row.first),)
        state, row = step(state, act(row.observation, row.legal_actions, *arrivals))
        frames.append(draw(row.observation))
        if bool(moment_of(row, env.spec.num_agents).last[0]):
            break
    return frames


def require_display() -> None:
    """Raise NoDisplay if no window can be opened."""
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if sys.platform.startswith("linux") and not has_display:
        raise NoDisplay("there is no display to open a window on: write a video instead, with --video FILE.mp4")


def require_writable(path: Path) -> None:
    """Raise RunFolderError if a file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error


def show(frames: list[Frame], title: str, fps: float = FPS) -> None:
    """Show frames in a window until the last frame, or until the window is closed."""
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
            clock.tick(fps)
    finally:
        pygame.display.quit()
