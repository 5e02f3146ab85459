"""Files of settings: YAML, and the presets that come with the package, by environment and agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bircher import plain_yaml, settings
from bircher.envs import registry
from bircher.plain_yaml import BadYAML
from bircher.quoting import short, short_text
from bircher.settings import ConfigError
from bircher.suggestions import near

PRESETS = Path(__file__).parent / "presets"
FAMILIES = {"muzero": "muzero", "gumbel_muzero": "muzero", "ppo": "ppo"}
"""What follows an environment's name in the presets of an agent; the others begin where Muesli does."""


def preset_for(env: str | Callable[[], Any], agent: str, pixels: bool = False) -> str:
    """The preset of an environment's id for an agent: its own, that of its family, or the family's default.

    For agents that see pictures there are presets of their own, and never those of numbers.
    """
    base, default = registry.preset_name(env), "default"
    if pixels and base != "atari":  # whose games have no other observation
        base, default = f"{base}_pixels", f"{default}_pixels"
    known = {path.stem for path in PRESETS.glob("*.yaml")}
    if agent not in FAMILIES:
        return base if base in known else default
    family = FAMILIES[agent]
    return next(name for name in (f"{base}_{agent}", f"{base}_{family}", f"{default}_{family}") if name in known)


def find_preset(name: Any) -> str:
    """The preset of this name, in any case; raises ConfigError with the nearest names."""
    names = {path.stem.lower(): path.stem for path in sorted(PRESETS.glob("*.yaml"))}
    if not isinstance(name, str) or name.lower() not in names:
        raise ConfigError(f"unknown preset {short(name)}{near(str(name)[:100], names.values())}")
    return names[name.lower()]


def presets_of(base: str) -> list[str]:
    """The presets that an environment's agents begin from, by the name that its registration gives."""
    families = sorted({*FAMILIES, *FAMILIES.values()})
    named = [name for seen in (base, f"{base}_pixels") for name in (seen, *(f"{seen}_{family}" for family in families))]
    family = [name for name in named if (PRESETS / f"{name}.yaml").exists()]
    return family or ["default"]


def read_preset(name: Any) -> dict[str, Any]:
    """The settings of a preset over those of the preset that it `extends`, or of several in turn; not yet checked."""
    layer = read_layer(PRESETS / f"{find_preset(name)}.yaml")
    bases = layer.pop("extends", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        merged = settings.merge(merged, read_preset(base))
    return settings.merge(merged, layer)


def read_layer(path: str | Path) -> dict[str, Any]:
    """A YAML file's settings as nested dictionaries, not yet checked."""
    name = short_text(str(path), 200)
    try:
        content = plain_yaml.load(Path(path).read_text(encoding="utf-8-sig"))
    except BadYAML as error:
        raise ConfigError(f"{name} is no YAML: {error}") from error
    except (OSError, ValueError) as error:  # also a name with a NUL character
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration {name}: {reason}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{name} holds no settings: expected KEY: VALUE lines, not {kind}")
    try:
        return settings.nested(content)
    except ConfigError as error:
        raise ConfigError(f"{error} ({name})") from None
