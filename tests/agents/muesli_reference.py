"""Muesli's targets and losses once more: NumPy, double precision, loops over every row, forward in time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bircher.networks.model import Model
from bircher.types import Trajectory

# Compiled once for a single row: the loops below call them hundreds of times.
step = jax.jit(lambda model, latent, action: model.step(latent, action))
predict = jax.jit(lambda model, latent: model.predict(latent))
reward_logits = jax.jit(lambda model, latent: model.reward_logits(latent))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scalar(model: Model, logits: Any) -> np.ndarray:
    """h^-1 of the expected atom."""
    support = model.reward_support
    atoms = np.linspace(support.low, support.high, support.num_atoms)
    x = (softmax(np.asarray(logits, float)) * atoms).sum(-1)
    root = (np.sqrt(1 + 4 * 1e-3 * (np.abs(x) + 1 + 1e-3)) - 1) / (2 * 1e-3)
    return np.sign(x) * (root**2 - 1)


def two_hot(model: Model, x: float) -> np.ndarray:
    """Weights on the two atoms around h(x)."""
    support = model.reward_support
    scaled = np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x
    place = (np.clip(scaled, support.low, support.high) - support.low) / (support.high - support.low)
    place *= support.num_atoms - 1
    weights = np.zeros(support.num_atoms)
    low = min(int(np.floor(place)), support.num_atoms - 2)
    weights[low], weights[low + 1] = low + 1 - place, place - low
    return weights


def masked_softmax(logits: Any, legal: np.ndarray) -> np.ndarray:
    """Over legal actions; others get 0."""
    return softmax(np.where(legal, np.asarray(logits, float), -np.inf))


def excess(target: np.ndarray, logits: np.ndarray) -> float:
    """KL of a distribution from the softmax of logits."""
    log_q = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    used = target > 0
    return float((target[used] * (np.log(target[used]) - log_q[used])).sum())


def leads_nowhere(rows: Any, b: int, t: int) -> bool:
    """Whether no transition follows row t: it is last, or the next row begins an episode."""
    return bool(rows.last[b, t]) or (t + 1 < rows.last.shape[1] and bool(rows.first[b, t + 1]))


def looked_at(model: Model, rows: Trajectory, discount: float) -> dict[str, np.ndarray]:
    """Every network output that targets need, action by action."""
    latent = model.represent(rows.observation)
    prediction = model.predict(latent)
    q = []
    for action in range(rows.legal_actions.shape[-1]):
        following = model.step(latent, jnp.full(rows.action.shape, action))
        reward = scalar(model, model.reward_logits(following))
        q.append(reward + discount * scalar(model, model.predict(following).value_logits))
    return {
        "q": np.stack(q, -1),
        "v": scalar(model, prediction.value_logits),
        "policy_logits": np.asarray(prediction.policy_logits, float),
    }


def targets(
    model: Model,
    rows: Trajectory,
    discount: float,
    lambda_: float,
    clip_bound: float,
    shares: tuple[float, float],
    baseline: str = "value",
) -> dict[str, np.ndarray]:
    """Value, normalized advantage, CMPO policy, mask and priority, for a fresh normalizer, by the definitions alone."""
    seen = looked_at(model, rows, discount)
    rows = jax.tree.map(np.asarray, rows)
    q, v = seen["q"], seen["v"]
    batch, length = rows.reward.shape[0], rows.reward.shape[1] - 1
    legal, behavior_logits = rows.legal_actions, np.asarray(rows.extras.per_action["behavior_logits"], float)
    behavior = masked_softmax(behavior_logits, legal)
    uniform = legal / legal.sum(-1, keepdims=True)
    prior = (1 - sum(shares)) * masked_softmax(seen["policy_logits"], legal)
    prior += shares[0] * behavior + shares[1] * uniform

    value, mask = np.zeros((batch, length)), np.zeros((batch, length), bool)
    for b in range(batch):
        for t in range(length):
            mask[b, t] = not leads_nowhere(rows, b, t)
            weight, s = 1.0, t
            while True:
                # Munos' sum of corrected one-step errors; the value of the first action itself cancels.
                own = q[b, s, rows.action[b, s]] if s > t else 0.0
                after = discount * rows.discount[b, s + 1]
                value[b, t] += weight * (rows.reward[b, s + 1] + after * (prior[b, s + 1] @ q[b, s + 1]) - own)
                s += 1
                if s == length or leads_nowhere(rows, b, s):
                    break
                a = rows.action[b, s]
                weight *= after * lambda_ * min(1.0, prior[b, s, a] / behavior[b, s, a])
    advantage = value - v[:, :-1]
    scale = np.sqrt((advantage[mask] ** 2).mean())
    base = (prior * q).sum(-1) if baseline == "expected_q" else v
    q_advantage = (q - base[..., None]) / scale
    policy = prior * np.exp(np.clip(q_advantage, -clip_bound, clip_bound))
    return {
        "value": value,
        "advantage": advantage / scale,
        "policy": policy / policy.sum(-1, keepdims=True),
        "mask": mask,
        "prior": prior,
        "scale": scale,
        "priority": np.array([np.abs(advantage[b, mask[b]]).max(initial=0.0) for b in range(batch)]),
    }


def losses(model: Model, rows: Trajectory, target: Any, unroll_steps: int) -> dict[str, np.ndarray]:
    """Every loss term of every valid root, by a loop over roots and depths.  `target` holds [B, T] arrays."""
    batch, length = target["value"].shape
    names = ("policy_gradient", "cmpo", "model_policy", "value", "model_value", "model_reward")
    terms = {name: np.zeros((batch, length)) for name in names}
    roots = np.asarray(model.represent(rows.observation))
    rows = jax.tree.map(np.asarray, rows)
    for b in range(batch):
        for t in range(length):
            if not target["mask"][b, t]:
                continue
            prediction = predict(model, roots[b, t])
            logits, a = np.asarray(prediction.policy_logits, float), int(rows.action[b, t])
            pi, pi_b = softmax(logits), softmax(np.asarray(rows.extras.per_action["behavior_logits"][b, t], float))
            terms["policy_gradient"][b, t] = -min(1, pi[a] / pi_b[a]) * target["advantage"][b, t] * np.log(pi[a])
            terms["cmpo"][b, t] = excess(target["policy"][b, t], logits)
            value_logits = np.asarray(prediction.value_logits, float)
            terms["value"][b, t] = excess(two_hot(model, target["value"][b, t]), value_logits)
            latent = roots[b, t]
            for k in range(1, unroll_steps + 1):
                if t + k > length or leads_nowhere(rows, b, t + k - 1):
                    break
                latent = step(model, latent, rows.action[b, t + k - 1])
                logits = np.asarray(reward_logits(model, latent), float)
                terms["model_reward"][b, t] += excess(two_hot(model, float(rows.reward[b, t + k])), logits)
                prediction = predict(model, latent)
                value_logits = np.asarray(prediction.value_logits, float)
                if bool(rows.terminal[b, t + k]):
                    terms["model_value"][b, t] += excess(two_hot(model, 0.0), value_logits)
                if leads_nowhere(rows, b, t + k):
                    break
                logits = np.asarray(prediction.policy_logits, float)
                terms["model_policy"][b, t] += excess(target["policy"][b, t + k], logits)
                if t + k < length:
                    terms["model_value"][b, t] += excess(two_hot(model, target["value"][b, t + k]), value_logits)
    for name in ("model_policy", "model_value", "model_reward"):
        terms[name] /= unroll_steps
    return terms
