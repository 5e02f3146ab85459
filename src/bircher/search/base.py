"""The inputs and the result of every search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped
from pydantic import BaseModel, ConfigDict, Field


class SearchConfig(BaseModel):
    """The number of simulations of a search, and the constants of its formulas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_simulations: int = Field(50, ge=0, le=100_000)
    """Number of simulations of each search (MuZero: 50 on Atari, 800 on boards); with 0 the network alone acts."""
    max_depth: int | None = Field(None, ge=1)
    """Largest number of edges from the root to a node of the tree; null: no limit."""
    puct_init: float = Field(1.25, ge=0)
    """c_1 of PUCT (MuZero: 1.25)."""
    puct_base: float = Field(19652.0, gt=0)
    """c_2 of PUCT (MuZero: 19652)."""
    dirichlet_alpha: float = Field(0.25, gt=0)
    """Concentration of the noise on the root's prior (MuZero: 0.25 on Atari, 0.3 in chess, 0.03 in Go)."""
    dirichlet_share: float = Field(0.25, ge=0, le=1)
    """Share of that noise in the root's prior (MuZero: 0.25)."""
    max_considered_actions: int = Field(16, ge=1)
    """Number of actions at the root with which sequential halving begins (Gumbel MuZero: 16)."""
    visit_offset: float = Field(50.0, ge=0)
    """c_visit of Gumbel's sigma."""
    q_range: Literal["node", "tree", "returns"] = "node"
    """The range by which Gumbel's sigma rescales Q-values: `node` takes the least and greatest of a node's own actions
    (as in mctx), however little they differ. `tree` takes those of the whole tree, as in MuZero, so that small
    differences stay small. `returns` divides by the largest return of training so far, so that a difference means the
    same in every state; it needs `model.value_unit=returns`."""
    value_scale: float = Field(0.1, ge=0)
    """c_scale of Gumbel's sigma (0.1; 1.0 on boards)."""


class Step(NamedTuple):
    """A model's prediction for an action taken in a latent."""

    reward: Float[Array, " B *P"]
    discount: Float[Array, " B"]
    """gamma; -gamma where the turn passes to the other of two players; 0 where the game of a true simulator ended."""
    logits: Float[Array, "B A"]
    """Logits of the prior policy in the next latent."""
    value: Float[Array, " B *P"]
    """Value of the next latent, for the player who moves there; of more than two players, a vector that begins with
    that player (`ops.turns`).  The reward's vector begins with the player who took the action."""
    latent: PyTree[Array]
    """[B, ...]"""


class Root(NamedTuple):
    """The states from which a search starts."""

    logits: Float[Array, "B A"]
    value: Float[Array, " B *P"]
    latent: PyTree[Array]
    """[B, ...]"""
    legal_actions: Bool[Array, "B A"]
    """A row without any legal action, such as the last of an episode, is searched as if all were legal."""
    largest_return: Float[Array, ""] | None = None
    """What `q_range=returns` divides by; no other search reads it."""


Simulate = Callable[[Any, Int[Array, " B"]], Step]
"""(latent [B, ...], action [B]) -> Step; called once per simulation."""


class SearchResult(NamedTuple):
    """The result of a search for its root."""

    action: Int[Array, " B"]
    """The search's own choice: the most visited action (PUCT), or the winner of sequential halving (Gumbel)."""
    weights: Float[Array, "B A"]
    """The improved policy: visit shares (PUCT) or softmax(logits + sigma(completed Q)) (Gumbel); 0 where illegal."""
    value: Float[Array, " B *P"]
    """Value for bootstraps and priorities: the root's mean (PUCT), or the sum of weights times completed Q (Gumbel)."""
    visits: Int[Array, "B A"]
    q_values: Float[Array, "B A"]
    """r + discount v of each action, for the player to move; 0 for actions not visited."""
    tree: Any
    """The `mctx.Tree` where `keep_tree` is set, or None."""
    actions: Shaped[Array, "B A ..."] | None = None
    """The candidates of the root, to which the indices of actions refer; None where the indices are the actions."""
    root: Root | None = None
    """The root, where a caller has added it."""


def require_simulations(num_simulations: int) -> None:
    """Refuse a search without simulations, which would have no result.

    Raises:
      ValueError: the number is less than 1.
    """
    if num_simulations < 1:
        raise ValueError(f"a search needs at least 1 simulation, not {num_simulations}; act by the network without one")


def searched_actions(legal_actions: Bool[Array, "B A"]) -> Bool[Array, "B A"]:
    """Return the legal actions, or all actions of a row where none is legal, so that no row becomes NaN."""
    return legal_actions | ~legal_actions.any(-1, keepdims=True)
