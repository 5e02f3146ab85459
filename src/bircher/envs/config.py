"""Settings of the environment, and of what the agent observes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bircher.spaces import LayoutSetting

SIZE = (64, 64)
"""Height and width of a picture where nothing else is said: small shapes stay legible, and networks stay small."""


class ObservationConfig(BaseModel):
    """What the agent sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["state", "pixels"] = "state"
    """`state` is what the environment itself gives; `pixels` is a picture of it, Gymnasium's or Atari's screen."""
    size: tuple[int, int] | None = None
    """Height and width that pictures are brought to; null takes 64 × 64, in Atari what the protocol says."""
    gray: bool | None = None
    """One channel instead of three; null keeps the colors, in Atari it takes what the protocol says."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> ObservationConfig:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={list(self.size)} is no picture: expected height and width of at least 1")
        for name in ("size", "gray"):
            if self.name == "state" and getattr(self, name) is not None:
                raise ValueError(f"{name} is a picture's: set observation=pixels with it, or leave it null")
        return self


class EnvConfig(BaseModel):
    """Which environment, and how many of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    num_envs: int = Field(64, ge=1, le=2**17)
    """Environments stepped together."""
    max_steps: int | None = Field(None, ge=1)
    """Actions after which an episode is truncated; null leaves the environment's own limit."""
    action_repeat: int | None = Field(None, ge=1, le=10_000)
    """Steps that each action lasts, their rewards summed, in Gymnasium's environments; null: 1, Atari's 4."""
    stack: int = Field(1, ge=1, le=256)
    """Observations joined along the last axis, the newest last."""
    num_threads: int | None = Field(None, ge=1, le=1024)
    """EnvPool's threads; null takes one a core."""
    num_workers: int | None = Field(None, ge=0, le=1024)
    """Gymnasium's processes, 0 for none; null takes one a core for pictures, else none."""
    backend: Literal["toys", "gymnax", "pgx", "envpool", "gymnasium"] | None = None
    """Which adapter; null takes the quickest that has the environment."""
    options: dict[str, Any] = {}
    """Keyword arguments of the environment's constructor."""
    protocol: Literal["paper", "dqn"] | None = None
    """How Atari games are played; null is `paper`: sticky actions, all 18 of them.  `dqn`: no-ops at the start."""
    reward_clip: float | None = Field(None, gt=0)
    """Rewards are learned from within ± this; evaluations count them whole, the returns of training do not."""
    layout: LayoutSetting = "auto"
    """`auto` turns pictures to height, width and channels and keeps Discrete observations as integers.  `as_given`
    leaves arrays as they are and makes Discrete observations one-hot, as runs of the version before had them."""

    @field_validator("options")
    @classmethod
    def _can_be_saved(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse values that the run's `config.yaml` cannot hold."""
        for name, value in options.items():
            kind = next(_other_kinds(value), None)
            if kind is not None:
                raise ValueError(f"{name} holds a value of type {kind}: expected text, numbers, true, false, null, or "
                                 "lists and dictionaries of them")  # fmt: skip
        return options


def _other_kinds(value: Any) -> Iterator[str]:
    """Yield the types within a value that YAML has no form for."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _other_kinds(item)
    elif not isinstance(value, str | int | float | None):
        yield type(value).__name__
