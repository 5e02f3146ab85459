"""Gymnasium environments stepped in this process, or in a few worker processes.

A worker is a fresh interpreter that has some of the environments and communicates over its standard input and output.
It loads neither JAX nor the user's script, so a script needs no guard.  It ends when its input ends, also where the
training is killed.  Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import Bool, Float

from bircher.envs.contract import MASK, Contract, call_reset, call_step, finite_number, float_leaves, not_finite
from bircher.envs.parallel_sources import require_one_agent
from bircher.envs.rendering import Frame, Pixels, as_picture, takes_render_mode
from bircher.errors import ContractBreach, EnvironmentFailure
from bircher.spaces import LayoutSetting, encoding_of, fit_check

Source = str | Callable[..., gymnasium.Env]
Maker = Callable[[], gymnasium.Env]


class CheckedEnv(gymnasium.Wrapper):
    """Checks the values that an environment returns, and names the environment and the step in every error.

    Steps are counted over all episodes.
    """

    def __init__(self, env: gymnasium.Env, index: int, layout: LayoutSetting = "auto"):
        super().__init__(env)
        self._index, self._steps, self._resetting = index, 0, False
        self._contract = Contract(env.observation_space, env.action_space)
        self._bare_box = isinstance(env.action_space, Box) and not env.action_space.shape
        self._misfit = fit_check(encoding_of(env.observation_space, layout))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._resetting = True
        try:
            return self._require_encodable(self._contract.reset(call_reset(self.env, kwargs)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._steps += 1
        self._resetting = False
        if self._bare_box:  # Gymnasium takes a number out of the batch's array, but a Box has arrays
            action = np.asarray(action)
        try:
            return self._require_encodable(self._contract.step(call_step(self.env, action)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("step", error) from error

    def picture(self) -> Frame:
        """Return the environment's current picture at its original size; raises EnvironmentFailure."""
        if isinstance(self.env, Pixels) and self.env.whole is not None:
            return self.env.whole
        try:
            return as_picture(self.env.render())
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("render", error) from error

    def _require_encodable(self, values: Any) -> Any:
        """Return the values of a reset or step; raises ContractBreach if the agent's array cannot hold them."""
        sentence = self._misfit(values[0])
        if sentence is not None:
            raise ContractBreach(sentence)
        return values

    def breach(self, sentence: str) -> EnvironmentFailure:
        """Return an EnvironmentFailure about the values that the environment returned last."""
        where = f"reset after {self._steps} steps" if self._resetting else f"step {self._steps}"
        return EnvironmentFailure(f"environment {self._index}, {where}: {sentence}")

    def _failure(self, what: str, error: Exception) -> EnvironmentFailure:
        text = f"environment {self._index} raised {type(error).__name__} in {what} after {self._steps} steps: {error}"
        return EnvironmentFailure(text)


class ActionRepeat(gymnasium.Wrapper):
    """Takes every action for a number of steps, or until the episode ends, and sums their rewards."""

    def __init__(self, env: gymnasium.Env, times: int):
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return the values of the last of these steps, with the sum of the rewards."""
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminal, truncated, info = self.env.step(action)
            total += finite_number(reward)
            if terminal or truncated:
                break
        return observation, total, terminal, truncated, info


def make_checked(make: Maker, index: int, layout: LayoutSetting = "auto") -> CheckedEnv:
    """Make one environment whose errors name its index."""
    return CheckedEnv(make(), index, layout)


def source_name(source: Source) -> str:
    """Return the name of an id, class or function for messages."""
    return source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)


def make_from_callable(
    source: Callable[..., Any], max_steps: int | None, options: Mapping[str, Any], draws: bool
) -> gymnasium.Env:
    """Make one environment by a class or function; raises ValueError if it returns something else."""
    if draws and takes_render_mode(source):
        options = {"render_mode": "rgb_array", **options}
    env = source(**options)
    require_one_agent(env, source)
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"{source_name(source)} returned {type(env).__name__}, not a gymnasium.Env")
    return env if max_steps is None else gymnasium.wrappers.TimeLimit(env, max_steps)


def make_repeated(make: Maker, times: int) -> gymnasium.Env:
    """Make one environment that takes every action several times."""
    return ActionRepeat(make(), times)


def make_drawn(make: Maker, size: tuple[int, int], gray: bool, keep_whole: bool) -> gymnasium.Env:
    """Make one environment whose observations are pictures of it; raises ValueError if it does not draw to arrays."""
    env = make()
    if env.render_mode != "rgb_array":
        env.close()
        raise ValueError(f"it does not draw to arrays: its render_mode is {env.render_mode}, expected rgb_array")
    return Pixels(env, size, gray, keep_whole)


START = f"import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import {__name__} as it; it.serve()"
"""The program of a worker; it finds packages on the same path as this process."""
EXIT_TIMEOUT = 5.0
"""Seconds after which a worker that should have ended is killed."""


class Rows(NamedTuple):
    """The results of one step of b environments."""

    observation: Any
    """A pytree [b, …] in the form of Gymnasium's spaces."""
    reward: Float[np.ndarray, " b"]
    terminal: Bool[np.ndarray, " b"]
    truncated: Bool[np.ndarray, " b"]
    legal_actions: Bool[np.ndarray, "b A"]
    """The legal ones of A discrete actions; all are legal if the environment gives no mask.  A is 0 for other action
    spaces."""


class LocalPool:
    """Environments that are stepped one after another in this process."""

    def __init__(self, makers: Sequence[Callable[[], CheckedEnv]]):
        # No copies are needed, since rows are converted or sent before the next step.
        self._pool = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self._none = np.zeros(len(makers), bool)
        actions = self._pool.single_action_space
        self._all_legal = np.ones((len(makers), int(actions.n) if isinstance(actions, Discrete) else 0), bool)
        self._float_leaves = float_leaves(self._pool.single_observation_space)

    def reset(self, seeds: Sequence[int]) -> list[Rows]:
        """Restart every environment with its seed and return the first rows; raises EnvironmentFailure."""
        observation, info = self._pool.reset(seed=[int(seed) for seed in seeds])
        return [self._rows(observation, np.zeros(len(self._none)), self._none, self._none, info)]

    def step(self, actions: np.ndarray) -> list[Rows]:
        """Step every environment, or reset it after the end of an episode, and return the rows."""
        return [self._rows(*self._pool.step(actions))]

    def close(self) -> None:
        """Close the environments."""
        self._pool.close()

    def _rows(self, observation: Any, reward: Any, terminal: Any, truncated: Any, info: dict[str, Any]) -> Rows:
        for name, leaf in self._float_leaves(observation):
            # One call checks all environments: a call for each would take a tenth of a small environment's step.
            finite = np.isfinite(leaf)
            if not finite.all():
                index = int(np.argmin(finite.reshape(len(finite), -1).all(-1)))
                raise self._pool.envs[index].breach(not_finite(name))  # type: ignore[attr-defined]
        legal = self._all_legal
        if MASK in info:
            legal = np.where(info[f"_{MASK}"][:, None], info[MASK], legal)
        return Rows(observation, reward, terminal, truncated, legal)


class Workers:
    """Environments distributed over processes, each of which steps its share one after another in a `pool`.

    Rows are a list with one item per worker, in the order of the environments.  Exceptions inside an environment, and
    the end of a worker, become EnvironmentFailures.
    """

    def __init__(self, makers: Sequence[Callable[[], Any]], count: int, pool: type = LocalPool):
        self._shares = np.array_split(np.arange(len(makers)), count)
        self._workers = [_start([makers[index] for index in share], pool) for share in self._shares]
        self.close = weakref.finalize(self, _end, self._workers)
        """End the workers; this also happens when this object is deleted or the interpreter exits."""
        try:
            for number in range(count):
                self._receive(number)
        except EnvironmentFailure:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> list[Any]:
        """Restart every environment with its seed and return the first rows."""
        return self._request("reset", np.asarray(seeds))

    def step(self, actions: np.ndarray) -> list[Any]:
        """Step every environment, or reset it after the end of an episode; the workers do so in parallel."""
        return self._request("step", actions)

    def _request(self, method: str, values: np.ndarray) -> list[Any]:
        for number, (worker, share) in enumerate(zip(self._workers, self._shares, strict=True)):
            try:
                _send(worker.stdin, (method, values[share]))
            except OSError:
                raise self._end_failure(number) from None
        return [self._receive(number) for number in range(len(self._workers))]

    def _receive(self, number: int) -> Any:
        try:
            error, rows = pickle.load(self._workers[number].stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError):
            raise self._end_failure(number) from None
        if error is not None:
            raise EnvironmentFailure(error)
        return rows

    def _end_failure(self, number: int) -> EnvironmentFailure:
        """Return the error about a worker process that has ended."""
        share = self._shares[number]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._workers[number].wait(EXIT_TIMEOUT)
        status = self._workers[number].returncode
        return EnvironmentFailure(
            f"the worker process of environments {share[0]} to {share[-1]} ended by itself, with status {status}"
        )


def _start(makers: Sequence[Callable[[], Any]], pool: type) -> subprocess.Popen[bytes]:
    # A separate session, so that Ctrl-C reaches only the training, which then ends its workers.
    worker = subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with contextlib.suppress(OSError):  # a worker that has ended already is noticed when it does not answer
        _send(worker.stdin, sys.path)
        _send(worker.stdin, cloudpickle.dumps((pool, list(makers))))
    return worker


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.stdin.close()  # type: ignore[union-attr]
    for worker in workers:
        try:
            worker.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()  # type: ignore[union-attr]


def _send(stream: Any, message: Any) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def serve() -> None:
    """Run a worker: make its environments, and answer requests until its input ends."""
    # Text that an environment prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        make_pool, makers = pickle.loads(pickle.load(sys.stdin.buffer))
        pool = make_pool(makers)
    except Exception as error:
        return _send(answers, (f"{type(error).__name__}: {error}", None))
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        _send(answers, (None, None))
        while True:
            method, values = pickle.load(sys.stdin.buffer)
            try:
                (rows,) = pool.reset(values) if method == "reset" else pool.step(values)
            except EnvironmentFailure as error:
                _send(answers, (str(error), None))
            except Exception as error:
                _send(answers, (f"an environment raised {type(error).__name__}: {error}", None))
            else:
                _send(answers, (None, rows))
    pool.close()
