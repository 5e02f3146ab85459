"""Rewards clipped to a bound, as they are learnt from; evaluations count them whole."""

from __future__ import annotations

import jax.numpy as jnp

from bircher.envs.base import Actions, Env, EnvState, failure
from bircher.types import TimeStep


class ClippedEnv:
    """An environment whose rewards lie in [-bound, bound]."""

    def __init__(self, env: Env, bound: float):
        self.env, self.bound = env, bound
        self.spec, self.num_envs, self.pure = env.spec, env.num_envs, env.pure

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Start anew."""
        return self.env.reset()

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """One row further; a reward that is not finite stays so."""
        state, timestep = self.env.step(state, action)
        reward = timestep.reward
        clipped = jnp.where(jnp.isfinite(reward), jnp.clip(reward, -self.bound, self.bound), reward)
        return state, timestep._replace(reward=clipped)

    def failure(self) -> str | None:
        """What went wrong in the wrapped environment; None while all is well, or where nothing can."""
        return failure(self.env)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()
