"""The machine: its memory, and where compiled programs are kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bircher import devices


def test_the_machine_knows_its_memory() -> None:
    device = jax.devices()[0]
    assert 2**20 < devices.available_bytes(device) < 2**45 and 2**20 < devices.used_bytes(device) < 2**40


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_freed_memory_is_returned_to_the_system() -> None:
    """Of 128 MB one piece in a hundred stays, the last among them: so much of the rest is the system's again."""
    pieces = [np.ones(8192) for _ in range(2000)]
    held = devices.used_bytes(jax.devices("cpu")[0])
    pieces = pieces[::-1][::100]
    devices.give_back()
    now = devices.used_bytes(jax.devices("cpu")[0])
    assert held is not None and now is not None and held - now > 64 * 2**20
    assert all(piece.sum() == 8192 for piece in pieces)


ARENAS = """
import ctypes, sys, threading
import numpy as np
from bircher import devices
if sys.argv[1] == "shared":
    devices.share_arenas()
here = threading.Barrier(6)
def take():
    kept = [np.ones(500) for _ in range(100)]
    here.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_an_arena_where_the_process_is_ours() -> None:
    arenas = {}
    for how in ("shared", "own"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        words = [sys.executable, "-c", ARENAS, how]
        said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        arenas[how] = said.count("<heap nr=")
    assert arenas["shared"] < 3 < arenas["own"]


def test_compiled_programs_are_kept_where_the_user_wants() -> None:
    """In a process of its own: JAX opens its cache once."""
    script = "from bircher import devices; devices.keep_programs(); import jax; jax.jit(lambda x: x + 1)(1.0)"
    with tempfile.TemporaryDirectory() as place:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
        subprocess.run([sys.executable, "-c", script], env={**environment, "BIRCHER_CACHE": place}, check=True)
        assert any(path.name.startswith("jit_") for path in Path(place).rglob("*"))


def test_too_many_programs_are_pruned_from_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CACHE_BYTES", 250)
    for age, name in enumerate(("new", "old", "oldest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    devices._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
