"""One fresh episode as frames and as a video: what `bircher watch` and `bircher.watch` share."""

from __future__ import annotations

from pathlib import Path

from bircher import viz
from bircher.envs.base import UnsupportedEnvironment
from bircher.run import loaded, window
from bircher.run.folder import RunFolderError
from bircher.run.loaded import LoadedAgent
from bircher.viz import Frame


def episode(agent: LoadedAgent, seed: int, greedy: bool = False, plain: bool = False) -> list[Frame]:
    """Return the frames of one episode, with what led to each action where the agent has a model and not `plain`.

    Raises:
      UnsupportedEnvironment: nothing can draw the environment.
      EnvironmentFailure: it raised or broke its contract.
    """
    try:
        return loaded.episode_frames(agent, seed, greedy, thoughts=not plain and agent.agent.look is not None)
    except ValueError as error:
        raise UnsupportedEnvironment(str(error)) from error


def record(agent: LoadedAgent, video: Path, seed: int, greedy: bool = False, plain: bool = False) -> Path:
    """Write one episode as a video and return its path.

    Raises:
      UnsupportedEnvironment: nothing can draw the environment, or its pictures differ in size.
      RunFolderError: the video cannot be written; this is known before the episode is played.
      EnvironmentFailure: the environment raised or broke its contract.
    """
    window.require_writable(video)
    frames = episode(agent, seed, greedy, plain)
    try:
        return viz.write_video(frames, video, window.FPS)
    except ValueError as error:
        raise UnsupportedEnvironment(f"{agent.spec.id} cannot be watched: {error}") from error
    except OSError as error:
        raise RunFolderError(str(error)) from error
