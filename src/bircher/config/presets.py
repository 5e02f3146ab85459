"""Presets: the YAML files of settings that come with the package, by environment and agent.

`resolve` computes the settings that a preset leaves to be derived from others: those that are null or `auto`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bircher.agents import loss_terms
from bircher.config import settings
from bircher.envs import registry
from bircher.errors import BadYAML, ConfigError, near, short, short_text

CALLABLE = "callable:"
"""The prefix of `env.id` for an environment that was given as a function or class, which a file cannot contain."""
PRESETS = Path(__file__).parents[1] / "presets"
LINEAGES = {
    "muesli": ("muesli",),
    "pg": ("muesli", "pg"),
    "mpo": ("muesli", "mpo"),
    "trpo_penalty": ("muesli", "trpo_penalty"),
    "muzero": ("muzero",),
    "gumbel_muzero": ("muzero", "gumbel_muzero"),
    "ppo": ("ppo",),
}
"""The blocks of a preset from which each agent takes its settings; the last one wins."""
BLOCKS = ("extends", "agents", "environments", "pixels")
"""Keys of a preset that are not settings."""
FORMER_NAMES = {
    "board": "board_games",
    "memory": "recall",
    "pixels": "default observation=pixels",
    "minatar_asterix": "Asterix-MinAtar",
    "minatar_breakout": "Breakout-MinAtar",
    "minatar_freeway": "Freeway-MinAtar",
    "minatar_seaquest": "Seaquest-MinAtar",
    "minatar_space_invaders": "SpaceInvaders-MinAtar",
}
"""Presets of earlier versions, without the agent and the observation that their names ended with."""
FORMER_ENDS = {
    "_gumbel_muzero": "agent=gumbel_muzero",
    "_muzero": "agent=muzero",
    "_ppo": "agent=ppo",
    "_pixels": "observation=pixels",
}
"""Endings of preset names in earlier versions, and the settings that replace them."""


class Choice(NamedTuple):
    """A preset that was chosen by name."""

    name: str
    """The name of a file, or the id of an environment whose settings are used."""
    implied: dict[str, Any]
    """Settings that are part of a name of an earlier version."""


def environment_id(env: str | Callable[[], Any] | None, given: Mapping[str, Any], file: Mapping[str, Any]) -> str:
    """Return the id of the environment.

    Raises:
      ConfigError: no environment is given, or two different ones are.
      UnknownEnvironment: the environment does not exist.
    """
    env_id = env if isinstance(env, str) or env is None else CALLABLE + getattr(env, "__name__", type(env).__name__)
    chosen = given.get("env", {}).get("id")
    if chosen is not None and env_id not in (None, chosen):
        raise ConfigError(f"env.id={settings.as_text(chosen)} contradicts the environment {env_id}: remove one of them")
    groups = [layer.get("env", {}) for layer in (given, file)]
    env_id = env_id or next((group["id"] for group in groups if "id" in group), None)
    if env_id is None:
        raise ConfigError("no environment was given: name one, such as CartPole-v1, or set env.id in the file")
    registry.backend_of(env_id if env is None else env, next((g["backend"] for g in groups if "backend" in g), None))
    return env_id


def preset_for(env: str | Callable[[], Any], agent: str, pixels: bool = False) -> str:
    """Return the preset of an environment for an agent: that of its family, or one that it extends, or `default`.

    A preset is used only for agents that it lists, and for pixels only if it has settings for them.
    """
    name = registry.preset_name(env)
    layer = _read(name)
    while not _is_for(layer, agent):
        name = layer.get("extends", "default")
        layer = _read(name)
    fits_observation = not pixels or "pixels" in layer or layer.get("observation", {}).get("name") == "pixels"
    return name if fits_observation and name != "base" else "default"


def find_preset(name: Any) -> Choice:
    """Return the preset of this name, which may be in upper or lower case, or a name of an earlier version.

    Raises:
      ConfigError: there is no such preset; the message has the nearest names.
    """
    known = {
        name.lower(): name for name in (*registry.PRESETS, *(path.stem for path in sorted(PRESETS.glob("*.yaml"))))
    }
    words, rest = [], name.lower() if isinstance(name, str) else ""
    if rest in known:
        return Choice(known[rest], {})
    for end, word in FORMER_ENDS.items():
        if rest.endswith(end):
            words.append(word)
            rest = rest.removesuffix(end)
    rest, *more = FORMER_NAMES.get(rest, rest).split() or [""]
    rest, words = rest.lower(), [*words, *more]
    if not isinstance(name, str) or rest not in known:
        raise ConfigError(f"unknown preset {short(name)}{near(str(name)[:100], known.values())}")
    return Choice(known[rest], settings.parse(words))


def choose(name: Any) -> Choice:
    """Return the preset of this name; print the current name if it is a name of an earlier version."""
    found = find_preset(name)
    if found.name.lower() != name.lower():
        words = [f"{group}={value['name']}" for group, value in found.implied.items()]
        print(f"preset={name} is now {' '.join([f'preset={found.name}', *words])}", file=sys.stderr)
    return found


def canonical_name(name: Any, env_id: Any) -> Any:
    """Return the preset's name for the configuration of a run in this environment.

    It is the name of the file if the name is the environment's own id.  A name of an earlier version is replaced by the
    current one.  An unknown name is returned unchanged.
    """
    try:
        found = find_preset(name).name
    except ConfigError:
        return name
    return registry.PRESETS[found] if found == env_id and found in registry.PRESETS else found


def describe(name: str) -> str:
    """Return the name of a preset with the agents that it is for, for the list of environments."""
    return f"{name}: {', '.join(_read(name).get('agents', LINEAGES))}"


def agent_of(name: str) -> dict[str, Any]:
    """Return the setting that chooses the agent, for a preset that is for one agent alone, and {} for others."""
    agents = list(_read(registry.PRESETS.get(name, name)).get("agents", ()))
    return {"agent": {"name": agents[0]}} if len(agents) == 1 else {}


def read_preset(name: str, agent: str, env_id: str = "", pixels: bool = False) -> dict[str, Any]:
    """Return the settings of a preset for an agent in an environment, not yet checked against the models.

    Raises:
      ConfigError: the preset is not for this agent.
    """
    chain = _chain(registry.PRESETS.get(name, name), agent)
    env_id = name if name in registry.PRESETS else env_id
    merged: dict[str, Any] = {}
    for layer in chain:
        merged = settings.merge(merged, select(layer, agent, env_id))
    if pixels and merged.get("observation", {}).get("name") != "pixels":
        for layer in chain:
            merged = settings.merge(merged, select(layer.get("pixels", {}), agent, env_id))
    return merged


def select(block: Mapping[str, Any], agent: str, env_id: str) -> dict[str, Any]:
    """Return the settings of a block for an agent in an environment.

    Settings of the agent win over common ones, and settings of the environment over both.
    """
    found = {key: value for key, value in block.items() if key not in BLOCKS}
    for name in LINEAGES[agent]:
        found = settings.merge(found, block.get("agents", {}).get(name, {}))
    if env_id in block.get("environments", {}):
        found = settings.merge(found, select(block["environments"][env_id], agent, env_id))
    return found


def require_known_blocks(layer: Mapping[str, Any], file: str) -> None:
    """Check that every block of a preset can be used.

    Raises:
      ConfigError: a block is for an unknown agent, or for an environment of another preset.
    """
    for agent in layer.get("agents", {}):
        if agent not in LINEAGES:
            raise ConfigError(f"unknown agent {short(agent)}{near(str(agent), LINEAGES)} (preset {file})")
    for env_id, block in layer.get("environments", {}).items():
        if registry.PRESETS.get(env_id) != file:
            environments = [name for name, preset in registry.PRESETS.items() if preset == file]
            raise ConfigError(
                f"{short(env_id)} is not an environment of preset {file}{near(str(env_id), environments)}"
            )
        require_known_blocks(block, file)
    if "pixels" in layer:
        require_known_blocks(layer["pixels"], file)


@functools.cache
def _read(file: str) -> Mapping[str, Any]:
    """Read the file of a preset; the result is cached."""
    layer = read_layer(PRESETS / f"{file}.yaml")
    require_known_blocks(layer, file)
    return layer


def _chain(file: str, agent: str) -> list[Mapping[str, Any]]:
    """Return the layers of a preset and of those that it extends, the most basic one first."""
    layer = _read(file)
    if not _is_for(layer, agent):
        raise ConfigError(f"preset {file} is not for agent={agent}: it is for {', '.join(layer['agents'])}")
    base = layer.get("extends")
    if isinstance(base, Mapping):
        base = next(base[name] for name in LINEAGES[agent] if name in base)
    return [*(_chain(base, agent) if base else []), layer]


def _is_for(layer: Mapping[str, Any], agent: str) -> bool:
    """Return whether a preset is for an agent."""
    return "agents" not in layer or any(name in layer["agents"] for name in LINEAGES[agent])


def read_layer(path: str | Path) -> dict[str, Any]:
    """Read the settings of a YAML file as nested dictionaries, not yet checked against the models.

    Raises:
      ConfigError: the file cannot be read, or is not YAML with settings.
    """
    name = short_text(str(path), 200)
    try:
        content = settings.load(Path(path).read_text(encoding="utf-8-sig"))
    except BadYAML as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    except (OSError, ValueError) as error:  # also a name with a NUL character
        reason = (
            "it is not text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        )
        raise ConfigError(f"cannot read the configuration {name}: {reason}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{name} contains no settings: expected KEY: VALUE lines, not {kind}")
    try:
        return settings.nested(content)
    except ConfigError as error:
        raise ConfigError(f"{error} ({name})") from None


COUNTS = (
    ("env", "num_envs"), ("loop", "rollout_length"), ("model", "unroll_steps"), ("optimizer", "minibatches"),
    ("optimizer", "epochs"),
)  # fmt: skip
"""Settings from which others are derived."""

LEAST_CAPACITY = 8192
"""The least derived number of rows of a replay."""


def resolve(merged: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with numbers in place of those that are null or `auto`, which are derived from others.

    The minibatches of an epoch contain every environment's rollout once (`optimizer.batch_size`), and a rollout gets
    epochs × minibatches updates (`optimizer.updates_per_step`).  The replay has room for at least one rollout
    (`replay.capacity`).

    Terms that look ahead need a model that learns rewards and values: the weights of `losses.model_value` and
    `losses.model_reward` are 1 then, and otherwise 0.  A model is unrolled within a segment of a sequence, so
    `optimizer.segment_length` is at least four times the steps of the unroll, or the whole sequence if it is shorter;
    it is 1 without an unroll, and the whole sequence for an agent with memory.

    Raises:
      ConfigError: the environments cannot be distributed equally over the minibatches.
    """
    everything = settings.merge(dict(defaults), dict(merged))
    if not all(_is_count(everything[section][name]) for section, name in COUNTS):
        return dict(merged)  # a later check raises with the setting's name
    optimizer, replay, losses = (everything[group] for group in ("optimizer", "replay", "losses"))
    envs, length = everything["env"]["num_envs"], everything["loop"]["rollout_length"]
    updates = optimizer["epochs"] * optimizer["minibatches"]
    derived: dict[str, Any] = {"optimizer": {}, "replay": {}, "losses": {}}
    if optimizer["batch_size"] is None:
        derived["optimizer"]["batch_size"] = _batch_size(envs, optimizer["minibatches"])
    if optimizer["updates_per_step"] is None:
        derived["optimizer"]["updates_per_step"] = updates / (envs * length)
    if optimizer["segment_length"] == "auto":
        derived["optimizer"]["segment_length"] = _segment_length(everything)
    if replay["capacity"] is None:
        derived["replay"]["capacity"] = max(LEAST_CAPACITY, envs * (length + 1))
    weight = float(_weighted(losses, loss_terms.terms_that_need("look_ahead")))
    for name in ("model_value", "model_reward"):
        if losses.get(name, {}).get("weight", 0) is None:
            derived["losses"][name] = {"weight": weight}
    return settings.merge(dict(merged), derived)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _weighted(losses: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Return whether one of these terms is enabled with a weight above 0."""
    terms = [losses.get(name, {}) for name in names]
    return any((term.get("weight") or term.get("final_weight")) and term.get("enabled", True) for term in terms)


def _batch_size(num_envs: int, minibatches: int) -> int:
    if num_envs % minibatches:
        raise ConfigError(
            f"optimizer.minibatches={minibatches} does not divide env.num_envs={num_envs}: every environment's rollout "
            "is distributed over minibatches of the same size (optimizer.batch_size=null)"
        )
    return num_envs // minibatches


def _segment_length(everything: Mapping[str, Any]) -> int | None:
    if everything["model"]["memory"] != "none":
        return None  # a memory learns through whole sequences
    looks_ahead, unrolls = (
        _weighted(everything["losses"], loss_terms.terms_that_need(need)) for need in ("look_ahead", "unroll")
    )
    if not (looks_ahead or unrolls):
        return 1
    rows, steps = everything["loop"]["rollout_length"], everything["model"]["unroll_steps"]
    return next((length for length in range(4 * steps, rows) if rows % length == 0), rows)
