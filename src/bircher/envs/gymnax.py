"""gymnax: environments written in JAX, stepped and reset inside the compiled program.

gymnax's own ``step`` hides the final observation behind the next episode's first one; so its parts are used. A death
on the last allowed step is a death here, since gymnax tells both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bircher.envs.lightly import without_drawing
from bircher.envs.pure import PureEnv
from bircher.envs.spaces import action_spec, observation_spec
from bircher.types import EnvSpec, Key

with without_drawing():
    import gymnax
    import gymnax.environments.spaces as gymnax_spaces


def env_spec(env_id: str, max_steps: int | None = None, options: Mapping[str, Any] | None = None) -> EnvSpec:
    """The specification of a gymnax environment; nothing is compiled."""
    return _Single(env_id, max_steps, options).spec


class GymnaxEnv(PureEnv):
    """B gymnax environments as pure functions; ``max_steps`` replaces gymnax's own limit, up or down.

    Observations are float32, also MinAtar's grids of zeros and ones (gymnax gives them so); bytes stay uint8.
    """

    def __init__(
        self,
        env_id: str,
        seeds: Sequence[int],
        max_steps: int | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        single = _Single(env_id, max_steps, options)
        super().__init__(single.spec, single.start, single.move, seeds)


class _Single:
    """One gymnax environment with its parameters, as the two functions that PureEnv asks for."""

    def __init__(self, env_id: str, max_steps: int | None, options: Mapping[str, Any] | None):
        self.environment, self.params = gymnax.make(env_id, **(options or {}))
        if max_steps is not None:
            self.params = self.params.replace(max_steps_in_episode=max_steps)
        action = action_spec(gymnax_spaces.gymnax_space_to_gym_space(self.environment.action_space(self.params)))
        limit = int(self.params.max_steps_in_episode)
        self.states = self._num_states()
        self.spec = EnvSpec(env_id, self._observation(), action, limit)

    def start(self, key: Key, index: Array) -> tuple[Any, PyTree[Array]]:
        """A new episode; its state may hold Python numbers."""
        observation, inner = self.environment.reset_env(key, self.params)
        return inner, self._seen(observation)

    def move(self, key: Key, inner: PyTree[Array], action: Array) -> tuple[Any, ...]:
        """One step; the limit is gymnax's own count."""
        observation, inner, reward, terminal, _ = self.environment.step_env(key, inner, action, self.params)
        return inner, self._seen(observation), reward, terminal, self.environment.is_truncated(inner, self.params)

    def _num_states(self) -> int | None:
        space = self.environment.observation_space(self.params)
        return int(space.n) if isinstance(space, gymnax_spaces.Discrete) else None

    def _observation(self) -> Any:
        if self.states is not None:
            return observation_spec(gymnax_spaces.gymnax_space_to_gym_space(gymnax_spaces.Discrete(self.states)))
        # What is declared is wrong for some of them; what is seen is not.
        seen, _ = jax.eval_shape(self.environment.reset_env, jax.random.key(0), self.params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _device_dtype(leaf.dtype)), seen)

    def _seen(self, observation: PyTree[Array]) -> PyTree[Array]:
        return observation if self.states is None else jax.nn.one_hot(observation, self.states)


def _device_dtype(dtype: Any) -> Any:
    return jnp.uint8 if dtype == jnp.uint8 else jnp.float32
