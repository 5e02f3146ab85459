"""What parts hold and cost, against counts by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bircher.analysis import network_summary
from bircher.config.config import compose
from bircher.networks.model import Model, ModelConfig
from bircher.runs import inspect
from bircher.types import Discrete, EnvSpec
from builders import ACTIONS, SMALL, SPEC


def found(config: ModelConfig, spec: EnvSpec = SPEC, **settings) -> dict[str, network_summary.Part]:
    model = jax.eval_shape(lambda: Model(spec, config, jax.random.key(0), **settings))
    return {part.name: part for part in network_summary.summarize(model, spec)}


def layer(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_a_tiny_networks_numbers_are_those_by_hand():
    parts = found(SMALL)
    # 4 numbers, 16 hidden ones, a latent of 12, 3 actions, 21 atoms.
    assert parts["encoder"][1:3] == (layer(4, 16) + layer(16, 12), 2 * (4 * 16 + 16 * 12))
    assert parts["dynamics"][1:3] == (
        layer(12, 16) + ACTIONS * 16 + layer(16, 12), 2 * (12 * 16 + ACTIONS * 16 + 16 * 12)
    )  # fmt: skip
    assert parts["policy_head"][1:3] == (layer(12, ACTIONS), 2 * 12 * ACTIONS)
    assert parts["value_head"][1:3] == parts["reward_head"][1:3] == (layer(12, 21), 2 * 12 * 21)
    assert list(parts) == ["encoder", "dynamics", "policy_head", "value_head", "reward_head"]
    # A head of one layer keeps what it was given: 12 numbers of four bytes.
    assert parts["value_head"].activation_bytes == parts["policy_head"].activation_bytes == 48
    total = network_summary.total(list(parts.values()))
    assert total.parameters == sum(leaf.size for leaf in jax.tree.leaves(Model(SPEC, SMALL, jax.random.key(0))))
    assert total.flops == sum(part.flops for part in parts.values())


def test_activations_are_counted_by_the_frame_and_in_their_precision():
    wide = SMALL.model_copy(update={"torso_widths": (1000,), "head_widths": (500,)})
    parts = found(wide)
    # The hidden layer, before and behind its ReLU, its signs, and the observation.
    assert 4 * 1000 <= parts["encoder"].activation_bytes <= 3 * 4 * 1000
    half = found(wide.model_copy(update={"precision": "bfloat16"}))
    assert half["encoder"].activation_bytes < 0.7 * parts["encoder"].activation_bytes
    assert half["encoder"][1:3] == parts["encoder"][1:3]


def test_convolutions_are_counted_and_missing_parts_are_not():
    spec = EnvSpec("test/image", jax.ShapeDtypeStruct((12, 12, 3), np.uint8), Discrete(ACTIONS))
    config = SMALL.model_copy(
        update={"torso": "muzero_resnet", "channels": 32, "halvings": 1, "prediction_channels": 5}
    )
    parts = found(config, spec, project=True)
    grid = 6 * 6
    assert parts["encoder"].flops == 2 * grid * 9 * (3 * 32 + 2 * 32 * 32)
    assert parts["encoder"].parameters == layer(27, 32) + 2 * layer(288, 32)
    assert parts["reader"].flops == 2 * (4 * 4 * 9 * 32 * 5 + 4 * 4 * 5 * config.latent_width)
    assert parts["projection"].parameters > 0 and parts["projection"].flops > 0
    assert list(found(SMALL, imagine=False)) == ["encoder", "policy_head", "value_head"]


def test_a_runs_network_is_that_of_its_agent():
    config = compose("toy/catch", ["agent=ppo"])
    text = inspect.describe(config).splitlines()
    assert text[0].startswith("toy/catch, ppo: observation ") and text[1].startswith("float32, ")
    assert [line.split()[0] for line in text[3:]] == ["encoder", "policy_head", "value_head", "total"]
    assert "dynamics" in inspect.describe(compose("toy/catch", []))


@pytest.mark.parametrize(
    ("number", "step", "unit", "text"),
    [(122_058_752, 1000, "", "122 M"), (2_742_452, 1024, "B", "2.62 MiB"), (48, 1024, "B", "48 B"), (0, 1000, "", "0"),
     (1023 * 1024, 1024, "B", "1023 KiB"), (5e15, 1000, "", "5000 T")],
)  # fmt: skip
def test_numbers_are_short(number, step, unit, text):
    assert inspect._short(number, step, unit) == text
