"""Checkpoints written beside the loop: it goes on with the next chunk while the last state is brought to the disk."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bircher import checkpoint, machine
from bircher.types import Counters


def _copies(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


copied = jax.jit(_copies)
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
        self._pool.submit(machine.give_back)

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
