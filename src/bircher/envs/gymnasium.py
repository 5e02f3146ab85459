"""Any Gymnasium environment, through Gymnasium's vector API behind an ordered callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jax.experimental import io_callback

from bircher.envs.base import Actions, EnvState, UnsupportedEnvironment, num_legal, row
from bircher.envs.spaces import action_spec, observation_arrays, observation_spec, quiet_bounds, registered
from bircher.types import Discrete, EnvSpec, TimeStep, Unsupported

Source = str | Callable[..., gymnasium.Env]


class EnvironmentFailure(RuntimeError):
    """An exception inside one environment, told with the environment's index and step."""


class _Named(gymnasium.Wrapper):
    """Says which environment failed, and where; counts the steps of all its episodes."""

    def __init__(self, env: gymnasium.Env, index: int):
        super().__init__(env)
        self._index, self._steps = index, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The environment's own reset; whatever it raises becomes an EnvironmentFailure."""
        try:
            return self.env.reset(**kwargs)
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's own step; whatever it raises becomes an EnvironmentFailure."""
        self._steps += 1
        try:
            return self.env.step(action)
        except Exception as error:
            raise self._failure("step", error) from error

    def _failure(self, what: str, error: Exception) -> EnvironmentFailure:
        text = f"environment {self._index} raised {type(error).__name__} in {what} after {self._steps} steps: {error}"
        return EnvironmentFailure(text)


def _maker(source: Source, max_steps: int | None, options: Mapping[str, Any]) -> Callable[[], gymnasium.Env]:
    """A function that makes one environment; it carries the registration along, so it works in another process."""
    if isinstance(source, str):
        # The checker warns of spaces and types that are handled here, and costs time at every step.
        kwargs = {"disable_env_checker": True, **options}
        return partial(gymnasium.make, registered(source), max_episode_steps=max_steps, **kwargs)

    def make() -> gymnasium.Env:
        env = source(**options)
        if not isinstance(env, gymnasium.Env):
            raise UnsupportedEnvironment(f"{_name(source)} gave {type(env).__name__}, not a gymnasium.Env")
        return env if max_steps is None else gymnasium.wrappers.TimeLimit(env, max_steps)

    return make


def _name(source: Source) -> str:
    return source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)


def _spec_of(source: Source, env: gymnasium.Env, max_steps: int | None) -> EnvSpec:
    limit = max_steps
    if limit is None and env.spec is not None:
        limit = env.spec.max_episode_steps
    return EnvSpec(_name(source), observation_spec(env.observation_space), action_spec(env.action_space), limit)


def env_spec(source: Source, max_steps: int | None = None, options: Mapping[str, Any] | None = None) -> EnvSpec:
    """The specification of a Gymnasium environment; one is made and closed again."""
    options = {key: value for key, value in (options or {}).items() if key != "workers"}
    with quiet_bounds():
        env = _maker(source, max_steps, options)()
        try:
            return _spec_of(source, env, max_steps)
        finally:
            env.close()


class GymnasiumEnv:
    """B Gymnasium environments, each reset with its own seed once; later episodes go on with its own random numbers.

    The option ``workers=True`` puts each into a process of its own (started afresh, so a script that uses it needs
    ``if __name__ == "__main__":``). ``info["action_mask"]`` gives the legal actions, where there is one. Actions
    0 … n - 1 are shifted where the space starts elsewhere. An exception inside an environment does not end the
    program: from then on every row has ``failed``, and ``failure`` says what happened.
    """

    pure = False

    def __init__(
        self,
        source: Source,
        seeds: Sequence[int],
        max_steps: int | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        options = dict(options or {})
        workers = options.pop("workers", False)
        self.num_envs = len(seeds)
        self._seeds: list[int | None] = [int(seed) for seed in seeds]
        self._failure: str | None = None
        self._last = np.zeros(self.num_envs, bool)
        maker = _maker(source, max_steps, options)
        with quiet_bounds():
            probe = maker()
            self.spec = _spec_of(source, probe, max_steps)
            probe.close()
            makers = [partial(_named, maker, index) for index in range(self.num_envs)]
            # Spawned, not forked: a copy of a process in which JAX's threads hold locks may never wake up.
            self._pool = (
                AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP)
                if workers
                else SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
            )
        self._arrays = observation_arrays(self._pool.single_observation_space)
        space = self._pool.single_action_space
        self._offset = int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0
        self._blank = self._blank_row()

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Start every environment anew with the seeds it was made with; an exception there is raised at once."""
        self._refuse_unsupported(self.spec.observation)
        observation, info = self._pool.reset(seed=self._seeds)
        self._failure = None
        flags = np.zeros(self.num_envs, bool)
        self._last = flags
        given = self._given(observation, np.zeros(self.num_envs), ~flags, flags, flags, info)
        # Copies, since a program may be given the rows' memory to write into.
        return jnp.zeros((), jnp.int32), self._row(jax.tree.map(jnp.array, given))

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """One row further, by a callback: may be traced, but only runs in the order of the program."""
        self._refuse_unsupported(self.spec.observation)
        self._refuse_unsupported(self.spec.action)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._blank)
        given = io_callback(self._call, like, action, ordered=True)
        return state + 1, self._row(given)

    def failure(self) -> str | None:
        """What went wrong, with the index of the environment and its step; None while all is well."""
        return self._failure

    def close(self) -> None:
        """Close the environments, and their processes where they have any."""
        self._pool.close()

    def _refuse_unsupported(self, part: Any) -> None:
        if isinstance(part, Unsupported):
            raise UnsupportedEnvironment(f"{self.spec.id} cannot be stepped: {part} is not supported")

    def _blank_row(self) -> dict[str, Any]:
        """Zeros of the shapes that a callback returns."""
        if isinstance(self.spec.observation, Unsupported):
            return {}
        flags = np.zeros(self.num_envs, bool)
        zeros = jax.tree.map(lambda leaf: np.zeros((self.num_envs, *leaf.shape), leaf.dtype), self.spec.observation)
        return {
            "observation": zeros,
            "reward": np.zeros(self.num_envs, np.float32),
            "first": flags,
            "terminal": flags,
            "truncated": flags,
            "legal_actions": np.ones((self.num_envs, num_legal(self.spec)), bool),
            "failed": flags,
        }

    def _call(self, action: Any) -> dict[str, Any]:
        """What runs outside the program; nothing may be raised from here, or the program's state is gone."""
        if self._failure is None:
            try:
                return self._advance(np.asarray(action))
            except Exception as error:
                told = isinstance(error, EnvironmentFailure)
                self._failure = str(error) if told else f"{self.spec.id} raised {type(error).__name__}: {error}"
        return {**self._blank, "failed": np.ones(self.num_envs, bool)}

    def _advance(self, action: np.ndarray) -> dict[str, Any]:
        if isinstance(self.spec.action, Discrete):
            action = action.astype(np.int64) + self._offset
        observation, reward, terminal, truncated, info = self._pool.step(action)
        first, self._last = self._last, terminal | truncated
        return self._given(observation, reward, first, terminal, truncated, info)

    def _given(self, observation, reward, first, terminal, truncated, info) -> dict[str, Any]:
        legal = self._blank["legal_actions"]
        if "action_mask" in info and legal.shape[1]:
            asked = info["_action_mask"]
            legal = legal.copy()
            legal[asked] = np.stack(info["action_mask"][asked]).astype(bool) if asked.any() else True
        given = {
            "observation": self._arrays(observation),
            "reward": np.asarray(reward, np.float32),
            "first": first,
            "terminal": terminal,
            "truncated": truncated,
            "legal_actions": legal,
            "failed": np.zeros(self.num_envs, bool),
        }
        return given

    def _row(self, given: dict[str, Any]) -> TimeStep:
        observation, reward = given.pop("observation"), given.pop("reward")
        return row(self.spec, observation, reward, **given)


def _named(maker: Callable[[], gymnasium.Env], index: int) -> gymnasium.Env:
    return _Named(maker(), index)
