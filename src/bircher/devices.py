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
"""A `jax.Device`, which type checkers do not accept as a type."""
CACHE_VARIABLE = "BIRCHER_CACHE"
"""Environment variable with another folder for compiled programs."""
CACHE_BYTES = 1 << 30
"""Size of the cache in bytes beyond which the least recently used programs are removed."""


_M_ARENA_MAX = -8
"""The constant M_ARENA_MAX of glibc's malloc.h."""


def use_device(device: str | None) -> Device:
    """Make `cpu` or `gpu` the default device of this process, and return it; None leaves the choice to JAX.

    Raises:
      DeviceError: there is no such device.  The message lists the devices that there are.
    """
    if device == "cpu":
        stay_on_cpu()
    try:
        chosen = jax.local_devices(backend=device)[0]  # those of other learners cannot be used here
    except RuntimeError as error:
        raise DeviceError(
            f"device={device} is not available: JAX finds only {', '.join(sorted({d.platform for d in jax.devices()}))}"
        ) from error
    if device is not None:
        jax.config.update("jax_default_device", chosen)
    return chosen


def host() -> Device:
    """Return the CPU as a device, also where networks are on an accelerator.

    Raises:
      DeviceError: JAX was configured without the CPU.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise DeviceError(
            f"replay.device=host needs JAX's CPU device, which JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} leaves "
            "out: add cpu to it"
        ) from error


def default() -> Device:
    """Return the device of arrays for which no device is chosen."""
    return jax.config.values["jax_default_device"] or jax.local_devices()[0]


def stay_on_cpu() -> None:
    """Start no accelerator in this process, unless JAX_PLATFORMS is set.

    It has an effect only before JAX is first used.
    """
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def keep_programs() -> Path | None:
    """Turn the persistent compilation cache on, unless JAX's own settings name a folder for it or turn it off.

    Programs for a CPU run only on that kind of CPU, so each kind has a separate folder.

    Returns:
      The folder, or None where the cache is not turned on here.
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
        return None  # Without a writable folder a run takes longer, but it does not fail.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def available_bytes(device: Device) -> int | None:
    """Return the number of bytes that a run can still allocate on the device, or None where it is unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    free = [_free_in_host(), _free_in_group()]
    return min((number for number in free if number is not None), default=None)


def used_bytes(device: Device) -> int | None:
    """Return the number of bytes that this process uses now, or None where it is unknown.

    On a GPU it is the device's memory, and otherwise main memory.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_in_use")
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def give_back() -> None:
    """Return freed memory to the operating system, where the C library has a function for it (glibc).

    Separate threads write checkpoints, and the memory that they free stays with the process in fragments.  With a
    checkpoint every 30 seconds a run of half an hour used a tenth more memory at its end.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def share_arenas() -> None:
    """Make all threads allocate from one arena (glibc).  Call it early, and only in a process that runs nothing else.

    Otherwise each of the many threads that write checkpoints has a separate arena.  A small remaining allocation then
    keeps a whole page from the system, and a run of half an hour grows by some hundredths.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def host_bytes() -> int | None:
    """Return the number of bytes of main memory, or None where it is unknown."""
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
    """Return the bytes that are left below a container's limit (control groups, version 2), or None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        return limit - int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _processor() -> str:
    """Return a short name that differs between kinds of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _prune(folder: Path) -> None:
    """Remove the least recently used programs beyond `CACHE_BYTES`.

    Programs that call EnvPool contain an object's address, so they are never found again and would accumulate.
    """
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    excess = sum(stat.st_size for _, stat in files) - CACHE_BYTES
    for path, stat in sorted(files, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime)):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= stat.st_size
