"""Learning from a rollout as a loop calls it: one program, or two where the replay stands apart, in the host's memory.

With the replay apart an iteration is

    networks' device:   learn from r_i and the draws for it   |   make r_{i+1}        |  learn from r_{i+1} ...
    host, a thread:     (priorities;) store r_i, draw for r_{i+1}, bring that over    |

and nothing waits but for what it needs.  What is drawn when is fixed (`prefetch.py`), however long each part takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, PyTree

from bircher import machine
from bircher.learner import Apart, Learner, TrainState, networks
from bircher.loops.base import Progress, temporary_bytes
from bircher.prefetch import Ahead, Marks, Prefetched
from bircher.types import Tally, Trajectory

Then = Callable[[TrainState], PyTree]
"""What else of the new state the program gives, in buffers of its own."""
Learnt = tuple[TrainState, Progress, PyTree]


class Together:
    """One program, with the replay where the networks are."""

    def __init__(self, learn: Learner, then: Then):
        # A program of its own within the other, so that it is traced only once.
        learn_once = jax.jit(learn.learn)

        def learn_from(train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally):
            train, metrics = learn_once(train, rollout, tally)
            return train, progress.then(tally, metrics, train.counters.env_steps), then(train)

        self.learn_from = learn_from
        """Traceable, for a loop that is one program itself."""
        self._learn_once = learn_once
        self._program: Any = jax.jit(learn_from, donate_argnums=(0, 1))

    def __call__(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> Learnt:
        """The new state and sums, and what `then` makes of the state; the old ones are given away."""
        return self._program(train, progress, rollout, tally)

    def settled(self, train: TrainState) -> TrainState:
        """The state with all that is still under way elsewhere: here nothing is."""
        return train

    def zeros(self, train: TrainState, rollout: Trajectory, tally: Tally) -> Progress:
        """Sums of nothing, of the right shapes; traces only."""
        return Progress.zero(jax.eval_shape(self._learn_once, train, rollout, tally)[1])

    def compile(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> int:
        """For arguments of these shapes, else it is done at the first call; the bytes that it takes while it runs."""
        self._program = self._program.lower(train, progress, rollout, tally).compile()
        return temporary_bytes(self._program)


class SideBySide:
    """A program for the networks, and one for the replay, which a thread of its own calls."""

    def __init__(self, apart: Apart, then: Then):
        learn_once = jax.jit(apart.learn)

        def learn_from(train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally, ahead: Ahead):
            train, metrics, marks = learn_once(train, rollout, tally, ahead)
            return train, progress.then(tally, metrics, train.counters.env_steps), marks, then(train)

        self._learn_once = learn_once
        self._learn: Any = jax.jit(learn_from, donate_argnums=(0, 1))
        self._turn: Any = jax.jit(apart.turn, donate_argnums=0)
        self._host, self._device = machine.host(), machine.default()
        self._thread = ThreadPoolExecutor(1, "replay")
        self._turning: Future[tuple[Prefetched, Ahead]] | None = None

    def __call__(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> Learnt:
        """The same, without a replay in the state, which is still under way: see `settled`."""
        if self._turning is None:
            replay, ahead = train.replay, self._brought(train.replay)
        else:
            replay, ahead = self._turning.result()
        state = networks(train)
        state, progress, marks, seen = self._learn(state, progress, rollout, tally, ahead)
        self._turning = self._thread.submit(self._turned, replay, rollout, tally.failed, marks)
        return state, progress, seen

    def settled(self, train: TrainState) -> TrainState:
        """The state with its replay, once that has stored the last rollout."""
        if self._turning is None:
            return train
        (replay, _), self._turning = self._turning.result(), None
        return replace(train, replay=replay)

    def zeros(self, train: TrainState, rollout: Trajectory, tally: Tally) -> Progress:
        """As with one program."""
        ahead = train.replay.ahead
        return Progress.zero(jax.eval_shape(self._learn_once, networks(train), rollout, tally, ahead)[1])

    def compile(self, train: TrainState, progress: Progress, rollout: Trajectory, tally: Tally) -> int:
        """Both, at once; the bytes that learning takes while it runs."""
        ring, key, ahead = train.replay
        shapes = partial(_placed, device=self._device)
        learning = self._learn.lower(networks(train), progress, rollout, tally, shapes(ahead))
        marks = learning.out_info[2]
        on_host = partial(_placed, device=self._host)
        turning = self._turn.lower(on_host(ring), on_host(key), on_host(rollout), on_host(tally.failed), on_host(marks))
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(turning.compile)
            self._learn, self._turn = learning.compile(), compiled.result()
        return temporary_bytes(self._learn)

    def _brought(self, replay: Prefetched) -> Ahead:
        return jax.device_put(replay.ahead, self._device)

    def _turned(
        self, replay: Prefetched, rollout: Trajectory, failed: Array, marks: Marks | None
    ) -> tuple[Prefetched, Ahead]:
        """On the thread: nothing but this waits for the rollout, and for marks, to come over."""
        replay = self._turn(replay.ring, replay.key, *jax.device_put((rollout, failed, marks), self._host))
        return replay, self._brought(replay)


def _placed(tree: PyTree, device: machine.Device) -> PyTree:
    """Shapes of arrays that are there."""
    sharding = SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


Learning = Together | SideBySide


def make(learn: Learner, then: Then = lambda train: ()) -> Learning:
    """The learner's program or programs; a call gives state and sums away and gives new ones."""
    return Together(learn, then) if learn.apart is None else SideBySide(learn.apart, then)
