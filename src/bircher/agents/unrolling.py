"""The model unrolled along the actions taken, beside the targets that it should meet at every depth."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.models.model import Model
from bircher.ops import distributions, improvement
from bircher.types import Prediction, Targets, Trajectory


class Unrolled(NamedTuple):
    """The model's predictions and their targets at depth k = 0 … K below each root row.

    Depth 0 is the root itself.  A mask is True where the target at that depth exists: no episode's end lies
    between root and depth, and the sequence is long enough.
    """

    prediction: Prediction
    """logits [K + 1, B, T, …]"""
    reward_logits: Float[Array, "K B T atoms"]
    """depth 1 … K"""
    policy: Float[Array, "D B T A"]
    policy_mask: Bool[Array, "D B T"]
    value: Float[Array, "D B T"]
    value_mask: Bool[Array, "D B T"]
    reward: Float[Array, "K B T"]
    reward_mask: Bool[Array, "K B T"]


def windows(x: Array, depths: int, length: int) -> Array:
    """[B, R, ...] -> [depths, B, length, ...] with entry (k, b, t) = x[b, t + k], and 0 (False) past the end."""
    missing = max(depths - 1 + length - x.shape[1], 0)
    padded = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.stack([padded[:, k : k + length] for k in range(max(depths, 1))])[:depths]


def episode_ends(trajectory: Trajectory) -> Array:
    """[B, T + 1]: rows whose action leads nowhere: last rows, and rows before a row that is first.

    The second kind is a seam: after a resume a ring looks whole and is not.
    """
    following_first = jnp.pad(trajectory.first[:, 1:], ((0, 0), (0, 1)))
    return trajectory.last | following_first


def unroll(model: Model, latent: Array, rows: Trajectory, target: Targets, unroll_steps: int) -> Unrolled:
    """The model unrolled K steps from every root with the actions taken, and the targets it should meet.

    Depth k of root t is valid while no end lies on rows t … t + k - 1.  Reward: every valid depth.  Value: also
    on a terminal row, towards 0, for the look-ahead bootstraps from it; not on a truncated one, which has no
    return.  Policy: rows where an action counts.
    """
    length = target.value.shape[1]
    depths = unroll_steps + 1
    ends = episode_ends(rows)
    open_rows = windows(~ends, depths, length)
    # reached[k]: rows t … t + k - 1 all lead somewhere.
    reached = jnp.concatenate([jnp.ones_like(open_rows[:1]), jnp.cumprod(open_rows[:-1], axis=0).astype(bool)])
    in_range = (jnp.arange(depths)[:, None] + jnp.arange(length))[:, None, :]
    terminal = windows(rows.terminal, depths, length)
    has_return = windows(target.mask, depths, length)

    latents = model.unroll(latent, windows(rows.action, unroll_steps, length))
    following = latents
    latents = jnp.concatenate([latent[None], latents])
    policy = improvement.dense(target.policy, rows.legal_actions.shape[-1])
    prediction = model.predict(latents)
    legal = windows(rows.legal_actions, depths, length)
    return Unrolled(
        prediction=prediction._replace(policy_logits=distributions.mask_logits(prediction.policy_logits, legal)),
        reward_logits=model.reward_logits(following),
        policy=windows(policy, depths, length),
        policy_mask=reached & open_rows & (in_range <= length),
        value=windows(target.value, depths, length) * has_return,
        value_mask=reached & (has_return | terminal),
        reward=windows(target.reward, unroll_steps, length),
        reward_mask=reached[1:] & (in_range[1:] <= length),
    )
