"""What a configuration's network holds and costs, part by part, before anything is compiled."""

from __future__ import annotations

import jax

from bircher.config import Config
from bircher.models import summary
from bircher.models.summary import Part
from bircher.run import assembly
from bircher.types import EnvSpec


def parts_of(config: Config, spec: EnvSpec) -> list[Part]:
    """Every part of the network that the agent has in an environment, as the agent makes it."""
    agent = assembly.make_agent(config, spec)
    policy = jax.eval_shape(lambda: agent.init(jax.random.key(0), spec))
    return summary.summarise(policy.params, spec)


def describe(config: Config) -> str:
    """A table of the parts; one environment is made, for its specification.

    Raises:
      UnsupportedEnvironment: the environment cannot be made, or the agent cannot learn in it.
      ValueError: the network does not fit the observation.
    """
    env = assembly.make_env(config, None, 1, config.seed, "summary")
    spec = env.spec
    env.close()
    parts = parts_of(config, spec)
    shape = " × ".join(str(length) for length in spec.observation.shape)
    head = f"{spec.id}, {config.agent.name}: observation {shape} {spec.observation.dtype}, {spec.action}"
    model = f"{config.model.precision}, the model unrolled {config.model.unroll_steps} steps"
    rows = [("", "parameters", "FLOPs a frame", "activations a frame")]
    rows += [
        (part.name, f"{part.parameters:,}", _short(part.flops, 1000, ""), _short(part.activation_bytes, 1024, "B"))
        for part in (*parts, summary.total(parts))
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join((head, model, *lines))


def _short(number: float, step: int, unit: str) -> str:
    """Three digits and a prefix: 122 M, 2.62 MiB."""
    prefixes = ["", "k", "M", "G", "T"] if step == 1000 else ["", "Ki", "Mi", "Gi", "Ti"]
    while number >= step and len(prefixes) > 1:
        number /= step
        prefixes.pop(0)
    digits = f"{number:.3g}" if number < 1000 else f"{number:.0f}"
    return f"{digits} {prefixes[0]}{unit}".rstrip()
