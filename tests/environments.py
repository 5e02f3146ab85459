"""Environments from an id or a callable and a few settings, as the tests need them."""

from __future__ import annotations

from typing import Any

from bircher.envs import registry
from bircher.envs.base import Env
from bircher.envs.config import EnvRequest, EnvSource, ObservationConfig
from bircher.types import EnvSpec


def make(
    source: EnvSource, num_envs: int = 1, seed: int = 0, role: str = "train", generation: int = 0,
    observation: ObservationConfig | None = None, **settings: Any,
) -> Env:  # fmt: skip
    """Make environments with these settings of `EnvConfig`."""
    return registry.make(EnvRequest.of(source, observation, num_envs=num_envs, **settings), seed, role, generation)


def spec(source: EnvSource, observation: ObservationConfig | None = None, **settings: Any) -> EnvSpec:
    """Return the specification of an environment with these settings of `EnvConfig`."""
    return registry.spec(EnvRequest.of(source, observation, **settings))


def probe(source: EnvSource, seed: int, **settings: Any) -> tuple[str, ...]:
    """Play the first step of an environment with these settings of `EnvConfig`."""
    return registry.probe(EnvRequest.of(source, **settings), seed)


def resolve(source: EnvSource, observation: ObservationConfig | None = None, **settings: Any) -> str:
    """Return the backend of an environment with these settings of `EnvConfig`."""
    return registry.resolve(EnvRequest.of(source, observation, **settings))
