"""How large each loss term of a run is: unweighted, weighted, and its share of the encoder's gradient.

    bircher train LunarLander-v3 preset=ppo_muesli_conservative --out runs/mixed
    python benchmarks/magnitudes.py runs/mixed

Medians over the second half of the run, with the 5 % and 95 % quantiles of its lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bircher import metrics
from bircher.metrics import series
from bircher.runs import directory


def rows(run: Path) -> list[list[str]]:
    """A line for each term that the run has."""
    config, lines = directory.read_config(run), metrics.read(run / directory.METRICS)
    half = lines[-1]["env_steps"] / 2
    found = []
    for name, weight in config.losses.weights().items():
        cells = [name, f"{weight:g}" if isinstance(weight, float) else f"{weight.start:g} to {weight.end:g}"]
        for metric in (f"loss/{name}", f"weighted/{name}", f"gradient/{name}_share"):
            values = series(lines, metric).since(half).values
            low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)) if len(values) else [np.nan] * 3
            cells.append(f"{middle:.2g} ({low:.2g} to {high:.2g})")
        found.append(cells)
    return found


def main() -> None:
    """Print a Markdown table for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    heads = ["term", "weight", "unweighted", "weighted", "share of the encoder's gradient"]
    for run in parser.parse_args().runs:
        print(f"{run}\n")
        for cells in (heads, ["---"] * len(heads), *rows(run)):
            print(f"| {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
