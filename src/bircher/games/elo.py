"""Ratings from a cross table: who would win how often against whom.

A player rated 400 points higher scores 10 points for each of the other's: the expected score is
1 / (1 + 10^(-difference / 400)) (Elo 1978; as a model of paired comparisons, Bradley and Terry 1952,
https://doi.org/10.1093/biomet/39.3-4.324).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

SCALE = 400 / np.log(10)
"""Points to a unit of log odds."""


def ratings(
    scores: Float[np.ndarray, "players players"], games: Float[np.ndarray, "players players"]
) -> tuple[Float[np.ndarray, " players"], bool]:
    """The ratings under which the scores are most likely, the first player's being 0, and whether games were added.

    `scores[i, j]` is what i got in `games[i, j]` games against j: 1 for a win, 1/2 for a draw. Where some players never
    lost a point to the others, no finite ratings are most likely; then one drawn game is added to every pair that met.

    Raises:
      ValueError: not every player met every other, if only by others that both met.
    """
    if not _connected((games + games.T) > 0):
        raise ValueError("the players do not hang together: some never met the others, so no ratings compare them")
    added = not _connected(scores > 0)
    if added:
        met = (games > 0).astype(float)
        scores, games = scores + met / 2, games + met
    strength = np.zeros(len(scores))
    for _ in range(1000):
        expected = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = (scores - games * expected).sum(1)
        curvature = games * expected * (1 - expected)
        hessian = np.diag(curvature.sum(1)) - curvature
        # The first player stays where it is; the others take a Newton step, not so long that it overshoots.
        step = np.linalg.solve(hessian[1:, 1:], gradient[1:])
        strength[1:] += np.clip(step, -1, 1)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return SCALE * strength, added


def _connected(edges: Bool[np.ndarray, "players players"]) -> bool:
    """Whether every player leads to every other along the edges."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges)):
        reach = reach @ reach
    return bool(reach.all())
