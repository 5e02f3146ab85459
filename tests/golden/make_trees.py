"""Write the golden search trees: PYTHONPATH=src:tests python tests/golden/make_trees.py

Only where the search is meant to change: the test that reads them holds every number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from search_worlds import Network, network_program, root_latents, some_legal, tree_arrays

FOLDER = Path(__file__).parent
NUM_ACTIONS, NUM_SIMULATIONS, BATCH = 4, 12, 4


def searched(kind: str) -> dict[str, Any]:
    """Two elements' trees, actions, weights and values, of two players with noise at the root."""
    network = Network.random(7, NUM_ACTIONS, -1.0)
    program = network_program(kind, NUM_SIMULATIONS, True)
    latents, legal = root_latents(7, BATCH), some_legal(7, BATCH, NUM_ACTIONS)
    result = program(network, latents, legal, jax.random.key(7))
    answer = {name: np.asarray(getattr(result, name))[:2] for name in ("action", "weights", "value", "q_values")}
    return {**answer, "trees": [tree_arrays(result.tree, element) for element in range(2)]}


def plain(x: Any) -> Any:
    """As JSON holds it, with seven digits."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, list):
        return [plain(value) for value in x]
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    return float(f"{x:.7g}") if isinstance(x, float) else x


if __name__ == "__main__":
    for kind in ("puct", "gumbel"):
        path = FOLDER / f"{kind}_tree.json"
        path.write_text(json.dumps(plain(searched(kind))) + "\n")
        print(path)
