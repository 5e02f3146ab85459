"""Layers, torsos, dynamics and the model, against plain NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.networks.conv import Convolution
from bircher.networks.dynamics import GridDynamics
from bircher.networks.encoders import MLPTorso, SmallCNNTorso, make_torso
from bircher.networks.layers import MLP, LayerNorm, Linear, ObservationStatistics, least, scale_latent
from bircher.networks.model import GridReader, Model, ModelConfig
from bircher.types import Discrete, EnvSpec
from builders import ACTIONS, SMALL, SPEC, drawn_model, random_model

KEY = jax.random.key(0)
GRID = EnvSpec("test/grid", jax.ShapeDtypeStruct((6, 5, 2), np.float32), Discrete(ACTIONS))


def torso_config(**settings) -> ModelConfig:
    return ModelConfig(**{"torso_widths": (7,), "latent_width": 12, "channels": 3, **settings})


def test_linear_is_its_product_with_the_variance_asked_for():
    layer = Linear(400, 300, KEY, scale=2.0)
    assert float(layer.weight.std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert float(jnp.abs(layer.weight).max()) <= 2.3 * math.sqrt(2 / 400)
    x = jnp.ones((2, 3, 400))
    expected = np.asarray(x) @ np.asarray(layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_mlp_has_a_relu_between_layers_and_none_after_the_last():
    """Trap 7: a ReLU on logits would leave half of them dead."""
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for activate_last in (False, True):
        mlp = MLP(3, (5, 4), KEY, activate_last=activate_last)
        hidden = np.maximum(x @ np.asarray(mlp.layers[0].weight) + np.asarray(mlp.layers[0].bias), 0)
        out = hidden @ np.asarray(mlp.layers[1].weight) + np.asarray(mlp.layers[1].bias)
        expected = np.maximum(out, 0) if activate_last else out
        np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
        assert (out < 0).any()


def test_layer_norm():
    x = np.random.default_rng(0).normal(3.0, 5.0, size=(4, 64)).astype(np.float32)
    y = np.asarray(LayerNorm(64)(jnp.asarray(x)))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


@pytest.mark.parametrize("pad", [False, True])
def test_convolution_is_a_convolution(pad):
    """Against JAX's own, NHWC, with the patch order of the weights made explicit."""
    convolution = Convolution(2, 4, 3, KEY, pad)
    x = jax.random.normal(jax.random.key(1), (3, 6, 5, 2))
    kernel = convolution.weight.reshape(3, 3, 2, 4)
    padding = "SAME" if pad else "VALID"
    oracle = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolution(x), oracle + convolution.bias, rtol=1e-4, atol=1e-5)


def test_scale_latent_spans_minus_one_to_one():
    x = np.random.default_rng(0).normal(3.0, 5.0, size=(4, 8)).astype(np.float32)
    y = np.asarray(scale_latent(jnp.asarray(x)))
    np.testing.assert_allclose([y.min(-1), y.max(-1)], [[-1] * 4, [1] * 4], atol=1e-5)
    np.testing.assert_array_equal(y.argsort(-1), x.argsort(-1))
    assert np.isfinite(scale_latent(jnp.zeros((1, 8)))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "kind"), [(SPEC, MLPTorso), (GRID, SmallCNNTorso)])
def test_the_torso_fits_the_observation(spec, kind):
    torso = make_torso(torso_config(), spec, KEY)
    assert isinstance(torso, kind)
    observation = jax.random.normal(KEY, (2, 5, *spec.observation.shape))
    latent = torso(observation)
    assert latent.shape == (2, 5, 12)
    np.testing.assert_allclose(latent[1, 3], torso(observation[1, 3]), rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(latent).max()) <= 1 + 1e-5


def test_the_minimum_is_jaxs_own_with_its_gradient():
    x = jnp.array([[3.0, -1.0, -1.0, 2.0], [0.5, 0.25, 0.75, 1.0]])
    np.testing.assert_array_equal(least(x), x.min(-1, keepdims=True))
    gradient = jax.grad(lambda x: (least(x) ** 2).sum())(x)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: (x.min(-1) ** 2).sum())(x))
    np.testing.assert_allclose(gradient[0], [0, -1, -1, 0])


@pytest.mark.slow
def test_a_grids_latent_is_a_grid_and_its_model_convolves():
    config = SMALL.model_copy(update={"torso": "grid", "channels": 3, "num_blocks": 2})
    model = random_model(0, config, GRID)
    assert isinstance(model.dynamics, GridDynamics) and len(model.dynamics.blocks) == 1
    observation = jax.random.normal(KEY, (2, 5, *GRID.observation.shape))
    latent = model.represent(observation)
    assert latent.shape == (2, 5, 6 * 5 * 3)
    np.testing.assert_allclose(latent[1, 3], model.represent(observation[1, 3]), rtol=1e-4, atol=1e-5)
    # By every door the same: one action, all of them, and a step of an unroll.
    ahead = model.dynamics.all_actions(latent)
    assert ahead.shape == (2, 5, ACTIONS, 90) and float(jnp.abs(ahead).max()) <= 1 + 1e-5
    actions = jnp.asarray([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    stepped = model.step(latent, actions)
    for b, t in np.ndindex(2, 5):
        np.testing.assert_allclose(ahead[b, t, actions[b, t]], stepped[b, t], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.unroll(latent, actions[None])[0], stepped, rtol=1e-4, atol=1e-5)
    # One convolution sees one cell further.
    torso = make_torso(torso_config(torso="grid"), GRID, KEY)
    moved = observation.at[..., 0, 0, :].add(5.0)
    before, after = (torso.convolution(x)[..., 2:, 2:, :] for x in (observation, moved))
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("torso", ["grid", "identity"])
def test_a_grids_latent_can_be_read_by_a_convolution(torso):
    settings = {"torso": torso, "kernel": 1, "prediction_channels": 8, "prediction_kernel": 4}
    model = random_model(0, torso_config(**settings), GRID)
    latent = model.represent(jax.random.bernoulli(KEY, 0.5, (2, 5, *GRID.observation.shape)).astype(jnp.float32))
    channels = 3 if torso == "grid" else 2
    assert latent.shape == (2, 5, 30 * channels) and isinstance(model.reader, GridReader)
    features, reader = model.head_input(latent), model.reader
    kernel = reader.convolution.weight.reshape(4, 4, channels, 8)
    grid = latent.reshape(10, 6, 5, channels)
    oracle = jax.lax.conv_general_dilated(grid, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    hidden = np.maximum(oracle + reader.convolution.bias, 0).reshape(2, 5, -1)
    expected = np.maximum(hidden @ np.asarray(reader.linear.weight) + np.asarray(reader.linear.bias), 0)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    # Every head sees the same features, by each of the model's doors.
    prediction = model.predict(latent)
    np.testing.assert_array_equal(prediction.policy_logits, model.heads.policy(features))
    np.testing.assert_array_equal(model.value(latent), model.value_support.mean(prediction.value_logits))
    np.testing.assert_array_equal(model.reward(latent), model.reward_support.mean(model.reward_logits(features)))


@pytest.mark.slow
def test_the_latent_can_be_the_observation_itself():
    model = random_model(0, torso_config(torso="identity", dynamics_widths=(7,)), GRID)
    observation = jax.random.bernoulli(KEY, 0.5, (2, 5, *GRID.observation.shape)).astype(jnp.float32)
    latent = model.represent(observation)
    np.testing.assert_array_equal(latent.reshape(observation.shape), np.where(observation > 0, 1.0, -1.0))
    assert isinstance(model.dynamics, GridDynamics) and not model.dynamics.blocks
    assert model.dynamics.from_latent.weight.shape == (9 * 2, 7), "channels of its own between the convolutions"
    actions = jnp.asarray([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    ahead, stepped = model.dynamics.all_actions(latent), model.step(latent, actions)
    for b, t in np.ndindex(2, 5):
        np.testing.assert_allclose(ahead[b, t, actions[b, t]], stepped[b, t], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(ahead).max()) <= 1 + 1e-5


def test_observations_that_do_not_fit_a_grid_are_refused():
    with pytest.raises(ValueError, match="model.prediction_channels=8 needs a latent that is a grid"):
        Model(GRID, torso_config(prediction_channels=8), KEY)
    with pytest.raises(ValueError, match="at least 7 × 7"):
        Model(GRID, torso_config(torso="grid", prediction_channels=8, prediction_kernel=7), KEY)
    with pytest.raises(ValueError, match="identity needs an observation of height"):
        Model(SPEC, torso_config(torso="identity"), KEY)
    with pytest.raises(ValueError, match="one number with model.torso=identity, not \\[7, 5\\]"):
        Model(GRID, torso_config(torso="identity", dynamics_widths=(7, 5)), KEY)


def test_the_kernels_side_is_a_setting():
    torso = make_torso(torso_config(kernel=4), GRID, KEY)
    assert torso.convolution.weight.shape == (4 * 4 * 2, 3)
    assert torso(jnp.ones((2, 6, 5, 2))).shape == (2, 12)
    assert isinstance(make_torso(torso_config(kernel=6), GRID, KEY), MLPTorso), "auto: too small for it"
    with pytest.raises(ValueError, match="at least 6 × 6"):
        make_torso(torso_config(torso="small_cnn", kernel=6), GRID, KEY)


def test_a_grid_of_vectors_is_refused():
    with pytest.raises(ValueError, match="grid needs an observation of height"):
        make_torso(torso_config(torso="grid"), SPEC, KEY)


def test_a_convolution_of_vectors_is_refused():
    with pytest.raises(ValueError, match="small_cnn needs an observation of height"):
        make_torso(torso_config(torso="small_cnn"), SPEC, KEY)


@pytest.mark.parametrize("wrong", [{"torso_widths": (0,)}, {"dynamics_widths": ()}, {"num_atoms": 1}, {"depth": 3}])
def test_settings_that_make_no_network_are_refused(wrong):
    with pytest.raises(ValueError):
        ModelConfig(**wrong)


def test_a_new_model_says_nothing():
    """A uniform policy and values and rewards of exactly 0, so that the first targets are rewards alone."""
    model = Model(SPEC, SMALL, KEY)
    latent = model.represent(jax.random.normal(KEY, (5, 4)))
    prediction = model.predict(latent)
    np.testing.assert_array_equal(prediction.policy_logits, 0)
    np.testing.assert_array_equal(model.value_support.mean(prediction.value_logits), 0)
    np.testing.assert_array_equal(model.look_ahead(latent, 0.9), 0)


def test_every_leaf_of_the_model_is_an_array():
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(Model(SPEC, SMALL, KEY)))


@pytest.mark.slow
def test_look_ahead_is_one_step_for_each_action():
    """Equation 14: r(s, a) + gamma v(s, a) from the latent that step gives for a, and each action its own."""
    model = random_model(3)
    latent = model.represent(jax.random.normal(KEY, (2, 5, 4)))
    q = np.asarray(model.look_ahead(latent, 0.9))
    assert q.shape == (2, 5, ACTIONS)
    for action in range(ACTIONS):
        following = model.step(latent, jnp.full((2, 5), action))
        reward = model.reward_support.mean(model.reward_logits(following))
        value = model.value_support.mean(model.predict(following).value_logits)
        np.testing.assert_allclose(q[..., action], reward + 0.9 * value, rtol=1e-3, atol=1e-4)
    assert np.ptp(q, axis=-1).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("actions", [5, 6])
def test_a_look_ahead_over_many_actions_is_computed_in_chunks(monkeypatch, actions):
    """Also where the actions do not fill the last piece."""
    spec = SPEC._replace(action=Discrete(actions))
    model = drawn_model(3, SMALL, spec)
    latent = model.represent(jax.random.normal(KEY, (2, 7, 4)))
    whole = model.look_ahead(latent, 0.9)
    width = latent.shape[-1] + model.dynamics.action_terms().shape[-1]
    monkeypatch.setattr("bircher.networks.model.LOOK_AHEAD_BYTES", 4 * 2 * 7 * width * 2 + 1)
    pieces = jax.make_jaxpr(lambda x: model.look_ahead(x, 0.9))(latent)
    assert "length=3" in str(pieces), "two actions at a time"
    np.testing.assert_allclose(model.look_ahead(latent, 0.9), whole, rtol=1e-5, atol=1e-6)


def test_unroll_is_step_after_step():
    model = random_model(4)
    latent = model.represent(jax.random.normal(KEY, (2, 5, 4)))
    actions = jax.random.randint(KEY, (3, 2, 5), 0, ACTIONS)
    unrolled = model.unroll(latent, actions)
    for k in range(3):
        latent = model.step(latent, actions[k])
        np.testing.assert_allclose(unrolled[k], latent, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_gradient_into_each_dynamics_step_is_halved():
    """MuZero: 1/2 on the latent that enters; after three steps an eighth reaches the root."""
    whole = random_model(5, SMALL.model_copy(update={"latent_gradient_scale": 1.0}))
    halved = random_model(5)
    latent, actions = jax.random.normal(KEY, (12,)), jnp.array([0, 2, 1])

    def gradient(model):
        return jax.grad(lambda latent: (model.unroll(latent, actions)[-1] ** 3).sum())(latent)

    np.testing.assert_allclose(gradient(halved), gradient(whole) / 8, rtol=1e-3, atol=1e-7)
    assert float(jnp.abs(gradient(whole)).max()) > 1e-4


@pytest.mark.slow
def test_observation_statistics_are_those_of_all_valid_rows():
    rng = np.random.default_rng(0)
    statistics, seen = ObservationStatistics.zero(SPEC), []
    np.testing.assert_allclose(statistics.normalize(jnp.full((2, 4), 3.0)), 3.0, rtol=1e-5)
    for _ in range(4):
        x = rng.normal([1, -50, 0, 3], [1, 2, 100, 0.1], size=(3, 5, 4)).astype(np.float32)
        mask = rng.uniform(size=(3, 5)) > 0.3
        statistics = statistics.update(jnp.asarray(x), jnp.asarray(mask))
        seen.append(x[mask])
    rows = np.concatenate(seen).astype(float)
    assert float(statistics.count) == len(rows)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(statistics.variance, rows.var(0), rtol=1e-3)
    normalized = np.asarray(statistics.normalize(jnp.asarray(rows, jnp.float32)))
    np.testing.assert_allclose([normalized.mean(0), normalized.std(0)], [[0] * 4, [1] * 4], atol=1e-2)
    assert float(statistics.normalize(jnp.full((1, 4), 1e9)).max()) == 10.0


@pytest.mark.slow
def test_a_pictures_pixels_are_normalized_each_by_its_own_and_faint_ones_stay_faint():
    """The background goes; a pixel that flickers by one of 255 is not blown up to what a moving thing is."""
    rng = np.random.default_rng(0)
    x = np.zeros((6, 50, 3, 4, 1), np.uint8)
    x[..., 0, :, :] = 200
    x[..., 1, 0, 0] = rng.integers(0, 2, (6, 50))
    x[..., 1, 1, 0] = 120 * rng.integers(0, 2, (6, 50))
    spec = EnvSpec("test/picture", jax.ShapeDtypeStruct((3, 4, 1), np.uint8), Discrete(2))
    statistics = ObservationStatistics.zero(spec).update(jnp.asarray(x), jnp.ones((6, 50), bool))
    found = np.asarray(statistics.normalize(jnp.asarray(x)))
    values = x[..., 1, 1, 0].astype(float)
    by_hand = (values - values.mean()) / np.sqrt(values.var() + 16.0**2)
    np.testing.assert_allclose(found[..., 1, 1, 0], by_hand, rtol=1e-4, atol=1e-4)
    assert np.abs(found[..., 0, :, :]).max() < 1e-3 and np.abs(found[..., 1, 0, 0]).max() < 0.07
    as_numbers = statistics.normalize(jnp.asarray(x, jnp.float32))
    assert float(jnp.abs(as_numbers[..., 1, 0, 0]).max()) > 0.9, "what is no picture has no such floor"
