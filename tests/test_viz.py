"""Pictures that are really drawn, read back and looked at."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import environments
from bircher.envs.config import EnvRequest
from bircher.viz import plots


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    counters = {"env_steps": 0, "learner_steps": 0, "episodes": 0, "wall_seconds": 0}
    path.write_text("".join(json.dumps({**counters, **line}) + "\n" for line in lines))
    return path


def test_a_learning_curve_shows_training_and_evaluations(tmp_path: Path) -> None:
    training = [{"env_steps": 100 * i, "episodes": i, "act/episode_return": -200 + 20 * i} for i in range(20)]
    missing = {"env_steps": 150, "act/episode_return": None}
    points = [{"env_steps": 500, "eval/return_mean": 10}, {"env_steps": 1500, "eval/return_mean": 90}]
    lines = write_lines(tmp_path / "metrics.jsonl", [*training, missing, *points])
    picture = imread(plots.learning_curve(lines, tmp_path / "curve.png", "a run"))
    picture = (255 * picture[..., :3]).round().astype(int)
    blue, orange = np.array([0x1F, 0x77, 0xB4]), np.array([0xFF, 0x7F, 0x0E])
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    assert (np.abs(picture - blue).max(-1) < 8).sum() > 500
    assert (np.abs(picture - orange).max(-1) < 8).sum() > 50


def test_of_a_long_run_the_curve_is_a_mean_before_all_of_it(tmp_path: Path) -> None:
    """Returns of -100 and, three episodes together, of 100: their mean, 50, is drawn, and what they scatter pale."""
    ended = np.cumsum([1, 3] * 300)
    training = [
        {"env_steps": 100 * i, "episodes": int(n), "act/episode_return": 100 if i % 2 else -100}
        for i, n in enumerate(ended)
    ]
    path = plots.learning_curve(write_lines(tmp_path / "metrics.jsonl", training), tmp_path / "curve.png")
    picture = (255 * imread(path)[..., :3]).round().astype(int)
    rows, columns = np.nonzero(np.abs(picture - [0x1F, 0x77, 0xB4]).max(-1) < 8)
    pale = np.nonzero(((picture[..., 2] - picture[..., 0]) > 5).sum(1) > 300)[0]
    curve = np.median(rows[columns < picture.shape[1] // 2])
    # Rows count from above: the mean lies a quarter of the way down.
    assert (curve - pale.min()) / (pale.max() - pale.min()) == pytest.approx(0.25, abs=0.03)


def test_without_a_return_there_is_no_curve(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "metrics.jsonl", [{"env_steps": 1, "act/episode_return": None}])
    with pytest.raises(ValueError, match="does not contain a return yet"):
        plots.learning_curve(lines, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def read_video(path: Path, height: int, width: int) -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=True)
    assert f"{width}x{height}".encode() in result.stderr and b" 10 fps" in result.stderr
    return np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3)


def test_a_video_has_its_frames_size_and_colors(tmp_path: Path) -> None:
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    frames = [np.full((63, 101, 3), color, np.uint8) for color in colors for _ in range(10)]
    path = plots.write_video(iter(frames), tmp_path / "new" / "video.mp4", fps=10)
    read = read_video(path, 64, 102)
    assert len(read) == 30
    for frame, color in zip(read[5::10], colors, strict=True):
        assert np.abs(frame[30, 50].astype(int) - color).max() < 12


def test_a_gif_has_its_frames_size_and_colors(tmp_path: Path) -> None:
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    frames = [np.full((63, 101, 3), color, np.uint8) for color in colors]
    path = plots.write_video(frames, tmp_path / "moving.GIF", fps=10)
    assert path.read_bytes().startswith(b"GIF89a")
    read = read_video(path, 64, 102)
    assert len(read) == 3
    for frame, color in zip(read, colors, strict=True):
        assert np.abs(frame[30, 50].astype(int) - color).max() < 12


def test_a_video_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").mkdir()
    frames = [np.zeros((64, 64, 3), np.uint8)] * 500
    with pytest.raises(OSError, match=r"cannot write the video .*video\.mp4: .*Is a directory"):
        plots.write_video(frames, tmp_path / "video.mp4")
    with pytest.raises(ValueError, match="one shape"):
        plots.write_video([frames[0], frames[0][:32]], tmp_path / "other.mp4")


def test_a_video_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        plots.write_video([], tmp_path / "video.mp4")
    assert not (tmp_path / "video.mp4").exists()


@pytest.mark.parametrize(("env_id", "size"), [("CartPole-v1", 4), ("Acrobot-v1", 6), ("LunarLander-v3", 8)])
def test_gymnasium_draws_an_episode(env_id: str, size: int) -> None:
    seen = []

    def act(observation: np.ndarray, legal_actions: Any) -> np.ndarray:
        seen.append(observation)
        return np.array([0])

    frames = plots.render_episode(EnvRequest.of(env_id), act, seed=3, max_steps=12)
    assert len(frames) == len(seen) + 1 and 9 <= len(frames) <= 13
    assert all(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 for frame in frames)
    assert seen[0].shape == (1, size) and not np.array_equal(seen[0], seen[1])
    assert any((frame != frames[0]).any() for frame in frames[1:])
    env = gymnasium.make(env_id)
    first, _ = env.reset(seed=3)
    env.close()
    np.testing.assert_array_equal(seen[0][0], first)


def test_an_episode_ends_where_it_ends() -> None:
    frames = plots.render_episode(
        EnvRequest.of("CartPole-v1"), lambda observation, legal_actions: np.array([1]), seed=0, max_steps=500
    )
    assert 8 <= len(frames) <= 13  # a cart pushed to one side falls within a dozen steps


def test_observations_are_stacked_as_in_training() -> None:
    seen = []

    def act(observation: np.ndarray, legal_actions: Any) -> np.ndarray:
        seen.append(observation[0])
        return np.array([0])

    plots.render_episode(EnvRequest.of("CartPole-v1", stack=2), act, seed=0, max_steps=3)
    np.testing.assert_array_equal(seen[0][:4], seen[0][4:])
    np.testing.assert_array_equal(seen[1][:4], seen[0][4:])
    assert not np.array_equal(seen[1][:4], seen[1][4:])


@pytest.mark.parametrize("stack", [1, 2])
def test_a_grid_is_drawn_from_its_observation(stack: int) -> None:
    def make() -> Any:
        return environments.make("Breakout-MinAtar", num_envs=1, seed=0, stack=stack)

    request = EnvRequest.of("Breakout-MinAtar", stack=stack)
    frames = plots.render_episode(request, lambda observation, legal_actions: jnp.zeros(1, jnp.int32), 0, 6, make)
    assert len(frames) == 7 and frames[0].shape == (320, 320, 3)
    assert (frames[0] != frames[1]).any()
    assert 3 <= len(np.unique(frames[0].reshape(-1, 3), axis=0)) <= 5  # background, paddle, ball, trail, bricks


def test_each_channel_has_its_color() -> None:
    grid = np.zeros((5, 10, 4), bool)
    for channel in range(4):
        grid[channel, channel, channel] = True
    picture = plots.draw_observation(grid)
    assert picture.shape == (160, 320, 3)
    cells = picture[16::32, 16::32]
    assert len(np.unique(cells.reshape(-1, 3), axis=0)) == 5
    assert (cells[4] == 16).all()


def test_pixels_are_shown_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(plots.draw_observation(pixels)[::40, ::40], pixels)
    gray = plots.draw_observation(pixels[..., 0])
    np.testing.assert_array_equal(gray[::40, ::40], np.repeat(pixels[..., :1], 3, axis=-1))


def test_undrawable_observations_are_named() -> None:
    with pytest.raises(ValueError, match=r"an observation of shape \(8,\)"):
        plots.draw_observation(np.zeros(8))
    with pytest.raises(ValueError, match="NoSuchEnv-v0 cannot be drawn"):
        plots.render_episode(EnvRequest.of("NoSuchEnv-v0"), lambda observation, legal_actions: np.array([0]), 0, 5)
