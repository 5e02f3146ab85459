"""An evaluation whose batches of episodes are played on the cores of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bircher.errors import EvaluationFailed, RunFolderError
from bircher.runs import launch
from bircher.runs.loaded_agent import LoadedAgent
from bircher.training import cluster
from bircher.training.evaluator import Mode, Played, Report, batches, report


class BatchPlayer:
    """A process on a node of a cluster that plays batches of an evaluation with the agent of a run."""

    def __init__(self, module_path: list[str], folder: str):
        """Prepare to import what the command's process can import."""
        sys.path += [each for each in module_path if each not in sys.path]
        if os.path.isdir(folder):  # where an environment of the user's own is imported from
            os.chdir(folder)

    def __repr__(self) -> str:
        return "evaluation"  # Ray puts it in front of what the process prints

    def load(self, run: Path, overrides: tuple[str, ...], seed: int, mode: Mode, max_steps: int | None) -> None:
        """Load the agent.

        Raises:
          RunFolderError: this node does not see the folder of the run.
        """
        if not run.exists():
            raise RunFolderError(
                f"the node {os.uname().nodename} of the Ray cluster does not see {run}: `--ray` needs a folder that "
                "all nodes share"
            )
        self._agent = launch.load_for_playing(run, overrides)
        self._evaluator = self._agent.evaluator(seed, mode, max_steps=max_steps)

    def play(self, size: int, batch: int, key: np.ndarray) -> Played:
        """Play one batch, with the numbers of a random key."""
        numbers = jax.random.wrap_key_data(jnp.asarray(key))
        return self._evaluator.play(self._agent.policy, size, batch, numbers)[0]


def evaluate(
    agent: LoadedAgent, run: Path, overrides: Iterable[str], address: str, episodes: int = 100, seed: int = 0,
    greedy: bool = False, max_steps: int | None = None,
) -> Report:  # fmt: skip
    """Return the statistics of new episodes, as `loaded_agent.evaluate`, played on a core each of a Ray cluster.

    Args:
      agent: the agent of the run.
      run: the folder, which all nodes see.
      overrides: settings of the search that differ from the run's.
      address: `auto`, HOST:PORT, or `local` for a Ray that is started here.
      episodes, seed, greedy, max_steps: as for `loaded_agent.evaluate`.

    The environments have other seeds for another number of cores.

    Raises:
      EvaluationFailed: an environment raised, or gave a number that is not finite, or a process of the cluster ended.
      RunFolderError: a node does not see the folder.
      ConfigError: there is no cluster at the address, or Ray is not installed.
    """
    mode: Mode = "greedy" if greedy else "sample"
    began, config = time.perf_counter(), cluster.at(address)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.connect(config))
        ray = cluster.ray_module()
        cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        size, keys = batches(episodes, seed, cores)
        remote: Any = ray.remote(num_cpus=1, max_restarts=0)(BatchPlayer)
        # Cores that are taken now may be so for hours.
        free = max(int(ray.available_resources().get("CPU", 1)), 1)
        players = [remote.remote(sys.path, os.getcwd()) for _ in range(min(free, len(keys)))]
        for player in players:
            stack.callback(ray.kill, player)
        try:
            words = tuple(overrides)
            ray.get([player.load.remote(run.absolute(), words, seed, mode, max_steps) for player in players])
            numbers = np.asarray(jax.random.key_data(keys))
            waiting = [players[batch % len(players)].play.remote(size, batch, key) for batch, key in enumerate(numbers)]
            played = ray.get(waiting)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            kind = RunFolderError if isinstance(cause, RunFolderError) else EvaluationFailed
            raise kind(str(cause)) from error
        except ray.exceptions.RayError as error:
            raise EvaluationFailed(f"a process of the evaluation ended: {str(error).splitlines()[0]}") from error
    return report(agent.spec, agent.name, mode, played, episodes, seed, time.perf_counter() - began)
