"""The first steps of one Gymnasium environment, played before a run so that a breach is found before compilation."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bircher.envs.base import UnsupportedEnvironment
from bircher.envs.contract import MASK, Contract, call_reset, call_step
from bircher.envs.failures import ContractBreach
from bircher.envs.gymnasium import picture
from bircher.envs.observation import ObservationConfig
from bircher.envs.observation_checks import float_leaves, not_finite
from bircher.envs.single import Source, maker, source_name
from bircher.envs.spaces import quiet_bounds

SLOW_SECONDS = 1.0
"""Where a reset and the steps take longer, they are not repeated."""


def probe(
    source: Source,
    seed: int,
    max_steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    observation: ObservationConfig | None = None,
    action_repeat: int = 1,
) -> tuple[str, ...]:
    """Reset one fresh environment and take one random legal step, twice where that is quick.

    Returns a sentence where flags are numbers, and one where the two differ, so that no run can be repeated exactly.

    Raises:
      UnsupportedEnvironment: the environment raised or broke its contract.
    """
    name = source_name(source)
    with quiet_bounds():
        env = maker(source, max_steps, options or {}, picture(observation), action_repeat=action_repeat)()
    try:
        contract = Contract(env.observation_space, env.action_space)
        began = time.monotonic()
        first = second = _play(env, contract, seed)
        if time.monotonic() - began <= SLOW_SECONDS:
            second = _play(env, contract, seed)
    except ContractBreach as breach:
        raise UnsupportedEnvironment(f"{name} cannot be used: {breach}") from breach
    finally:
        env.close()
    flags = " and ".join(sorted(contract.numbers_as_flags))
    notes = (f"{name} gives {flags} as 0 or 1, which is taken as False or True",) if flags else ()
    if _same(first, second):
        return notes
    what = "first observations for one seed" if not _same(first[0], second[0]) else "episodes for one seed and actions"
    return (
        *notes,
        f"{name} gives two different {what}: it uses random numbers, or keeps a state between episodes, that "
        "reset(seed=...) does not set; runs with it cannot be repeated exactly",
    )


def _play(env: gymnasium.Env, contract: Contract, seed: int) -> list[Any]:
    """What the environment returns for a seed; the actions depend on the seed and the masks alone."""
    generator = np.random.default_rng(seed)
    # Not the environment's own space: it may be shared with other environments, and so are its random numbers.
    actions = copy.deepcopy(env.action_space)
    actions.seed(seed)
    leaves = float_leaves(env.observation_space)
    called = "reset"
    try:
        observation, info = contract.reset(call_reset(env, {"seed": seed, "options": None}))
        first = _copied(observation, leaves)
        action = _random_action(actions, info.get(MASK), generator)
        called = "step"
        observation, *rest, _ = contract.step(call_step(env, action))
        return [first, (_copied(observation, leaves), *rest)]
    except ContractBreach as breach:
        raise ContractBreach(f"{breach} (at its first {called})") from breach
    except Exception as error:
        raise ContractBreach(f"its first {called} raised {type(error).__name__}: {error}") from error


def _random_action(space: spaces.Space, mask: Any, generator: np.random.Generator) -> Any:
    if mask is None or not isinstance(space, spaces.Discrete):
        return space.sample()
    return space.start + generator.choice(np.flatnonzero(mask))


def _copied(observation: Any, leaves: Any) -> Any:
    """A copy of an observation, since an environment may write into the same array again."""
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
