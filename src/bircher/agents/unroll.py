"""The model unrolled along the actions that were taken, with its targets at every depth."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.networks.model import Model
from bircher.ops import distributions, improvement
from bircher.types import Prediction, Targets, Trajectory


class Unrolled(NamedTuple):
    """The model's predictions and their targets at depth k = 0 … K below each root row.

    Depth 0 is the root itself.  A mask is True where the target at that depth exists: no episode's end lies
    between root and depth, and the sequence is long enough.
    """

    latent: Float[Array, "K B T latent"]
    """depth 1 … K"""
    prediction: Prediction
    """logits [K + 1, B, T, …]; the policy's of illegal actions masked, if `unroll` was asked to"""
    reward_logits: Float[Array, "K B T atoms"]
    """depth 1 … K"""
    policy: Float[Array, "D B T A"]
    policy_mask: Bool[Array, "D B T"]
    value: Float[Array, "D B T"]
    value_mask: Bool[Array, "D B T"]
    reward: Float[Array, "K B T"]
    reward_mask: Bool[Array, "K B T"]
    encoded_mask: Bool[Array, "K B T"]
    """whether the row at that depth belongs to the same episode"""
    legal_actions: Bool[Array, "D B T A"]

    @property
    def acting_logits(self) -> Float[Array, "D B T A"]:
        """The policy's logits with illegal actions masked, as it acts."""
        return distributions.mask_logits(self.prediction.policy_logits, self.legal_actions)


class Absorbing(NamedTuple):
    """What the model learns of the rows behind a terminal one: that nothing more happens there (MuZero)."""

    turn: int
    """-1 where the turn changes hands at every step, else 1."""
    outcome: bool
    """Whether the terminal row's value is the last reward, seen from there, as in games without a reward head."""


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


def root_mask(ends: Bool[Array, "B R"], burn_in: int) -> Bool[Array, "B T"]:
    """Rows that are roots: those whose action leads somewhere, behind the first `burn_in`."""
    return ~ends[:, :-1] & (jnp.arange(ends.shape[1] - 1) >= burn_in)


def unroll(
    model: Model,
    latent: Array,
    rows: Trajectory,
    target: Targets,
    unroll_steps: int,
    absorbing: Absorbing | None = None,
    mask_illegal: bool = True,
) -> Unrolled:
    """The model unrolled K steps from every root with the actions taken, and the targets it should meet.

    Depth k of root t is valid while no end lies on rows t … t + k - 1.  Reward: every valid depth.  Value: also
    on a terminal row, toward 0, for the look-ahead bootstraps from it; not on a truncated one, which has no
    return, nor where the targets' own `value_mask` says that there is none.  Policy: rows where an action counts.
    With `absorbing` values and rewards go on behind a terminal row.  Without `mask_illegal` the policy must learn
    that illegal actions get no probability: a search knows which they are at its root alone.
    """
    length = target.value.shape[1]
    depths = unroll_steps + 1
    ends = episode_ends(rows)
    open_rows = windows(~ends, depths, length)
    # reached[k]: rows t … t + k - 1 all lead somewhere.
    reached = jnp.concatenate([jnp.ones_like(open_rows[:1]), jnp.cumprod(open_rows[:-1], axis=0).astype(bool)])
    in_range = (jnp.arange(depths)[:, None] + jnp.arange(length))[:, None, :]
    terminal = windows(rows.terminal, depths, length)
    has_return = windows(target.extras.get("value_mask", target.mask), depths, length)

    latents = model.unroll(latent, windows(rows.action, unroll_steps, length))
    following = latents
    latents = jnp.concatenate([latent[None], latents])
    policy = improvement.dense(target.policy, rows.legal_actions.shape[-1])
    features = model.head_input(latents)
    prediction = model.prediction(features)
    legal = windows(rows.legal_actions, depths, length)
    value = windows(target.value, depths, length) * has_return
    value_mask = reached & (has_return | terminal)
    reward = windows(target.reward, unroll_steps, length)
    reward_mask = reached[1:] & (in_range[1:] <= length)
    if absorbing is not None:
        dead = jnp.cumsum(reached & terminal, axis=0) > 0
        value = jnp.where(dead, _values_behind(rows, reached & terminal, absorbing, length), value)
        value_mask |= dead
        reward = jnp.where(dead[:-1], 0.0, reward)
        reward_mask |= dead[:-1]
    if mask_illegal:
        prediction = prediction._replace(policy_logits=distributions.mask_logits(prediction.policy_logits, legal))
    return Unrolled(
        latent=following,
        prediction=prediction,
        reward_logits=model.reward_logits(features[1:]),
        policy=windows(policy, depths, length),
        policy_mask=reached & open_rows & (in_range <= length),
        value=value,
        value_mask=value_mask,
        reward=reward,
        reward_mask=reward_mask,
        encoded_mask=reached[1:] & (in_range[1:] <= length),
        legal_actions=legal,
    )


def _values_behind(rows: Trajectory, dies: Array, absorbing: Absorbing, length: int) -> Array:
    """[D, B, T]: the value of a terminal row at the depth where it lies, and of the absorbing states behind it."""
    if not absorbing.outcome:
        return jnp.zeros(dies.shape)
    # The last reward is that of who moved there; the row's own mover is the other player, where there are two.
    outcome = absorbing.turn * windows(rows.reward, dies.shape[0], length)
    values = [jnp.where(dies[0], outcome[0], 0.0)]
    for depth in range(1, dies.shape[0]):
        values.append(jnp.where(dies[depth], outcome[depth], absorbing.turn * values[-1]))
    return jnp.stack(values)
