"""From a configuration to the parts of a run.  What cannot work is refused here, before anything is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bircher import devices
from bircher.agents import actor_critic, muzero
from bircher.agents.base import Agent, require_supported
from bircher.agents.config import PolicyAgentConfig, PolicyLosses
from bircher.agents.exploration import with_exploration
from bircher.agents.muzero import MuZeroConfig, MuZeroLosses
from bircher.agents.policy_targets import required_targets
from bircher.config import settings
from bircher.config.config import Config, validated
from bircher.config.presets import CALLABLE
from bircher.envs import registry
from bircher.envs.base import Env, blank_rows
from bircher.envs.config import EnvRequest, EnvSource
from bircher.errors import ConfigError, NotEnoughMemory, UnknownEnvironment, UnsupportedEnvironment
from bircher.ops.distributions import distribution_of
from bircher.runs import directory
from bircher.training import learner, loops, sharding, workers
from bircher.training.learner import Learner, TrainState
from bircher.training.learners import Learners, make_init
from bircher.training.loops import Programs
from bircher.training.remote_worker import Recipe, Share
from bircher.types import Discrete, EnvSpec, Key, TimeStep


class Parts(NamedTuple):
    """Agent and learner for one specification, and the shapes of their state."""

    agent: Agent
    learner: Learner
    init: Callable[..., TrainState]
    """(key, first rows) -> state; compiled at the first call."""
    place: Callable[[TrainState], TrainState]
    """(state of a checkpoint) -> the same on the devices of the learner"""
    template: TrainState
    """The shapes of the state; nothing is allocated."""
    saved: TrainState
    """The shapes of the state without the replay, as in a checkpoint."""


def env_request(config: Config, source: EnvSource | None, num_envs: int | None = None) -> EnvRequest:
    """Return the request for the environments of a run.

    Args:
      config: the run's configuration.
      source: a callable that the configuration only names, or None.
      num_envs: number of environments; None takes the configured number.
    """
    env = config.env if num_envs is None else config.env.model_copy(update={"num_envs": num_envs})
    if isinstance(source, str):
        env, source = env.model_copy(update={"id": source}), None
    return EnvRequest(env, config.observation, source)


def make_env(
    config: Config, source: EnvSource | None, num_envs: int, seed: int, role: str, generation: int = 0, first: int = 0
) -> Env:
    """Make environments as configured; `source` is a callable that the configuration only names, or None.

    `first` is the index of the first one among all with this seed.

    Raises:
      UnknownEnvironment: the id does not exist.
      UnsupportedEnvironment: the environment cannot be made with these settings, whatever error its package raised.
    """
    return registry.make(env_request(config, source, num_envs), seed, role, generation, first)


def join_learners(config: Config) -> Learners | None:
    """Return the learners of a run, if there are several, before JAX is used.

    Raises:
      ConfigError: this process has used JAX before, there is no cluster, or it has no place for the learners.
    """
    return Learners(config.ray, config.device, config.devices) if config.ray.learners > 1 else None


def make_remote_learner(saved: Mapping[str, Any], source: EnvSource | None) -> Learner:
    """Return one of several learners in its process, from a configuration as plain data."""
    config = validated(saved)
    with contextlib.closing(make_env(config, source, 1, config.seed, "check")) as env:
        return make_learner(config, env.spec, config.ray.learners)


def make_training_env(
    config: Config, source: EnvSource | None, generation: int, learners: Learners | None = None
) -> Env:
    """Make all environments of a run here, or with `loop=ray` the workers that will make them.

    Workers close `learners`, and give them their rows.

    Raises:
      UnknownEnvironment, UnsupportedEnvironment: as for `make_env`.
      ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    if config.loop.name != "ray":
        return make_env(config, source, config.env.num_envs, config.seed, "train", generation)
    with contextlib.closing(make_env(config, source, 1, config.seed, "check")) as env:
        spec, pure = env.spec, env.pure
    if learners is not None:
        learners.prepare(partial(make_remote_learner, config.model_dump(by_alias=True), source))
    return workers.Workers(
        spec, pure, config.env.num_envs, config.ray, recipe(config, source), generation, learners
    )


def recipe(config: Config, source: EnvSource | None) -> Recipe:
    """Return what workers need to make and play their environments."""
    make = partial(make_share, config.model_dump(by_alias=True), source)
    return Recipe(make, config.loop.rollout_length, config.steps)


def make_share(saved: Mapping[str, Any], source: EnvSource | None, share: Share, generation: int) -> tuple[Agent, Env]:
    """Return the agent and a worker's environments, from a configuration as plain data."""
    config = validated(saved)
    if config.env.num_threads is None:  # a worker has one core
        config = config.model_copy(update={"env": config.env.model_copy(update={"num_threads": 1})})
    env = make_env(config, source, share.count, config.seed, "train", generation, share.first)
    return make_agent(config, env.spec), env


def probe_env(config: Config, source: EnvSource | None) -> tuple[str, ...]:
    """Play the first step of one environment, and return notes about it for the user.

    Raises:
      UnsupportedEnvironment: the environment raised, or broke the contract of a Gymnasium environment.
    """
    return registry.probe(env_request(config, source), config.seed)


def with_encoding(config: Config, source: EnvSource | None, saved: Mapping[str, Any]) -> tuple[Config, EnvSpec]:
    """Return the configuration of a saved run, and its specification.

    The version before did not save the first action and the encoding of observations.  For its runs both are taken from
    a new environment, with the layout whose arrays are those that the run learned from.
    """
    spec = directory.spec_from(saved)
    if directory.has_encoding(saved):
        return config, spec
    as_given = config
    for layout in ("auto", "as_given"):
        as_given = config.model_copy(update={"env": config.env.model_copy(update={"layout": layout})})
        try:
            env = make_env(as_given, source, 1, config.seed, "check")
        except (
            UnknownEnvironment,
            UnsupportedEnvironment,
        ):  # not installed: only the arrays of the checkpoint are known
            continue
        found = env.spec
        env.close()
        if found.observation == spec.observation:
            return as_given, spec._replace(action=found.action, encoding=found.encoding)
    return as_given, spec


def require_source(config: Config, source: EnvSource | None, call: str = "bircher.load(path, env=...)") -> None:
    """Require the callable that was the run's environment; `call` is the Python call that takes it.

    Raises:
      UnknownEnvironment: the callable is missing.
    """
    if source is None and config.env.id.startswith(CALLABLE):
        name = config.env.id.removeprefix(CALLABLE)
        raise UnknownEnvironment(
            f"the run's environment was the callable {name}, which a file cannot contain: pass it from Python, "
            + call.replace("env=...", f"env={name}" if name.isidentifier() else "env=...")
        )


def require_same_spaces(expected: EnvSpec, given: EnvSpec) -> None:
    """Require that an environment has the spaces and the number of agents with which a run was trained.

    Raises:
      UnsupportedEnvironment: the observations, the actions or the number of agents differ.
    """
    spaces = [
        (registry.describe(spec.observation), str(spec.action), spec.num_players, spec.num_agents)
        for spec in (expected, given)
    ]
    if spaces[0] != spaces[1]:
        several = max(expected.num_agents, given.num_agents) > 1
        described = [
            f"observations {observation} and actions {action}" + f", of {agents} agents" * several
            for observation, action, _, agents in spaces
        ]
        raise UnsupportedEnvironment(f"the run was trained with {described[0]}, but {given.id} has {described[1]}")


def make_env_again(
    spec: EnvSpec, config: Config, source: EnvSource | None, num_envs: int, seed: int, role: str, generation: int = 0
) -> Env:
    """Make environments for a run that was trained in those of `spec`.

    Raises:
      UnknownEnvironment, UnsupportedEnvironment: they cannot be made, or have other spaces than in training.
    """
    require_source(config, source)
    env = make_env(config, source, num_envs, seed, role, generation)
    try:
        require_same_spaces(spec, env.spec)
    except UnsupportedEnvironment:
        env.close()
        raise
    return env


def make_agent(config: Config, spec: EnvSpec) -> Agent:
    """Return the agent of a configuration."""
    agent, losses = config.agent, config.losses
    if isinstance(agent, MuZeroConfig) and isinstance(losses, MuZeroLosses):
        made = muzero.make(agent, config.model, losses, config.search, spec.num_players)
    else:
        assert isinstance(agent, PolicyAgentConfig) and isinstance(losses, PolicyLosses)
        made = actor_critic.make(agent, config.model, losses, config.search, spec.num_players)
    return with_exploration(made, config.exploration, config.model)


def make_parts(config: Config, spec: EnvSpec, learners: Learners | None = None) -> Parts:
    """Return agent and learner; the initial state is traced, but nothing is allocated or compiled.

    Without `learners` the learner is a single one, whatever the configuration says.

    Raises:
      UnsupportedEnvironment: the agent cannot learn in an environment of this kind.
      ConfigError: the run has more frames than a counter of 32 bits.
    """
    require_supported(config.agent.name, spec)
    if config.steps * spec.action_repeat >= 2**31:
        raise ConfigError(
            f"steps={config.steps:,} of {spec.action_repeat} frames each are more frames than can be counted: expected "
            f"fewer than {2**31 // spec.action_repeat:,} steps"
        )
    learn = make_learner(config, spec, 1 if learners is None else learners.count)
    rows = jax.eval_shape(partial(blank_rows, spec, config.env.num_envs))
    template = jax.eval_shape(learn.init, jax.random.key(0), rows)
    saved = jax.eval_shape(learner.without_replay, template)
    if learners is None:
        init, place = _init(learn), learn.layout.place if learn.layout else lambda train: train
    else:
        init, place = learners.init(learn), partial(learners.place, learn)
    return Parts(learn.agent, learn, init, place, template, saved)


def make_learner(config: Config, spec: EnvSpec, num_learners: int) -> Learner:
    """Return the learner of a configuration, or this process' one of several; nothing is compiled."""
    return learner.Learner(
        make_agent(config, spec),
        spec,
        learner.LearnerConfig(
            config.optimizer, config.replay, config.env.num_envs, config.loop.rollout_length, config.steps,
            config.agent.target_update_rate, config.env.stack,
        ),
        sharding.layout(
            config.devices, config.optimizer.batch_size, config.env.num_envs, config.replay.device == "host",
            spec.num_agents, num_learners,
        ),
    )  # fmt: skip


def _init(learn: Learner) -> Callable[..., TrainState]:
    """Return the function that computes the first state, with the replay on its device."""
    if not learn.replay_on_host:
        return jax.jit(learn.init) if learn.layout is None else make_init(learn)
    init, init_replay, host = jax.jit(learn.init_networks), jax.jit(learn.init_replay), devices.host()

    def begin(key: Key, timestep: TimeStep) -> TrainState:
        return dataclasses.replace(init(key, timestep), replay=init_replay(*jax.device_put((key, timestep), host)))

    return begin


def require_possible(config: Config) -> None:
    """Check that a configuration can be run, apart from its device and memory.

    Raises:
      ConfigError, UnknownEnvironment, UnsupportedEnvironment: the configuration cannot be run.
    """
    env = make_env(config, None, 1, config.seed, "check")
    try:
        require_symmetries(config, env.spec)
        make_parts(config, env.spec)
    finally:
        env.close()


def candidates_sentence(config: Config, spec: EnvSpec) -> str:
    """Return a sentence about which actions of a state the agent weighs, or "" where it weighs all discrete actions.

    PPO weighs none, unless a term looks ahead.
    """
    agent, count = config.agent, distribution_of(spec.action).num_choices
    if isinstance(agent, MuZeroConfig):
        weighs, place = not isinstance(spec.action, Discrete), "node of its search"
    else:
        assert isinstance(agent, PolicyAgentConfig) and isinstance(config.losses, PolicyLosses)
        weighs = required_targets(agent, frozenset(config.losses.weights())).look_ahead
        place = "state"
        if isinstance(spec.action, Discrete) and spec.action.num_actions <= agent.enumerate_actions:
            return ""
    if not weighs:
        return ""
    if count is not None and count <= agent.enumerate_actions:
        return f"actions of {spec.id}, {spec.action}: {agent.name} weighs all {count:,} of them in each {place}"
    return (
        f"actions of {spec.id}, {spec.action}: {agent.name} weighs {agent.num_candidates:,} samples of its policy in "
        f"each {place} (agent.num_candidates)"
    )


def require_symmetries(config: Config, spec: EnvSpec) -> None:
    """Check that the environment has symmetries if `replay.symmetries` is set.

    Raises:
      UnsupportedEnvironment: no symmetries are known for the environment.
    """
    if config.replay.symmetries and not spec.symmetries:
        raise UnsupportedEnvironment(
            f"replay.symmetries=true needs a board game whose symmetries are known, but {spec.id} has none"
        )


def make_loop(config: Config, env: Env, parts: Parts) -> Programs:
    """Return the programs of the configured loop; nothing is compiled."""
    if isinstance(env, workers.Workers):
        return workers.remote(parts.agent, env, parts.learner)
    return loops.LOOPS[config.loop.name](parts.agent, env, parts.learner, config.loop.rollout_length, config.steps)


def num_bytes(tree: PyTree) -> int:
    """Return the bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if not _is_key(leaf))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def replay_device(parts: Parts) -> devices.Device:
    """Return the device of the replay's arrays."""
    return devices.default() if not parts.learner.replay_on_host else devices.host()


def memories(parts: Parts, device: devices.Device) -> int:
    """Return the number of devices with a memory each over which the replay and batches are divided."""
    layout = parts.learner.layout
    return 1 if layout is None or device.platform == "cpu" else layout.mesh.size


SAID_FROM = 100 * 2**20
"""The size of a replay, in bytes, from which on the sentence mentions the memory of its checkpoints."""


def replay_sentence(config: Config, parts: Parts, device: devices.Device) -> str:
    """Return a sentence with the size of the replay.

    Raises:
      NotEnoughMemory: the device has not enough memory left.
    """
    replay = num_bytes(parts.template.replay)
    # A checkpoint takes at least one copy while it is written. In measurements it took two or three in all.
    needed = 2 * replay / memories(parts, device)
    free = devices.available_bytes(replay_device(parts))
    place = f"on the {device.platform}" if not parts.learner.replay_on_host else "in the host's memory"
    agents = parts.learner.spec.num_agents
    of_agents = "" if agents == 1 else f" of {agents} agents each"
    capacity = parts.learner.replay.capacity // agents
    text = f"the replay of {capacity:,} steps{of_agents} takes {size(replay)} {place}"
    if config.replay.compressed_bytes is not None:
        text += f", with {config.replay.compressed_bytes:,} bytes for each observation, compressed"
    if free is not None and needed > free:
        raise NotEnoughMemory(
            f"{text}, and at least as much again while a checkpoint is written, but only {size(free)} are left: "
            f"lower replay.capacity={config.replay.capacity:,}"
        )
    more = ", and up to three times as much again while a checkpoint is written"
    return text + (more if replay >= SAID_FROM else "")


def size(number: float) -> str:
    """Return a number of bytes as text, in MiB or GiB."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def with_overrides(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """Return a run's configuration with other settings of its search.

    `overrides` are texts `search.KEY=VALUE`, or a mapping with dotted or nested keys.

    Raises:
      ConfigError: a setting is wrong, or is not one of the search.
    """
    given = settings.nested(overrides) if isinstance(overrides, Mapping) else settings.parse(overrides)
    if not given:
        return config
    for name in settings.leaves(given):
        if name.split(".")[0] != "search":
            raise ConfigError(f"{name} cannot be changed after training; only search.* can")
    return validated(settings.merge(config.model_dump(by_alias=True), given))
