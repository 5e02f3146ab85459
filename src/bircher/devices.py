"""Devices, memory and the cache of compiled programs of the machine that a run uses."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from bircher.errors import DeviceError

Device = Any
"""A `jax.Device`, which type checkers do not take for a type."""
CACHE_VARIABLE = "BIRCHER_CACHE"
"""Environment variable that moves the folder of compiled programs."""
CACHE_BYTES = 1 << 30
"""Least recently used programs are removed beyond this."""


_M_ARENA_MAX = -8
"""In glibc's malloc.h."""


def use_device(device: str | None) -> Device:
    """Make `cpu` or `gpu` (None: JAX's own choice) the device of everything that follows; returns it.

    Raises:
      DeviceError: there is no such device; the message says what there is.
    """
    if device == "cpu":
        stay_on_cpu()
    try:
        found = jax.devices(device)[0]
    except RuntimeError as error:
        raise DeviceError(
            f"device={device} is not available: JAX finds only {', '.join(sorted({d.platform for d in jax.devices()}))}"
        ) from error
    if device is not None:
        jax.config.update("jax_default_device", found)
    return found


def host() -> Device:
    """The device of main memory: the CPU, also where networks are elsewhere.

    Raises:
      DeviceError: JAX was told to leave the CPU out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise DeviceError(
            f"replay.device=host needs JAX's CPU device, which JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} leaves "
            "out: add cpu to it"
        ) from error


def default() -> Device:
    """The device of what is said to be on none."""
    return jax.config.values["jax_default_device"] or jax.local_devices()[0]


def stay_on_cpu() -> None:
    """Start no accelerator in this process: effective before JAX is first used, and unless JAX_PLATFORMS says more."""
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def keep_programs() -> Path | None:
    """Turn the persistent compilation cache on, unless JAX's own settings have placed or forbidden it.

    Programs for a CPU are good for that kind of CPU only, so each kind has a folder of its own.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return None
    moved = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(moved) if moved else home / "bircher") / "xla" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
    except OSError:
        return None  # A home that cannot be written costs time, not the run.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def available_bytes(device: Device) -> int | None:
    """Bytes that a run may still take on the device, or None where nobody says."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    free = [_free_in_host(), _free_in_group()]
    return min((number for number in free if number is not None), default=None)


def used_bytes(device: Device) -> int | None:
    """Bytes that this process holds now: on a GPU the device's own, else of main memory; None where nobody says."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_in_use")
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def give_back() -> None:
    """Give memory that was freed back to the system, where that can be asked for (glibc).

    What writing a checkpoint frees, on threads of its own, stays with the process in pieces: with a checkpoint in 30
    seconds a run of half an hour held a tenth more at its end.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def share_arenas() -> None:
    """Let all threads take memory from one arena (glibc), if few have begun: for a process that is ours alone.

    Else each of the many that write checkpoints has its own, whose pages the little that stays keeps from the system,
    and a run of half an hour grows by some hundredths.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def host_bytes() -> int | None:
    """Bytes of main memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return host_bytes()


def _free_in_group() -> int | None:
    """What a container's limit leaves (control groups, version 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        return limit - int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _processor() -> str:
    """A short name that differs between kinds of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _prune(folder: Path) -> None:
    """Remove the oldest programs where there are too many: those that call EnvPool are never found again."""
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    excess = sum(stat.st_size for _, stat in files) - CACHE_BYTES
    for path, stat in sorted(files, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime)):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= stat.st_size
