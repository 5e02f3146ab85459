"""What a run will cost: its memory, its evaluations and its time, said before they are spent."""

from __future__ import annotations

from bircher import devices
from bircher.config.config import Config
from bircher.errors import NotEnoughMemory
from bircher.runs import logger
from bircher.runs.build import Parts, memories, num_bytes, size
from bircher.training.evaluator import EvaluationConfig
from bircher.types import EnvSpec


def require_memory(config: Config, parts: Parts, device: devices.Device) -> None:
    """Check that networks and batches fit into the device's memory.

    Only memory that is certain to be allocated is counted, so that no possible run is refused.

    Raises:
      NotEnoughMemory: the networks or a batch need more than is left; the message names the setting to lower.
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
    rows = optimizer.batch_size * optimizer.minibatches * (config.loop.rollout_length + 1)
    batch = rows * row / memories(parts, device)
    if batch > free:
        raise NotEnoughMemory(
            f"the sequences of an update take {size(batch)} on the {device.platform}, and {size(free)} are left: lower "
            f"optimizer.batch_size={optimizer.batch_size:,} or optimizer.minibatches={optimizer.minibatches:,}"
        )


SAID_FROM = 100 * 2**20
"""The memory of an update, in bytes, from which on it is mentioned."""


def update_sentence(config: Config, taken: int, device: devices.Device) -> str:
    """Return a sentence with the memory that the compiled programs take while they run, or "" if it is small.

    The replay and the networks are not counted.

    Raises:
      NotEnoughMemory: the device has not enough memory left.
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
    """Return the largest number among the settings of the network, as `model.NAME=VALUE`."""
    numbers = {
        name: max(value) if isinstance(value, tuple) else value
        for name, value in config.model
        if value and isinstance(value, int | tuple) and not isinstance(value, bool)
    }
    name = max(numbers, key=lambda name: numbers[name])
    return f"model.{name}={numbers[name]:,}"


LEAST_EPISODE = 1_000
"""The number of decisions that every evaluation episode may take if nothing else limits it."""
USUAL_COUNT = EvaluationConfig.model_validate({}).count
"""The number of evaluations that is assumed for a run without evaluations."""
OFTEN = 10
"""The multiple of the training's decisions above which the decisions of evaluations are mentioned."""
LONG_SECONDS = 2 * 3600.0
"""The remaining time of a run, in seconds, above which it is mentioned."""
MEASURED_SECONDS = 10.0
"""The time for which a run is measured before its remaining time is estimated."""
LARGE_TORSOS = ("impala", "muzero_resnet")
"""Torsos for images that need several times the operations of the smallest, `dqn_cnn`."""


def evaluation_limit(config: Config, spec: EnvSpec) -> int | None:
    """Return the decisions after which an evaluation episode during training is cut short; None means no limit.

    If neither the environment nor a setting limits episodes, all evaluations together may take as many decisions as the
    training, or 1,000 an episode where that is more.
    """
    evaluation = config.evaluation
    if evaluation.max_steps is not None or spec.max_steps is not None:
        return evaluation.max_steps
    return max(LEAST_EPISODE, config.steps // ((evaluation.count or USUAL_COUNT) * evaluation.episodes))


def scoring_limit(config: Config, spec: EnvSpec) -> int | None:
    """Return the decisions after which an episode is cut short when a trained agent is scored; None means no limit.

    Episodes that the environment limits are not cut short.  Others have the limit of evaluations during training.
    """
    return evaluation_limit(config, spec) if spec.max_steps is None else None


def scoring_sentence(config: Config, spec: EnvSpec, episodes: int) -> str:
    """Return a sentence about the cost of scoring an agent if the environment has no limit, else ""."""
    limit = scoring_limit(config, spec)
    if limit is None:
        return ""
    return (
        f"{spec.id} does not limit its episodes: each of {episodes:,} is cut short after {limit:,} decisions "
        f"(--max-steps), at most {limit * episodes:,} in all"
    )


def evaluation_sentence(config: Config, spec: EnvSpec) -> str:
    """Return a sentence about the cost of evaluations if it is large or the environment has no limit, else "".

    It is "" for games of two.
    """
    evaluation, limit = config.evaluation, evaluation_limit(config, spec)
    whole = limit or spec.max_steps
    if not evaluation.count or spec.num_players > 1 or whole is None:
        return ""
    most = evaluation.count * evaluation.episodes * whole
    played = (
        f"evaluation.count={evaluation.count:,} evaluations of evaluation.episodes={evaluation.episodes:,} may take "
        f"{most:,} decisions, compared with {config.steps:,} of the training"
    )
    if evaluation.max_steps is None and spec.max_steps is None:
        return (
            f"{spec.id} does not limit its episodes: evaluations during training cut them short after {whole:,} "
            f"decisions (evaluation.max_steps); {played}"
        )
    return f"{played}: evaluation.max_steps makes their episodes shorter" if most > OFTEN * config.steps else ""


class Forecast:
    """An estimate of the remaining time of a run, given once if it is long."""

    def __init__(self, config: Config):
        self._config = config
        self._first, self._done = True, False
        self._steps, self._seconds = 0, 0.0

    def __call__(self, steps: int, seconds: float, left: int, acting_share: float | None = None) -> str:
        """Return a sentence with the remaining time, or "", after a chunk of `steps` steps in `seconds`.

        `left` is the number of remaining steps.  The first chunk is not measured, because the machine may still be
        warming up.
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
        config, advice = self._config, logger.speed_advice(self._config, (acting_share or 0.0) > 0.5)
        if config.model.torso in LARGE_TORSOS:
            advice = ["model.torso=dqn_cnn", *advice]
        return (
            f"about {_duration(left / speed)} are left at this speed, {speed:,.3g} steps a second; fewer steps "
            f"(now steps={config.steps:,}) take less time, and so may {', '.join(advice)}"
        )


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
