"""Where PettingZoo's environments come from: ids, functions in modules, and callables.

Turn-based environments become parallel ones by PettingZoo's own conversions.  Nothing here imports JAX, because worker
processes load this module, and PettingZoo is imported only where it is used.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from bircher.envs import mettagrid
from bircher.errors import UnknownEnvironment, UnsupportedEnvironment, near, short

PREFIX = "pettingzoo/"
"""The beginning of the ids of PettingZoo's own environments, such as pettingzoo/butterfly/pistonball-v6."""
PARTICLES = "mpe/"
"""The family of particle environments, which are the package mpe2 and in no registry."""
PREFIXES = (PREFIX, mettagrid.PREFIX)
"""The beginnings of all ids that are looked for here alone."""
VERSION = re.compile(r"[-_](v\d+)$")


def ids() -> list[str]:
    """Return the ids of PettingZoo's registry, and of the particle environments, as far as they are installed."""
    try:
        import pettingzoo
    except ImportError:
        return []
    package = importlib.util.find_spec("mpe2")
    modules = pkgutil.iter_modules(package.submodule_search_locations if package else [])
    particles = [PARTICLES + module.name for module in modules if VERSION.search(module.name)]
    return [PREFIX + name for name in (*particles, *{**pettingzoo.parallel_registry, **pettingzoo.aec_registry})]


def find_source(env_id: str) -> Callable[..., Any]:
    """Return the function or class that makes an environment.

    The id is pettingzoo/FAMILY/NAME, mettagrid/MAP, or MODULE:FUNCTION.  A version may be written -v3 or _v3.

    Raises:
      UnknownEnvironment: it does not exist, or its module cannot be imported; the message has the reason.
      UnsupportedEnvironment: it is one that mettagrid does not have.
    """
    if mettagrid.is_id(env_id):
        mettagrid.require_known(env_id)
        return partial(_make_mettagrid, env_id)
    if not env_id.startswith(PREFIX):
        module, _, name = env_id.rpartition(":")
        return _attribute(_imported(module, env_id), name, env_id)
    known = {VERSION.sub(r"-\1", name): name.removeprefix(PREFIX) for name in ids()}
    if not known:
        raise UnknownEnvironment(f"{short(env_id)} needs the package pettingzoo, which is not installed")
    name = known.get(VERSION.sub(r"-\1", env_id))
    if name is None:
        raise UnknownEnvironment(f"unknown environment {short(env_id)}{near(env_id, ids())}")
    if name.startswith(PARTICLES):
        return _attribute(_imported(f"mpe2.{name.removeprefix(PARTICLES)}", env_id), "parallel_env", env_id)
    import pettingzoo

    make: Callable[..., Any] = pettingzoo.make
    return partial(make, "parallel" if name in pettingzoo.parallel_registry else "aec", name)


def _make_mettagrid(env_id: str, **options: Any) -> Any:
    mettagrid.load()
    from bircher.envs.mettagrid_env import MettaGridEnv

    return MettaGridEnv(env_id, **options)


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


_functions: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""Functions that returned an environment of PettingZoo."""


def _kinds() -> tuple[type, ...]:
    """Return PettingZoo's classes of environments; () while it is not imported, because then nothing is one of them."""
    pettingzoo = sys.modules.get("pettingzoo")
    return () if pettingzoo is None else (pettingzoo.ParallelEnv, pettingzoo.AECEnv)


def makes_agents(source: Any) -> bool:
    """Return whether a callable is known to make an environment of PettingZoo: a class, or a function that did so."""
    if inspect.isclass(source):
        return issubclass(source, _kinds())
    return isinstance(source, Hashable) and source in _functions


def may_make_agents(source: Any) -> bool:
    """Return whether a module's attribute may make an environment of PettingZoo."""
    return callable(source) and bool(_kinds()) and (makes_agents(source) or not inspect.isclass(source))


def require_one_agent(env: Any, source: Any) -> None:
    """Raise MakesAgents if a function returned an environment of PettingZoo, and remember the function."""
    if isinstance(env, _kinds()):
        _functions.add(source)
        env.close()
        raise MakesAgents(source)


class MakesAgents(Exception):
    """A callable that was taken for one of Gymnasium makes an environment of PettingZoo."""


def make_parallel(source: Callable[..., Any] | str, options: Mapping[str, Any]) -> Any:
    """Make one parallel environment, from its id or a class or function.

    Raises:
      UnsupportedEnvironment: it is not an environment of PettingZoo, or is turn-based and cannot be converted.
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
