"""The connection to Ray: its settings, a cluster's address, and a Ray that is started on this machine."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher.errors import ConfigError


class RayConfig(BaseModel):
    """Settings of `loop=ray`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(2, ge=1, le=4096)
    """The number of workers, each with a process and one core, which share the environments."""
    learners: int = Field(1, ge=1, le=1024)
    """The number of processes that share each update, which must divide `optimizer.batch_size` and `env.num_envs`. The
    first is the run's own process, and Ray places the others, each with one core."""
    address: str | None = None
    """The Ray cluster: `auto` or HOST:PORT. Null starts Ray on this machine, reachable only from it."""
    failed_environments: Literal["end_the_run", "replace"] = "end_the_run"
    """What follows when an environment of a worker raises, or gives a number that is not finite. `replace` begins
    the worker again, with new episodes, and the run says so. One that fails in an evaluation ends the run."""
    max_lag: int = Field(1, ge=1, le=64)
    """The number of rollouts by which the policy that acts may be older than the one that learns. Above 1 a slow worker
    holds up the others less, and a run cannot be repeated exactly."""

    @model_validator(mode="after")
    def _names_a_cluster(self) -> RayConfig:
        host, _, port = (self.address or "").rpartition(":")
        if self.address not in (None, "auto") and not (host and "/" not in host and port.isdigit()):
            raise ValueError(
                f"address={self.address} is not valid: expected auto, or HOST:PORT of the cluster's head node"
            )
        return self


def at(address: str) -> RayConfig:
    """Return the settings for what `--ray` says.

    Raises:
      ConfigError: it is no address.
    """
    try:
        return RayConfig.model_validate({"address": None if address == "local" else address})
    except ValueError as error:
        raise ConfigError(f"--ray {address} is not valid: expected auto, local, or HOST:PORT of a head node") from error


def ray_module() -> Any:
    """Import Ray, which takes a second, and return it.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import ray  # type: ignore[import-not-found]  # an extra
    except ImportError as error:
        raise ConfigError("loop=ray needs the package ray: pip install 'bircher[ray]'") from error
    return ray


_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable that, at 0, makes a Ray on one machine listen on its loopback interface only."""
_OBJECTS = 256 * 2**20
"""Bytes of shared memory for the objects of a Ray that is started here; what does not fit is written to the disk."""


def connect(config: RayConfig, option: str = "ray.address=") -> Callable[[], None]:
    """Connect to Ray, or start it on this machine; return a function that ends what was begun.

    `option` is what the user wrote before the address, for the errors.

    Raises:
      ConfigError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address is None:
        os.environ.setdefault(_LOOPBACK, "0")  # before the import, which reads it
    ray = ray_module()
    if ray.is_initialized():
        return lambda: None
    options: dict[str, Any] = {"address": config.address}
    if config.address is not None:
        _require_answer(config.address, option)
    else:
        # Environments may sleep, so that there may be more workers than cores.
        places = config.workers + config.learners - 1
        options = {
            "address": "local", "num_cpus": max(places, os.cpu_count() or 1), "include_dashboard": False,
            "object_store_memory": _OBJECTS,
            # Its workers have a lower priority by default, and as many as there are cores are started in advance.
            "_system_config": {"prestart_worker_first_driver": False, "worker_niceness": 0},
        }  # fmt: skip
    try:
        with warnings.catch_warnings():  # Ray forks to start a program, before JAX computes anything here
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(**options, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if config.address is None:
            raise ConfigError(f"Ray cannot be started: {reason}") from error
        token = "; a cluster with a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" * ("connect" in reason)
        raise ConfigError(f"{option}{config.address} is not possible: {reason}{token}") from error
    return ray.shutdown


ANSWER_SECONDS = 5.0
"""The time in which a cluster must accept a connection; Ray itself tries for minutes."""


def _require_answer(address: str, option: str = "ray.address=") -> None:
    """Require that the head node of a cluster accepts connections, where its address is known.

    Raises:
      ConfigError: it does not.
    """
    head = address
    if address == "auto":
        file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        head = os.environ.get("RAY_ADDRESS") or (file.read_text(encoding="utf-8").strip() if file.is_file() else "")
    host, _, port = head.rpartition(":")
    if not host or not port.isdigit():
        return  # Ray looks for a cluster by itself, and reports immediately if there is none.
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        at = f"{head} ({option}auto)" if address == "auto" else f"{option}{address}"
        here = "leave ray.address out" if option == "ray.address=" else f"give {option}local"
        raise ConfigError(
            f"no Ray cluster answers at {at}: {error}; begin one with `ray start --head`, or {here} to use this machine"
        ) from error
