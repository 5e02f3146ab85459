"""What MuZero learns from: policies of searches, and returns that bootstrap from values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import BaseModel, ConfigDict, Field

from bircher.agents.base import remembered
from bircher.agents.unrolling import episode_ends, learnt_from
from bircher.models.model import Model
from bircher.ops import improvement, returns
from bircher.search import SearchResult
from bircher.types import Batch, Key, Targets, Trajectory

Plan = Callable[..., SearchResult]
"""A search with the target network: (latents [N, ...], legal actions [N, A], key=...) -> what it found."""


class ReturnConfig(BaseModel):
    """The value target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["n_step", "lambda", "outcome"] = "n_step"
    """`outcome` learns only from rows whose game ends within their sequence."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """n of the n-step return."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95
    bootstrap: Literal["search", "network"] = "search"
    """Where values at a return's end come from: the searches, or the target network of now (as in EfficientZero)."""


def encoded(model: Model, rows: Trajectory, burn_in: int = 0) -> Float[Array, "B R latent"]:
    """The latents of rows, with the memory that stands in them."""
    return model.encode_rows(rows.observation, remembered(rows), rows.first, burn_in)


def muzero_targets(
    config: ReturnConfig, discount: float, fraction: float, burn_in: int, plan: Plan, model: Model, batch: Batch,
    key: Key, minibatches: int = 1,
) -> Targets:  # fmt: skip
    """Policies and bootstraps of the searches that acted, or of fresh ones for the reanalysed share of each minibatch.

    `model` is the target network and `plan` a search with it: (latents [N, …], legal actions [N, A], key=…) ->
    SearchResult. The batch holds `minibatches` equal minibatches, one after the other.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = learnt_from(ends, burn_in)
    latent = encoded(model, rows)
    policy, value = _reanalysed(fraction, minibatches, plan, latent, rows, key)
    if config.bootstrap == "network":
        value = model.value(latent)
    target, known = _returns(config, discount, rows, ends, value)
    error = jnp.abs(jnp.where(mask & known, target - value[:, :-1], 0.0))
    result = Targets(
        value=target,
        reward=rows.reward[:, 1:],
        advantage=target - value[:, :-1],
        policy=improvement.exact_target(policy),
        mask=mask,
        priority=error.max(-1),
        extras={"value_mask": mask & known},
    )
    return jax.lax.stop_gradient(result)


def _reanalysed(
    fraction: float, minibatches: int, plan: Plan, latent: Float[Array, "B R latent"], rows: Trajectory, key: Key
) -> tuple[Float[Array, "B R A"], Float[Array, "B R"]]:
    """The searches' policies and values.

    The last `fraction` of each minibatch is searched anew, because its replayed sequences stand last.
    """
    policy, value = rows.extras["search_policy"], rows.extras["search_value"]
    size = len(value) // minibatches
    count = round(fraction * size)
    if not count:
        return policy, value

    def last(x: Array) -> Array:
        return x.reshape(minibatches, size, *x.shape[1:])[:, -count:].reshape(-1, *x.shape[2:])

    def with_last(x: Array, new: Array) -> Array:
        grouped = x.reshape(minibatches, size, *x.shape[1:])
        new = new.reshape(minibatches, count, *x.shape[1:])
        return jnp.concatenate([grouped[:, :-count], new], axis=1).reshape(x.shape)

    found = plan(last(latent), last(rows.legal_actions), key=key)
    return with_last(policy, found.weights), with_last(value, found.value)


def _returns(
    config: ReturnConfig, discount: float, rows: Trajectory, ends: Bool[Array, "B R"], value: Float[Array, "B R"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """The value target of each root row, and whether there is one."""
    reward, discounts, bootstrap = rows.reward[:, 1:], discount * rows.discount[:, 1:], value[:, 1:]
    random = rows.extras.get("random_action", jnp.zeros_like(ends))
    # What followed a random action says nothing of its state: the value before it is the search's own.
    going = (~(ends | random)[:, 1:]).astype(jnp.float32)
    known = ~random[:, :-1]
    if config.kind == "n_step":
        n_step = partial(returns.n_step_returns, n=config.steps)
        return jax.vmap(lambda r, d, v, c: n_step(r, d, v, continue_t=c))(reward, discounts, bootstrap, going), known
    if config.kind == "lambda":
        return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, config.lambda_ * going), known
    # An end lies ahead within the sequence, looking backwards from the last row.
    known &= jnp.cumsum(ends[:, 1:][:, ::-1], axis=1)[:, ::-1] > 0
    return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, going), known
