"""The ledger of the benchmarks, for peers, whose Python environments do not have bircher."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # at the end: other benchmarks have common names

from ledger import PATH as LEDGER  # noqa: E402
from ledger import Line, commit, machine, record  # noqa: E402

__all__ = ["LEDGER", "Line", "commit", "machine", "record"]
