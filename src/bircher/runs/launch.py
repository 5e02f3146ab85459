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
from bircher.envs.config import EnvSource
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

CHANGEABLE = (
    "steps",
    "episodes",
    "device",
    "checkpoint",
    "evaluation",
    "env.num_threads",
    "env.num_workers",
    "ray.address",
    "ray.failed_environments",
    "ray.learners",
)
"""Settings that may be changed when a run is resumed; its state does not depend on them."""


REFUSALS = (
    ConfigError, CheckpointError, DeviceError, NotEnoughMemory, NoDisplay, RunFolderError, UnknownEnvironment,
    UnsupportedEnvironment, UnsupportedEnvironment, UnknownOpponent, UnsuitableOpponent,
)  # fmt: skip
"""Errors that a user can correct; the message of each is one sentence."""
FAILURES = (RunFailed, EvaluationFailed, EnvironmentFailure)
"""Errors while environments are played."""


def start(config: Config, source: EnvSource | None = None, out: str | Path | None = None) -> Training:
    """Prepare a new run in a new folder, `runs/ENV-AGENT-SEED-TIME` by default; `source` is a callable environment.

    Raises:
      DeviceError, UnknownEnvironment, UnsupportedEnvironment, NotEnoughMemory: the run is not possible here.
      RunFolderError: the folder contains a run already, or cannot be written.
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
    """Continue a run from its last checkpoint, with its counters, optimizer, normalizer, keys and replay.

    In pure environments the episodes continue as well; other environments begin new episodes.

    Raises:
      RunFolderError, ConfigError, CheckpointError: the folder has no run, or one that cannot be continued.
      DeviceError, UnknownEnvironment, UnsupportedEnvironment, NotEnoughMemory: the run is not possible here.
    """
    path = Path(path)
    before = directory.read_config(path)
    given = settings.nested(overrides) if isinstance(overrides, Mapping) else settings.parse(overrides)
    config = _changed(before, given)
    build.require_source(config, source, f"bircher.resume({str(path)!r}, env=...)")
    if source is not None and not config.env.id.startswith(CALLABLE):
        if source != config.env.id:
            raise UnknownEnvironment(f"{path} is a run of {config.env.id}, which it must continue: remove env")
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
    """Return the run in a folder from its last checkpoint, or from the beginning if there is none."""
    saved = checkpoint.latest(path / directory.CHECKPOINTS, "train")
    if saved is None:
        device, env, parts, sentences = _prepare(config, source, 0)
        sentences = (*sentences, f"{path} has no checkpoint yet: it starts from the beginning")
        return Training(config, source, env, parts, path, device, ResumePoint(env_steps=-1), sentences)
    meta = checkpoint.read_meta(saved)
    generation = int(meta["generation"]) + 1
    config, _ = build.with_encoding(config, source, meta["spec"])
    device, env, parts, sentences = _prepare(config, source, generation)
    try:
        build.require_same_spaces(directory.spec_from(meta["spec"]), env.spec)
        train = checkpoint.restore(saved, "train", parts.saved)
        with_replay = checkpoint.latest(path / directory.CHECKPOINTS, "replay")
        with jax.default_device(build.replay_device(parts)):
            replay = checkpoint.restore(with_replay or saved, "replay", parts.template.replay)
        restored = _restored_actor(saved, config, env, parts) if with_replay == saved else None
    except (CheckpointError, UnsupportedEnvironment):
        env.close()
        raise
    steps = int(meta["counters"]["env_steps"])
    sentences = (*sentences, f"continuing from {saved.name}, after {steps:,} environment steps")
    if restored is None:
        fresh = f"{env.spec.id} begins new episodes with new seeds: the state of its episodes cannot be saved"
        sentences = (*sentences, fresh)
    if config != before:
        directory.rewrite_config(path, config)
    train = dataclasses.replace(train, replay=replay)
    origin = ResumePoint(train, restored, steps, float(meta["wall_seconds"]), generation)
    return Training(config, source, env, parts, path, device, origin, sentences)


def _prepare(
    config: Config, source: EnvSource | None, generation: int
) -> tuple[devices.Device, Env, Parts, tuple[str, ...]]:
    """Return device, environments, parts, and sentences about them for the user; nothing is compiled."""
    learners = build.join_learners(config)
    try:
        device = devices.use_device(config.device)
        devices.keep_programs()
        env = build.make_training_env(config, source, generation, learners)
    except Exception:
        if learners is not None:
            learners.close()
        raise
    try:
        build.require_symmetries(config, env.spec)
        parts = build.make_parts(config, env.spec, learners)
        costs.require_memory(config, parts, device)
        sentences = (
            *spaces.notes(env.spec.encoding), build.candidates_sentence(config, env.spec),
            build.replay_sentence(config, parts, device),
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
    """Return the loop's state from a checkpoint if the environments can be restored, else None."""
    if not env.pure or "actor" not in checkpoint.parts(saved):
        return None
    programs = build.make_loop(config, env, parts)
    if programs.snapshots:
        shapes = programs.snapshots.shapes()
    else:
        shapes = programs.state_shapes(parts.template, start_actors(parts.agent, env, jax.random.key(0)))
    return checkpoint.restore(saved, "actor", shapes)


def _changed(config: Config, given: Mapping[str, Any]) -> Config:
    """Return the saved configuration with the settings in `given`, which must be changeable."""
    if not given:
        return config
    saved = config.model_dump(by_alias=True)
    for name in settings.leaves(settings.checked(given, type(config))):
        if not name.startswith(CHANGEABLE):
            raise ConfigError(f"{name} cannot be changed when a run is resumed; only {', '.join(CHANGEABLE)} can")
    return validated(settings.merge(saved, given))


def load_for_playing(path: str | Path, overrides: Iterable[str] = ()) -> LoadedAgent:
    """Set up the device and the cache, and return a run's agent; raises what `loaded_agent.load` raises."""
    prepare_to_play(path)
    return loaded_agent.load(path, overrides=overrides)


def prepare_to_play(path: str | Path) -> None:
    """Set up the device and the cache as for the run in a folder.

    Raises:
      RunFolderError: the folder has no run.
    """
    try:
        devices.use_device(directory.read_config(path).device)
    except DeviceError:
        devices.use_device(None)  # An agent that was trained on one device can act on any.
    devices.keep_programs()


def plot(path: Path, picture: Path | None = None) -> Path:
    """Draw a run's learning curve, by default as `learning_curve.png` in its folder, and return the picture's path.

    Raises:
      RunFolderError: the folder has no run, or the run has no return yet, or the picture cannot be written.
    """
    config = directory.read_config(path)
    picture = picture or path / "learning_curve.png"
    try:
        return plots.learning_curve(path / directory.METRICS, picture, f"{config.env.id}, {config.agent.name}")
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} has no {directory.METRICS} yet, or {picture} cannot be written") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(str(error)) from error
