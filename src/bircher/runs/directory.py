"""A run's directory: `config.yaml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`.

`Saver` writes checkpoints on a thread: the loop goes on while the last state is written.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Mapping
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
from bircher.types import Counters, Discrete, EnvSpec

try:
    import fcntl
except ImportError as error:
    raise UnsupportedPlatform("fcntl") from error

RUNS = Path("runs")
"""Where runs go that are given no folder."""
CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"


def create(config: Config, out: str | Path | None = None) -> Path:
    """Make a new run's folder with its `config.yaml`; nothing that is there is overwritten.

    Raises:
      RunFolderError: it holds a run already, or cannot be written.
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
            f"{path} already holds a run ({found}): choose another folder, or go on with it by {_way_on(path)}"
        )
    return path


def _way_on(path: Path) -> str:
    """The call that continues the run in a folder."""
    with contextlib.suppress(ConfigError, OSError):
        env_id = Config.from_yaml(path / CONFIG).env.id
        if env_id.startswith(CALLABLE):
            name = env_id.removeprefix(CALLABLE)
            return f"bircher.resume({str(path)!r}, env={name if name.isidentifier() else '...'}) in Python"
    return f"--resume {path}, in Python bircher.resume({str(path)!r})"


def read_config(path: str | Path) -> Config:
    """The configuration of the run in a folder.

    Raises:
      RunFolderError: there is no run.
      ConfigError: its configuration is damaged.
    """
    path = Path(path)
    if not os.path.isdir(path):  # unlike Path.is_dir it takes names of any length
        raise RunFolderError(f"{short_text(str(path), 300)} is no run: there is no such folder")
    if not os.path.isfile(path / CONFIG):
        raise RunFolderError(f"{path} is no run: it has no {CONFIG}")
    return Config.from_yaml(path / CONFIG)


def claim(path: Path) -> int:
    """Take a run for this process until the descriptor that is returned is closed, or the process ends.

    Raises:
      RunFolderError: another process is writing to it, or it cannot be written.
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


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """What a run has logged, a dictionary a line, at least one.

    Raises:
      RunFolderError: that cannot be read, or there is nothing yet.
    """
    try:
        lines = metrics.read(Path(path) / METRICS)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} has no {METRICS} that can be read: {error}") from error
    if not lines:
        raise RunFolderError(f"{path} has logged nothing yet: its {METRICS} is empty")
    return lines


def counters(path: str | Path) -> dict[str, int]:
    """What a run had done by its last checkpoint; nothing where it has none.

    Raises:
      CheckpointError: that is damaged.
    """
    saved = checkpoint.latest(Path(path) / CHECKPOINTS, "train")
    return {} if saved is None else dict(checkpoint.read_meta(saved)["counters"])


def rewrite_config(path: Path, config: Config) -> None:
    """Replace a run's `config.yaml`, at once or not at all."""
    temporary = path / f".{CONFIG}.unfinished"
    temporary.write_text(config.to_yaml(), encoding="utf-8")
    temporary.replace(path / CONFIG)


def last_checkpoint(path: str | Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
      RunFolderError: it has none yet.
    """
    found = checkpoint.latest(Path(path) / CHECKPOINTS, "train")
    if found is None:
        raise RunFolderError(f"{path} has no checkpoint yet: nothing has been saved that could be loaded")
    return found


def _write_new(path: Path, text: str) -> None:
    """Write a file; raises FileExistsError where it is there already, also where another process was quicker."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _new_folder(config: Config) -> Path:
    """Make a folder named by environment, agent, seed and time; with a number where another run took that name."""
    env = re.sub(r"[^a-z0-9]+", "-", config.env.id.removeprefix(CALLABLE).lower()).strip("-")
    name = f"{env}-{config.agent.name}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    RUNS.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        # Making it is what takes the name: another process may begin in the same second.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def spec_to(spec: EnvSpec) -> dict[str, Any]:
    """A specification of one observation array and discrete actions, as JSON holds it."""
    observation = {"shape": list(spec.observation.shape), "dtype": str(spec.observation.dtype)}
    return {
        "id": spec.id, "observation": observation, "num_actions": spec.num_actions, "max_steps": spec.max_steps,
        "num_players": spec.num_players, "action_repeat": spec.action_repeat, "action_start": spec.action_start,
        "encoding": None if spec.encoding is None else spec.encoding.to_json(),
    }  # fmt: skip


def spec_from(saved: Mapping[str, Any]) -> EnvSpec:
    """The inverse of `spec_to`; of the version before, whose specifications have no encoding, arrays are as given."""
    observation = jax.ShapeDtypeStruct(tuple(saved["observation"]["shape"]), np.dtype(saved["observation"]["dtype"]))
    action = Discrete(saved["num_actions"], saved.get("action_start", 0))
    encoding = saved.get("encoding")
    if has_encoding(saved):
        encoding = None if encoding is None else Encoding.from_json(encoding)
    else:
        encoding = Encoding(observation.shape, str(observation.dtype), str(observation.dtype))
    return EnvSpec(
        saved["id"], observation, action, saved["max_steps"], saved.get("num_players", 1),
        action_repeat=saved.get("action_repeat", 1), encoding=encoding,
    )  # fmt: skip


def has_encoding(saved: Mapping[str, Any]) -> bool:
    """Whether a saved specification says how observations are encoded, which the version before did not."""
    return "encoding" in saved


def _checkpoint_copies(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


copied = jax.jit(_checkpoint_copies)
"""A tree in buffers of its own: the loop gives its state away with every chunk."""


class Saver:
    """Writes one checkpoint at a time; an error of an earlier one is raised by the next call."""

    def __init__(self, folder: Path, keep: int, replay_every: int):
        self._folder, self._keep, self._replay_every = folder, keep, replay_every
        self._count = 0
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, parts: Mapping[str, PyTree], meta: Mapping[str, Any], counters: Counters, last: bool) -> None:
        """Begin to write a copy of `parts` as they are now; `replay` only every so many times, but with the last.

        `counters` need not be known yet; they go to the checkpoint's `meta.json`.

        Raises:
          CheckpointError: the one before could not be written.
        """
        self.wait()
        with_replay = last or self._count % self._replay_every == 0
        self._count += 1
        kept = {name: copied(part) for name, part in parts.items() if name != "replay" or with_replay}
        self._writing = self._pool.submit(self._write, kept, meta, counters)
        # Behind it, when what it held is free.
        self._pool.submit(devices.give_back)

    def _write(self, parts: Mapping[str, PyTree], meta: Mapping[str, Any], counters: Counters) -> Path:
        known = {name: int(value) for name, value in jax.device_get(counters)._asdict().items()}
        return checkpoint.save(self._folder, parts, {**meta, "counters": known}, self._keep)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def kept(self) -> str:
        """What of the run can be loaded where its last state could not be saved, as part of a sentence."""
        found = checkpoint.latest(self._folder, "train")
        return "nothing was saved before" if found is None else "its last good checkpoint is kept"

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True)
