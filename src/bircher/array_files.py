"""Arrays by name in a folder, written and read by Orbax: the only file that knows how they are stored."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from bircher.plain_paths import plain_path

_ARRAYS = "arrays"
"""The folder of Orbax's files inside the folder that is given."""


@functools.cache
def _orbax() -> ocp.Checkpointer:
    # Measured to be the quickest of Orbax's ways for many small arrays, and as quick as any for large ones.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Drop what Orbax logs meanwhile: each of its threads logs the traceback of an error that is raised as well."""
    logger = logging.getLogger("absl")

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, each with at least one element, to an existing folder whose name may have any character.

    Raises:
      OSError: the system refused to write, as on a full disk; the library's other errors are raised as they are.
    """
    if not arrays:
        return
    try:
        with plain_path(folder) as plain, _without_log():
            _orbax().save(plain / _ARRAYS, args=ocp.args.PyTreeSave(dict(arrays)))
    except Exception as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore ends its message
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Open the arrays that were written to a folder, without reading their numbers.

    Raises:
      ValueError: one is missing, or has another shape or type.
    """
    if not arrays:
        return
    with plain_path(folder) as plain, _without_log():
        metadata = _orbax().metadata(plain / _ARRAYS).item_metadata or {}
    found = {name: (tuple(array.shape), np.dtype(array.dtype)) for name, array in metadata.items()}
    for name, array in arrays.items():
        if found.get(name) != (array.shape, array.dtype):
            raise ValueError(
                f"array {name} cannot be read back: expected {array.shape} of {array.dtype}, "
                f"found {found.get(name, 'nothing')}"
            )


def read(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of these names from a folder."""
    if not names:
        return {}
    wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with plain_path(folder) as plain:
        return _orbax().restore(plain / _ARRAYS, args=ocp.args.PyTreeRestore(restore_args=wanted))
