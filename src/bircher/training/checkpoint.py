"""Checkpoints: named parts, each a pytree of arrays, written by Orbax and sealed by a SHA-256 manifest.

    folder/checkpoint-00000012/
        meta.json              what the caller adds to the arrays
        train/leaves.json      path, shape and type of every leaf, in order
        train/arrays/…         Orbax's own files
        manifest.json          every file above: SHA-256 and bytes; written last

A checkpoint is written under a temporary name, flushed to the disk and then renamed.  Only then are older ones removed,
so that a kill at any moment leaves the last complete one.  Orbax restores a flipped byte without an error, so the files
are compared with the manifest first.  Nothing is ever unpickled.

Orbax passes paths to tensorstore, which interprets `[`, `%` and other characters, and to etils, which reads `gs:` as a
cloud's address.  Users may name their folders as they like, so Orbax gets another path to the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jaxtyping import PyTree

from bircher import renamed
from bircher.errors import CheckpointError, DamagedCheckpoint, MismatchedCheckpoint

_PLAIN = re.compile(r"/([A-Za-z0-9_.-]+/)*[A-Za-z0-9_.-]+")
_DESCRIPTORS = Path("/proc/self/fd")


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yield an absolute path to an existing folder that has only letters, digits, `_`, `.` and `-` in its names.

    It is the folder's own path where that is plain already.  Otherwise it leads to the folder through an open file
    descriptor (Linux) or a temporary symbolic link, and holds only inside the block and inside this process.
    """
    folder = folder.absolute()
    if _PLAIN.fullmatch(str(folder)):
        yield folder
    elif _DESCRIPTORS.is_dir():
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield _DESCRIPTORS / str(descriptor)
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="bircher-") as temporary:
            link = Path(temporary) / "folder"
            link.symlink_to(folder, target_is_directory=True)
            yield link


_ARRAYS = "arrays"
"""The folder of Orbax's files, inside the folder that is passed to `write`."""


@functools.cache
def _orbax() -> ocp.Checkpointer:
    # Only this process writes, and of several learners the others must not be waited for.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    # By measurement the fastest of Orbax's formats for many small arrays, and as fast as any for large ones.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Drop Orbax's log messages inside the block: its threads log the traceback of an error that is raised as well."""
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
      OSError: the system refused to write, as on a full disk. Other errors of Orbax are raised unchanged.
    """
    if not arrays:
        return
    try:
        with plain_path(folder) as plain, _without_log():
            _orbax().save(plain / _ARRAYS, args=ocp.args.PyTreeSave(dict(arrays)))
    except Exception as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # the end of tensorstore's message
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that the arrays written to a folder can be opened, without reading their numbers.

    Raises:
      ValueError: an array is missing, or has another shape or type.
    """
    if not arrays:
        return
    # By tensorstore itself, because Orbax's own `metadata` keeps 10 kB of memory for each array that it looks at.
    context = tensorstore.Context()
    with plain_path(folder) as plain:
        base = {"driver": "file", "path": f"{plain / _ARRAYS}/"}
        opened = {
            name: tensorstore.open(
                {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}},
                open=True, context=context,
            )
            for name in arrays
        }  # fmt: skip
        for name, array in arrays.items():
            expected = f"array {name} cannot be read back: expected {array.shape} of {array.dtype}"
            try:
                found = opened[name].result()
            except ValueError as error:
                raise ValueError(f"{expected}, found none: {str(error).splitlines()[0]}") from error
            if (found.shape, found.dtype.numpy_dtype) != (array.shape, array.dtype):
                raise ValueError(f"{expected}, found {found.shape} of {found.dtype.name}")


def read(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of these names from a folder."""
    if not names:
        return {}
    arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with plain_path(folder) as plain:
        return _orbax().restore(plain / _ARRAYS, args=ocp.args.PyTreeRestore(restore_args=arguments))


_FINISHED = re.compile(r"checkpoint-\d{8}")
_UNFINISHED = ".unfinished-"
_MANIFEST = "manifest.json"


class _Leaf(NamedTuple):
    """The description of one leaf in `leaves.json`: its path in the tree, its shape and its type."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None
    """The name of the generator, if the leaf is a typed random key."""

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def save(folder: str | Path, parts: Mapping[str, PyTree], meta: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a new checkpoint under ``folder``, remove older ones, and return the folder of the checkpoint.

    ``parts`` are pytrees by name, such as ``{"train": ..., "replay": ...}``.  A part may be left out of some
    checkpoints, as a large replay is.  Leaves are JAX or NumPy arrays, typed random keys or Python numbers.  ``meta``
    is any value that JSON can represent.  The newest ``keep`` checkpoints stay, and for each part the newest
    checkpoint that contains it.  Only one process at a time may write to ``folder``.

    Raises:
      CheckpointError: a leaf cannot be saved, or the disk is full or cannot be written. Existing checkpoints are not
        changed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    encoded = {name: _encode(name, tree) for name, tree in parts.items()}
    folder = Path(folder).absolute()
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        serial = max((int(path.name.split("-")[1]) for path in _finished(folder)), default=0) + 1
        final = folder / f"checkpoint-{serial:08d}"
        temporary = folder / (_UNFINISHED + final.name)
        _write_parts(temporary, encoded)
        _write_json(temporary / "meta.json", dict(meta))
        _seal(temporary)
        os.rename(temporary, final)
        _sync(folder)
    except Exception as error:  # Orbax reports a full disk as ValueError, RuntimeError or OSError
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"cannot write a checkpoint to {folder}: {reason}") from error
    _prune(folder, keep)
    return final


def restore(checkpoint: str | Path, name: str, template: PyTree) -> PyTree:
    """Return the part ``name`` of a checkpoint, bit for bit, in the structure of ``template``.

    The leaves of the template are arrays or ``jax.ShapeDtypeStruct``, such as the result of ``jax.eval_shape`` for the
    function that builds the state.  Only the files of this part are read and checked.

    Raises:
      DamagedCheckpoint: a file of the part is missing or has changed; the message names it.
      MismatchedCheckpoint: the part is of another tree, shape or type; the message names the first leaf.
      CheckpointError: there is no such checkpoint or part.
    """
    checkpoint = Path(checkpoint).absolute()
    files = {file: seal for file, seal in _manifest(checkpoint).items() if file.startswith(f"{name}/")}
    if not files:
        raise CheckpointError(f"{checkpoint} has no part {name!r}; its parts: {', '.join(parts(checkpoint)) or 'none'}")
    _verify(checkpoint, files)
    folder = checkpoint / name
    table = _read_json(folder / "leaves.json")
    saved = [_Leaf(renamed.leaf(path), tuple(shape), dtype, impl) for path, shape, dtype, impl in table]
    flat, structure = jax.tree_util.tree_flatten_with_path(template)
    _compare(folder, saved, [_describe(path, leaf) for path, leaf in flat])
    arrays = _read_arrays(folder, saved)
    found = {leaf.path: (leaf, array) for leaf, array in zip(saved, arrays, strict=True)}
    # Leaves are found by path, because renaming a key of a dictionary changes the order of its keys.
    leaves = [_decode(*found[_describe(path, like).path], like) for path, like in flat]
    return jax.tree.unflatten(structure, leaves)


def latest(folder: str | Path, part: str | None = None) -> Path | None:
    """Return the newest finished checkpoint under ``folder`` (with the part ``part``, if it is not None), or None."""
    found = [path for path in _finished(Path(folder)) if part is None or (path / part).is_dir()]
    return found[-1] if found else None


def read_meta(checkpoint: str | Path) -> dict[str, Any]:
    """Return the ``meta`` that was passed to ``save``, after comparing its file with the manifest."""
    checkpoint = Path(checkpoint).absolute()
    _verify(checkpoint, {"meta.json": _manifest(checkpoint).get("meta.json")})
    return _read_json(checkpoint / "meta.json")


def parts(checkpoint: str | Path) -> tuple[str, ...]:
    """Return the names of the parts of a checkpoint."""
    files = _manifest(Path(checkpoint).absolute())
    return tuple(sorted({file.split("/")[0] for file in files if "/" in file}))


def sweep(folder: str | Path) -> list[Path]:
    """Remove the unfinished checkpoints of killed processes under ``folder``, and return their paths."""
    for path in (unfinished := sorted(Path(folder).glob(_UNFINISHED + "*"))):
        shutil.rmtree(path, ignore_errors=True)
    return unfinished


def _encode(name: str, tree: PyTree) -> tuple[list[_Leaf], list[np.ndarray]]:
    """Return the table of a tree's leaves, and their values on the host."""
    if not name.isidentifier():
        raise ValueError(f"a part's name must be a plain word, not {name!r}")
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_describe(path, leaf) for path, leaf in flat]
    values = jax.device_get([jax.random.key_data(leaf) if _is_key(leaf) else leaf for _, leaf in flat])
    return leaves, [np.asarray(value) for value in values]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(path: tuple[Any, ...], leaf: Any) -> _Leaf:
    where = jax.tree_util.keystr(path) or "the whole tree"
    if isinstance(leaf, bool | int | float | complex | np.generic):
        leaf = np.asarray(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) or leaf.dtype == object:
        raise CheckpointError(f"the leaf {where} is a {type(leaf).__name__}, which a checkpoint cannot store")
    if _is_key(leaf) and 0 in leaf.shape:
        raise CheckpointError(f"the leaf {where} is an empty array of random keys, which a checkpoint cannot store")
    impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) and isinstance(leaf, jax.Array) else None
    return _Leaf(where, tuple(leaf.shape), str(leaf.dtype), impl)


def _decode(leaf: _Leaf, array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return array
    if isinstance(like, bool | int | float | complex | np.generic):
        return type(like)(array)
    # A copy is needed, because an array that shares NumPy's memory must not be donated to a program.
    value = jnp.array(array, copy=True)
    if leaf.key_impl:
        value = jax.random.wrap_key_data(value, impl=leaf.key_impl)
    return jax.device_put(value, like.sharding) if getattr(like, "committed", False) else value


def _compare(folder: Path, saved: list[_Leaf], template: list[_Leaf]) -> None:
    """Raise at the first leaf in which a saved part and a template differ."""
    by_path = {leaf.path: leaf for leaf in saved}
    prefix = f"{folder} is of another architecture: "
    for leaf in template:
        found = by_path.get(leaf.path)
        if found is None:
            raise MismatchedCheckpoint(f"{prefix}it has no leaf {leaf.path}, which should be {leaf}")
        if found[:3] != leaf[:3]:
            raise MismatchedCheckpoint(f"{prefix}its leaf {leaf.path} is {found}, but should be {leaf}")
    if extra := set(by_path) - {leaf.path for leaf in template}:
        leaf = next(leaf for leaf in saved if leaf.path in extra)
        raise MismatchedCheckpoint(f"{prefix}its leaf {leaf.path}, which is {leaf}, is not in the expected state")


def _write_parts(folder: Path, encoded: Mapping[str, tuple[list[_Leaf], list[np.ndarray]]]) -> None:
    """Write every part to a new folder, and check that its arrays are in that folder."""
    folder.mkdir()
    for name, (leaves, arrays) in encoded.items():
        written = folder / f"{name}.written"
        written.mkdir()
        # Orbax refuses arrays without an element (and trees without an array); the table of leaves describes those.
        tree = {f"{index:05d}": array for index, array in enumerate(arrays) if array.size}
        write(written, tree)
        _write_json(written / "leaves.json", leaves)
        # Renamed before it is checked, so that arrays that a library wrote to another place are not found.
        os.rename(written, folder / name)
        check(folder / name, tree)


def _read_arrays(folder: Path, leaves: list[_Leaf]) -> list[np.ndarray]:
    named = {f"{index:05d}": leaf for index, leaf in enumerate(leaves)}
    found = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in named.items() if 0 in leaf.shape}
    found |= read(folder, [name for name in named if name not in found])
    return [found[name] for name in named]


def _seal(checkpoint: Path) -> None:
    """Flush every file to the disk, then write the manifest of all files."""
    manifest = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        manifest[path.relative_to(checkpoint).as_posix()] = _digest(path)
        _sync(path)
    _write_json(checkpoint / _MANIFEST, {"format": 1, "files": manifest})
    _sync(checkpoint / _MANIFEST)
    for path in [checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())]:
        _sync(path)


def _manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    if not checkpoint.is_dir():
        raise CheckpointError(f"there is no checkpoint {checkpoint}")
    content = _read_json(checkpoint / _MANIFEST)
    if not isinstance(content, dict) or content.get("format") != 1 or not isinstance(content.get("files"), dict):
        raise DamagedCheckpoint(f"{checkpoint / _MANIFEST} is damaged: it is not a manifest")
    return content["files"]


def _verify(checkpoint: Path, files: Mapping[str, Any]) -> None:
    for file, seal in files.items():
        path = checkpoint / file
        try:
            same = _digest(path) == seal
        except OSError as error:
            raise DamagedCheckpoint(f"{path} is missing or cannot be read: {error.strerror}") from error
        if not same:
            raise DamagedCheckpoint(f"{path} is damaged: its content differs from the manifest")


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _finished(folder: Path) -> list[Path]:  # oldest first
    return sorted(path for path in folder.glob("checkpoint-*") if _FINISHED.fullmatch(path.name) and path.is_dir())


def _prune(folder: Path, keep: int) -> None:
    found = _finished(folder)
    names = {path.name for checkpoint in found for path in checkpoint.iterdir() if path.is_dir()}
    needed = {*found[-keep:], *(latest(folder, name) for name in names)}
    for path in found:
        if path not in needed:
            # Renamed first, so that a kill while files are removed leaves no incomplete checkpoint under a valid name.
            unfinished = path.with_name(_UNFINISHED + path.name)
            os.rename(path, unfinished)
            shutil.rmtree(unfinished, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedCheckpoint(f"{path} is missing or cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} is damaged: it is not JSON") from error


def _sync(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
