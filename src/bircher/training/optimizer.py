"""AdamW as Muesli uses it, its rate, and how many updates a rollout gets."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array
from pydantic import BaseModel, ConfigDict, Field


class OptimizerConfig(BaseModel):
    """The AdamW optimizer, and the number and size of the updates after each rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(3e-4, gt=0)
    """The learning rate at the beginning of the run."""
    final_learning_rate: float = Field(0.0, ge=0)
    """The learning rate at the last update, which is reached linearly."""
    update_clip: float = Field(1.0, gt=0)
    """The bound ± to which each element of Adam's update is clipped, before it is multiplied by the learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """The coefficient of AdamW's weight decay, which is multiplied by the learning rate; 0 turns it off."""
    gradient_clip: Literal["none", "value", "norm"] = "none"
    """How gradients are clipped before Adam: each element, the global norm, or not at all (the paper)."""
    gradient_clip_bound: float = Field(1.0, gt=0)
    """The bound of `gradient_clip`."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """The decay of Adam's first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """The decay of Adam's second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """The constant in the denominator of Adam's update."""
    batch_size: int = Field(32, gt=0, le=2**24)
    """The number of sequences in each update. Where environments have several agents it is multiplied by their number.
    Null is derived: the minibatches of an epoch contain every environment's rollout once."""
    crop_length: int | None = Field(None, gt=0)
    """The number of rows of each sequence that an update learns from, at a random position; null takes all rows.
    Targets are computed from whole sequences.

    A few rows of many sequences are less alike than many rows of a few sequences. This matters for games in which the
    outcome is the only reward.
    """
    updates_per_step: float = Field(1 / 128, gt=0)
    """The number of updates for each environment step. Null is derived: epochs × minibatches for each rollout."""
    minibatches: int = Field(1, gt=0, le=2**20)
    """The number of updates that share one computation of targets; 1 computes them for each update (the paper)."""
    epochs: int = Field(1, gt=0, le=10_000)
    """The number of times that each of these minibatches is used."""
    segment_length: int | None = Field(None, gt=0)
    """The number of rows of the segments into which sequences are cut (PPO: 1). Segments are distributed over
    minibatches at random in each epoch. Null keeps whole sequences, and the same minibatches in every epoch. `auto` is
    derived: 1, or at least four times `model.unroll_steps` if a model is unrolled, or null with a memory."""
    target_kl: float | None = Field(None, gt=0)
    """The bound of KL(pi_b, pi) between the policy that acted and the current one. A minibatch beyond it ends the
    updates of its batch."""


def updates_per_iteration(config: OptimizerConfig, steps: int) -> int:
    """Return the number of updates after each rollout of `steps` environment steps, a multiple of epochs × minibatches.

    Raises:
      ValueError: the settings give less than one.
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
    """Return the learning rate after `env_steps` of the run's environment steps, linear to `final_learning_rate`."""
    share = jnp.minimum(env_steps / total_steps, 1.0)
    return config.learning_rate + (config.final_learning_rate - config.learning_rate) * share


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Build AdamW with its update clipped element by element, before the learning rate (Muesli, appendix).

    The learning rate itself is applied by the caller.
    """
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
    """Check that a network with memory has sequences from which its memory can learn.

    Raises:
      ValueError: sequences are cut into single rows, or the burn-in leaves no row or is combined with cut sequences.
    """
    if config.segment_length == 1:
        raise ValueError(
            "optimizer.segment_length=1 cuts sequences into single rows, from which model.memory cannot learn: set it "
            "to at least 2, or to null for whole sequences"
        )
    if burn_in >= rollout_length:
        raise ValueError(
            f"model.burn_in={burn_in} leaves no row of a sequence's {rollout_length} rows (loop.rollout_length)"
        )
    cut = next((name for name in ("segment_length", "crop_length") if getattr(config, name) is not None), None)
    if burn_in and cut is not None:
        raise ValueError(
            f"model.burn_in={burn_in} counts the first rows of whole sequences, and optimizer.{cut}="
            f"{getattr(config, cut)} cuts them: remove one of them"
        )


def require_rows(config: OptimizerConfig, rollout_length: int) -> None:
    """Check that sequences can be cut into crops or segments of the given lengths.

    Raises:
      ValueError: a length does not fit the rollout, or both lengths are set.
    """
    rows = f"a sequence's {rollout_length} rows (loop.rollout_length)"
    if config.crop_length is not None and config.crop_length > rollout_length:
        raise ValueError(f"optimizer.crop_length={config.crop_length} is more than {rows}")
    if config.segment_length is None:
        return
    if config.crop_length is not None:
        raise ValueError(
            f"optimizer.segment_length={config.segment_length} and optimizer.crop_length={config.crop_length} "
            "exclude each other"
        )
    if rollout_length % config.segment_length:
        raise ValueError(f"optimizer.segment_length={config.segment_length} must divide {rows}")
