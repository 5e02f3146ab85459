"""What a run will cost: its memory, its evaluations and its time, said before they are spent."""

from __future__ import annotations

from bircher import devices
from bircher.config.config import Config
from bircher.errors import NotEnoughMemory
from bircher.runs import logger
from bircher.runs.build import Parts, num_bytes, size
from bircher.training.evaluator import EvaluationConfig
from bircher.types import EnvSpec


def require_memory(config: Config, parts: Parts, device: devices.Device) -> None:
    """Refuse networks and batches that cannot fit, each with the setting that makes it large.

    Only what is certain to be allocated is counted, so that a run that is refused could not have begun.

    Raises:
      NotEnoughMemory: one of them needs more than the device has left.
    """
    free = devices.available_bytes(device)
    if free is None:
        return
    networks = num_bytes(parts.saved) + num_bytes(parts.saved.params)  # and the gradients
    if networks > free:
        raise NotEnoughMemory(
            f"the networks, their optimizer and their gradients take {size(networks)} on the {device.platform}, and "
            f"{size(free)} are left: lower {_widest(config)}"
        )
    if parts.learner.replay_on_host:
        return  # the batches are part of the replay's size
    optimizer = config.optimizer
    row = num_bytes(parts.template.replay) / parts.learner.replay.capacity
    batch = optimizer.batch_size * optimizer.minibatches * (config.loop.rollout_length + 1) * row
    if batch > free:
        raise NotEnoughMemory(
            f"the sequences of an update take {size(batch)} on the {device.platform}, and {size(free)} are left: lower "
            f"optimizer.batch_size={optimizer.batch_size:,} or optimizer.minibatches={optimizer.minibatches:,}"
        )


SAID_FROM = 100 * 2**20
"""Bytes of an update from which on they are said."""


def update_sentence(config: Config, taken: int, device: devices.Device) -> str:
    """What the compiled programs take while they run, besides the replay and the networks; empty where it is little.

    Raises:
      NotEnoughMemory: more than the device has left.
    """
    free = devices.available_bytes(device)
    text = f"acting and an update take {size(taken)} while they run"
    if free is not None and taken > free:
        raise NotEnoughMemory(
            f"{text}, and {size(free)} are left on the {device.platform}: lower optimizer.batch_size="
            f"{config.optimizer.batch_size:,}, model.unroll_steps={config.model.unroll_steps} or {_widest(config)}"
        )
    return text if taken >= SAID_FROM else ""


def _widest(config: Config) -> str:
    """The greatest number among the settings of the network, as `model.NAME=VALUE`."""
    numbers = {
        name: max(value) if isinstance(value, tuple) else value
        for name, value in config.model
        if value and isinstance(value, int | tuple) and not isinstance(value, bool)
    }
    name = max(numbers, key=lambda name: numbers[name])
    return f"model.{name}={numbers[name]:,}"


LEAST_EPISODE = 1_000
"""Decisions that every evaluation episode may take where nothing else limits it."""
USUAL_COUNT = EvaluationConfig.model_validate({}).count
"""Evaluations by which the training's decisions are divided where a run makes none."""
OFTEN = 10
"""Evaluations that may take so many times the decisions of the training are said."""
LONG_SECONDS = 2 * 3600.0
"""A run that takes longer than this deserves a sentence."""
MEASURED_SECONDS = 10.0
"""How long a run is measured before its time is foretold."""
LARGE_TORSOS = ("impala", "muzero_resnet")
"""Torsos for images that take several times the operations of the smallest, `dqn_cnn`."""


def evaluation_limit(config: Config, spec: EnvSpec) -> int | None:
    """Decisions after which an episode of an evaluation during training is cut short; None leaves it whole.

    Where neither the environment nor a setting limits episodes, evaluations together may take as many decisions as
    the training, or 1,000 an episode where that is more.
    """
    evaluation = config.evaluation
    if evaluation.max_steps is not None or spec.max_steps is not None:
        return evaluation.max_steps
    return max(LEAST_EPISODE, config.steps // ((evaluation.count or USUAL_COUNT) * evaluation.episodes))


def scoring_limit(config: Config, spec: EnvSpec) -> int | None:
    """Decisions after which an episode is cut short when a trained agent is scored; None leaves it whole.

    Episodes that the environment limits are whole, and others as long as in evaluations during training.
    """
    return evaluation_limit(config, spec) if spec.max_steps is None else None


def scoring_sentence(config: Config, spec: EnvSpec, episodes: int) -> str:
    """What scoring an agent may cost where nothing limits its episodes; empty otherwise."""
    limit = scoring_limit(config, spec)
    if limit is None:
        return ""
    return (
        f"{spec.id} does not limit its episodes: each of {episodes:,} stops after {limit:,} decisions (--max-steps), "
        f"which are at most {limit * episodes:,}"
    )


def evaluation_sentence(config: Config, spec: EnvSpec) -> str:
    """What evaluations may cost where that is much or nothing limits it; empty otherwise, and for games of two."""
    evaluation, limit = config.evaluation, evaluation_limit(config, spec)
    whole = limit or spec.max_steps
    if not evaluation.count or spec.num_players > 1 or whole is None:
        return ""
    most = evaluation.count * evaluation.episodes * whole
    played = (
        f"evaluation.count={evaluation.count:,} evaluations of evaluation.episodes={evaluation.episodes:,} may take "
        f"{most:,} decisions, for {config.steps:,} of the training"
    )
    if evaluation.max_steps is None and spec.max_steps is None:
        return (
            f"{spec.id} does not limit its episodes: evaluations during training stop one after {whole:,} decisions "
            f"(evaluation.max_steps); {played}"
        )
    return f"{played}: evaluation.max_steps makes their episodes shorter" if most > OFTEN * config.steps else ""


class Forecast:
    """Says once how long a run will take, where that is long."""

    def __init__(self, config: Config):
        self._config = config
        self._first, self._done = True, False
        self._steps, self._seconds = 0, 0.0

    def __call__(self, steps: int, seconds: float, left: int, acting_share: float | None = None) -> str:
        """A sentence, or nothing, after a chunk of so many steps and seconds with so many steps left.

        The first chunk is left out: it is of a machine that is still warming up.
        """
        if self._first or self._done:
            self._first = False
            return ""
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        if self._seconds < MEASURED_SECONDS or not self._steps:
            return ""
        self._done = True
        speed = self._steps / self._seconds
        if left / speed <= LONG_SECONDS:
            return ""
        config, advice = self._config, logger.quicker(self._config, (acting_share or 0.0) > 0.5)
        if config.model.torso in LARGE_TORSOS:
            advice = ["model.torso=dqn_cnn", *advice]
        return (
            f"about {_duration(left / speed)} are left at this speed, {speed:,.3g} steps a second: fewer steps "
            f"(now steps={config.steps:,}) take less, and so may {', '.join(advice)}"
        )


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
