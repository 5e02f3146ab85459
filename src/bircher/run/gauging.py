"""What each loss term asks of each part of the network, while a run learns."""

from __future__ import annotations

from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bircher import gradients
from bircher.config import Config
from bircher.learner import TrainState, networks
from bircher.run.assembly import Parts
from bircher.run.replayed import Replayed
from bircher.sampling import windows
from bircher.types import Batch, Policy, Trajectory

SEQUENCES = 16
"""Most sequences that the terms' gradients are measured on."""
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""It runs some ten times in all: half of the compilation's time is worth more than twice its own."""


class Gauge:
    """Norms, shares and cosines of the terms' gradients on sequences of the replay."""

    def __init__(self, parts: Parts, config: Config):
        agent, optimiser = parts.agent, config.optimiser
        size = min(optimiser.batch_size, SEQUENCES)

        def measure(train: TrainState, rows: Trajectory, key: jax.Array) -> gradients.TermGradients:
            target_key, cut_key, loss_key = jax.random.split(key, 3)
            batch = Batch(rows, jnp.full(size, -1), jnp.ones(size))
            targets, _ = agent.targets(Policy(train.target_params, train.agent_state), batch, target_key)
            if optimiser.window is not None:
                batch, targets = windows(cut_key, batch, targets, optimiser.window)
            progress = jnp.minimum(train.counters.env_steps / config.steps, 1.0)
            return gradients.measure(agent, train.params, train.agent_state, batch, targets, loss_key, progress)

        self._program: Any = jax.jit(measure, compiler_options=QUICKLY)
        self._replayed = Replayed(parts.learner, size)
        self._names = tuple(agent.weights)
        self._key = jax.random.key(config.seed)
        self._compiling: Thread | None = None

    def compile(self, train: PyTree) -> None:
        """Begin to compile for a state of these shapes, beside whatever else is done meanwhile."""
        given = networks(train), self._replayed.shapes(train.replay), self._key
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
        self._compiling = Thread(target=self._compile, args=shapes, name="gradients by term")
        self._compiling.start()

    def _compile(self, *shapes: PyTree) -> None:
        self._program = self._program.lower(*shapes).compile()

    def __call__(self, train: TrainState) -> dict[str, float]:
        """Metrics by name; none before the replay holds a sequence."""
        if self._compiling is not None:
            self._compiling.join()
        self._key, sample_key, key = jax.random.split(self._key, 3)
        rows = self._replayed(train.replay, sample_key)
        if rows is None:
            return {}
        # Brought over whole: taken apart on the device, each number would be a program of its own.
        return gradients.as_metrics(jax.device_get(self._program(networks(train), rows, key)), self._names)
