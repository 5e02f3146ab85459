"""Where PettingZoo's environments come from: ids, functions in modules, and callables.

Turn-based environments become parallel ones by PettingZoo's own conversions.  Nothing here imports JAX, because worker
processes load this module, and PettingZoo is imported only where it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from bircher.errors import UnknownEnvironment, UnsupportedEnvironment, near, short

PREFIX = "pettingzoo/"
"""The beginning of the ids of PettingZoo's own environments, such as pettingzoo/mpe/simple_spread_v3."""
FAMILIES = {
    "atari": "pettingzoo.atari",
    "butterfly": "pettingzoo.butterfly",
    "classic": "pettingzoo.classic",
    "mpe": "mpe2",  # PettingZoo's particle environments are a package of their own since 1.25
    "sisl": "pettingzoo.sisl",
}
"""The package of each family of environments."""
VERSIONED = re.compile(r".+_v\d+$")
DEFAULT_FUNCTION = "parallel_env"


def ids() -> list[str]:
    """Return the ids of all environments of the families that are installed, without importing them."""
    found = []
    for family, package in FAMILIES.items():
        try:
            package_spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # PettingZoo itself is missing
            continue
        folders = package_spec.submodule_search_locations if package_spec else None
        names = [module.name for module in pkgutil.iter_modules(folders or [])]
        found += [f"{PREFIX}{family}/{name}" for name in names if VERSIONED.match(name)]
    return found


def find_source(env_id: str) -> Callable[..., Any]:
    """Return the function or class that makes an environment.

    The id is pettingzoo/FAMILY/NAME, or MODULE:FUNCTION.

    Raises:
      UnknownEnvironment: it does not exist, or its module cannot be imported; the message has the reason.
    """
    if not env_id.startswith(PREFIX):
        module, _, name = env_id.rpartition(":")
        return _attribute(_imported(module, env_id), name, env_id)
    known = ids()
    if env_id not in known:
        if importlib.util.find_spec("pettingzoo") is None:
            raise UnknownEnvironment(f"{short(env_id)} needs the package pettingzoo, which is not installed")
        raise UnknownEnvironment(f"unknown environment {short(env_id)}{near(env_id, known)}")
    family, name = env_id.removeprefix(PREFIX).split("/")
    module = _imported(f"{FAMILIES[family]}.{name}", env_id)
    return getattr(module, DEFAULT_FUNCTION, None) or _attribute(module, "env", env_id)


def _imported(module: str, env_id: str) -> Any:
    from bircher.envs.specs import import_module

    import_module(module, env_id)
    return sys.modules[module]


def _attribute(module: Any, name: str, env_id: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownEnvironment(f"{short(env_id)}: {module.__name__} has no function {name}{near(name, names)}")
    return found


_returns_agents: dict[int, tuple[Callable[..., Any], bool]] = {}
"""Whether a callable returns an environment of PettingZoo, by its id; the callable is kept so that the id stays its."""


def makes_agents(source: Callable[..., Any]) -> bool:
    """Return whether a class or function makes an environment of PettingZoo.

    A function is called once, unless PettingZoo is not imported, because then it cannot return one.
    """
    pettingzoo = sys.modules.get("pettingzoo")
    if pettingzoo is None:
        return False
    kinds = (pettingzoo.ParallelEnv, pettingzoo.AECEnv)
    if inspect.isclass(source):
        return issubclass(source, kinds)
    if id(source) not in _returns_agents:
        try:
            env = source()
        except Exception:  # where it is made for the run, the same error is raised with its reason
            return False
        _returns_agents[id(source)] = source, isinstance(env, kinds)
        env.close()
    return _returns_agents[id(source)][1]


def make_parallel(source: Callable[..., Any] | str, options: Mapping[str, Any]) -> Any:
    """Make one parallel environment, from its id or a class or function.

    Raises:
      UnsupportedEnvironment: it is no environment of PettingZoo, or is turn-based and cannot be converted.
    """
    import pettingzoo

    name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    make = find_source(source) if isinstance(source, str) else source
    env = make(**options)
    if isinstance(env, pettingzoo.ParallelEnv):
        return env
    if not isinstance(env, pettingzoo.AECEnv):
        raise UnsupportedEnvironment(f"{name} returned {type(env).__name__}, expected a pettingzoo.ParallelEnv")
    return _converted(env, name)


def _converted(env: Any, name: str) -> Any:
    """Return an environment whose agents act in turn as a parallel one.

    Where it is parallelizable, its agents act together once a cycle.  Otherwise all but one have a single legal action,
    which is ignored, so that only discrete actions can be converted.
    """
    from gymnasium.spaces import Discrete
    from pettingzoo.utils.conversions import aec_to_parallel, turn_based_aec_to_parallel

    if env.metadata.get("is_parallelizable", False):
        return aec_to_parallel(env)
    other = next((a for a in agents_of(env, name) if not isinstance(env.action_space(a), Discrete)), None)
    if other is not None:
        raise UnsupportedEnvironment(
            f"the agents of {name} act in turn, which is converted only where actions are Discrete, and {other} has "
            f"the action space {env.action_space(other)}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a `render_mode` defined.*")
        return turn_based_aec_to_parallel(env)


def agents_of(env: Any, name: str) -> list[Any]:
    """Return all agents that an environment may have, in its order.

    Raises:
      UnsupportedEnvironment: the environment does not list them.
    """
    agents = list(getattr(env, "possible_agents", None) or ())
    if not agents:
        raise UnsupportedEnvironment(
            f"{name} has no possible_agents, which must list every agent that may act in an episode"
        )
    return agents


def whose_turn(env: Any) -> Any:
    """Return the agent to act of a converted turn-based environment; None where all act together."""
    from pettingzoo.utils.conversions import turn_based_aec_to_parallel_wrapper

    return env.aec_env.agent_selection if isinstance(env, turn_based_aec_to_parallel_wrapper) else None
