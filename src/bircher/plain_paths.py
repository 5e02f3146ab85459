"""Paths without special characters, for libraries that give a meaning to some characters of a path.

Orbax hands paths to tensorstore, which reads `[`, `%` and others as parts of a pattern or a URL, and to etils, which
reads `gs:` as a cloud's address.  Names of folders are the user's own, so such libraries get another path to the
same folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
