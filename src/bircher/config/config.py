"""The configuration of a run, composed of the settings models that are next to the code they configure.

Later layers win: defaults, the preset (found by the environment's id), a file, single settings.  Everything is refused
before anything is compiled: an unknown key with the nearest valid name, a wrong type or range with what is expected,
a combination that cannot work with its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from bircher.agents import actor_critic, loss_terms
from bircher.agents.base import AgentConfig, LossTable
from bircher.agents.config import PolicyAgentConfig, PolicyLosses, requirements
from bircher.agents.exploration import ExplorationConfig
from bircher.agents.exploration import requirements as exploration_requirements
from bircher.agents.muzero import MuZeroConfig, MuZeroLosses
from bircher.config import presets, settings
from bircher.config.presets import environment_id, read_layer
from bircher.envs import registry
from bircher.envs.config import EnvConfig, EnvRequest, ObservationConfig
from bircher.errors import ConfigError, near, short, short_text
from bircher.networks.model import ModelConfig
from bircher.replay import base
from bircher.replay.base import ReplayConfig
from bircher.search import SearchConfig
from bircher.training.cluster import RayConfig
from bircher.training.evaluator import EvaluationConfig
from bircher.training.optimizer import OptimizerConfig, require_memory_rows, require_rows, updates_per_iteration

LOOPS = ("synchronous", "pipeline", "ray")
OBSERVATIONS = ("state", "pixels")

DEBUG = {
    "steps": 64,
    "env": {"num_envs": 2},
    "loop": {"rollout_length": 8},
    "optimizer": {"batch_size": 2, "updates_per_step": 1 / 16, "minibatches": 1, "epochs": 1},
    "replay": {"capacity": 1024},
    "evaluation": {"count": 0},
}
"""Settings of `debug=true`, unless they are set elsewhere: without compilation a run of full size would take too
long."""


class LoopConfig(BaseModel):
    """The loop that alternates between collecting rollouts and learning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["synchronous", "pipeline", "ray"] = "synchronous"
    """`pipeline` collects a rollout while it learns from the previous one, on two cores. Its policy is one rollout
    older. `ray` collects rollouts in several processes, here or on other machines; see `ray`."""
    rollout_length: int = Field(16, ge=1, le=2**20)
    """The number T of steps of each environment in a rollout, which is also the length of training sequences."""


class CheckpointConfig(BaseModel):
    """Checkpoints of a run; there is always one at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_seconds: float = Field(30.0, gt=0)
    """The time between two checkpoints, in seconds."""
    keep: int = Field(2, ge=1)
    """The number of newest checkpoints that stay."""
    replay_every: int = Field(1, ge=1)
    """The replay is stored in every n-th checkpoint, where n is this number, and always in the last one."""


class Config(BaseModel):
    """All settings of a run; each agent has a subclass, in `AGENTS`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "default"
    """The preset from which all values come that are not set elsewhere."""
    seed: int = Field(0, ge=0, lt=2**31)
    """The seed of all random numbers."""
    steps: int = Field(1_000_000, ge=1, lt=2**31)
    """The number of environment steps after which the run is finished."""
    episodes: int | None = Field(None, ge=1)
    """The number of training episodes after which the run is finished, if that is reached before `steps`."""
    device: Literal["cpu", "gpu"] | None = None
    """The device of networks and compiled programs; null takes a GPU if there is one."""
    devices: int | None = Field(None, ge=1)
    """The number of devices of each learner over which updates are divided; null takes as many as there are of the kind
    and divide `optimizer.batch_size` and `env.num_envs`."""
    debug: bool = False
    """Whether to run without compilation, with checks of NaN and of shapes, and with tiny sizes."""
    env: EnvConfig
    observation: ObservationConfig = ObservationConfig.model_validate({})
    agent: AgentConfig
    losses: LossTable
    search: SearchConfig
    model: ModelConfig = ModelConfig.model_validate({})
    exploration: ExplorationConfig = ExplorationConfig.model_validate({})
    replay: ReplayConfig = ReplayConfig.model_validate({})
    optimizer: OptimizerConfig = OptimizerConfig.model_validate({})
    loop: LoopConfig = LoopConfig.model_validate({})
    ray: RayConfig = RayConfig.model_validate({})
    checkpoint: CheckpointConfig = CheckpointConfig.model_validate({})
    evaluation: EvaluationConfig = EvaluationConfig.model_validate({})

    @model_validator(mode="after")
    def _can_work(self) -> Config:
        """Raise for combinations that cannot work; the functions of the learner and the replay raise for theirs."""
        rollout = self.env.num_envs * self.loop.rollout_length
        if rollout > settings.GREATEST_INT:
            raise ValueError(
                f"env.num_envs × loop.rollout_length is {rollout:,} steps a rollout: expected at most 2,147,483,647"
            )
        if self.loop.name == "ray":
            self._can_work_with_workers()
        elif self.ray.failed_environments == "replace":
            raise ValueError(
                f"ray.failed_environments=replace needs loop=ray, whose workers it replaces, not loop={self.loop.name}"
            )
        elif self.ray.learners > 1:
            raise ValueError(
                f"ray.learners={self.ray.learners} need loop=ray, which places them, not loop={self.loop.name}"
            )
        updates_per_iteration(self.optimizer, rollout)
        require_rows(self.optimizer, self.loop.rollout_length)
        base.make(self.env.num_envs, self.loop.rollout_length, self.replay.capacity, context=self.env.stack - 1)
        if self.model.memory != "none":
            require_memory_rows(self.optimizer, self.model.burn_in, self.loop.rollout_length)
            if self.replay.symmetries:
                raise ValueError(
                    "replay.symmetries=true transforms observations, but cannot transform the memory of model.memory"
                )
        exploration_requirements(self.exploration, self.model)
        weights = self.losses.weights()
        if not weights:
            raise ValueError("losses has no enabled term with a weight above 0: nothing would be learned")
        if "model_reward" in weights and not self.model.reward_head:
            raise ValueError(
                "model.reward_head=false leaves nothing to learn for losses.model_reward: "
                "set losses.model_reward.enabled=false"
            )
        return self

    def _can_work_with_workers(self) -> None:
        """Raise for what workers cannot do."""
        if self.ray.workers > self.env.num_envs:
            raise ValueError(
                f"ray.workers={self.ray.workers} are more than env.num_envs={self.env.num_envs}: each worker needs an "
                f"environment, so set ray.workers to at most {self.env.num_envs}, or a greater env.num_envs"
            )
        learners, batch_size, num_envs = self.ray.learners, self.optimizer.batch_size, self.env.num_envs
        if batch_size % learners or num_envs % learners:
            possible = (n for n in range(1, num_envs + 1) if not (batch_size % n or num_envs % n))
            raise ValueError(
                f"ray.learners={learners} must divide optimizer.batch_size={batch_size} and env.num_envs={num_envs}; "
                f"possible here: {', '.join(map(str, possible))}"
            )
        if learners > 1 and self.replay.device == "host":
            raise ValueError(
                f"ray.learners={learners} divide the replay too, which replay.device=host keeps in one memory: set "
                "replay.device=device"
            )
        if self.debug:
            raise ValueError("debug=true checks one process, and loop=ray has several: set loop=pipeline with it")

    def _can_rescale(self, search: SearchConfig) -> None:
        """Raise for a search whose Q-values shall be divided by a return that nothing follows."""
        follows = self.model.value_unit == "returns" and self.model.value_head != "tanh"
        if search.q_range == "returns" and not follows:
            raise ValueError(
                f"search.q_range=returns needs model.value_unit=returns, and model.value_head=categorical or scalar, "
                f"not model.value_unit={self.model.value_unit} and model.value_head={self.model.value_head}: "
                "set these, or search.q_range=tree"
            )

    def reached(self, counters: Mapping[str, int]) -> bool:
        """Return whether a run with these counters is finished."""
        enough = self.episodes is not None and counters.get("episodes", 0) >= self.episodes
        return enough or counters.get("env_steps", 0) >= self.steps

    def to_yaml(self) -> str:
        """Return all settings as YAML; `from_yaml` returns an equal configuration."""
        return settings.dump(self.model_dump(by_alias=True))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a configuration from a file, such as a run's `config.yaml`.

        Raises:
          ConfigError: the file cannot be read, or a setting in it is wrong.
        """
        return validated(read_layer(path), f" ({short_text(str(path), 200)})")


class PolicyRun(Config):
    """Settings of a run of an agent that does not search during training; it can search afterward."""

    agent: PolicyAgentConfig
    losses: PolicyLosses
    search: SearchConfig = SearchConfig.model_validate({"num_simulations": 0})

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> PolicyRun:
        names = frozenset(self.losses.weights())
        requirements(self.agent, names, self.model.reward_head, self.search.num_simulations)
        self._can_rescale(self.search)
        optimizer = self.optimizer
        if optimizer.target_kl is not None and optimizer.epochs * optimizer.minibatches == 1:
            raise ValueError(
                f"optimizer.target_kl={optimizer.target_kl:g} skips the remaining updates of a batch, but with "
                "epochs × minibatches = 1 a batch has one update: raise one of them, or remove optimizer.target_kl"
            )
        length, steps = optimizer.segment_length, self.model.unroll_steps
        if length is not None and length < steps and loss_terms.any_needs(names, "unroll"):
            raise ValueError(
                f"optimizer.segment_length={length} is shorter than the {steps} steps of the model's unroll "
                "(model.unroll_steps)"
            )
        return self


def _policy_run(agent: type[PolicyAgentConfig], losses: type[PolicyLosses]) -> type[PolicyRun]:
    """Create the class of settings of a run of one of these agents."""
    fields: Any = {"agent": (agent, agent.model_validate({})), "losses": (losses, losses.model_validate({}))}
    return create_model(agent.__name__.replace("Config", "Run"), __base__=PolicyRun, **fields)


class MuZeroRun(Config):
    """Settings of a run of MuZero."""

    agent: MuZeroConfig = MuZeroConfig.model_validate({})
    losses: MuZeroLosses = MuZeroLosses.model_validate({})
    search: SearchConfig = SearchConfig.model_validate({})

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> MuZeroRun:
        name = self.agent.name
        self._can_rescale(self.search)
        missing = loss_terms.missing_for_look_ahead(self.losses.weights(), self.model.reward_head)
        if missing:
            raise ValueError(f"{name} searches with a learned model: give {missing} a weight above 0")
        if self.optimizer.target_kl is not None:
            raise ValueError(
                f"optimizer.target_kl={self.optimizer.target_kl:g} needs the policy that acted, "
                f"which {name} does not store"
            )
        return self


class GumbelMuZeroRun(MuZeroRun):
    """Settings of a run of Gumbel MuZero."""

    agent: MuZeroConfig = MuZeroConfig.model_validate({"name": "gumbel_muzero"})


AGENTS: dict[str, type[Config]] = {
    "muesli": _policy_run(actor_critic.MuesliConfig, actor_critic.MuesliLosses),
    "muzero": MuZeroRun,
    "gumbel_muzero": GumbelMuZeroRun,
    "ppo": _policy_run(actor_critic.PPOConfig, actor_critic.PPOLosses),
    "pg": _policy_run(actor_critic.PGConfig, actor_critic.PGLosses),
    "mpo": _policy_run(actor_critic.MPOConfig, actor_critic.MPOLosses),
    "trpo_penalty": _policy_run(actor_critic.TRPOPenaltyConfig, actor_critic.TRPOPenaltyLosses),
}


def compose(
    env: str | Callable[[], Any] | None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    file: str | Path | None = None,
    preset: str | None = None,
) -> Config:
    """Return the configuration for an environment; later layers win: defaults, preset, `file`, `overrides`.

    `env` is an id, or a callable that returns an environment; None takes `env.id` of the file.  `overrides` are texts
    such as `a.b=c`, or a mapping with dotted or nested keys.

    Raises:
      ConfigError: a key, a value or a combination is wrong.
      UnknownEnvironment: the environment does not exist.
    """
    if isinstance(overrides, Mapping):
        from_overrides = settings.nested(overrides)
    else:
        from_overrides = settings.parse(overrides)
    if "resume" in from_overrides:
        raise ConfigError(
            "resume is not a setting: continue a run with bircher train --resume RUN, in Python with "
            "bircher.resume(path, steps=...)"
        )
    from_overrides, from_file = _with_known_names(from_overrides), _with_known_names(read_layer(file)) if file else {}
    preset_name = preset or next((layer["preset"] for layer in (from_overrides, from_file) if "preset" in layer), None)
    name, from_preset_name = (None, {}) if preset_name is None else presets.choose(preset_name)
    agent = _agent_of(presets.agent_of(name) if name else {}, from_preset_name, from_file, from_overrides)
    where = f" ({short_text(str(file), 200)})"
    from_overrides, from_file = (
        settings.checked(from_overrides, AGENTS[agent]),
        settings.checked(from_file, AGENTS[agent], where),
    )
    env_id = environment_id(env, from_overrides, from_file)
    source = env_id if env is None else env
    debug = any(layer.get("debug") for layer in (from_file, from_overrides))
    layers = [from_preset_name, from_file, *([DEBUG] if debug else []), from_overrides]
    observation = next(
        (layer["observation"]["name"] for layer in layers[::-1] if "name" in layer.get("observation", {})), ""
    )
    name = name or presets.preset_for(source, agent, observation == "pixels")
    merged = presets.read_preset(name, agent, env_id, observation == "pixels")
    merged = settings.checked(merged, AGENTS[agent], f" (preset {name})")
    for layer in (*layers, {"preset": name, "env": {"id": env_id}, "agent": {"name": agent}}):
        merged = settings.merge(merged, layer)
    config = _build(agent, presets.resolve(merged, settings.defaults(AGENTS[agent])))
    registry.resolve(EnvRequest(config.env, config.observation, None if isinstance(source, str) else source))
    if isinstance(config, MuZeroRun) and not config.search.num_simulations:
        raise ConfigError(f"search.num_simulations=0: {agent} learns from its searches and needs at least 1 simulation")
    return config


def _with_known_names(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the layer after checking that its agent, loop and observation exist.

    Raises:
      ConfigError: a name is unknown.
    """
    for group, known in (("agent", tuple(AGENTS)), ("loop", LOOPS), ("observation", OBSERVATIONS)):
        name = layer.get(group, {}).get("name", known[0])
        if name not in known:
            close = near(str(name)[:100], known)
            raise ConfigError(f"unknown {group} {short(name)}{close}; known: {', '.join(known)}")
    return layer


def _agent_of(*layers: Mapping[str, Any]) -> str:
    """Return the agent of the last of these layers that sets one; the default is Muesli."""
    named = [layer["agent"]["name"] for layer in layers if "name" in layer.get("agent", {})]
    return named[-1] if named else "muesli"


def validated(layer: Mapping[str, Any], where: str = "") -> Config:
    """Return the configuration of these nested settings and the defaults; `where` is appended to an error.

    Raises:
      ConfigError: a setting is wrong.
    """
    layer = _with_known_names(layer)
    agent = _agent_of(layer)
    return _build(agent, settings.checked(layer, AGENTS[agent], where), where)


def _build(agent: str, layer: Mapping[str, Any], where: str = "") -> Config:
    """Return the configuration of an agent's run, from settings whose names were checked."""
    kind = AGENTS[agent]
    layer = settings.merge(settings.defaults(kind), layer)
    layer["preset"] = presets.canonical_name(layer["preset"], layer["env"].get("id"))
    try:
        return kind.model_validate(layer, strict=True)
    except ValidationError as error:
        raise ConfigError(settings.sentence(error, layer, kind) + where) from None
