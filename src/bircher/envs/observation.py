"""What an agent sees of an environment, as settings: its own numbers, or a picture of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

SIZE = (64, 64)
"""Height and width of a picture where nothing else is said: small shapes stay legible, and networks stay small."""


class ObservationConfig(BaseModel):
    """What the agent sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["state", "pixels"] = "state"
    """`state` is what the environment itself gives; `pixels` is a picture of it, Gymnasium's or Atari's screen."""
    size: tuple[int, int] | None = None
    """Height and width that pictures are brought to; null takes 64 × 64, in Atari what the protocol says."""
    grey: bool | None = None
    """One channel instead of three; null keeps the colours, in Atari it takes what the protocol says."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> ObservationConfig:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={list(self.size)} is no picture: expected height and width of at least 1")
        for name in ("size", "grey"):
            if self.name == "state" and getattr(self, name) is not None:
                raise ValueError(f"{name} is a picture's: set observation=pixels with it, or leave it null")
        return self
