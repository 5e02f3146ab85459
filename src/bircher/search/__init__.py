"""Tree search over a learned model (PUCT, Gumbel) and over a true simulator (UCT); the only importer of mctx.

A search does not depend on networks.  It starts from a `Root` and calls `simulate` for one `Step` per simulation, for
all B elements together.  Games of two players have discounts of -gamma, because every value is that of the player who
moves there.  Games of more players have a value for each player, and each node's player maximizes its own (max^n).
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
