"""What an agent acts on, made from an environment's own observation and mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bircher.envs.base import num_legal
from bircher.envs.encoding import Encoding, encode_observation, misfit
from bircher.types import EnvSpec


class Inputs(NamedTuple):
    """Observations as the network is given them, and their legal actions, with a batch axis."""

    observation: np.ndarray
    """[B, ...]"""
    legal_actions: np.ndarray
    """[B, A], True where an action is legal"""
    single: bool = False
    """Whether one observation was given, without a batch axis."""


def inputs_of(spec: EnvSpec, observation: Any, legal_actions: Any = None) -> Inputs:
    """One observation or a batch of them, as the environment gives them, with the mask of its `info`, or None for all.

    Observations that are encoded already, as the rows of bircher's environments are, are taken as they are.

    Raises:
      ValueError: observation or mask has another shape than the environment's, or holds a number that does not fit.
    """
    given, encoding = np.asarray(observation), spec.encoding
    encoded = spec.observation.shape
    own = encoding.own_shape if isinstance(encoding, Encoding) else encoded
    indices = isinstance(encoding, Encoding) and encoding.kind != "array"
    if _is_batch_of(given, own) and not (indices and given.dtype.kind == "f"):
        single = given.shape == own
        batch = given[None] if single else given
        if isinstance(encoding, Encoding):
            unfit = misfit(encoding, batch)
            if unfit is not None:
                raise ValueError(f"an observation of {spec.id} holds {unfit}")
            batch = encode_observation(encoding, batch)
    elif _is_batch_of(given, encoded):
        single = given.shape == encoded
        batch = given[None] if single else given
    else:
        raise ValueError(f"{spec.id} has observations {own}, or [B, …] of them, not {given.shape}")
    return Inputs(batch.astype(spec.observation.dtype), mask_of(spec, legal_actions, len(batch)), single)


def _is_batch_of(given: np.ndarray, shape: tuple[int, ...]) -> bool:
    return given.shape == shape or (given.ndim > len(shape) and given.shape[1:] == shape)


def mask_of(spec: EnvSpec, legal_actions: Any, size: int) -> np.ndarray:
    """The legal actions of a batch as booleans [B, A], from one mask, a mask for each, or None for all.

    Raises:
      ValueError: they have another shape.
    """
    count = num_legal(spec)
    if legal_actions is None:
        return np.ones((size, count), bool)
    mask = np.asarray(legal_actions, bool)
    if mask.shape not in ((count,), (1, count), (size, count)):
        raise ValueError(
            f"legal_actions has the shape {mask.shape}, and {spec.id} has {count} actions: expected ({count},), "
            f"or ({size}, {count}) for each observation"
        )
    return np.broadcast_to(mask, (size, count))
