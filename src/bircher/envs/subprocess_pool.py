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
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import Bool, Float

from bircher.envs.contract import MASK, Contract, call_reset, call_step, finite_number, float_leaves, not_finite
from bircher.envs.rendering import Frame, Pixels, as_picture, quieten, takes_render_mode
from bircher.errors import ContractBreach, EnvironmentFailure
from bircher.spaces import LayoutSetting, encoding_of, misfit

Source = str | Callable[..., gymnasium.Env]
Maker = Callable[[], gymnasium.Env]


class Picture(NamedTuple):
    """How an environment is drawn for the agent."""

    size: tuple[int, int]
    gray: bool


class Named(gymnasium.Wrapper):
    """Checks what an environment returns, says which environment failed, and counts the steps of all its episodes."""

    def __init__(self, env: gymnasium.Env, index: int, layout: LayoutSetting = "auto"):
        super().__init__(env)
        self._index, self._steps, self._resetting = index, 0, False
        self._contract = Contract(env.observation_space, env.action_space)
        self._encoding = encoding_of(env.observation_space, layout)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The environment's own reset; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._resetting = True
        try:
            return self._fitting(self._contract.reset(call_reset(self.env, kwargs)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's own step; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._steps += 1
        self._resetting = False
        try:
            return self._fitting(self._contract.step(call_step(self.env, action)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("step", error) from error

    def picture(self) -> Frame:
        """Return the environment's current picture at its own size; raises EnvironmentFailure."""
        if isinstance(self.env, Pixels) and self.env.whole is not None:
            return self.env.whole
        try:
            return as_picture(self.env.render())
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("render", error) from error

    def _fitting(self, values: Any) -> Any:
        """The values of a reset or step, whose observation the agent's array can hold; raises ContractBreach."""
        unfit = misfit(self._encoding, values[0])
        if unfit is not None:
            raise ContractBreach(f"the observation contains {unfit}")
        return values

    def breach(self, sentence: str) -> EnvironmentFailure:
        """An EnvironmentFailure about what the environment returned last."""
        where = f"reset after {self._steps} steps" if self._resetting else f"step {self._steps}"
        return EnvironmentFailure(f"environment {self._index}, {where}: {sentence}")

    def _failure(self, what: str, error: Exception) -> EnvironmentFailure:
        text = f"environment {self._index} raised {type(error).__name__} in {what} after {self._steps} steps: {error}"
        return EnvironmentFailure(text)


class Repeated(gymnasium.Wrapper):
    """Every action for so many steps, or until the episode ends; their rewards are summed."""

    def __init__(self, env: gymnasium.Env, times: int):
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The last of these steps, with the reward of all."""
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminal, truncated, info = self.env.step(action)
            total += finite_number(reward)
            if terminal or truncated:
                break
        return observation, total, terminal, truncated, info


def maker(
    source: Source,
    max_steps: int | None,
    options: Mapping[str, Any],
    picture: Picture | None = None,
    keep_whole: bool = False,
    action_repeat: int = 1,
    draws: bool = False,
) -> Maker:
    """A function that makes one environment; it carries the registration along, so it works in another process.

    With `picture` the observations are pictures; `keep_whole` is that of `Pixels`.  With `draws` the environment is
    asked to draw for a person only, which it may ignore.  Each action is taken `action_repeat` times, and drawn once;
    `max_steps` counts actions.  The function raises ValueError where the source gives no environment, or `picture` is
    given and it does not draw.
    """
    if max_steps is not None:
        max_steps *= action_repeat
    draws = draws or picture is not None
    if draws:
        quieten()
    if isinstance(source, str):
        from bircher.envs.specs import registered

        # The checker warns of spaces and types that are handled here, and costs time at every step.
        kwargs = {"disable_env_checker": True, **({"render_mode": "rgb_array"} if draws else {}), **options}
        made: Maker = partial(gymnasium.make, registered(source), max_episode_steps=max_steps, **kwargs)
    else:
        made = partial(_called, source, max_steps, dict(options), draws)
    if action_repeat > 1:
        made = partial(_repeated, made, action_repeat)
    return made if picture is None else partial(_drawn, made, picture, keep_whole)


def named(make: Maker, index: int, layout: LayoutSetting = "auto") -> Named:
    """An environment that tells its index where it fails."""
    return Named(make(), index, layout)


def source_name(source: Source) -> str:
    """What an id, class or function is called."""
    return source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)


def _called(source: Callable[..., Any], max_steps: int | None, options: dict[str, Any], drawn: bool) -> gymnasium.Env:
    if drawn and takes_render_mode(source):
        options = {"render_mode": "rgb_array", **options}
    env = source(**options)
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"{source_name(source)} gave {type(env).__name__}, not a gymnasium.Env")
    return env if max_steps is None else gymnasium.wrappers.TimeLimit(env, max_steps)


def _repeated(make: Maker, times: int) -> gymnasium.Env:
    return Repeated(make(), times)


def _drawn(make: Maker, picture: Picture, keep_whole: bool) -> gymnasium.Env:
    env = make()
    if env.render_mode != "rgb_array":
        env.close()
        raise ValueError(f"it does not draw to arrays: its render_mode is {env.render_mode}, expected rgb_array")
    return Pixels(env, *picture, keep_whole)


START = f"import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import {__name__} as it; it.serve()"
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
