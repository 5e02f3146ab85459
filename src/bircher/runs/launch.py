"""The start of a run: a new one, or from its last checkpoint.  Everything that cannot work is refused here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from bircher import devices, spaces
from bircher.config import settings
from bircher.config.config import Config, validated
from bircher.config.presets import CALLABLE
from bircher.envs import base
from bircher.envs.base import Env
from bircher.envs.registry import EnvSource
from bircher.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    EnvContractError,
    EnvironmentFailure,
    EvaluationFailed,
    NoDisplay,
    NotEnoughMemory,
    RunFailed,
    RunFolderError,
    UnknownEnvironment,
    UnknownOpponent,
    UnsuitableOpponent,
    UnsupportedEnvironment,
)
from bircher.runs import build, costs, directory, loaded_agent
from bircher.runs.build import Parts
from bircher.runs.loaded_agent import LoadedAgent
from bircher.runs.trainer import ResumePoint, Training
from bircher.training import checkpoint
from bircher.training.rollout import start_actors
from bircher.viz import plots

CHANGEABLE = ("steps", "episodes", "device", "checkpoint", "evaluation", "env.num_threads", "env.num_workers")
"""What may be set anew when a run is resumed: nothing that its state depends on."""


REFUSALS = (
    ConfigError, CheckpointError, DeviceError, NotEnoughMemory, NoDisplay, RunFolderError, UnknownEnvironment,
    UnsupportedEnvironment, UnsupportedEnvironment, UnknownOpponent, UnsuitableOpponent,
)  # fmt: skip
"""What a user can put right; each error is one sentence."""
FAILURES = (RunFailed, EvaluationFailed, EnvironmentFailure)
"""What goes wrong while environments are played."""


def start(config: Config, source: EnvSource | None = None, out: str | Path | None = None) -> Training:
    """A new run in a new folder, `runs/ENV-AGENT-SEED-TIME` by default; `source` is a callable environment.

    Raises:
      DeviceError, UnknownEnvironment, UnsupportedEnvironment, NotEnoughMemory: it cannot run here.
      RunFolderError: the folder holds a run already, or cannot be written.
    """
    device, env, parts, sentences = _prepare(config, source, 0)
    try:
        path = directory.create(config, out)
        descriptor = directory.claim(path)
    except RunFolderError:
        env.close()
        raise
    training = Training(config, source, env, parts, path, device, ResumePoint(), sentences)
    training.hold(descriptor)
    return training


def resume(
    path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = (), source: EnvSource | None = None
) -> Training:
    """A run from its last checkpoint on: counters, optimizer, normalizer, keys and replay as they were.

    On pure environments also the episodes go on as they were; others begin fresh ones.

    Raises:
      RunFolderError, ConfigError, CheckpointError: there is nothing sound to go on from.
      DeviceError, UnknownEnvironment, UnsupportedEnvironment, NotEnoughMemory: it cannot run here.
    """
    path = Path(path)
    before = directory.read_config(path)
    given = settings.nested(overrides) if isinstance(overrides, Mapping) else settings.parse(overrides)
    config = _changed(before, given)
    build.require_source(config, source, f"bircher.resume({str(path)!r}, env=...)")
    if source is not None and not config.env.id.startswith(CALLABLE):
        if source != config.env.id:
            raise UnknownEnvironment(f"{path} is a run of {config.env.id} and continues there: leave out env")
        source = None
    descriptor = directory.claim(path)
    try:
        training = _resumed(path, before, config, source)
    except Exception:
        os.close(descriptor)
        raise
    training.hold(descriptor)
    return training


def _resumed(path: Path, before: Config, config: Config, source: EnvSource | None) -> Training:
    saved = checkpoint.latest(path / directory.CHECKPOINTS, "train")
    if saved is None:
        device, env, parts, sentences = _prepare(config, source, 0)
        sentences = (*sentences, f"{path} has no checkpoint yet: it starts from the beginning")
        return Training(config, source, env, parts, path, device, ResumePoint(env_steps=-1), sentences)
    meta = checkpoint.read_meta(saved)
    generation = int(meta["generation"]) + 1
    config, _ = build.recognized(config, source, meta["spec"])
    device, env, parts, sentences = _prepare(config, source, generation)
    try:
        build.require_same_spaces(directory.spec_from(meta["spec"]), env.spec)
        train = checkpoint.restore(saved, "train", parts.saved)
        held = checkpoint.latest(path / directory.CHECKPOINTS, "replay")
        with jax.default_device(build.replay_device(parts)):
            replay = checkpoint.restore(held or saved, "replay", parts.template.replay)
        restored = _restored_actor(saved, config, env, parts) if held == saved else None
    except (CheckpointError, UnsupportedEnvironment):
        env.close()
        raise
    steps = int(meta["counters"]["env_steps"])
    sentences = (*sentences, f"going on from {saved.name}, {steps:,} environment steps")
    if restored is None:
        fresh = f"{env.spec.id} begins fresh episodes with new seeds: where its episodes stood could not be saved"
        sentences = (*sentences, fresh)
    if config != before:
        directory.rewrite_config(path, config)
    train = dataclasses.replace(train, replay=replay)
    origin = ResumePoint(train, restored, steps, float(meta["wall_seconds"]), generation)
    return Training(config, source, env, parts, path, device, origin, sentences)


def _prepare(
    config: Config, source: EnvSource | None, generation: int
) -> tuple[devices.Device, Env, Parts, tuple[str, ...]]:
    """Device, environments, agent and learner, and what is worth saying about them; nothing is compiled."""
    device = devices.use_device(config.device)
    devices.keep_programs()
    env = build.make_env(config, source, config.env.num_envs, config.seed, "train", generation)
    try:
        build.require_symmetries(config, env.spec)
        parts = build.make_parts(config, env.spec)
        costs.require_memory(config, parts, device)
        sentences = (
            *spaces.notes(env.spec.encoding), build.replay_sentence(config, parts, device),
            costs.evaluation_sentence(config, env.spec), *build.probe_env(config, source),
        )  # fmt: skip
        if config.debug:
            probe = build.make_env(config, source, config.env.num_envs, config.seed, "check")
            with contextlib.closing(probe):
                base.check_env(probe)
    except EnvContractError as error:
        env.close()
        raise UnsupportedEnvironment(str(error)) from error
    except Exception:
        env.close()
        raise
    return device, env, parts, tuple(sentence for sentence in sentences if sentence)


def _restored_actor(saved: Path, config: Config, env: Env, parts: Parts) -> Any:
    """The loop's state, where the environments can be put back; else None."""
    if not env.pure or "actor" not in checkpoint.parts(saved):
        return None
    begin = build.make_loop(config, env, parts).begin
    shapes = jax.eval_shape(begin, parts.template, start_actors(parts.agent, env, jax.random.key(0)))
    return checkpoint.restore(saved, "actor", shapes)


def _changed(config: Config, given: Mapping[str, Any]) -> Config:
    """The saved configuration with what may be set anew."""
    if not given:
        return config
    kept = config.model_dump(by_alias=True)
    for name in settings.leaves(settings.checked(given, type(config))):
        if not name.startswith(CHANGEABLE):
            raise ConfigError(f"{name} cannot be changed when a run is resumed; only {', '.join(CHANGEABLE)} can")
    return validated(settings.merge(kept, given))


def load_for_playing(path: str | Path, overrides: Iterable[str] = ()) -> LoadedAgent:
    """A run's agent, with the device and the cache set up; raises what `loaded.load` does."""
    prepare_to_play(path)
    return loaded_agent.load(path, overrides=overrides)


def prepare_to_play(path: str | Path) -> None:
    """The device and the cache as a run had them; raises RunFolderError where there is no run."""
    try:
        devices.use_device(directory.read_config(path).device)
    except DeviceError:
        devices.use_device(None)  # What learned on one device plays on any.
    devices.keep_programs()


def plot(path: Path, picture: Path | None = None) -> Path:
    """Draw a run's learning curve, by default as `learning_curve.png` in its folder; returns the picture's path.

    Raises:
      RunFolderError: there is no run, or no return yet, or the picture cannot be written.
    """
    config = directory.read_config(path)
    picture = picture or path / "learning_curve.png"
    try:
        return plots.learning_curve(path / directory.METRICS, picture, f"{config.env.id}, {config.agent.name}")
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} has no {directory.METRICS} yet, or {picture} cannot be written") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(str(error)) from error
