"""What all tests share: where compiled programs are kept, and how hypothesis draws.

Types and shapes of everything in bircher are checked while the tests run: see ``--jaxtyping-packages`` in
``pyproject.toml``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before JAX is imported.  The folder outlives a run, so that a second one compiles little; subprocesses share it.
_CACHE = Path(tempfile.gettempdir()) / f"bircher-test-programs-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "bircher",
    deadline=None,  # the first example compiles
    derandomize=True,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bircher")

LONGEST = ("test_learning.py", "test_resume.py", "test_prefetch.py", "test_run.py", "test_remembering.py")
"""These begin: a process that was given one of them last would still be at it while the other one had nothing to do."""


def pytest_collection_modifyitems(items: list) -> None:
    """The longest files first, the others as they came; a file's tests stay together and in order."""
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
