"""Games of three players with known right play: Nim for three, and an auction in which everyone pays.

    id              observation                        actions
    toy/three-nim   one-hot of the heap                take 1, 2 or 3
    toy/auction     bids and who is still in, one-hot  pass, or raise the highest bid by 1 or by 2

Players move in a fixed order.  Observations are those of the player to move, and rewards are vectors that begin with
the player who moved, followed by the next one (`ops.turns`).  No two results that a player can choose between are of
equal worth to that player, unless they are the same result for everyone.  So right play, in which all maximize their
own payoff, has one value in each position (max^n).

- three-nim: who takes the last stone gets 1, who moved before loses 1, and the third gets 0.  With up to 3 stones at a
  time the player to move loses if the heap divided by 5 leaves 4, gets 0 if it leaves 0, and otherwise wins.
  Options: ``heap`` and ``take``.
- auction: the highest bid wins the prize.  All players pay their bids.  A player who passed is out, and passes in
  every later turn.  The auction is over when only the highest bidder is in, or all are out.  Payoffs are divided by the
  budget.  Options: ``prize`` and ``budget``, the largest bid.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs.jax_env import Single
from bircher.types import Discrete, EnvSpec

PLAYERS = 3


def _vector(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), np.float32)


def _reached(time: jax.Array, limit: int | None) -> jax.Array:
    return jnp.bool_(False) if limit is None else time >= limit


def _nim(env_id: str, max_steps: int | None, heap: int = 20, take: int = 3) -> Single:
    payoffs = jnp.array([1.0, 0.0, -1.0])  # the player who moves, the next one, and the one who moved before
    penalty = jnp.array([-1.0, 0.0, 0.0])  # taking more than there is

    def start(key, index):
        return (heap, 0), jax.nn.one_hot(heap, heap + 1)

    def move(key, inner, action):
        left, time = inner[0] - action - 1, inner[1] + 1
        reward = jnp.where(left == 0, payoffs, jnp.where(left < 0, penalty, 0.0))
        return (left, time), jax.nn.one_hot(left, heap + 1), reward, left <= 0, _reached(time, max_steps)

    def legal_actions(inner):
        return jnp.arange(1, take + 1) <= inner[0]

    spec = EnvSpec(env_id, _vector(heap + 1), Discrete(take), max_steps, num_players=PLAYERS)
    return Single(spec, start, move, legal_actions)


def _auction(env_id: str, max_steps: int | None, prize: float = 4.5, budget: int = 6) -> Single:
    def observe(inner):
        bids, inside = inner[0], inner[1]
        return jnp.concatenate([jax.nn.one_hot(bids, budget + 1).ravel(), inside.astype(jnp.float32)])

    def start(key, index):
        # The arrays begin with the player to move.
        inner = (jnp.zeros(PLAYERS, jnp.int32), jnp.ones(PLAYERS, bool), 0)
        return inner, observe(inner)

    def move(key, inner, action):
        bids, inside, time = inner
        raised = action > 0
        bids = bids.at[0].set(jnp.where(raised, jnp.minimum(bids.max() + action, budget), bids[0]))
        inside = inside.at[0].set(inside[0] & raised)
        highest = (bids == bids.max()) & (bids > 0)
        over = ~(inside & ~highest).any() & (inside.sum() <= 1)
        payoffs = (prize * highest - bids) / budget
        inner = (jnp.roll(bids, -1), jnp.roll(inside, -1), time + 1)
        return inner, observe(inner), jnp.where(over, payoffs, 0.0), over, _reached(time + 1, max_steps)

    def legal_actions(inner):
        bids, inside = inner[0], inner[1]
        raises = inside[0] & (bids.max() + jnp.arange(1, 3) <= budget)
        return jnp.concatenate([jnp.ones(1, bool), raises])

    spec = EnvSpec(env_id, _vector(PLAYERS * (budget + 2)), Discrete(3), max_steps, num_players=PLAYERS)
    return Single(spec, start, move, legal_actions)


GAMES: dict[str, Callable[..., Single]] = {"toy/three-nim": _nim, "toy/auction": _auction}
"""The function that makes each game, by id."""
