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

from bircher import devices
from bircher.errors import EvaluationFailed, RunFolderError
from bircher.runs import launch, loaded_agent
from bircher.runs.loaded_agent import LoadedAgent
from bircher.training import cluster
from bircher.training.evaluator import Mode, Played, Report, batches, report
from bircher.training.remote_worker import HostTree, from_host, import_from, to_host

PATIENCE = 15.0
"""The seconds after which the user is told that no core is free."""


class BatchPlayer:
    """A process on a node of a cluster that plays batches of an evaluation with the agent of a run."""

    def __init__(self, module_path: list[str], folder: str):
        """Prepare to import what the command's process can import."""
        import_from(module_path)
        if os.path.isdir(folder):  # where an environment of the user's own is imported from
            os.chdir(folder)

    def __repr__(self) -> str:
        return "evaluation"  # Ray puts it in front of what the process prints

    def load(
        self, run: Path, overrides: tuple[str, ...], policy: HostTree, seed: int, mode: Mode, max_steps: int | None
    ) -> None:
        """Make the agent of a run, which acts with this policy, whatever the run has learned since.

        Raises:
          RunFolderError: this node does not see the folder of the run.
        """
        if not run.exists():
            raise RunFolderError(
                f"the node {os.uname().nodename} of the Ray cluster does not see {run}: `--ray` needs a folder that "
                "all nodes share"
            )
        devices.use_device("cpu")
        devices.keep_programs()
        agent = loaded_agent.load(run, overrides=overrides)
        if agent.config.env.num_threads is None:  # a player has one core
            env = agent.config.env.model_copy(update={"num_threads": 1})
            agent.config = agent.config.model_copy(update={"env": env})
        self._policy, self._evaluator = from_host(policy), agent.evaluator(seed, mode, max_steps=max_steps)

    def play(self, size: int, batch: int, key: np.ndarray) -> Played:
        """Play one batch, with the numbers of a random key."""
        return self._evaluator.play(self._policy, size, batch, jax.random.wrap_key_data(jnp.asarray(key)))[0]


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
        stack.callback(cluster.connect(config, "--ray "))
        ray = cluster.ray_module()
        cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        size, keys = batches(episodes, seed, cores)
        remote: Any = ray.remote(num_cpus=1, max_restarts=0)(BatchPlayer)
        players = [remote.remote(sys.path, os.getcwd()) for _ in range(min(cores, len(keys)))]
        stack.callback(_end, players)
        policy = ray.put(to_host(agent.policy))
        task = run.absolute(), tuple(overrides), policy, seed, mode, max_steps
        loading = {player.load.remote(*task): player for player in players}
        try:
            played = _play_all(loading, size, np.asarray(jax.random.key_data(keys)))
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, launch.REFUSALS + launch.FAILURES):
                raise type(cause)(str(cause)) from error
            raise EvaluationFailed(f"{agent.spec.id} failed: {type(cause).__name__}: {cause}") from error
        except ray.exceptions.RayError as error:
            raise EvaluationFailed(f"a process of the evaluation ended: {str(error).splitlines()[0]}") from error
    return report(agent.spec, agent.name, mode, played, episodes, seed, time.perf_counter() - began)


def _play_all(loading: dict[Any, Any], size: int, keys: np.ndarray) -> list[Played]:
    """Return all batches in order; players take them as soon as they have a core and have loaded the agent.

    So an evaluation also ends where some players never get a core, because other programs have them.
    """
    ray, told = cluster.ray_module(), False
    left, playing, played = list(range(len(keys)))[::-1], {}, {}
    while len(played) < len(keys):
        done, _ = ray.wait([*loading, *playing], num_returns=1, timeout=None if told or playing else PATIENCE)
        if not done:
            told = True
            print("--ray: no core of the cluster is free; the evaluation begins when one is", file=sys.stderr)
            continue
        if done[0] in loading:
            player = loading.pop(done[0])
            ray.get(done[0])
        else:
            player, batch = playing.pop(done[0])
            played[batch] = ray.get(done[0])
        if left:
            batch = left.pop()
            playing[player.play.remote(size, batch, keys[batch])] = player, batch
    return [played[batch] for batch in range(len(keys))]


def _end(players: Iterable[Any]) -> None:
    for player in players:
        with contextlib.suppress(cluster.ray_module().exceptions.RayError):
            cluster.ray_module().kill(player)
