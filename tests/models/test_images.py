"""Torsos for images: their sizes, their parts, and what becomes of bytes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents import muzero
from bircher.agents.muzero import MuZeroState
from bircher.networks.encoders import halvings_of, make_torso, spatial_softmax
from bircher.networks.layers import FAINT, scale_latent
from bircher.networks.model import ModelConfig
from bircher.search import SearchConfig
from bircher.types import Discrete, EnvSpec, Policy, TimeStep, Trajectory
from builders import ACTIONS, SMALL, drawn_model, muesli_agent, quick_jit

KEY = jax.random.key(0)
SMALL_IMAGE = {
    "latent_width": 12,
    "sections": (3, 4),
    "section_blocks": 1,
    "dense_width": 10,
    "channels": 4,
    "halvings": 2,
}


def image(height: int, width: int, channels: int = 4, dtype=np.uint8) -> EnvSpec:
    return EnvSpec("test/image", jax.ShapeDtypeStruct((height, width, channels), dtype), Discrete(ACTIONS))


def config_of(**settings) -> ModelConfig:
    return SMALL.model_copy(update={**SMALL_IMAGE, **settings})


def parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract_torso(config: ModelConfig, spec: EnvSpec):
    return jax.eval_shape(lambda: make_torso(config, spec, KEY))


def test_the_nature_network_has_its_papers_sizes():
    torso = abstract_torso(ModelConfig(torso="nature_cnn", latent_width=9), image(84, 84))
    assert [leaf.weight.shape for leaf in torso.convolutions] == [(256, 32), (512, 64), (576, 64)]
    assert torso.num_features == 512 and torso.mlp.layers[0].weight.shape == (7 * 7 * 64, 512)
    by_hand = (256 * 32 + 32) + (512 * 64 + 64) + (576 * 64 + 64) + (3136 * 512 + 512)
    assert parameters(torso) == by_hand + 513 * 9 == 1_684_128 + 513 * 9


def test_dqns_first_network_has_its_papers_sizes():
    torso = abstract_torso(ModelConfig(torso="dqn_cnn", latent_width=9), image(84, 84))
    assert [leaf.weight.shape for leaf in torso.convolutions] == [(256, 16), (256, 32)]
    assert torso.num_features == 256 and torso.mlp.layers[0].weight.shape == (9 * 9 * 32, 256)
    by_hand = (256 * 16 + 16) + (256 * 32 + 32) + (2592 * 256 + 256)
    assert parameters(torso) == by_hand + 257 * 9


def test_feature_points_against_a_plain_loop():
    """Rows run down, columns to the right, both from -1 to 1; the strength is the channel's own mean."""
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    for b in range(2):
        for c in range(3):
            share = np.exp(x[b, :, :, c]) / np.exp(x[b, :, :, c]).sum()
            cells = [(i, j) for i in range(5) for j in range(4)]
            by_hand = (
                sum(share[i, j] * (-1 + 2 * i / 4) for i, j in cells),
                sum(share[i, j] * (-1 + 2 * j / 3) for i, j in cells),
                sum(share[i, j] * x[b, i, j, c] for i, j in cells),
            )
            np.testing.assert_allclose([point[b, c] for point in spatial_softmax(jnp.asarray(x))], by_hand, atol=1e-6)


def test_a_feature_point_moves_with_the_picture():
    """And its strength does not change with the place."""
    dot = jnp.full((7, 9, 1), -5.0).at[2, 3, 0].set(20.0)
    row, column, strength = spatial_softmax(dot)
    moved = spatial_softmax(jnp.roll(dot, (3, 2), axis=(0, 1)))
    np.testing.assert_allclose([*row, *column, *strength], [-1 + 2 * 2 / 6, -1 + 2 * 3 / 8, 20], atol=1e-4)
    np.testing.assert_allclose([*moved[0], *moved[1], *moved[2]], [-1 + 2 * 5 / 6, -1 + 2 * 5 / 8, 20], atol=1e-4)


def test_the_network_of_feature_points_has_three_numbers_a_channel():
    torso = abstract_torso(ModelConfig(torso="spatial_softmax", latent_width=9), image(48, 72, 6))
    by_hand = (6 * 6 * 6 * 16 + 16) + (3 * 3 * 16 * 32 + 32) + (3 * 32 * 256 + 256)
    assert parameters(torso) == by_hand + 257 * 9 and torso.num_features == 256


@pytest.mark.parametrize(("side", "last"), [(84, 11), (64, 8), (96, 12)])
def test_the_impala_network_has_its_papers_sizes(side, last):
    torso = abstract_torso(ModelConfig(torso="impala", latent_width=9), image(side, side))
    flat = last * last * 32
    by_hand = sum(9 * a * b + b + 4 * (9 * b * b + b) for a, b in ((4, 16), (16, 32), (32, 32)))
    assert parameters(torso) == by_hand + flat * 256 + 256 + 257 * 9
    assert torso.num_features == 256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "halvings", "grid"),
    [(96, None, 6), (84, None, 6), (64, None, 8), (48, None, 6), (64, 4, 4), (10, None, 5)],
)
def test_muzeros_latent_is_an_image_halved(side, halvings, grid):
    config = ModelConfig(torso="muzero_resnet", channels=256, num_blocks=16, halvings=halvings)
    torso = abstract_torso(config, image(side, side))
    assert torso.grid == (grid, grid, 256)
    seen = jax.ShapeDtypeStruct((2, 3, side, side, 4), jnp.float32)
    found = jax.eval_shape(lambda torso, x: torso(x), torso, seen)
    assert found.shape == (2, 3, grid * grid * 256)
    count = halvings_of(side, side) if halvings is None else halvings
    assert [len(blocks) for blocks in torso.stages] == [2, 3, 3, 3, 3][: count - 1] + [16]
    planes = [256] if count == 1 else [128, 256]
    assert [x.weight.shape[1] for x in torso.convolutions] == planes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torso", "dynamics", "side"),
    [
        ("dqn_cnn", "mlp", 20),
        ("nature_cnn", "mlp", 36),
        ("spatial_softmax", "mlp", 9),
        ("impala", "lstm", 11),
        ("muzero_resnet", "convolution", 11),
        ("muzero_resnet", "mlp", 11),
    ],
)
def test_every_part_of_every_network_gets_a_gradient(torso, dynamics, side):
    """Trap 2, each torso and each transition."""
    spec, config = image(side, side + 1, 2), config_of(torso=torso, dynamics=dynamics, num_blocks=2)
    model = drawn_model(0, config, spec)
    observation = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2, *spec.observation.shape)), jnp.uint8)
    actions = jnp.asarray([[[0, 1], [2, 1]], [[1, 0], [2, 2]]])

    def total(model):
        latent = model.represent(observation)
        latents = model.unroll(latent, actions)
        assert latent.shape == latents.shape[1:] and latent.dtype == latents.dtype == jnp.float32
        features = model.head_input(latents)
        prediction = model.prediction(features)
        logits = (prediction.policy_logits, prediction.value_logits, model.reward_logits(features))
        return sum(jnp.square(x).mean() for x in logits) + model.look_ahead(latent, 0.9).mean(), latent

    (_, latent), gradient = quick_jit(jax.value_and_grad(total, has_aux=True))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)
    assert float(jnp.abs(latent).max()) <= 1 + 1e-5


@pytest.mark.parametrize("torso", ["nature_cnn", "impala"])
def test_a_memory_can_stand_between_features_and_latent(torso):
    spec, config = image(36, 36, 2), config_of(torso=torso)
    model = drawn_model(1, config, spec)
    observation = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, *spec.observation.shape)), jnp.uint8)
    features, latent = quick_jit(lambda x: (model.features(x), model.represent(x)))(observation)
    assert features.shape == (2, 3, model.representation.num_features)
    assert float(features.min()) >= 0 < float(features.max()), "behind a ReLU"
    np.testing.assert_allclose(model.project(features), latent, rtol=1e-5, atol=1e-5)
    last = model.representation.mlp.layers[-1]
    np.testing.assert_allclose(scale_latent(features @ last.weight + last.bias), latent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((84, 84, 4), "Impala"),
        ((32, 40, 3), "Impala"),
        ((31, 40, 3), "SmallCNN"),
        ((10, 10, 4), "SmallCNN"),
        ((2, 50, 3), "MLP"),
        ((128,), "MLP"),
        ((84, 84), "Impala"),
        ((4, 84, 84), "Impala"),
        ((15, 15), "MLP"),
    ],
)
def test_the_torso_follows_from_the_observation(shape, kind):
    spec = EnvSpec("test/any", jax.ShapeDtypeStruct(shape, np.uint8), Discrete(ACTIONS))
    assert type(abstract_torso(ModelConfig(), spec)).__name__ == f"{kind}Torso"


def test_bytes_of_an_image_are_scaled_once_and_nothing_else_is():
    values = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2)).astype(np.uint8)
    model = drawn_model(0, config_of(torso="small_cnn"), image(6, 5, 2))
    expected = model.represent(jnp.asarray(values / 255.0, jnp.float32))
    np.testing.assert_allclose(model.represent(jnp.asarray(values)), expected, rtol=1e-4, atol=1e-5)
    flags = jnp.asarray(values > 127)
    np.testing.assert_array_equal(model.represent(flags), model.represent(flags.astype(jnp.float32)))
    whole = jnp.asarray(values, jnp.int32)
    np.testing.assert_array_equal(model.represent(whole), model.represent(whole.astype(jnp.float32)))
    ram = EnvSpec("test/ram", jax.ShapeDtypeStruct((60,), np.uint8), Discrete(ACTIONS))
    model, memory = drawn_model(0, SMALL, ram), jnp.asarray(values.reshape(3, 60))
    np.testing.assert_array_equal(model.represent(memory), model.represent(memory.astype(jnp.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muesli", "muesli, normalized", "muzero"])
def test_agents_hand_bytes_to_the_network_as_they_are(name):
    spec, config = image(6, 5, 2), config_of(torso="small_cnn", unroll_steps=1)
    if name == "muzero":
        agent = muzero.make(muzero.MuZeroConfig(), config, muzero.MuZeroLosses(), SearchConfig(num_simulations=2))
        policy = Policy(drawn_model(0, config, spec), MuZeroState())
    else:
        agent = muesli_agent(config, normalize_observations="normalized" in name)
        policy = Policy(drawn_model(0, config, spec), agent.init(KEY, spec).state)
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 2)).astype(np.uint8)
    flag, number, legal = jnp.zeros(4, bool), jnp.zeros(4), jnp.ones((4, ACTIONS), bool)

    def priors(observation):
        row = TimeStep(observation, number, number + 1, flag, flag, flag, legal, flag)
        output, _ = agent.act(policy, agent.start(4), row, KEY, "sample", 0.0)
        rows = jax.tree.map(lambda x: x[:, None], Trajectory.of(row, output))
        return agent.look(policy, agent.encode(policy, rows)[:, 0], legal, KEY).prior

    found = quick_jit(priors)(values)
    # Normalized, before anything was seen by a variance of 1 and the floor: bytes no more, and scaled no further.
    scale = math.sqrt(1 + FAINT**2) if "normalized" in name else 255.0
    np.testing.assert_allclose(found, quick_jit(priors)((values / scale).astype(np.float32)), rtol=1e-3, atol=1e-5)


def test_observations_that_do_not_fit_a_torso_are_refused():
    with pytest.raises(ValueError, match="nature_cnn needs .* at least 36 × 36, not \\(35, 84, 4\\)"):
        make_torso(ModelConfig(torso="nature_cnn"), image(35, 84), KEY)
    with pytest.raises(ValueError, match="impala needs an observation of height"):
        make_torso(ModelConfig(torso="impala"), EnvSpec("v", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)), KEY)
    with pytest.raises(ValueError, match="sections must contain one or more"):
        ModelConfig(sections=())
    assert abstract_torso(ModelConfig(torso="nature_cnn"), image(36, 36)).num_features == 512
