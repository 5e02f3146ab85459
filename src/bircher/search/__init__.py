"""Tree search over a learned model (PUCT, Gumbel) and over a true simulator (UCT); the only importer of mctx.

A search knows nothing of networks: it starts from a `Root` and asks `simulate` for one `Step` a simulation, for all B
elements at once.  Two players take turns by discounts of -gamma: every value is that of the player who moves there.
"""

from __future__ import annotations

from bircher.search.base import Root, SearchConfig, SearchResult, Simulate, Step
from bircher.search.policies import completed_q_values, gumbel_search, puct_search, tree_min_max
from bircher.search.uct import rollout_search

__all__ = [
    "Root",
    "SearchConfig",
    "SearchResult",
    "Simulate",
    "Step",
    "completed_q_values",
    "gumbel_search",
    "puct_search",
    "rollout_search",
    "tree_min_max",
]
