"""Observations that only name states, and pictures of another layout, in the network."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.errors import ConfigError
from bircher.networks.encoders import IndexTorso, MLPTorso, TorsoConfig, make_torso
from bircher.spaces import Encoding
from bircher.types import Discrete, EnvSpec
from builders import SMALL, drawn_model

KEY = jax.random.key(0)
INDEX = EnvSpec(
    "test/index", jax.ShapeDtypeStruct((2,), np.int32), Discrete(3),
    encoding=Encoding((), "int32", "int64", "index", num_values=5, stack=2),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(), (6,), (6, 7)])
def test_rows_of_weights_are_the_product_with_one_hot_vectors(widths):
    torso = make_torso(TorsoConfig(torso_widths=widths, latent_width=4), INDEX, KEY)
    assert isinstance(torso, IndexTorso)
    plain = MLPTorso((10,), widths, 4, KEY)
    assert jax.tree.structure(torso.mlp) == jax.tree.structure(plain.mlp), "weights as those of one-hot vectors"
    observation = jnp.array([[0, 4], [3, 3], [1, 0]])
    vectors = jax.nn.one_hot(observation, 5).reshape(3, 10)

    def loss(mlp, torso, observation):
        return jnp.square(eqx.tree_at(lambda t: t.mlp, torso, mlp)(observation)).sum()

    np.testing.assert_array_equal(torso(observation), plain(vectors))
    found = jax.grad(loss)(torso.mlp, torso, observation)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        jax.grad(loss)(plain.mlp, plain, vectors),
    )


def test_a_model_looks_up_indices_and_refuses_convolutions_of_them():
    model = drawn_model(0, SMALL, INDEX)
    assert model.represent(jnp.array([[0, 4]])).shape == (1, 12)
    half = drawn_model(0, SMALL.model_copy(update={"precision": "bfloat16"}), INDEX)
    assert half.features(jnp.array([[0, 4]])).dtype == jnp.bfloat16
    with pytest.raises(ConfigError, match="needs an observation of height, width and channels"):
        make_torso(TorsoConfig(torso="small_cnn"), INDEX, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 20, 24), (20, 24), (2, 20, 24, 3)])
def test_a_picture_that_no_adapter_transposed_is_transposed_by_the_model(shape):
    """The torso is that of height, width and channels; the numbers are those of the turned picture."""
    from bircher import spaces

    layout = spaces.layout_of(shape, True)
    turned = spaces.channels_last_shape(shape, layout)
    model, plain = (
        drawn_model(0, SMALL, EnvSpec("test/picture", jax.ShapeDtypeStruct(s, np.uint8), Discrete(2)))
        for s in (shape, turned)
    )
    pictures = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    found, expected = (
        model.represent(jnp.asarray(pictures)),
        plain.represent(jnp.asarray(spaces.to_channels_last(pictures, layout))),
    )
    np.testing.assert_array_equal(found, expected)
