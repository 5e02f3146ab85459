"""The model's errors: its predictions, unrolled along real episodes, compared with what happened, depth by depth.

`ambiguity` measures whether rewards differ after the same observation and action.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bircher.agents.base import Agent, LookAhead, model_of
from bircher.agents.unroll import episode_ends, windows
from bircher.networks.model import Model
from bircher.ops import distributions, returns, turns
from bircher.ops.turns import own
from bircher.types import Key, Policy, Trajectory


def measure(rows: Trajectory) -> dict[str, float]:
    """Compare the rewards that followed equal observations and actions, over NumPy rows [B, T + 1].

    Only transitions that occur at least twice count.  The first row of an episode is left out, because nothing that
    could be remembered comes before it.  The ambiguity is missing where no transition repeats or all rewards are equal.
    """
    used = ~(rows.first | rows.last)[:, :-1] & ~rows.first[:, 1:]
    arrays = [x[:, :-1][used] for x in jax.tree.leaves(rows.observation)]
    action = np.asarray(rows.action)[:, :-1][used]
    reward = rows.reward[..., 0] if rows.reward.ndim > used.ndim else rows.reward  # of the player who moved
    reward = reward[:, 1:][used].astype(np.float64)
    if not len(reward):
        return {}
    # The sum with 0 makes -0.0 equal to 0.0.
    group, size = _groups([x + x.dtype.type(0) for x in arrays], action)
    repeated = size[group] > 1
    metrics = {"act/repeated_observations": float(repeated.mean())}
    group, reward = group[repeated], reward[repeated]
    if len(reward) and np.ptp(reward) > 0:
        mean = np.bincount(group, reward, len(size)) / np.maximum(size, 1)
        within = np.square(reward - mean[group]).sum() / (size[size > 1] - 1).sum()
        metrics["act/reward_ambiguity"] = float(within / np.var(reward, ddof=1))
    return metrics


def _groups(arrays: list[np.ndarray], action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of every row, by equal observation and action, and the number of rows in each group."""
    keys = [tuple(part.tobytes() for part in row) for row in zip(*arrays, action, strict=True)]
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([index[key] for key in keys])
    return group, np.bincount(group)


class Diagnosis(NamedTuple):
    """Errors of the model at depth 1 … D below every row of some sequences, and statistics of its look-ahead.

    Errors are means over the rows whose episode reaches that depth, and NaN if none does.  For a model without a reward
    head the outcome of a game is the value of its last position, and there is no error of rewards.
    """

    reward_error: Float[Array, " D"]
    """Root mean square of the predicted reward minus the real one; NaN if rewards are not predicted."""
    value_error: Float[Array, " D"]
    """Root mean square of the predicted value minus the value of the encoded real row."""
    return_error: Float[Array, " D"]
    """Root mean square of the predicted value minus the discounted return that followed."""
    policy_kl: Float[Array, " D"]
    """KL from the policy of the encoded real row to the predicted one, in nats."""
    reward_deviation: Float[Array, ""]
    """Standard deviation of the rewards, which is the error of a model that predicts their mean."""
    return_deviation: Float[Array, ""]
    """Standard deviation of the returns."""
    gain: Float[Array, ""]
    """The gain of the improved policy over the prior by the model's q: sum of (improved - prior) q."""
    improvement_kl: Float[Array, ""]
    """KL from the improved policy to the prior, in nats."""
    advantage_correlation: Float[Array, ""]
    """Correlation of the model's advantage of the action that was taken with the real one-step error.

    The advantage is q minus the mean of q under the prior.  The one-step error is r + gamma v(s') - v(s), with the
    values of the real rows.  It is the sum of the action's advantage, the error of the state's value, and chance.
    """
    advantage_ceiling: Float[Array, ""]
    """The correlation that these advantages would have if all were true: sd(advantage) / sd(error), at most 1.

    A true advantage A is the mean of the error given state and action, minus the part that the state alone explains.
    Its mean over the actions is 0, so it is uncorrelated with the rest of the error: cov(A, error) = var(A), and the
    correlation is sd(A) / sd(error).  The correlation divided by this ceiling is the slope of the error on the model's
    advantages.  It is 1 if these have the right size on average, and about 0 if the model cannot rank actions.
    """


def diagnose(agent: Agent, policy: Policy, rows: Trajectory, depths: int, key: Key) -> Diagnosis:
    """Compare an agent's model with rows [B, T + 1] of real episodes; the function is pure and may be compiled.

    Raises:
      ValueError: the agent has no model, or the sequences are shorter than `depths`.
    """
    if agent.look is None:
        raise ValueError(f"agent {agent.name} has no model to compare with episodes")
    length = rows.reward.shape[1] - 1
    if depths > length:
        raise ValueError(f"sequences of {length} steps are too short for {depths} steps of the model")
    model = model_of(agent.unwrap(policy))
    latent = agent.encode(policy, rows)
    flat, legal = (x.reshape(rows.first.size, x.shape[-1]) for x in (latent, rows.legal_actions))
    estimates = agent.look(policy, flat, legal, key)
    estimates = jax.tree.map(lambda x: x.reshape(*rows.first.shape, *x.shape[1:]), estimates)
    ends = episode_ends(rows)
    continues = ~ends
    # reached[k]: row t + k + 1 exists and belongs to the episode of row t.
    in_range = jnp.arange(1, depths + 1)[:, None, None] + jnp.arange(length) <= length
    reached = jnp.cumprod(windows(continues, depths, length), axis=0).astype(bool) & in_range
    predicts_reward = model.heads.reward is not None
    value, outcome, error = _own_outcomes(rows, estimates.value, ends, agent.model_discount, predicts_reward)

    latents = model.unroll(latent[:, :length], windows(rows.action, depths, length))
    prediction = model.predict(latents)
    predicted_value = own(model.value_support.mean(prediction.value_logits), reached.ndim)
    own_reward = own(rows.reward, rows.first.ndim)  # with more than two players, that of the player who moved
    later = windows(jnp.arange(length + 1)[None].repeat(len(ends), 0), depths + 1, length)[1:]

    def at_depth(x: Array) -> Array:
        return jax.vmap(lambda index: jax.vmap(lambda row, i: row[i])(x, index))(later)

    acts = reached & at_depth(continues)
    params = model.distribution.restrict(prediction.policy_logits, at_depth(rows.legal_actions))
    if estimates.actions is None:
        policy_error = distributions.kl_divergence(at_depth(estimates.prior), jax.nn.softmax(params))
    else:
        own_params = model.distribution.restrict(model.predict(latent).policy_logits, rows.legal_actions)
        policy_error = model.distribution.kl(at_depth(own_params), params)
    reward_error = own(model.reward(latents), reached.ndim) - at_depth(own_reward)
    valid = continues[:, :-1]
    q, q_taken = _q_values(model, agent.model_discount, latent, rows, estimates)
    mean_q = (estimates.prior * q).sum(-1)
    taken = (q_taken - mean_q)[:, :-1]
    gains = ((estimates.improved - estimates.prior) * q).sum(-1)
    return Diagnosis(
        reward_error=_root_mean_square(reward_error, reached & predicts_reward),
        value_error=_root_mean_square(predicted_value - at_depth(value), reached),
        return_error=_root_mean_square(predicted_value - at_depth(outcome), reached),
        policy_kl=_mean(policy_error, acts),
        reward_deviation=_deviation(own_reward[:, 1:], valid),
        return_deviation=_deviation(outcome[:, :-1], valid),
        gain=_mean(gains[:, :-1], valid, axes=None),
        improvement_kl=_mean(
            distributions.kl_divergence(estimates.improved, estimates.prior)[:, :-1], valid, axes=None
        ),
        advantage_correlation=_correlation(taken, error, valid),
        advantage_ceiling=jnp.minimum(_deviation(taken, valid) / jnp.maximum(_deviation(error, valid), 1e-12), 1.0),
    )


def _q_values(
    model: Model, model_discount: float, latent: Array, rows: Trajectory, estimates: LookAhead
) -> tuple[Float[Array, "B R A"], Float[Array, "B R"]]:
    """Return q of the actions that the agent weighs, and that of the action that was taken."""
    if estimates.actions is None:
        q = jnp.where(rows.legal_actions, estimates.q_values, 0.0)
        return q, distributions.select(q, rows.action)
    actions = jnp.expand_dims(rows.action, 2)
    return estimates.q_values, model.look_ahead(latent, model_discount, actions)[..., 0]


def _own_outcomes(
    rows: Trajectory, value: Float[Array, "B R *P"], ends: Bool[Array, "B R"], discount: float, predicts_reward: bool
) -> tuple[Float[Array, "B R"], Float[Array, "B R"], Float[Array, "B T"]]:
    """Return `_outcomes` for the player to move on each row."""
    if value.ndim == ends.ndim:
        return _outcomes(rows, value, ends, discount, predicts_reward)

    def of_player(reward: Float[Array, "B R"], value: Float[Array, "B R"]) -> tuple[Array, Array, Array]:
        return _outcomes(rows._replace(reward=reward), value, ends, discount, predicts_reward)

    # From the view of one player the rows are those of a single one.
    one_view = turns.from_first(rows.reward, before=1), turns.from_first(value)
    found, outcome, error = jax.vmap(of_player, (-1, -1), -1)(*one_view)
    return turns.from_each(found)[..., 0], turns.from_each(outcome)[..., 0], turns.from_each(error)[..., 0]


def _outcomes(
    rows: Trajectory, value: Float[Array, "B R"], ends: Bool[Array, "B R"], discount: float, predicts_reward: bool
) -> tuple[Float[Array, "B R"], Float[Array, "B R"], Float[Array, "B T"]]:
    """Return the value of each row, the discounted return after it, and the one-step error r + gamma v(s') - v(s).

    The value of a terminal row is the true one.
    """
    reward, factor, terminal_value = rows.reward, rows.discount, jnp.zeros_like(rows.reward)
    if not predicts_reward:
        # The outcome is the value of the terminal row.  In the rows the discount into that row is 0, because its reward
        # was received before it.
        turn = 1.0 if discount > 0 else -1.0
        reward, factor, terminal_value = jnp.zeros_like(reward), jnp.where(rows.terminal, turn, factor), turn * reward
    value = jnp.where(rows.terminal, terminal_value, value)
    discounts, continues = abs(discount) * factor[:, 1:], (~ends[:, 1:]).astype(jnp.float32)
    outcome = jax.vmap(returns.lambda_returns)(reward[:, 1:], discounts, value[:, 1:], continues)
    error = reward[:, 1:] + discounts * value[:, 1:] - value[:, :-1]
    # A row before a seam has no return; its value takes the place of one.
    return value, jnp.where(ends, value, jnp.concatenate([outcome, value[:, -1:]], axis=1)), error


def as_dictionary(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return plain numbers and lists, depth 1 first; None stands for a number that could not be measured."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value if math.isfinite(value) else None

    return {name: plain(jnp.asarray(value).tolist()) for name, value in diagnosis._asdict().items()}


def as_metrics(diagnosis: Diagnosis) -> dict[str, float]:
    """Return the metrics that a training run logs: the errors at the first, middle and last depth, and the scalars.

    Numbers that could not be measured are left out, such as late depths of short games.
    """
    depths = len(diagnosis.reward_error)
    metrics = {}
    for name in ("reward_error", "value_error", "policy_kl"):
        values = getattr(diagnosis, name)
        for word, index in (("first", 0), ("middle", (depths - 1) // 2), ("last", depths - 1)):
            metrics[f"model/{name}_{word}"] = float(values[index])
    for name in ("gain", "advantage_correlation", "advantage_ceiling"):
        metrics[f"model/{name}"] = float(getattr(diagnosis, name))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _mean(values: Array, mask: Array, axes: tuple[int, ...] | None = (1, 2)) -> Array:
    """Return the mean over the elements in the mask; NaN if the mask is empty."""
    count = mask.sum(axes)
    return jnp.where(count > 0, jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(count, 1), jnp.nan)


def _root_mean_square(values: Float[Array, "D B T"], mask: Bool[Array, "D B T"]) -> Float[Array, " D"]:
    return jnp.sqrt(_mean(jnp.square(values), mask))


def _deviation(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    mean = _mean(values, mask, axes=None)
    return jnp.sqrt(_mean(jnp.square(values - mean), mask, axes=None))


def _correlation(x: Float[Array, "B T"], y: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    def centered(values: Array) -> Array:
        return values - _mean(values, mask, axes=None)

    product = _mean(centered(x) * centered(y), mask, axes=None)
    return product / jnp.maximum(_deviation(x, mask) * _deviation(y, mask), 1e-12)
