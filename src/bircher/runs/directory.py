"""A run's directory: `config.yaml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`.

`Saver` writes checkpoints on a thread: the loop goes on while the last state is written.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bircher import devices, metrics
from bircher.config.config import Config
from bircher.config.presets import CALLABLE
from bircher.errors import ConfigError, RunFolderError, UnsupportedPlatform, short_text
from bircher.spaces import Encoding
from bircher.training import checkpoint
from bircher.types import Continuous, Counters, Discrete, EnvSpec, MultiDiscrete

try:
    import fcntl
except ImportError as error:
    raise UnsupportedPlatform("fcntl") from error

RUNS = Path("runs")
"""The folder of runs for which no folder is given."""
ACTIONS = {"multi_discrete": MultiDiscrete, "continuous": Continuous}
"""The spaces of actions, except discrete ones, by the names that checkpoints have for them."""
CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"


def create(config: Config, out: str | Path | None = None) -> Path:
    """Create the folder of a new run with its `config.yaml`; existing files are never overwritten.

    Raises:
      RunFolderError: the folder contains a run already, or cannot be written.
    """
    path = RUNS if out is None else Path(out)
    try:
        if out is None:
            path = _new_folder(config)
        path.mkdir(parents=True, exist_ok=True)
        found = next((name for name in (CONFIG, METRICS, CHECKPOINTS) if (path / name).exists()), None)
        if found is None:
            _write_new(path / CONFIG, config.to_yaml())
    except FileExistsError as error:
        if not path.is_dir():
            raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error
        found = CONFIG
    except (OSError, ValueError) as error:  # also a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"{short_text(str(path), 300)} cannot be written: {reason}") from error
    if found:
        raise RunFolderError(
            f"{path} already contains a run ({found}): choose another folder, or continue the run with "
            + _resume_call(path)
        )
    return path


def _resume_call(path: Path) -> str:
    """Return the call that continues the run in a folder."""
    with contextlib.suppress(ConfigError, OSError):
        env_id = Config.from_yaml(path / CONFIG).env.id
        if env_id.startswith(CALLABLE):
            name = env_id.removeprefix(CALLABLE)
            return f"bircher.resume({str(path)!r}, env={name if name.isidentifier() else '...'}) in Python"
    return f"--resume {path}, in Python bircher.resume({str(path)!r})"


def read_config(path: str | Path) -> Config:
    """Read the configuration of the run in a folder.

    Raises:
      RunFolderError: the folder has no run.
      ConfigError: the configuration is damaged.
    """
    path = Path(path)
    if not os.path.isdir(path):  # unlike Path.is_dir it accepts names of any length
        raise RunFolderError(f"{short_text(str(path), 300)} is not a run directory: it does not exist")
    if not os.path.isfile(path / CONFIG):
        raise RunFolderError(f"{path} is not a run directory: it has no {CONFIG}")
    return Config.from_yaml(path / CONFIG)


def claim(path: Path) -> int:
    """Lock a run for this process until the returned descriptor is closed, or the process ends.

    Raises:
      RunFolderError: another process is writing to the folder, or it cannot be written.
    """
    if not os.access(path, os.W_OK):
        raise RunFolderError(f"{path} cannot be written: Permission denied")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunFolderError(f"{path} is being trained by another process") from error
    except OSError:
        pass  # A file system without locks.
    return descriptor


def in_use(path: Path) -> bool:
    """Return whether another process is writing to the folder of a run."""
    if not path.is_dir():
        return False
    try:
        os.close(claim(path))
    except RunFolderError:
        return True
    return False


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the metrics that the run in a folder has logged, oldest first, one dictionary for each time of logging.

    Raises:
      RunFolderError: the metrics cannot be read, or there are not any yet.
    """
    try:
        lines = metrics.read(Path(path) / METRICS)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} has no {METRICS} that can be read: {error}") from error
    if not lines:
        raise RunFolderError(f"{path} has logged nothing yet: its {METRICS} is empty")
    return lines


def counters(path: str | Path) -> dict[str, int]:
    """Return how many steps, frames, updates and episodes a run had at its last checkpoint, by name.

    The result is {} for a run without a checkpoint.

    Raises:
      CheckpointError: the checkpoint is damaged.
    """
    saved = checkpoint.latest(Path(path) / CHECKPOINTS, "train")
    return {} if saved is None else dict(checkpoint.read_meta(saved)["counters"])


def rewrite_config(path: Path, config: Config) -> None:
    """Replace a run's `config.yaml` atomically."""
    temporary = path / f".{CONFIG}.unfinished"
    temporary.write_text(config.to_yaml(), encoding="utf-8")
    temporary.replace(path / CONFIG)


def last_checkpoint(path: str | Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
      RunFolderError: the run has none yet.
    """
    found = checkpoint.latest(Path(path) / CHECKPOINTS, "train")
    if found is None:
        raise RunFolderError(f"{path} has no checkpoint yet, so that there is nothing to load")
    return found


def _write_new(path: Path, text: str) -> None:
    """Write a new file; raises FileExistsError if it exists, even if another process has just created it."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _new_folder(config: Config) -> Path:
    """Create a folder named by environment, agent, seed and time, with a number if that name is in use."""
    env = re.sub(r"[^a-z0-9]+", "-", config.env.id.removeprefix(CALLABLE).lower()).strip("-")
    name = f"{env}-{config.agent.name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    RUNS.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        # Creating the folder reserves the name: another process may start in the same second.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def spec_to(spec: EnvSpec) -> dict[str, Any]:
    """Return a specification as a dictionary for JSON."""
    return {
        "id": spec.id, "observation": _tree_to(spec.observation, _shape_to), **_action_to(spec.action),
        "max_steps": spec.max_steps, "num_players": spec.num_players, "action_repeat": spec.action_repeat,
        "encoding": None if spec.encoding is None else _tree_to(spec.encoding, Encoding.to_json),
        "agents": list(spec.agents), "anonymous": None if spec.anonymous is None else spec_to(spec.anonymous),
    }  # fmt: skip


def _action_to(action: Any) -> dict[str, Any]:
    """Return a space of actions for JSON; that of discrete actions has the keys of earlier versions."""
    if isinstance(action, Discrete):
        return {"num_actions": action.num_actions, "action_start": action.start}
    return {"action": {"kind": next(kind for kind in ACTIONS if isinstance(action, ACTIONS[kind])), **action._asdict()}}


def _action_from(saved: Mapping[str, Any]) -> Discrete | MultiDiscrete | Continuous:
    """Return the space of actions from the result of `_action_to`."""
    if "action" not in saved:
        return Discrete(saved["num_actions"], saved.get("action_start", 0))
    kind: str = saved["action"]["kind"]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in saved["action"].items()}
    del fields["kind"]
    return ACTIONS[kind](**fields)


def _tree_to(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a nesting of dictionaries and tuples for JSON; the result of `leaf` for an array has other keys."""
    if isinstance(tree, Mapping):
        return {"dict": {key: _tree_to(part, leaf) for key, part in tree.items()}}
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return {"tuple": [_tree_to(part, leaf) for part in tree]}
    return leaf(tree)


def _tree_from(saved: Mapping[str, Any], leaf: Callable[[Any], Any]) -> Any:
    if "dict" in saved:
        return {key: _tree_from(part, leaf) for key, part in saved["dict"].items()}
    if "tuple" in saved:
        return tuple(_tree_from(part, leaf) for part in saved["tuple"])
    return leaf(saved)


def _shape_to(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _shape_from(saved: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(saved["shape"]), np.dtype(saved["dtype"]))


def spec_from(saved: Mapping[str, Any]) -> EnvSpec:
    """Return the specification from the result of `spec_to`.

    Specifications of the version before have no encoding; for them the arrays of the environment are taken unchanged.
    """
    observation = _tree_from(saved["observation"], _shape_from)
    action = _action_from(saved)
    encoding = saved.get("encoding")
    if has_encoding(saved):
        encoding = None if encoding is None else _tree_from(encoding, Encoding.from_json)
    else:
        encoding = Encoding(observation.shape, str(observation.dtype), str(observation.dtype))
    return EnvSpec(
        saved["id"], observation, action, saved["max_steps"], saved.get("num_players", 1),
        action_repeat=saved.get("action_repeat", 1), encoding=encoding, agents=tuple(saved.get("agents", ())),
        anonymous=None if saved.get("anonymous") is None else spec_from(saved["anonymous"]),
    )  # fmt: skip


def has_encoding(saved: Mapping[str, Any]) -> bool:
    """Return whether a saved specification has an encoding of observations, which the version before did not save."""
    return "encoding" in saved


def _checkpoint_copies(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


copy_buffers = jax.jit(_checkpoint_copies)
"""Return a tree in separate buffers, because the loop donates its state to every chunk."""


class Saver:
    """A writer of checkpoints on a thread, one at a time; an error is raised by the next call."""

    def __init__(self, folder: Path, keep: int, replay_every: int):
        self._folder, self._keep, self._replay_every = folder, keep, replay_every
        self._count = 0
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def busy(self) -> bool:
        """Return whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, parts: Mapping[str, PyTree], meta: Mapping[str, Any], counters: Counters, last: bool) -> None:
        """Begin to write a copy of `parts`; `replay` is included every `replay_every` times, and in the last one.

        `counters` may still be in computation on the device; they are stored in the checkpoint's `meta.json`.

        Raises:
          CheckpointError: the previous checkpoint could not be written.
        """
        self.wait()
        with_replay = last or self._count % self._replay_every == 0
        self._count += 1
        copies = {name: copy_buffers(part) for name, part in parts.items() if name != "replay" or with_replay}
        self._writing = self._pool.submit(self._write, copies, meta, counters)
        # After the checkpoint is written, its memory is returned to the system.
        self._pool.submit(devices.give_back)

    def _write(self, parts: Mapping[str, PyTree], meta: Mapping[str, Any], counters: Counters) -> Path:
        numbers = {name: int(value) for name, value in jax.device_get(counters)._asdict().items()}
        return checkpoint.save(self._folder, parts, {**meta, "counters": numbers}, self._keep)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
          CheckpointError: the checkpoint could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def last_good(self) -> str:
        """Return a clause for an error: what can be loaded if the last state could not be saved."""
        found = checkpoint.latest(self._folder, "train")
        return "nothing was saved before" if found is None else "its last good checkpoint is kept"

    def close(self) -> None:
        """Wait for the checkpoint that is being written; its errors are ignored."""
        self._pool.shutdown(wait=True)
