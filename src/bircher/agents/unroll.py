"""The model unrolled along the actions that were taken, with its targets at every depth."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.networks.model import Model
from bircher.ops import improvement, turns
from bircher.ops.distributions import Distribution
from bircher.ops.turns import per_player
from bircher.types import PolicyTarget, Prediction, Targets, Trajectory


class Unrolled(NamedTuple):
    """The model's predictions and their targets at depth k = 0 … K below each root row.

    Depth 0 is the root itself.  A mask is True where the target at that depth exists: no episode's end lies
    between root and depth, and the sequence is long enough.
    """

    latent: Float[Array, "K B T latent"]
    """Latents of depth 1 … K."""
    prediction: Prediction
    """Logits [K + 1, B, T, …] of depth 0 … K; those of illegal actions are masked if `unroll` had `mask_illegal`."""
    reward_logits: Float[Array, "K B T *P atoms"]
    """Logits of the rewards at depth 1 … K."""
    policy: PolicyTarget
    """Weights [D, B, T, N]; without actions they are the probabilities of all discrete actions."""
    policy_mask: Bool[Array, "D B T"]
    value: Float[Array, "D B T *P"]
    value_mask: Bool[Array, "D B T"]
    reward: Float[Array, "K B T *P"]
    reward_mask: Bool[Array, "K B T"]
    encoded_mask: Bool[Array, "K B T"]
    """Whether the row at that depth belongs to the same episode."""
    legal_actions: Bool[Array, "D B T A"]

    def acting_params(self, distribution: Distribution) -> Float[Array, "D B T P"]:
        """Return the parameters of the policy as it acts, with illegal actions masked."""
        return distribution.restrict(self.prediction.policy_logits, self.legal_actions)


class Absorbing(NamedTuple):
    """How targets continue after a terminal row, which the model learns as an absorbing state (MuZero)."""

    num_players: int
    """Players take turns at every step."""
    outcome: bool
    """Whether the value of a terminal row is the last reward, from the view of the player at that row; this is for
    games without a reward head."""


def windows(x: Array, depths: int, length: int) -> Array:
    """Return [depths, B, length, ...] with entry (k, b, t) = x[b, t + k], and 0 (False) past the end.

    `x` is [B, R, ...].
    """
    missing = max(depths - 1 + length - x.shape[1], 0)
    padded = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.stack([padded[:, k : k + length] for k in range(max(depths, 1))])[:depths]


def episode_ends(trajectory: Trajectory) -> Array:
    """Return [B, T + 1]: whether the action of a row has no successor in the sequence.

    That is so for last rows, for rows of agents that are not there, and for rows before a row that is first.  The last
    kind is a seam: after a resume, two rows next to each other in the replay may come from different episodes.
    """
    following_first = jnp.pad(trajectory.first[:, 1:], ((0, 0), (0, 1)))
    ends = trajectory.last | following_first
    return ends if trajectory.valid is None else ends | ~trajectory.valid


def root_mask(ends: Bool[Array, "B R"], burn_in: int) -> Bool[Array, "B T"]:
    """Return which rows are roots: rows after the first `burn_in` whose action has a successor."""
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
    """Unroll the model K steps from every root along the actions that were taken, and align its targets.

    Depth k of root t is valid if no episode ends on rows t … t + k - 1.  Rewards have a target at every valid depth,
    and policies on rows whose action has a successor.  Values have a target on a terminal row too, which is 0, because
    the look-ahead bootstraps from it.  They have none on a truncated row, which has no return, or where `value_mask`
    in the extras of the targets is False.

    With `absorbing`, values and rewards have targets after a terminal row as well.  Without `mask_illegal`, the policy
    has to learn to give illegal actions no probability, because a search has a mask of legal actions only at its root.
    """
    length = target.value.shape[1]
    depths, ends = unroll_steps + 1, episode_ends(rows)
    open_rows = windows(~ends, depths, length)
    # reached[k]: the actions of rows t … t + k - 1 all have a successor.
    reached = jnp.concatenate([jnp.ones_like(open_rows[:1]), jnp.cumprod(open_rows[:-1], axis=0).astype(bool)])
    in_range = (jnp.arange(depths)[:, None] + jnp.arange(length))[:, None, :]
    terminal = windows(rows.terminal, depths, length)
    has_return = windows(target.extras.per_transition.get("value_mask", target.mask), depths, length)

    following = model.unroll(latent, windows(rows.action, unroll_steps, length))
    latents = jnp.concatenate([latent[None], following])
    features = model.head_input(latents)
    prediction = model.prediction(features)
    legal = windows(rows.legal_actions, depths, length)
    value = windows(target.value, depths, length) * per_player(has_return, target.value[None])
    value_mask = reached & (has_return | terminal)
    reward = windows(target.reward, unroll_steps, length)
    reward_mask = reached[1:] & (in_range[1:] <= length)
    if absorbing is not None:
        dead = jnp.cumsum(reached & terminal, axis=0) > 0
        absorbed = _absorbing_values(rows, reached & terminal, absorbing, length)
        value = jnp.where(per_player(dead, value), absorbed, value)
        value_mask |= dead
        reward = jnp.where(per_player(dead[:-1], reward), 0.0, reward)
        reward_mask |= dead[:-1]
    if mask_illegal:
        params = model.distribution.restrict(prediction.policy_logits, legal)
        prediction = prediction._replace(policy_logits=params)
    return Unrolled(
        latent=following,
        prediction=prediction,
        reward_logits=model.reward_logits(features[1:]),
        policy=_policy_windows(target.policy, rows.legal_actions.shape[-1], depths, length),
        policy_mask=reached & open_rows & (in_range <= length),
        value=value,
        value_mask=value_mask,
        reward=reward,
        reward_mask=reward_mask,
        encoded_mask=reached[1:] & (in_range[1:] <= length),
        legal_actions=legal,
    )


def _policy_windows(policy: PolicyTarget, num_actions: int, depths: int, length: int) -> PolicyTarget:
    """Return the windows of a policy's target; without densities its weights become those of all discrete actions."""
    if policy.log_density is None:
        policy = improvement.exact_target(improvement.dense(policy, num_actions))
    return jax.tree.map(lambda x: windows(x, depths, length), policy)


def _absorbing_values(rows: Trajectory, terminates: Array, absorbing: Absorbing, length: int) -> Array:
    """Return [D, B, T]: the value at the depth of a terminal row, and at the absorbing states after it."""
    reward = windows(rows.reward, terminates.shape[0], length)
    if not absorbing.outcome:
        return jnp.zeros(reward.shape)
    # The last reward is that of the player who moved last, and the terminal row is the next player's.
    outcome, players = turns.passed_on(reward, absorbing.num_players), absorbing.num_players
    values = [jnp.where(per_player(terminates[0], outcome[0]), outcome[0], 0.0)]
    for depth in range(1, terminates.shape[0]):
        here = per_player(terminates[depth], outcome[depth])
        values.append(jnp.where(here, outcome[depth], turns.passed_on(values[-1], players)))
    return jnp.stack(values)
