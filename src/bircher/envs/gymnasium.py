"""Any Gymnasium environment.

`probe` plays the first step of one environment before a run, so that an environment that breaks its contract is found
before anything is compiled.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from bircher.envs.callback import CallbackEnv
from bircher.envs.config import SIZE, EnvRequest
from bircher.envs.contract import MASK, Contract, call_reset, call_step, float_leaves, not_finite
from bircher.envs.rendering import quieten, takes_render_mode
from bircher.envs.specs import action_spec, can_draw, find_registration, observation_spec, quiet_bounds, with_spaces
from bircher.envs.subprocess_pool import (
    CheckedEnv,
    LocalPool,
    Maker,
    Rows,
    Workers,
    make_checked,
    make_drawn,
    make_from_callable,
    make_repeated,
    source_name,
)
from bircher.errors import ContractBreach, UnsupportedEnvironment
from bircher.spaces import encode_observation
from bircher.types import EnvSpec

LEAST_SHARE = 4
"""Least number of environments per worker process, where the number of processes is not set."""


def maker(request: EnvRequest, keep_whole: bool = False, draws: bool = False) -> Maker:
    """Return a function that makes one environment; it contains the registration, so it works in another process.

    With pixels the observations are pictures; `keep_whole` is that of `Pixels`.  `draws` requests pictures for a
    person only, and the environment may ignore it.  Each action is taken `action_repeat` times and drawn once;
    `max_steps` counts actions.  The function raises ValueError if the source does not return an environment, or if it
    is to observe pictures and the environment does not draw.
    """
    config, source = request.config, request.source
    repeat, limit = config.repeat, config.max_frames
    draws = draws or request.pixels
    if draws:
        quieten()
    if isinstance(source, str):
        # Gymnasium's checker warns about spaces and types that are handled here, and costs time at every step.
        kwargs = {"disable_env_checker": True, **({"render_mode": "rgb_array"} if draws else {}), **config.options}
        make: Maker = partial(gymnasium.make, find_registration(source), max_episode_steps=limit, **kwargs)
    else:
        make = partial(make_from_callable, source, limit, config.options, draws)
    if repeat > 1:
        make = partial(make_repeated, make, repeat)
    observation = request.observation
    if observation is None or observation.name == "state":
        return make
    return partial(make_drawn, make, observation.size or SIZE, bool(observation.gray), keep_whole)


def drawing_env(request: EnvRequest) -> CheckedEnv | None:
    """Return one environment as in training that also draws pictures at full size; None if it cannot draw.

    It can draw if it has a `render` and its `render_mode` is `rgb_array`, or if that mode was passed to it and is in
    its metadata.
    """
    source = request.source
    if isinstance(source, str) and not can_draw(source):
        return None
    make = maker(request, keep_whole=True, draws=True)
    try:
        with quiet_bounds():
            env = make_checked(make, 0)
    except TypeError:  # it takes no render_mode; any other error occurs again where it is made without that argument
        return None
    listed = takes_render_mode(source) and "rgb_array" in env.metadata.get("render_modes", ())
    has_render = type(env.unwrapped).render is not gymnasium.Env.render
    if has_render and (env.render_mode == "rgb_array" or listed):
        return env
    env.close()
    return None


def _spec_of(request: EnvRequest, env: gymnasium.Env) -> EnvSpec:
    repeat, limit = request.config.repeat, request.config.max_steps
    if limit is None and env.spec is not None and env.spec.max_episode_steps is not None:
        limit = -(-env.spec.max_episode_steps // repeat)
    shapes, encoding = observation_spec(env.observation_space, request.config.layout)
    actions = action_spec(env.action_space, request.config.action_bound)
    spec = EnvSpec(source_name(request.source), shapes, actions, limit, action_repeat=repeat, encoding=encoding)
    return with_spaces(spec, env.observation_space, env.action_space)


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of a Gymnasium environment; this makes one environment and closes it."""
    with quiet_bounds():
        env = maker(request)()
        try:
            return _spec_of(request, env)
        finally:
            env.close()


def _num_workers(num_envs: int, pictures: bool) -> int:
    """Return the default number of processes: one per core for pictures, otherwise 0.

    Environments without pictures take less time to step than their rows take to send.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, num_envs // LEAST_SHARE) if pictures else 0
    return count if count > 1 else 0


class GymnasiumEnv(CallbackEnv):
    """B Gymnasium environments, stepped through a callback.

    Pictures for the agent are drawn in the process that steps the environment. ``num_workers``
    processes share the environments; 0 steps them in this process, and None takes one process per core for pictures
    and 0 otherwise. Rows do not depend on this number. Each action is taken ``action_repeat`` times.

    ``info["action_mask"]`` contains the legal actions, if the environment provides it. Observations and actions are
    converted by `bircher.spaces`, as those of a loaded agent are.
    """

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        self._last = np.zeros(len(seeds), bool)
        make, num_workers = maker(request), request.config.num_workers
        if num_workers is None:
            num_workers = _num_workers(len(seeds), request.pixels)
        with quiet_bounds():
            probe = make()
            spec = _spec_of(request, probe)
            probe.close()
            makers = [partial(make_checked, make, index, request.config.layout) for index in range(len(seeds))]
            workers = min(num_workers, len(seeds))
            pool: LocalPool | Workers = Workers(makers, workers) if workers else LocalPool(makers)
        super().__init__(spec, pool, seeds)

    def fields(self, rows: list[Rows], reset: bool) -> dict[str, Any]:
        """Return the fields of rows; an environment is reset on the row after its last one."""
        first = np.ones(self.num_envs, bool) if reset else self._last
        self._last = np.concatenate([part.terminal | part.truncated for part in rows])
        reward, terminal, truncated, legal = (np.concatenate(field) for field in list(zip(*rows, strict=True))[1:])
        return {
            "observation": encoded(self.spec, [part.observation for part in rows]),
            "reward": reward.astype(np.float32),
            "first": first,
            "terminal": terminal,
            "truncated": truncated,
            "legal_actions": legal,
            "failed": np.zeros(self.num_envs, bool),
        }


def encoded(spec: EnvSpec, observations: list[Any]) -> Any:
    """Return the agent's arrays for the observations of all parts of a pool."""
    parts = [encode_observation(spec.encoding, observation) for observation in observations]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


SLOW_SECONDS = 1.0
"""If a reset and a step take longer than this, `probe` does not repeat them."""


def probe(request: EnvRequest, seed: int) -> tuple[str, ...]:
    """Reset one fresh environment and take one random legal step; do both a second time if they are quick.

    Returns notes for the user: one if flags are numbers, and one if the two passes differ, because then no run can be
    repeated exactly.

    Raises:
      UnsupportedEnvironment: the environment raised an exception or broke its contract.
    """
    name = source_name(request.source)
    with quiet_bounds():
        env = maker(request)()
    try:
        contract = Contract(env.observation_space, env.action_space)
        start = time.monotonic()
        first = second = _play(env, contract, seed)
        if time.monotonic() - start <= SLOW_SECONDS:
            second = _play(env, contract, seed)
    except ContractBreach as breach:
        raise UnsupportedEnvironment(f"{name} cannot be used: {breach}") from breach
    finally:
        env.close()
    flags = " and ".join(sorted(contract.numbers_as_flags))
    notes = (f"{name} returns {flags} as 0 or 1, which is read as False or True",) if flags else ()
    if _same(first, second):
        return notes
    what = "first observations for one seed" if not _same(first[0], second[0]) else "episodes for one seed and actions"
    return (
        *notes,
        f"{name} returns two different {what}: it uses random numbers, or keeps a state between episodes, that "
        "reset(seed=...) does not set; runs with it cannot be repeated exactly",
    )


def _play(env: gymnasium.Env, contract: Contract, seed: int) -> list[Any]:
    """Return the values of a reset and a step for a seed; the action depends only on the seed and the mask."""
    generator = np.random.default_rng(seed)
    # A copy of the space: the environment may share its space, and so its random numbers, with other environments.
    actions = copy.deepcopy(env.action_space)
    actions.seed(seed)
    leaves = float_leaves(env.observation_space)
    method = "reset"
    try:
        observation, info = contract.reset(call_reset(env, {"seed": seed, "options": None}))
        first = _finite_copy(observation, leaves)
        action = _random_action(actions, info.get(MASK), generator)
        method = "step"
        observation, *rest, _ = contract.step(call_step(env, action))
        return [first, (_finite_copy(observation, leaves), *rest)]
    except ContractBreach as breach:
        raise ContractBreach(f"{breach} (at its first {method})") from breach
    except Exception as error:
        raise ContractBreach(f"its first {method} raised {type(error).__name__}: {error}") from error


def _random_action(space: spaces.Space, mask: Any, generator: np.random.Generator) -> Any:
    if mask is None or not isinstance(space, spaces.Discrete):
        return space.sample()
    return space.start + generator.choice(np.flatnonzero(mask))


def _finite_copy(observation: Any, leaves: Any) -> Any:
    """Copy an observation, since an environment may overwrite its array; raises ContractBreach if it is not finite."""
    for name, leaf in leaves(observation):
        if not np.isfinite(leaf).all():
            raise ContractBreach(not_finite(name))
    return copy.deepcopy(observation)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return bool(np.array_equal(one, other))
