"""What a configuration needs at least, held against the memory that is free, before anything is allocated."""

from __future__ import annotations

from bircher import machine
from bircher.config import Config
from bircher.run.assembly import NotEnoughMemory, Parts, num_bytes, size


def require_memory(config: Config, parts: Parts, device: machine.Device) -> None:
    """Refuse networks and batches that cannot fit, each with the setting that makes it large.

    Only what is certain to be allocated is counted, so that a run that is refused could not have begun.

    Raises:
      NotEnoughMemory: one of them needs more than the device has left.
    """
    free = machine.available_bytes(device)
    if free is None:
        return
    networks = num_bytes(parts.saved) + num_bytes(parts.saved.params)  # and the gradients
    if networks > free:
        raise NotEnoughMemory(
            f"the networks, their optimiser and their gradients take {size(networks)} on the {device.platform}, and "
            f"{size(free)} are left: lower {_widest(config)}"
        )
    if parts.learner.apart is not None:
        return  # the batches are part of the replay's size
    optimiser = config.optimiser
    row = num_bytes(parts.template.replay) / parts.learner.replay.capacity
    batch = optimiser.batch_size * optimiser.minibatches * (config.loop.rollout_length + 1) * row
    if batch > free:
        raise NotEnoughMemory(
            f"the sequences of an update take {size(batch)} on the {device.platform}, and {size(free)} are left: lower "
            f"optimiser.batch_size={optimiser.batch_size:,} or optimiser.minibatches={optimiser.minibatches:,}"
        )


SAID_FROM = 100 * 2**20
"""Bytes of an update from which on they are said."""


def update_sentence(config: Config, taken: int, device: machine.Device) -> str:
    """What the compiled programs take while they run, besides the replay and the networks; empty where it is little.

    Raises:
      NotEnoughMemory: more than the device has left.
    """
    free = machine.available_bytes(device)
    text = f"acting and an update take {size(taken)} while they run"
    if free is not None and taken > free:
        raise NotEnoughMemory(
            f"{text}, and {size(free)} are left on the {device.platform}: lower optimiser.batch_size="
            f"{config.optimiser.batch_size:,}, model.unroll_steps={config.model.unroll_steps} or {_widest(config)}"
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
