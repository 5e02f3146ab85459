"""Settings of the environment, and of what the agent observes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bircher.spaces import LayoutSetting

SIZE = (64, 64)
"""Default height and width of a picture: small shapes stay legible, and networks stay small."""


class ObservationConfig(BaseModel):
    """Settings of the agent's observations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["state", "pixels"] = "state"
    """`state` takes the environment's own observation; `pixels` takes a picture of it from Gymnasium or Atari."""
    size: tuple[int, int] | None = None
    """Height and width to which pictures are resized; null takes 64 × 64, or for Atari the size of the protocol."""
    gray: bool | None = None
    """Whether pictures have one channel instead of three; null keeps the colors, or for Atari follows the protocol."""

    @model_validator(mode="after")
    def _require_pixels(self) -> ObservationConfig:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={list(self.size)} is not valid: expected height and width of at least 1")
        for name in ("size", "gray"):
            if self.name == "state" and getattr(self, name) is not None:
                raise ValueError(f"{name} applies to pictures only: set observation=pixels with it, or leave it null")
        return self


class EnvConfig(BaseModel):
    """Settings that select an environment and the number of its copies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    num_envs: int = Field(64, ge=1, le=2**17)
    """Number of environments that are stepped together."""
    max_steps: int | None = Field(None, ge=1)
    """Number of actions after which an episode is truncated; null keeps the environment's own limit."""
    action_repeat: int | None = Field(None, ge=1, le=10_000)
    """Number of the environment's steps that each action lasts, with the rewards summed, until the episode ends; null
    takes 1, or for Atari 4. Steps and limits of a run count actions, and frames count the environment's steps."""
    stack: int = Field(1, ge=1, le=256)
    """Number of observations that are concatenated along the last axis, the newest last."""
    num_threads: int | None = Field(None, ge=1, le=1024)
    """Number of EnvPool's threads; null takes one per core."""
    num_workers: int | None = Field(None, ge=0, le=1024)
    """Number of worker processes of Gymnasium or PettingZoo environments, or 0 for none; null takes one per core for
    Gymnasium's pictures, otherwise 0."""
    backend: Literal["toys", "gymnax", "pgx", "envpool", "gymnasium", "pettingzoo", "jaxmarl"] | None = None
    """Adapter that runs the environment; null takes the fastest one that has it."""
    options: dict[str, Any] = {}
    """Keyword arguments of the environment's constructor."""
    protocol: Literal["paper", "dqn"] | None = None
    """How Atari games are played.  `paper` (or null) has sticky actions and all 18 actions; `dqn` has no-ops at the
    start."""
    reward_clip: float | None = Field(None, gt=0)
    """Bound to which the rewards of training are clipped, so that they lie within ± this value.  Evaluations count
    rewards without clipping; the returns of training are sums of clipped rewards."""
    action_bound: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Bound that replaces infinite bounds of continuous actions, which then lie within ± this value; null refuses such
    actions."""
    layout: LayoutSetting = "auto"
    """`auto` transposes pictures to height, width, channels and keeps Discrete observations as integers.  `as_given`
    leaves arrays unchanged and makes Discrete observations one-hot, as in runs of the previous version."""

    share_rewards: bool = False
    """Whether each of several agents receives in training the mean of the rewards of all that are there, in place of
    its reward. Evaluations count the environment's rewards, and the team's return is the same in both."""
    agent_identity: bool = False
    """Whether observations contain which of several agents observes: a one-hot at the end of a vector, or the part
    `agent` of other observations."""

    @property
    def repeat(self) -> int:
        """Return how often each action is taken, where the environment's own package does not repeat it."""
        return self.action_repeat or 1

    @property
    def max_frames(self) -> int | None:
        """Return the number of the environment's steps after which an episode is truncated; None keeps its own."""
        return None if self.max_steps is None else self.max_steps * self.repeat

    @field_validator("options")
    @classmethod
    def _can_be_saved(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Raise ValueError for values that the run's `config.yaml` cannot store."""
        for name, value in options.items():
            kind = next(_other_kinds(value), None)
            if kind is not None:
                raise ValueError(f"{name} has a value of type {kind}: expected text, numbers, true, false, null, or "
                                 "lists and dictionaries of them")  # fmt: skip
        return options


EnvSource = str | Callable[[], Any]
"""An id, or a class or zero-argument function that returns a ``gymnasium.Env``, or one of PettingZoo's environments."""


class EnvRequest(NamedTuple):
    """Everything that decides what an environment is: its settings, what is observed, and the callable that makes it.

    Adapters take it whole, together with the seeds, and read the settings that they support.
    """

    config: EnvConfig
    observation: ObservationConfig | None = None
    """What the agent observes; None takes the environment's own observation."""
    callable: Callable[[], Any] | None = None
    """A class or function that makes the environment, of which `config.id` has only the name; None for an id."""

    @classmethod
    def of(cls, source: EnvSource, observation: ObservationConfig | None = None, **settings: Any) -> EnvRequest:
        """Return the request for an environment, with settings that are fields of `EnvConfig`.

        Args:
          source: an id, or a class or function that makes the environment.
          observation: what the agent observes; None takes the environment's own observation.
          settings: such as `num_envs=16`.
        """
        name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
        config = EnvConfig.model_validate({"id": name, **settings})
        return cls(config, observation, None if isinstance(source, str) else source)

    @property
    def source(self) -> EnvSource:
        """Return the callable, or the id."""
        return self.config.id if self.callable is None else self.callable

    @property
    def pixels(self) -> bool:
        """Return whether pictures are observed."""
        return self.observation is not None and self.observation.name == "pixels"


def _other_kinds(value: Any) -> Iterator[str]:
    """Yield the types within a value that cannot be written as YAML."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _other_kinds(item)
    elif not isinstance(value, str | int | float | None):
        yield type(value).__name__
