"""MuZero's targets and losses once more: NumPy, loops over every row, forward in time."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from agents.muesli_reference import excess, leads_nowhere, predict, reward_logits, step, two_hot
from bircher.networks.model import Model
from bircher.types import Trajectory


def value_target(
    rows: Any, value: np.ndarray, b: int, t: int, discount: float, kind: str, n: int = 10, lambda_: float = 0.95
) -> float | None:
    """The return of row t by walking on from it, no further than to a row whose action was random.

    None where a game's outcome lies beyond the sequence, or where the row's own action was random.
    """
    length = rows.reward.shape[1] - 1
    random = rows.extras.per_row.get("random_action", np.zeros(rows.reward.shape, bool))
    if random[b, t]:
        return None
    steps = []
    for s in range(t, length):
        steps.append(s + 1)
        if leads_nowhere(rows, b, s + 1) or random[b, s + 1]:
            break
    ended = any(leads_nowhere(rows, b, s) for s in range(steps[-1], length + 1))
    returns, weight, total = [], 1.0, 0.0
    for s in steps:
        total += weight * rows.reward[b, s]
        weight *= discount * rows.discount[b, s]
        returns.append(total + weight * value[b, s])
    if kind == "n_step":
        return returns[min(n, len(returns)) - 1]
    if kind == "outcome":
        return returns[-1] if ended else None
    mixed = sum((1 - lambda_) * lambda_**i * g for i, g in enumerate(returns[:-1]))
    return mixed + lambda_ ** (len(returns) - 1) * returns[-1]


def losses(
    model: Model, rows: Trajectory, target: dict[str, np.ndarray], unroll_steps: int, turn: int, outcome: bool
) -> dict[str, np.ndarray]:
    """Every term of every valid root; `target` holds value, known, policy and mask, [B, T, …]."""
    batch, length = target["value"].shape
    terms = {name: np.zeros((batch, length)) for name in ("policy", "model_policy", "value", "model_value")}
    terms["model_reward"] = np.zeros((batch, length))
    roots = np.asarray(model.represent(rows.observation))
    rows = jax.tree.map(np.asarray, rows)

    def value_loss(goal: float, logits: Any) -> float:
        if model.value_support.num_atoms == 1:
            return float((goal - np.tanh(float(logits[0]))) ** 2)
        return excess(two_hot(model, goal), np.asarray(logits, float))

    for b in range(batch):
        for t in range(length):
            if not target["mask"][b, t]:
                continue
            prediction = predict(model, roots[b, t])
            terms["policy"][b, t] = excess(target["policy"][b, t], np.asarray(prediction.policy_logits, float))
            if target["known"][b, t]:
                terms["value"][b, t] = value_loss(target["value"][b, t], prediction.value_logits)
            latent, dead = roots[b, t], None
            for k in range(1, unroll_steps + 1):
                before = t + k - 1
                if dead is None and (before >= length or leads_nowhere(rows, b, before)):
                    break
                action = rows.action[b, before] if before < rows.action.shape[1] else 0
                latent = step(model, latent, action)
                prediction = predict(model, latent)
                if dead is not None:
                    dead *= turn
                    goal_reward = 0.0
                else:
                    goal_reward = float(rows.reward[b, t + k])
                    if rows.terminal[b, t + k]:
                        dead = turn * goal_reward if outcome else 0.0
                if model.heads.reward is not None:
                    logits = np.asarray(reward_logits(model, latent), float)
                    terms["model_reward"][b, t] += excess(two_hot(model, goal_reward), logits)
                if dead is not None:
                    terms["model_value"][b, t] += value_loss(dead, prediction.value_logits)
                    continue
                if leads_nowhere(rows, b, t + k):
                    break
                logits = np.asarray(prediction.policy_logits, float)
                terms["model_policy"][b, t] += excess(target["policy"][b, t + k], logits)
                if t + k < length and target["known"][b, t + k]:
                    terms["model_value"][b, t] += value_loss(target["value"][b, t + k], prediction.value_logits)
    for name in ("model_policy", "model_value", "model_reward"):
        terms[name] /= unroll_steps
    return terms
