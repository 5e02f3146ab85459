"""AdamW as Muesli uses it, its rate, and how many updates a rollout gets."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array
from pydantic import BaseModel, ConfigDict, Field


class OptimizerConfig(BaseModel):
    """AdamW, and how many updates of how many sequences each rollout gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(3e-4, gt=0)
    final_learning_rate: float = Field(0.0, ge=0)
    """The rate falls linearly to this at the last update."""
    update_clip: float = Field(1.0, gt=0)
    """Adam's update is clipped element by element to ± this, before the learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: Literal["none", "value", "norm"] = "none"
    """How gradients are clipped before Adam; the paper does not."""
    gradient_clip_bound: float = Field(1.0, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    batch_size: int = Field(32, gt=0, le=2**24)
    """Sequences in each update."""
    crop_length: int | None = Field(None, gt=0)
    """Rows of each sequence that an update learns from, at a random place; None: all. Targets see whole sequences.

    A few rows of many sequences are less alike than many rows of few: games whose outcomes are all that is known.
    """
    updates_per_step: float = Field(1 / 128, gt=0)
    """Updates for each environment step."""
    minibatches: int = Field(1, gt=0, le=2**20)
    """Updates that share one computation of targets; 1 recomputes them for each (the paper)."""
    epochs: int = Field(1, gt=0, le=10_000)
    """Times each of those batches is used."""
    segment_length: int | None = Field(None, gt=0)
    """Rows of the pieces that sequences are cut into and dealt out to minibatches, anew for each epoch (PPO: 1); None:
    whole sequences, each minibatch the same in every epoch."""
    target_kl: float | None = Field(None, gt=0)
    """A minibatch whose policy lies further than this from the one that acted, by KL(pi_b, pi), ends its batch's
    updates."""


def updates_per_iteration(config: OptimizerConfig, steps: int) -> int:
    """Updates after each rollout of `steps` environment steps, a multiple of epochs × minibatches.

    Raises:
      ValueError: the settings ask for less than one.
    """
    group = config.epochs * config.minibatches
    groups = round(config.updates_per_step * steps / group)
    if groups < 1:
        raise ValueError(
            f"optimizer.updates_per_step={config.updates_per_step:g} gives {config.updates_per_step * steps:.3g} "
            f"updates for a rollout of {steps} steps (env.num_envs × loop.rollout_length); it must give at least "
            f"optimizer.epochs × optimizer.minibatches = {group}"
        )
    return groups * group


def learning_rate(config: OptimizerConfig, env_steps: Array, total_steps: int) -> Array:
    """The rate at so many of a run's environment steps: a straight line to `final_learning_rate`."""
    share = jnp.minimum(env_steps / total_steps, 1.0)
    return config.learning_rate + (config.final_learning_rate - config.learning_rate) * share


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW with its update clipped element by element, before the learning rate (Muesli, appendix)."""
    clip = {
        "none": optax.identity(),
        "value": optax.clip(config.gradient_clip_bound),
        "norm": optax.clip_by_global_norm(config.gradient_clip_bound),
    }[config.gradient_clip]
    return optax.chain(
        clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.clip(config.update_clip),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
    )


def require_memory_rows(config: OptimizerConfig, burn_in: int, rollout_length: int) -> None:
    """Refuse, for a network with memory, sequences that it could learn nothing through, as a ValueError."""
    if config.segment_length == 1:
        raise ValueError(
            "optimizer.segment_length=1 leaves model.memory single rows, and nothing to remember: give at "
            "least 2, or null for whole sequences"
        )
    if burn_in >= rollout_length:
        raise ValueError(
            f"model.burn_in={burn_in} leaves nothing of a sequence's {rollout_length} rows (loop.rollout_length)"
        )
    cut = next((name for name in ("segment_length", "crop_length") if getattr(config, name) is not None), None)
    if burn_in and cut is not None:
        raise ValueError(
            f"model.burn_in={burn_in} counts the first rows of whole sequences, and optimizer.{cut}="
            f"{getattr(config, cut)} cuts them: leave one of them out"
        )


def require_rows(config: OptimizerConfig, rollout_length: int) -> None:
    """Refuse windows and pieces that sequences cannot be cut into, as a ValueError."""
    rows = f"a sequence's {rollout_length} rows (loop.rollout_length)"
    if config.crop_length is not None and config.crop_length > rollout_length:
        raise ValueError(f"optimizer.crop_length={config.crop_length} is more than {rows}")
    if config.segment_length is None:
        return
    if config.crop_length is not None:
        raise ValueError(
            f"optimizer.segment_length={config.segment_length} and optimizer.crop_length={config.crop_length} "
            "exclude one another"
        )
    if rollout_length % config.segment_length:
        raise ValueError(f"optimizer.segment_length={config.segment_length} must divide {rows}")
