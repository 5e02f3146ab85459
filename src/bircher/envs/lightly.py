"""Importing gymnax without the plotting libraries that only its drawing needs: they take longer than all the rest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DRAWING = ("seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.colors")


class _WhenUsed(ModuleType):
    """Stands for a module, and imports it when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_drawing() -> Iterator[None]:
    """Modules imported within get stand-ins for the plotting libraries, which become the real ones at their first use.

    Where one of them is loaded already, it is taken as it is.
    """
    stand_ins = {} if any(name in sys.modules for name in DRAWING) else {name: _WhenUsed(name) for name in DRAWING}
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
