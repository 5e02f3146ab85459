"""The recurrent model against a plain loop, and what its latent is to the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.networks.dynamics import DynamicsMLP, GridDynamics, LSTMDynamics
from bircher.networks.model import Model
from bircher.types import Discrete, EnvSpec
from builders import ACTIONS, SMALL, SPEC, drawn_model

KEY = jax.random.key(0)
RECURRENT = SMALL.model_copy(update={"dynamics": "lstm", "latent_width": 6})
GRID = EnvSpec("test/grid", jax.ShapeDtypeStruct((6, 5, 2), np.float32), Discrete(ACTIONS))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_step_is_that_of_an_lstm():
    dynamics = drawn_model(0, RECURRENT, SPEC).dynamics
    assert isinstance(dynamics, LSTMDynamics)
    latent = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    actions = np.array([0, 2, 1, 1, 0])
    found = dynamics(jnp.asarray(latent), jax.nn.one_hot(actions, ACTIONS))
    weight, bias, table = (
        np.asarray(x) for x in (dynamics.from_hidden.weight, dynamics.from_hidden.bias, dynamics.from_action)
    )
    for row, action, result in zip(latent, actions, found, strict=True):
        h, c = row[:6], row[6:]
        i, f, g, o = np.split(h @ weight + bias + table[action], 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        np.testing.assert_allclose(result, np.concatenate([sigmoid(o) * np.tanh(c), c]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "settings", "kind"),
    [
        (SPEC, {"dynamics": "lstm"}, LSTMDynamics),
        (SPEC, {"dynamics": "mlp"}, DynamicsMLP),
        (GRID, {"torso": "grid", "dynamics": "convolution", "num_blocks": 2, "channels": 3}, GridDynamics),
        (GRID, {"torso": "grid", "dynamics": "mlp", "channels": 3}, DynamicsMLP),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_actions_are_each_actions_step(spec, settings, kind, precision):
    model = drawn_model(1, SMALL.model_copy(update={**settings, "precision": precision}), spec)
    assert isinstance(model.dynamics, kind)
    latent = model.represent(jax.random.normal(KEY, (2, 5, *spec.observation.shape)))
    ahead = model.dynamics.all_actions(latent)
    assert ahead.shape == (2, 5, ACTIONS, latent.shape[-1]) and ahead.dtype == jnp.float32
    tolerance = 1e-5 if precision == "float32" else 0.1
    for action in range(ACTIONS):
        stepped = model.step(latent, jnp.full((2, 5), action))
        np.testing.assert_allclose(ahead[..., action, :], stepped, rtol=1e-4, atol=tolerance)
    assert float(jnp.abs(ahead[:, :, 0] - ahead[:, :, 1]).max()) > 0.1


@pytest.mark.slow
def test_the_latent_is_h_and_c_and_heads_see_h():
    model = drawn_model(2, RECURRENT, SPEC)
    latent = model.represent(jax.random.normal(KEY, (3, 4)))
    assert latent.shape == (3, 12) and model.heads.value.layers[0].weight.shape[0] == 6
    other = latent.at[:, 6:].add(1.0)
    np.testing.assert_array_equal(model.predict(latent).value_logits, model.predict(other).value_logits)
    action = jnp.asarray([0, 1, 2])
    assert float(jnp.abs(model.value(model.step(latent, action)) - model.value(model.step(other, action))).max()) > 1e-3
    # c of the root is learned by what is predicted after it.
    gradient = jax.grad(lambda latent: model.value(model.step(latent, action)).sum())(latent)
    assert float(jnp.abs(gradient[:, 6:]).max()) > 1e-4


@pytest.mark.slow
def test_a_memory_is_as_long_as_its_forget_gate_lets_it_be():
    """The cell's derivative by the cell before is the forget gate, halved as every latent that enters a step."""
    model = drawn_model(3, RECURRENT, SPEC)
    latent, action = model.represent(jax.random.normal(KEY, (4,))), jnp.asarray(1)
    jacobian = np.asarray(jax.jacobian(lambda latent: model.step(latent, action))(latent))[6:, 6:]
    forget = np.split(np.asarray(model.dynamics.latent_term(latent) + model.dynamics.from_action[1]), 4)[1]
    np.testing.assert_allclose(jacobian, np.diag(0.5 * sigmoid(forget + 1)), rtol=1e-4, atol=1e-6)


def test_without_a_model_there_is_no_dynamics():
    model = Model(SPEC, RECURRENT, KEY, imagine=False)
    assert model.dynamics is None and model.represent(jnp.ones((3, 4))).shape == (3, 6)


def test_dynamics_that_do_not_fit_the_latent_are_refused():
    for torso, dynamics, needs in [
        ("grid", "lstm", "needs a torso that ends in a projection"),
        ("mlp", "convolution", "a grid"),
    ]:
        config = SMALL.model_copy(update={"torso": torso, "dynamics": dynamics})
        with pytest.raises(ValueError, match=f"model.dynamics={dynamics}.*{needs}"):
            Model(GRID, config, KEY)
