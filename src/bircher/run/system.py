"""The versions, devices and memory that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import jax

from bircher import machine
from bircher.version import __version__

PACKAGES = (
    "jax", "jaxlib", "numpy", "equinox", "optax", "mctx", "flashbax", "orbax-checkpoint", "envpool", "gymnax", "pgx",
    "gymnasium",
)  # fmt: skip
"""The packages whose versions are reported."""


def describe() -> dict[str, Any]:
    """Describe the installation and the machine, as JSON holds it."""
    device = machine.default()
    free, host = machine.available_bytes(device), machine.host_bytes()
    return {
        "bircher": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [f"{one.platform}:{one.id} {one.device_kind}" for one in jax.devices()],
        "cores": os.cpu_count(),
        "memory_bytes": host,
        "available_bytes": free,
    }


def lines(described: dict[str, Any]) -> list[str]:
    """The description in lines for a terminal."""
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in described["packages"].items())
    return [
        f"bircher {described['bircher']}, Python {described['python']}",
        f"{described['platform']}, {described['libc'] or 'unknown libc'}",
        packages,
        f"devices: {', '.join(described['devices'])}; {described['cores']} cores",
        f"memory: {_size(described['memory_bytes'])}, {_size(described['available_bytes'])} available on the device",
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**30:,.1f} GiB"
