"""Muesli and the MuZero family of agents in JAX.

run    = bircher.train("LunarLander-v3", steps=1_000_000, seed=0)
run    = bircher.resume(run.path, steps=2_000_000)
agent  = bircher.load(run.path)
action = agent.act(observation)
report = bircher.evaluate(agent, episodes=100)
video  = bircher.watch(agent, "episode.mp4")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bircher.version import __version__

if TYPE_CHECKING:
    from bircher.runs.loaded_agent import LoadedAgent
    from bircher.runs.trainer import Run
    from bircher.training.evaluator import Report

__all__ = ["__version__", "evaluate", "load", "resume", "train", "watch"]

# The functions import what they need, so that `import bircher` is fast and loads neither JAX nor an environment.


def train(
    env: str | Callable[[], Any],
    agent: str | Mapping[str, Any] = "muesli",
    steps: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **overrides: Any,
) -> Run:
    """Train an agent and return the run: `run.agent`, `run.path`.

    Args:
      env: an id, which may be registered with Gymnasium, or a callable that returns a `gymnasium.Env`.
      agent: the agent's name, or its settings (`{"gamma": 0.99}`).
      steps: number of environment steps; None takes that of the preset.
      seed: seed of all random numbers.
      out: the run's folder; None creates one under `runs/`.
      overrides: any other setting, nested (`optimizer={"learning_rate": 1e-3}`) or dotted
        (`**{"agent.cmpo.clip_bound": 0.5}`).

    Raises:
      ConfigError, UnknownEnvironment, UnsupportedEnvironment, DeviceError, NotEnoughMemory, RunFolderError: the run is
        not possible, which is known before anything is compiled; all are ValueErrors.
      RunFailed: an environment failed, or a loss was not finite; the state before is saved.
    """
    from bircher.config import config
    from bircher.runs import launch

    given = {**overrides, "agent.name" if isinstance(agent, str) else "agent": agent, "seed": seed}
    if steps is not None:
        given["steps"] = steps
    composed = config.compose(env, given)
    return launch.start(composed, None if isinstance(env, str) else env, out).run()


def resume(path: str | Path, env: str | Callable[[], Any] | None = None, **overrides: Any) -> Run:
    """Continue a run from its last checkpoint to its end, and return the run.

    Args:
      path: the run's folder.
      env: the callable that makes the environment, if the run was started with one; a file cannot contain it.
      overrides: settings that may change, such as `steps=2_000_000`: steps, episodes, device, checkpoint, evaluation,
        env.num_threads, env.num_workers, ray.address and ray.learners; nested or dotted, as for `train`.

    Raises:
      ConfigError, CheckpointError, RunFolderError, UnknownEnvironment, UnsupportedEnvironment, DeviceError,
        NotEnoughMemory: the run cannot be continued, for example because `env` has other spaces than the run's
        environment. This is known before anything is compiled; all are ValueErrors.
      RunFailed: an environment failed, or a loss was not finite; the state before is saved.
    """
    from bircher.runs import launch

    return launch.resume(path, overrides, env).run()


def load(path: str | Path, env: str | Callable[[], Any] | None = None, **overrides: Any) -> LoadedAgent:
    """Return the agent of a run's last checkpoint; `env` is needed only if the run's environment was a callable.

    `overrides` are settings of the search: `search={"num_simulations": 200}`, or 0 to act by the network alone.

    Raises:
      RunFolderError: the folder has no run, or the run has no checkpoint yet.
      CheckpointError: the checkpoint is damaged, or of another architecture.
      ConfigError: a setting is wrong, or is not one of the search.
    """
    from bircher.runs import loaded_agent

    return loaded_agent.load(path, env, overrides)


def evaluate(
    agent: LoadedAgent, episodes: int = 100, seed: int = 0, greedy: bool = False, max_steps: int | None = None
) -> Report:
    """Play episodes in new environments and return their statistics; actions are drawn from the policy unless `greedy`.

    An episode is cut short after `max_steps` actions, and counts with its return so far. If `max_steps` is None and the
    environment has no limit, the limit is that of evaluations during training: 1,000 actions, or more for long runs.

    Raises:
      EvaluationFailed: an environment raised, or gave a number that is not finite.
    """
    from bircher.runs import loaded_agent

    return loaded_agent.evaluate(agent, episodes, seed, greedy, max_steps)


def watch(
    agent: LoadedAgent, video: str | Path, seed: int = 0, greedy: bool = False, plain: bool = False, fps: float = 30.0
) -> Path:
    """Play one new episode, write it as a video or a GIF, and return its path.

    Next to each frame are the agent's estimates that led to the action; `plain` writes only the frames.  `fps` is the
    number of frames a second.

    Raises:
      UnsupportedEnvironment: the environment cannot be drawn.
      RunFolderError: the video cannot be written.
      EnvironmentFailure: the environment raised or broke its contract.
    """
    from bircher.runs import inspect

    return inspect.record(agent, Path(video), seed, greedy, plain, fps)
