"""gymnax: environments written in JAX, stepped and reset inside the compiled program.

gymnax's own ``step`` replaces the final observation by the first one of the next episode, so its parts are called
instead.  A termination on the last allowed step is a termination here, since gymnax reports both.  gymnax is imported
without the plotting libraries that only its drawing needs, because they take longer to import than all the rest.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bircher.envs.jax_env import PureEnv
from bircher.envs.specs import action_spec, encoded_shape
from bircher.spaces import Encoding, LayoutSetting, encode_observation, encoding_of
from bircher.types import EnvSpec, Key

DRAWING = ("seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.colors")


class _WhenUsed(ModuleType):
    """Stands for a module, and imports it when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_drawing() -> Iterator[None]:
    """Modules imported within get stand-ins for the plotting libraries, which become the real ones at their first use.

    Where one of them is loaded already, it is taken as it is.
    """
    stand_ins = {} if any(name in sys.modules for name in DRAWING) else {name: _WhenUsed(name) for name in DRAWING}
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


with without_drawing():
    import gymnax
    import gymnax.environments.spaces as gymnax_spaces


def env_spec(
    env_id: str,
    max_steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    layout: LayoutSetting = "auto",
) -> EnvSpec:
    """The specification of a gymnax environment; nothing is compiled."""
    return _Single(env_id, max_steps, options, layout).spec


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
        layout: LayoutSetting = "auto",
    ):
        single = _Single(env_id, max_steps, options, layout)
        super().__init__(single.spec, single.start, single.move, seeds)


class _Single:
    """One gymnax environment with its parameters, as the two functions that PureEnv asks for."""

    def __init__(self, env_id: str, max_steps: int | None, options: Mapping[str, Any] | None, layout: LayoutSetting):
        self.environment, self.params = gymnax.make(env_id, **(options or {}))
        if max_steps is not None:
            self.params = self.params.replace(max_steps_in_episode=max_steps)
        action = action_spec(gymnax_spaces.gymnax_space_to_gym_space(self.environment.action_space(self.params)))
        limit = int(self.params.max_steps_in_episode)
        self.encoding = self._discrete_encoding(layout)
        self.spec = EnvSpec(env_id, self._observation(), action, limit, encoding=self.encoding)

    def start(self, key: Key, index: Array) -> tuple[Any, PyTree[Array]]:
        """A new episode; its state may hold Python numbers."""
        observation, inner = self.environment.reset_env(key, self.params)
        return inner, self._seen(observation)

    def move(self, key: Key, inner: PyTree[Array], action: Array) -> tuple[Any, ...]:
        """One step; the limit is gymnax's own count."""
        observation, inner, reward, terminal, _ = self.environment.step_env(key, inner, action, self.params)
        return inner, self._seen(observation), reward, terminal, self.environment.is_truncated(inner, self.params)

    def _discrete_encoding(self, layout: LayoutSetting) -> Encoding | None:
        space = self.environment.observation_space(self.params)
        if not isinstance(space, gymnax_spaces.Discrete):
            return None
        return encoding_of(gymnax_spaces.gymnax_space_to_gym_space(gymnax_spaces.Discrete(int(space.n))), layout)

    def _observation(self) -> Any:
        if self.encoding is not None:
            return encoded_shape(self.encoding)
        # What is declared is wrong for some of them; what is seen is not.
        seen, _ = jax.eval_shape(self.environment.reset_env, jax.random.key(0), self.params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _device_dtype(leaf.dtype)), seen)

    def _seen(self, observation: PyTree[Array]) -> PyTree[Array]:
        return observation if self.encoding is None else encode_observation(self.encoding, jnp.asarray(observation))


def _device_dtype(dtype: Any) -> Any:
    return jnp.uint8 if dtype == jnp.uint8 else jnp.float32
