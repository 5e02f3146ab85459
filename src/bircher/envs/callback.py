"""Environments that are stepped outside the compiled program, through an ordered callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from bircher.envs.base import Actions, EnvState, blank_rows, row
from bircher.errors import EnvironmentFailure, UnsupportedEnvironment
from bircher.types import EnvSpec, TimeStep, Unsupported


@runtime_checkable
class Pool(Protocol):
    """B environments, in this process or in others, whose rows come in one part or one for each process."""

    close: Any
    """() -> None: end them"""

    def reset(self, seeds: Sequence[int], /) -> list[Any]:
        """Restart every environment with its seed and return the first rows."""
        ...

    def step(self, actions: np.ndarray, /) -> list[Any]:
        """Step every environment, or reset it after the end of an episode, and return the rows."""
        ...


class CallbackEnv:
    """B environments of a pool, each reset with its own seed once; later episodes continue its random numbers.

    The program continues after an exception inside an environment, a value that breaks its contract, or the end of a
    process: every later row has ``failed``, and ``failure`` returns the reason.
    """

    pure = False

    def __init__(self, spec: EnvSpec, pool: Pool, seeds: Sequence[int]):
        self.spec, self.num_envs = spec, len(seeds)
        self._pool, self._seeds = pool, [int(seed) for seed in seeds]
        self._failure: str | None = None
        self._blank = self._blank_fields()

    def fields(self, rows: list[Any], reset: bool) -> dict[str, Any]:
        """Return the arguments of `base.row` as arrays, from the rows of a pool."""
        raise NotImplementedError

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Restart every environment with its original seed and return the first rows.

        Raises EnvironmentFailure for an exception inside an environment, unlike ``step``.
        """
        self._refuse_unsupported(self.spec.observation)
        rows = self._pool.reset(self._seeds)
        self._failure = None
        fields = self.fields(rows, True)
        # Copies, since a program may reuse the memory of the rows for its results.
        return jnp.zeros((), jnp.int32), self._row(jax.tree.map(jnp.array, fields))

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """Step every environment by a callback; this method may be traced, and runs in the order of the program."""
        self._refuse_unsupported(self.spec.observation)
        self._refuse_unsupported(self.spec.action)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._blank)
        fields = io_callback(self._call, like, action, ordered=True)
        return state + 1, self._row(fields)

    def failure(self) -> str | None:
        """Return the error with the index of the environment and its step; None if there is none."""
        return self._failure

    def close(self) -> None:
        """Close the environments and their worker processes."""
        self._pool.close()

    def own_actions(self, action: np.ndarray) -> np.ndarray:
        """Return the environments' actions as the pool takes them."""
        return self.spec.own_action(action)

    def _refuse_unsupported(self, part: Any) -> None:
        if isinstance(part, Unsupported):
            raise UnsupportedEnvironment(f"{self.spec.id} cannot be stepped: {part} is not supported")

    def _blank_fields(self) -> dict[str, Any]:
        """Return zeros with the shapes that the callback returns."""
        if isinstance(self.spec.observation, Unsupported):
            return {}
        blank = jax.tree.map(np.asarray, blank_rows(self.spec, self.num_envs))
        fields = {
            "observation": blank.observation,
            "reward": blank.reward,
            "first": blank.first,
            "terminal": blank.terminal,
            "truncated": blank.terminal,
            "legal_actions": np.ones_like(blank.legal_actions),
            "failed": blank.failed,
        }
        return fields if blank.valid is None else {**fields, "valid": blank.valid}

    def _call(self, action: Any) -> dict[str, Any]:
        """Step outside the compiled program.

        No exception may leave this method, because the state of the program would be lost.
        """
        if self._failure is None:
            try:
                return self.fields(self._pool.step(self.own_actions(np.asarray(action))), False)
            except Exception as error:
                complete = isinstance(error, EnvironmentFailure)
                self._failure = str(error) if complete else f"{self.spec.id} raised {type(error).__name__}: {error}"
        return {**self._blank, "failed": np.ones_like(self._blank["failed"])}

    def _row(self, fields: dict[str, Any]) -> TimeStep:
        observation, reward = fields.pop("observation"), fields.pop("reward")
        return row(self.spec, observation, reward, **fields)
