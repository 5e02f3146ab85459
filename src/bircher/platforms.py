"""The operating systems that the package supports."""

from __future__ import annotations

import platform


class UnsupportedPlatform(ImportError):
    """A module of Python that the package needs is missing on this operating system."""

    def __init__(self, module: str):
        system = platform.system() or "this platform"
        super().__init__(f"bircher supports Linux and macOS: Python has no module {module} on {system}", name=module)
