"""Sequences of a run's replay for those who look on: drawn where the replay is, brought to where the networks are."""

from __future__ import annotations

from typing import Any

import jax

from bircher import machine
from bircher.learner import Learner
from bircher.types import Key, Trajectory


class Replayed:
    """`count` sequences at a call."""

    def __init__(self, learn: Learner, count: int):
        self._sample = jax.jit(lambda state, key: learn.replay.sample(state, key, count).rows)
        self._ready, self._apart = learn.replay.ready, learn.apart is not None

    def __call__(self, state: Any, key: Key) -> Trajectory | None:
        """None before the replay holds a sequence."""
        if not bool(self._ready(state)):
            return None
        if not self._apart:
            return self._sample(state, key)
        return jax.device_put(self._sample(state, jax.device_put(key, machine.host())), machine.default())

    def shapes(self, state: Any) -> Trajectory:
        """What a call gives."""
        return jax.eval_shape(self._sample, state, jax.random.key(0))
