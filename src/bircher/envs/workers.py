"""Gymnasium environments stepped in this process, or in a few others side by side.

A worker is a fresh interpreter that holds some of the environments and speaks over its standard input and output.
It knows neither JAX nor the script that runs, so a script needs no guard; it ends when its input ends, also where
the training is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import Bool, Float

from bircher.envs.contract import MASK
from bircher.envs.failures import EnvironmentFailure
from bircher.envs.observation_checks import float_leaves, not_finite
from bircher.envs.single import Named

START = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import bircher.envs.workers as it; it.serve()"
"""What a worker runs: the packages are found where this process finds them."""
PATIENCE = 5.0
"""Seconds in which a worker that is to end must have ended, before it is killed."""


class Rows(NamedTuple):
    """What a step of b environments gives."""

    observation: Any
    """A pytree [b, …], as Gymnasium's spaces have it."""
    reward: Float[np.ndarray, " b"]
    terminal: Bool[np.ndarray, " b"]
    truncated: Bool[np.ndarray, " b"]
    legal_actions: Bool[np.ndarray, "b A"]
    """All of the A discrete actions where the environment gives no mask; A is 0 for other action spaces."""


class Here:
    """Environments stepped one after another, in this process."""

    def __init__(self, makers: Sequence[Callable[[], Named]]):
        # Without copies: rows are turned into other arrays, or sent away, before the next step.
        self._pool = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self._none = np.zeros(len(makers), bool)
        actions = self._pool.single_action_space
        self._all_legal = np.ones((len(makers), int(actions.n) if isinstance(actions, Discrete) else 0), bool)
        self._float_leaves = float_leaves(self._pool.single_observation_space)

    def reset(self, seeds: Sequence[int]) -> list[Rows]:
        """Start every environment anew, each with its seed; an exception there is raised."""
        observation, info = self._pool.reset(seed=[int(seed) for seed in seeds])
        return [self._rows(observation, np.zeros(len(self._none)), self._none, self._none, info)]

    def step(self, actions: np.ndarray) -> list[Rows]:
        """One step of each; after an end its reset."""
        return [self._rows(*self._pool.step(actions))]

    def close(self) -> None:
        """Close the environments."""
        self._pool.close()

    def _rows(self, observation: Any, reward: Any, terminal: Any, truncated: Any, info: dict[str, Any]) -> Rows:
        for name, leaf in self._float_leaves(observation):
            # One call for all environments: a call for each takes a tenth of a small environment's step.
            finite = np.isfinite(leaf)
            if not finite.all():
                index = int(np.argmin(finite.reshape(len(finite), -1).all(-1)))
                raise self._pool.envs[index].breach(not_finite(name))  # type: ignore[attr-defined]
        legal = self._all_legal
        if MASK in info:
            legal = np.where(info[f"_{MASK}"][:, None], info[MASK], legal)
        return Rows(observation, reward, terminal, truncated, legal)


class Workers:
    """Environments shared out among processes, each of which steps its own one after another.

    Rows come as a list, a worker each, in the order of the environments.  Exceptions inside an environment, and the end
    of a worker, are EnvironmentFailures.
    """

    def __init__(self, makers: Sequence[Callable[[], Named]], count: int):
        self._shares = np.array_split(np.arange(len(makers)), count)
        self._workers = [_start([makers[index] for index in share]) for share in self._shares]
        self.close = weakref.finalize(self, _end, self._workers)
        """End the workers; also done when this object goes, or the interpreter."""
        try:
            for number in range(count):
                self._received(number)
        except EnvironmentFailure:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> list[Rows]:
        """Start every environment anew, each with its seed."""
        return self._asked("reset", np.asarray(seeds))

    def step(self, actions: np.ndarray) -> list[Rows]:
        """One step of each, side by side; after an end its reset."""
        return self._asked("step", actions)

    def _asked(self, what: str, values: np.ndarray) -> list[Rows]:
        for number, (worker, share) in enumerate(zip(self._workers, self._shares, strict=True)):
            try:
                _send(worker.stdin, (what, values[share]))
            except OSError:
                raise self._ended(number) from None
        return [self._received(number) for number in range(len(self._workers))]

    def _received(self, number: int) -> Any:
        try:
            error, found = pickle.load(self._workers[number].stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError):
            raise self._ended(number) from None
        if error is not None:
            raise EnvironmentFailure(error)
        return found

    def _ended(self, number: int) -> EnvironmentFailure:
        share = self._shares[number]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._workers[number].wait(PATIENCE)
        status = self._workers[number].returncode
        return EnvironmentFailure(
            f"the worker process of environments {share[0]} to {share[-1]} ended by itself, with status {status}"
        )


def _start(makers: Sequence[Callable[[], Named]]) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches the training alone, which then ends its workers.
    worker = subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with contextlib.suppress(OSError):  # one that has ended already is noticed when it does not answer
        _send(worker.stdin, sys.path)
        _send(worker.stdin, cloudpickle.dumps(list(makers)))
    return worker


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.stdin.close()  # type: ignore[union-attr]
    for worker in workers:
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()  # type: ignore[union-attr]


def _send(stream: Any, message: Any) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def serve() -> None:
    """What a worker does: makes its environments, and answers until its input ends."""
    # Whatever an environment prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        pool = Here(pickle.loads(pickle.load(sys.stdin.buffer)))
    except Exception as error:
        return _send(answers, (f"{type(error).__name__}: {error}", None))
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        _send(answers, (None, None))
        while True:
            what, values = pickle.load(sys.stdin.buffer)
            try:
                (rows,) = pool.reset(values) if what == "reset" else pool.step(values)
            except EnvironmentFailure as error:
                _send(answers, (str(error), None))
            except Exception as error:
                _send(answers, (f"an environment raised {type(error).__name__}: {error}", None))
            else:
                _send(answers, (None, rows))
    pool.close()
