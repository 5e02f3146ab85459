"""From an environment's id to its adapter, and to the name of its preset."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from bircher.envs import atari, mettagrid, minigrid, parallel_sources, small
from bircher.envs.agents import IdentifiedAgents, SharedRewards
from bircher.envs.base import Actions, Env, EnvState, failure, stack_observations
from bircher.envs.config import EnvRequest, EnvSource
from bircher.errors import UnknownEnvironment, UnsupportedEnvironment, short
from bircher.types import EnvSpec, TimeStep, Unsupported


class ClippedEnv:
    """An environment whose rewards lie in [-bound, bound]."""

    def __init__(self, env: Env, bound: float):
        self.env, self.bound = env, bound
        self.spec, self.num_envs, self.pure = env.spec, env.num_envs, env.pure

    def reset(self) -> tuple[EnvState, TimeStep]:
        """Reset the environment and return the first rows."""
        return self.env.reset()

    def step(self, state: EnvState, action: Actions) -> tuple[EnvState, TimeStep]:
        """Step the environment and clip its rewards, except those that are not finite."""
        state, timestep = self.env.step(state, action)
        reward = timestep.reward
        clipped = jnp.where(jnp.isfinite(reward), jnp.clip(reward, -self.bound, self.bound), reward)
        return state, timestep._replace(reward=clipped)

    def failure(self) -> str | None:
        """Return the error of the wrapped environment; None if there is none, or if it cannot fail."""
        return failure(self.env)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()


BACKENDS = ("toys", "gymnax", "pgx", "envpool", "gymnasium", "pettingzoo", "jaxmarl")

TOYS = (
    "toy/counter", "toy/counter-truncated", "toy/bandit", "toy/chain", "toy/cliff", "toy/catch", "toy/recall",
    "toy/nim", "toy/hands", "toy/riddle", "toy/dial", "toy/lock", "toy/shop", "toy/reacher",
    "toy/three-nim", "toy/auction",
)  # fmt: skip

SMALL = tuple(small.TASKS)

# Classic control runs in gymnax, where acting and learning are one program: its physics, limits
# and rewards equal Gymnasium's (tests/envs/test_gymnax.py compares them). MNISTBandit-bsuite is left out, since it
# downloads data.
GYMNAX = (
    "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1",
    "Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar",
    "Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite",
    "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc",
    "BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc",
)  # fmt: skip

PGX = (
    "tic_tac_toe", "connect_four", "othello", "hex", "go_9x9", "go_19x19", "gardner_chess", "chess", "animal_shogi",
    "shogi", "2048",
)  # fmt: skip

PGX_REFUSED = {
    "bridge_bidding": "its players hide cards from each other, which is not supported",
    "sparrow_mahjong": "its players hide tiles from each other, which is not supported",
    "backgammon": "it has dice, and of games with chance only those of one player are supported",
    "kuhn_poker": "its players hide cards from each other, which is not supported",
    "leduc_holdem": "its players hide cards from each other, which is not supported",
}
"""Games of pgx that cannot be played here, with the reason."""

JAXMARL = tuple(
    f"jaxmarl/MPE_simple_{name}"
    for name in ("v3", "spread_v3", "tag_v3", "adversary_v3", "push_v3", "crypto_v3", "speaker_listener_v4")
)

ENVPOOL = (
    "LunarLander-v3", "LunarLander-v2", "LunarLanderContinuous-v3", "LunarLanderContinuous-v2", "BipedalWalker-v3",
    "BipedalWalkerHardcore-v3", "CarRacing-v3", "CarRacing-v2", "CartPole-v0", "CartPole-v1", "Acrobot-v1",
    "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v0", "Pendulum-v1",
)  # fmt: skip

MUJOCO = tuple(
    f"{name}-{version}"
    for name in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
                 "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d")
    for version in ("v4", "v5")
)  # fmt: skip
"""Gymnasium's tasks of MuJoCo, which EnvPool has too, without a further package."""

PRESETS = {
    **dict.fromkeys(MUJOCO, "mujoco"),
    "BipedalWalker-v3": "bipedalwalker",
    "toy/recall": "recall",
    "CartPole-v1": "cartpole",
    "Acrobot-v1": "acrobot",
    "MountainCar-v0": "mountaincar",
    "LunarLander-v3": "lunarlander",
    "LunarLanderContinuous-v3": "lunarlander",
    "Pendulum-v1": "pendulum",
    "Breakout-MinAtar": "minatar",
    "Freeway-MinAtar": "minatar",
    "SpaceInvaders-MinAtar": "minatar",
    "Asterix-MinAtar": "minatar",
    "Seaquest-MinAtar": "minatar",
    "tic_tac_toe": "board_games",
    "connect_four": "board_games",
    "othello": "board_games",
    "hex": "board_games",
    "go_9x9": "board_games",
    "toy/three-nim": "three_players",
    "toy/auction": "three_players",
    **dict.fromkeys(mettagrid.IDS, "mettagrid"),
}


LEARNED_FROM = ("train", "check", "diagnose")
"""Roles of environments in which rewards are those of training, clipped by `env.reward_clip`."""


class ListedEnv(NamedTuple):
    """One line of the list of environments."""

    id: str
    backend: str
    observation: str
    action: str
    preset: str


def preset_name(env_id: EnvSource) -> str:
    """Return the name of the preset for an environment's family, a file in ``presets/``; ``default`` for most."""
    if atari.canonical(env_id) is not None:
        return "atari"
    if not isinstance(env_id, str):
        return "default"
    return PRESETS.get(env_id) or minigrid.preset_name(env_id) or "default"


def seeds(seed: int, role: str, count: int, generation: int = 0, first: int = 0) -> list[int]:
    """Return the seeds of ``count`` environments from ``first`` on, each a 31-bit number that is not negative.

    They come from a hash of (seed, role, index, generation). With sums instead of hashes neighboring seeds would share
    environments: environment i of seed s would be environment i - 1 of seed s + 1. The lowest bit is 0 for the role
    ``train`` and 1 for every other role, so that no evaluation has a seed of a training.
    """

    def one(index: int) -> int:
        digest = hashlib.blake2b(f"{seed}/{role}/{index}/{generation}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") & 0x7FFFFFFE) | (role != "train")

    return [one(index) for index in range(first, first + count)]


def resolve(request: EnvRequest) -> str:
    """Return the backend that runs an environment: one of ``BACKENDS``, and Gymnasium for pictures.

    Raises UnknownEnvironment with the nearest ids, or UnsupportedEnvironment, before an adapter is imported or anything
    is compiled.
    """
    source, config = request.source, request.config
    adapter = backend_of(source, config.backend)
    if adapter == "envpool" and atari.canonical(source) is not None:
        if request.observation is not None and not request.pixels:
            raise UnsupportedEnvironment(f"the only observation of {source} is its screen: set observation=pixels")
        return adapter
    if config.protocol is not None:
        raise UnsupportedEnvironment(
            f"env.protocol={config.protocol} is for Atari games, such as Breakout-v5, not {source}"
        )
    if not request.pixels or adapter in ("pettingzoo", "jaxmarl"):  # which refuse pixels themselves
        return adapter
    if config.backend not in (None, "gymnasium"):
        raise UnsupportedEnvironment(
            f"observation=pixels needs Gymnasium, which draws it: env.backend={config.backend} is not possible"
        )
    if isinstance(source, str):
        from bircher.envs.specs import can_draw

        if not can_draw(source):
            raise UnsupportedEnvironment(f"{source} cannot be observed as pixels: Gymnasium has no picture of it")
    return "gymnasium"


def backend_of(source: object, backend: str | None = None) -> str:
    """Return the backend that has an environment; the nearest ids are in the error where none, or not this one, has it.

    Raises UnknownEnvironment or UnsupportedEnvironment.
    """
    if backend is not None and backend not in BACKENDS:
        raise UnsupportedEnvironment(
            f"env.backend names the unknown backend {short(backend)}; expected one of {', '.join(BACKENDS)}"
        )
    if not isinstance(source, str):
        if not callable(source):
            raise UnknownEnvironment(f"an environment is an id or a callable, not {type(source).__name__}")
        return backend or ("pettingzoo" if parallel_sources.makes_agents(source) else "gymnasium")
    if source in PGX_REFUSED and backend in (None, "pgx"):
        raise UnsupportedEnvironment(f"{source} cannot be played: {PGX_REFUSED[source]}")
    listed = {
        "toys": (*TOYS, *SMALL), "gymnax": GYMNAX, "pgx": PGX, "envpool": (*ENVPOOL, *MUJOCO), "jaxmarl": JAXMARL,
    }  # fmt: skip
    for name, ids in listed.items():
        if source in ids and backend in (None, name):
            return name
    if backend in (None, "envpool") and (atari.canonical(source) is not None or _is_grid_world(source)):
        return "envpool"
    if backend == "envpool" and source in importlib.import_module("envpool").list_all_envs():
        return "envpool"
    if backend in (None, "pettingzoo") and source.startswith(parallel_sources.PREFIXES) or backend == "pettingzoo":
        parallel_sources.find_source(source)
        return "pettingzoo"
    if backend in (None, "gymnasium") and (found := _of_module(source)):
        return found
    from bircher.envs import specs

    known_ids = {**listed, "gymnasium": specs.list_ids(), "pettingzoo": (*mettagrid.IDS, *parallel_sources.ids())}
    grid_worlds = minigrid.ids() if source.startswith(minigrid.PREFIXES) else ()
    known_ids["envpool"] = (*ENVPOOL, *MUJOCO, *atari.ids(), *grid_worlds)
    names = [name for key, ids in known_ids.items() if backend in (None, key) for name in ids]
    where = f" in {backend}" if backend else ""
    raise UnknownEnvironment(f"unknown environment {short(source)}{where}{specs.advice_for(source[:100], names)}")


def make(request: EnvRequest, seed: int, role: str = "train", generation: int = 0, first: int = 0) -> Env:
    """Make the ``num_envs`` environments of a request, stepped together.

    Args:
      request: the settings, the observation, and the callable if the environment has no id.
      seed: the seed of all of them.
      role: gives training, evaluation and so on different seeds. Rewards are clipped in the roles of training alone.
      generation: another generation has other seeds.
      first: the index of the first one, where others of the same seed and role are made elsewhere.

    Raises UnknownEnvironment for an unknown id, UnsupportedEnvironment for settings that the environment does not
    support and for any error that its package raises.
    """
    config = request.config
    if config.num_envs < 1:
        raise UnsupportedEnvironment(f"num_envs must be at least 1, not {config.num_envs}")
    with _one_sentence(request):
        _require_repeatable(request, resolve(request))
        env_seeds = seeds(seed, role, config.num_envs, generation, first)
        environment = _of_adapter(request, lambda adapter: _make_with(adapter, request, env_seeds))
        _require_agents(request, environment.spec)
        if config.share_rewards and role in LEARNED_FROM:
            environment = SharedRewards(environment)
        if config.reward_clip is not None and role in LEARNED_FROM:
            environment = ClippedEnv(environment, config.reward_clip)
        if config.agent_identity:
            environment = IdentifiedAgents(environment)
        return stack_observations(environment, config.stack) if config.stack > 1 else environment


def _require_agents(request: EnvRequest, spec: EnvSpec) -> None:
    """Raise UnsupportedEnvironment if a setting for several agents is used with one, or with stacked observations."""
    config = request.config
    for name in ("share_rewards", "agent_identity"):
        if getattr(config, name) and spec.num_agents == 1:
            raise UnsupportedEnvironment(
                f"env.{name}=true is for environments of several agents, and {spec.id} has one: set env.{name}=false"
            )
    if config.agent_identity and config.stack > 1:
        raise UnsupportedEnvironment(
            f"env.agent_identity=true adds to single observations, which env.stack={config.stack} joins: remove one of "
            "them"
        )


def _require_repeatable(request: EnvRequest, adapter: str) -> None:
    """Raise UnsupportedEnvironment if actions are to be repeated and another setting does that."""
    repeat, env_id = request.config.action_repeat, request.config.id
    if repeat is not None and adapter == "envpool" and atari.canonical(env_id) is not None:
        raise UnsupportedEnvironment(
            f"env.action_repeat={repeat} is not for Atari games, whose package repeats actions itself: set "
            "env.options.frame_skip"
        )


T = TypeVar("T")


def _of_adapter(request: EnvRequest, use: Callable[[str], T]) -> T:
    """Return what `use` returns for the adapter of a request.

    Whether a function makes an environment of Gymnasium or of PettingZoo is known only after it was called.
    """
    try:
        return use(resolve(request))
    except parallel_sources.MakesAgents:
        return use(resolve(request))


def _make_with(adapter: str, request: EnvRequest, env_seeds: Sequence[int]) -> Env:
    if adapter == "toys":
        from bircher.envs.toys import make_toy

        return make_toy(request, env_seeds)
    if adapter == "gymnax":
        from bircher.envs.gymnax import GymnaxEnv

        return GymnaxEnv(request, env_seeds)
    if adapter == "pgx":
        from bircher.envs.pgx import PgxEnv

        return PgxEnv(request, env_seeds)
    if adapter == "jaxmarl":
        from bircher.envs.jaxmarl import JaxMarlEnv

        return JaxMarlEnv(request, env_seeds)
    if adapter == "pettingzoo":
        from bircher.envs.pettingzoo import PettingZooEnv

        return PettingZooEnv(request, env_seeds)
    if adapter == "envpool":
        from bircher.envs.envpool import EnvPoolEnv

        return EnvPoolEnv(request, env_seeds)
    from bircher.envs.gymnasium import GymnasiumEnv

    return GymnasiumEnv(request, env_seeds)


def spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of one environment with single, not stacked, observations, without compiling it."""
    with _one_sentence(request):
        return _of_adapter(request, lambda name: importlib.import_module(f"bircher.envs.{name}").env_spec(request))


def probe(request: EnvRequest, seed: int) -> tuple[str, ...]:
    """Play the first step of one environment of Gymnasium or PettingZoo; those of other adapters need no such check.

    Returns notes for the user, for instance that runs with the environment cannot be repeated exactly.

    Raises UnsupportedEnvironment if the environment raised an exception or broke its contract.
    """
    with _one_sentence(request):
        if resolve(request) not in ("gymnasium", "pettingzoo"):
            return ()
        one = seeds(seed, "probe", 1)[0]
        return _of_adapter(request, lambda name: importlib.import_module(f"bircher.envs.{name}").probe(request, one))


@contextmanager
def _one_sentence(request: EnvRequest) -> Iterator[None]:
    """Turn any exception of an environment's package into an UnsupportedEnvironment with one sentence."""
    try:
        yield
    except (UnknownEnvironment, UnsupportedEnvironment):
        raise
    except Exception as error:
        options, source = request.config.options, request.source
        with_options = f" with options {options}" if options else ""
        reason = (str(error) or type(error).__name__).splitlines()[0]
        name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
        raise UnsupportedEnvironment(f"{name} cannot be made{with_options}: {reason}") from error


def describe(observation: Any) -> str:
    """Describe an observation specification in words, such as ``float32 (8,)``."""
    if isinstance(observation, Unsupported):
        return str(observation)
    if isinstance(observation, jax.ShapeDtypeStruct):
        return f"{observation.dtype} {observation.shape}"
    if isinstance(observation, Mapping):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in observation.items()) + "}"
    return "(" + ", ".join(describe(part) for part in observation) + ")"


def list_environments(name_filter: str | None = None) -> list[ListedEnv]:
    """List all environments with an id that contains ``name_filter``, ignoring case; None lists all.

    Each line has the environment's spaces, or the reason why they are not available, such as a missing package.
    """
    from bircher.envs import specs

    lines = []
    built_in = (*TOYS, *SMALL, *GYMNAX, *PGX, *ENVPOOL, *MUJOCO, *JAXMARL, *atari.ids(), *minigrid.ids())
    built_in += (*mettagrid.IDS, *parallel_sources.ids())
    for env_id in dict.fromkeys((*built_in, *specs.list_ids())):
        if name_filter is not None and name_filter.lower() not in env_id.lower():
            continue
        backend = backend_of(env_id)
        if backend == "envpool" and atari.canonical(env_id) is not None:
            lines.append(ListedEnv(env_id, backend, *atari.summary(env_id), preset_name(env_id)))
            continue
        try:
            env_spec = spec(EnvRequest.of(env_id))
            observation, action = describe(env_spec.observation), str(env_spec.action)
        except UnsupportedEnvironment as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            observation, action = f"not available: {reason}", ""
        lines.append(ListedEnv(env_id, backend, observation, action, preset_name(env_id)))
    return lines


def _is_grid_world(env_id: str) -> bool:
    return env_id.startswith(minigrid.PREFIXES) and env_id in minigrid.ids()


def _of_module(env_id: str) -> str | None:
    """Return the backend of an id that Gymnasium has, or of a module's function; None where there is neither.

    Raises UnknownEnvironment if the module in the id neither registers it nor has such a function.
    """
    from bircher.envs.specs import find_registration

    try:
        find_registration(env_id)
    except UnknownEnvironment:
        module, _, name = env_id.rpartition(":")
        if not module:
            return None
        source = getattr(sys.modules.get(module), name, None)
        if parallel_sources.may_make_agents(source):
            return "pettingzoo"
        raise
    return "gymnasium"
