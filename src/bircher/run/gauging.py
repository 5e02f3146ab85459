"""What each loss term asks of each part of the network, while a run learns."""

from __future__ import annotations

from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bircher import gradients
from bircher.config import Config
from bircher.learner import TrainState
from bircher.run.assembly import Parts
from bircher.sampling import windows
from bircher.types import Batch, Policy

SEQUENCES = 16
"""Most sequences that the terms' gradients are measured on."""
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""It runs some ten times in all: half of the compilation's time is worth more than twice its own."""


class Gauge:
    """Norms, shares and cosines of the terms' gradients on sequences of the replay."""

    def __init__(self, parts: Parts, config: Config):
        agent, replay, optimiser = parts.agent, parts.learner.replay, config.optimiser
        size = min(optimiser.batch_size, SEQUENCES)

        def measure(train: TrainState, key: jax.Array) -> gradients.TermGradients:
            sample_key, target_key, cut_key, loss_key = jax.random.split(key, 4)
            rows = replay.sample(train.replay, sample_key, size).rows
            batch = Batch(rows, jnp.full(size, -1), jnp.ones(size))
            targets, _ = agent.targets(Policy(train.target_params, train.agent_state), batch, target_key)
            if optimiser.window is not None:
                batch, targets = windows(cut_key, batch, targets, optimiser.window)
            progress = jnp.minimum(train.counters.env_steps / config.steps, 1.0)
            return gradients.measure(agent, train.params, train.agent_state, batch, targets, loss_key, progress)

        self._program: Any = jax.jit(measure, compiler_options=QUICKLY)
        self._ready = replay.ready
        self._names = tuple(agent.weights)
        self._key = jax.random.key(config.seed)
        self._compiling: Thread | None = None

    def compile(self, train: PyTree) -> None:
        """Begin to compile for a state of these shapes, beside whatever else is done meanwhile."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), train)
        self._compiling = Thread(target=self._compile, args=(shapes, self._key), name="gradients by term")
        self._compiling.start()

    def _compile(self, shapes: PyTree, key: jax.Array) -> None:
        self._program = self._program.lower(shapes, key).compile()

    def __call__(self, train: TrainState) -> dict[str, float]:
        """Metrics by name; none before the replay holds a sequence."""
        if self._compiling is not None:
            self._compiling.join()
        if not bool(self._ready(train.replay)):
            return {}
        self._key, key = jax.random.split(self._key)
        return gradients.as_metrics(self._program(train, key), self._names)
