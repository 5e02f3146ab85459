"""gymnax: environments written in JAX, stepped and reset inside the compiled program.

gymnax's own ``step`` replaces the final observation by the first one of the next episode, so its parts are called
instead.  A termination on the last allowed step is a termination here, since gymnax reports both.  gymnax is imported
without the plotting libraries that only its drawing needs, because they take longer to import than all the rest.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bircher.envs.config import EnvConfig, EnvRequest
from bircher.envs.jax_env import PureEnv, Single, repeat_actions
from bircher.envs.specs import action_spec, encoded_shape
from bircher.spaces import Encoding, LayoutSetting, encode_observation, encoding_of
from bircher.types import EnvSpec, Key

DRAWING = ("seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.colors")


class _LazyModule(ModuleType):
    """A placeholder for a module that imports the module at the first use of one of its attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_drawing() -> Iterator[None]:
    """Replace the plotting libraries by placeholders for modules that are imported inside this context.

    A placeholder imports the real library at its first use.  If one of the libraries is loaded already, none of them is
    replaced.
    """
    placeholders = {} if any(name in sys.modules for name in DRAWING) else {name: _LazyModule(name) for name in DRAWING}
    for name, module in placeholders.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(placeholders[parent], child, module)
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            del sys.modules[name]


with without_drawing():
    import gymnax
    import gymnax.environments.spaces as gymnax_spaces


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of a gymnax environment without compiling anything."""
    return _single(request.config).spec


class GymnaxEnv(PureEnv):
    """B gymnax environments as pure functions; ``max_steps`` replaces gymnax's own limit, larger or smaller.

    Observations are float32, including MinAtar's grids of zeros and ones, which gymnax returns in that type.
    Observations of bytes stay uint8.
    """

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        super().__init__(_single(request.config), seeds)


def _single(config: EnvConfig) -> Single:
    game = _Game(config)
    return repeat_actions(Single(game.spec, game.start, game.move), config.repeat)


class _Game:
    """One gymnax environment with its parameters, as the two functions that PureEnv needs."""

    def __init__(self, config: EnvConfig):
        self.environment, self.params = gymnax.make(config.id, **config.options)
        if config.max_frames is not None:
            self.params = self.params.replace(max_steps_in_episode=config.max_frames)
        space = gymnax_spaces.gymnax_space_to_gym_space(self.environment.action_space(self.params))
        action = action_spec(space, config.action_bound)
        limit = int(self.params.max_steps_in_episode)
        self.encoding = self._discrete_encoding(config.layout)
        self.spec = EnvSpec(config.id, self._observation(), action, limit, encoding=self.encoding)

    def start(self, key: Key, index: Array) -> tuple[Any, PyTree[Array]]:
        """Start an episode; the state may contain Python numbers."""
        observation, inner = self.environment.reset_env(key, self.params)
        return inner, self._encode(observation)

    def move(self, key: Key, inner: PyTree[Array], action: Array) -> tuple[Any, ...]:
        """Take one step; gymnax itself counts the steps for the limit."""
        observation, inner, reward, terminal, _ = self.environment.step_env(key, inner, action, self.params)
        return inner, self._encode(observation), reward, terminal, self.environment.is_truncated(inner, self.params)

    def _discrete_encoding(self, layout: LayoutSetting) -> Encoding | None:
        space = self.environment.observation_space(self.params)
        if not isinstance(space, gymnax_spaces.Discrete):
            return None
        return encoding_of(gymnax_spaces.gymnax_space_to_gym_space(gymnax_spaces.Discrete(int(space.n))), layout)

    def _observation(self) -> Any:
        if self.encoding is not None:
            return encoded_shape(self.encoding)
        # Some environments declare a wrong space, so the shape comes from an actual reset.
        shapes, _ = jax.eval_shape(self.environment.reset_env, jax.random.key(0), self.params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _device_dtype(leaf.dtype)), shapes)

    def _encode(self, observation: PyTree[Array]) -> PyTree[Array]:
        return observation if self.encoding is None else encode_observation(self.encoding, jnp.asarray(observation))


def _device_dtype(dtype: Any) -> Any:
    return jnp.uint8 if dtype == jnp.uint8 else jnp.float32
