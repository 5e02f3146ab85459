"""PettingZoo's environments of several agents, through its parallel interface."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from bircher.envs.callback import CallbackEnv
from bircher.envs.config import EnvRequest
from bircher.envs.gymnasium import encoded
from bircher.envs.parallel_pool import AgentRows, Agents, ParallelPool, make_agents
from bircher.envs.rendering import Frame, as_picture
from bircher.envs.specs import action_spec, observation_spec, quiet_bounds, with_spaces
from bircher.envs.subprocess_pool import Workers, source_name
from bircher.errors import EnvironmentFailure, UnsupportedEnvironment
from bircher.types import EnvSpec


def _make(request: EnvRequest) -> Agents:
    """Make one environment of a request.

    Raises:
      UnsupportedEnvironment: a setting does not apply, or the environment cannot be used.
    """
    config = request.config
    if config.repeat > 1:
        raise UnsupportedEnvironment(
            f"env.action_repeat={config.action_repeat} is not for environments of several agents, some of which may "
            "end before an action is repeated: set it to null"
        )
    if request.pixels:
        raise UnsupportedEnvironment(
            f"observation=pixels draws an environment for one agent, and {source_name(request.source)} may have "
            "several: leave observation=state, where each agent's own observation may be a picture"
        )
    return make_agents(request.source, config.options, 0, config.layout, config.max_steps)


def _spec_of(request: EnvRequest, agents: Agents) -> EnvSpec:
    shared, config = agents.spaces, request.config
    shapes, encoding = observation_spec(shared.observation, config.layout)
    limit = config.max_steps
    if limit is None:
        own = getattr(agents.env.unwrapped, "max_cycles", None)
        limit = own if isinstance(own, int) and own > 0 else None
    actions = action_spec(shared.action, config.action_bound)
    names = tuple(map(str, shared.agents))
    spec = EnvSpec(source_name(request.source), shapes, actions, limit, encoding=encoding, agents=names)
    return with_spaces(spec, shared.observation, shared.action)


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of an environment; this makes one environment and closes it."""
    with quiet_bounds():
        agents = _make(request)
        try:
            return _spec_of(request, agents)
        finally:
            agents.env.close()


class PettingZooEnv(CallbackEnv):
    """B parallel environments of PettingZoo, stepped through a callback, with a row for each of their agents.

    ``num_workers`` processes share the environments, in this process by default.  Rows do not depend on this number.
    """

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        with quiet_bounds():
            probe = _make(request)
            spec = _spec_of(request, probe)
            probe.env.close()
            config = request.config
            makers = [
                partial(make_agents, request.source, config.options, index, config.layout, config.max_steps)
                for index in range(len(seeds))
            ]
            workers = min(config.num_workers or 0, len(seeds))
            pool = Workers(makers, workers, ParallelPool) if workers else ParallelPool(makers)
        super().__init__(spec, pool, seeds)

    def pictures(self) -> list[Frame] | None:
        """Return a picture of the first environment; None where it does not draw to arrays."""
        if not isinstance(self._pool, ParallelPool) or self._pool.envs[0].env.render_mode != "rgb_array":
            return None
        return [as_picture(self._pool.envs[0].env.render())]

    def own_actions(self, action: np.ndarray) -> np.ndarray:
        """Return the environments' actions, [B, A, …]."""
        return np.asarray(self.spec.own_action(action)).reshape(self.num_envs, self.spec.num_agents, *self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return getattr(self.spec.action, "shape", ())

    def fields(self, rows: list[AgentRows], reset: bool) -> dict[str, Any]:
        """Return the fields of rows; which ones are first is known to the pool."""
        del reset
        names = AgentRows._fields[1:]
        joined = {name: np.concatenate([getattr(part, name) for part in rows]) for name in names}
        if self.spec.num_agents == 1:  # the only agent is always there
            del joined["valid"]
        observation = encoded(self.spec, [part.observation for part in rows])
        return {"observation": observation, **joined, "failed": np.zeros(len(joined["reward"]), bool)}


def probe(request: EnvRequest, seed: int) -> tuple[str, ...]:
    """Reset one fresh environment twice with a seed, and take a random legal step each time.

    Returns a note for the user if the two passes differ, because then no run can be repeated exactly.

    Raises:
      UnsupportedEnvironment: the environment raised an exception or broke its contract.
    """
    name = source_name(request.source)
    with quiet_bounds():
        pool = ParallelPool([partial(_make, request)])
    try:
        passes = [_play(pool, seed) for _ in range(2)]
    except EnvironmentFailure as failure:
        raise UnsupportedEnvironment(f"{name} cannot be used: {failure}") from failure
    finally:
        pool.close()
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, *passes)))
    return () if same else (
        f"{name} returns two different episodes for one seed and actions: it uses random numbers, or keeps a state "
        "between episodes, that reset(seed=...) does not set; runs with it cannot be repeated exactly",
    )  # fmt: skip


def _play(pool: ParallelPool, seed: int) -> list[Any]:
    """Return the rows of a reset and a step, with actions that depend only on the seed and the masks."""
    generator = np.random.default_rng(seed)
    (first,) = copy.deepcopy(pool.reset([seed]))
    space = pool.envs[0].spaces.action
    if first.legal_actions.shape[1]:
        start = getattr(space, "start", 0)
        actions = [start + generator.choice(np.flatnonzero(legal)) for legal in first.legal_actions]
    else:
        own = copy.deepcopy(space)
        own.seed(seed)
        actions = [own.sample() for _ in first.valid]
    (second,) = copy.deepcopy(pool.step(np.asarray(actions)[None]))
    return [first, second]
