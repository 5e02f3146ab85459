"""Tests that gymnax is imported without the plotting libraries until something is drawn."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import bircher.envs.gymnax
print([name for name in ("matplotlib", "seaborn", "pandas", "scipy.stats") if name in sys.modules])
import gymnax, jax
environment, params = gymnax.make("Catch-bsuite")
_, state = environment.reset_env(jax.random.key(0), params)
figure, _ = environment.render(state, params)
import matplotlib.pyplot
print(isinstance(figure, matplotlib.pyplot.Figure))
"""


def test_plotting_libraries_are_loaded_at_their_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "[]\nTrue\n", done.stderr
