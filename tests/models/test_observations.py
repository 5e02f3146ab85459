"""Encoders of observations of several arrays, against plain NumPy and against the same data flattened by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import environments
from bircher.config.config import compose
from bircher.envs.specs import observation_spec
from bircher.errors import ConfigError
from bircher.networks.encoders import ImpalaTorso, IndexTorso, MLPTorso, SmallCNNTorso
from bircher.networks.layers import ObservationStatistics, PartStatistics
from bircher.networks.model import Model, ModelConfig
from bircher.networks.observations import (
    Index,
    JoinedTorso,
    Numbers,
    Picture,
    Symbols,
    Text,
    Tokens,
    make_representation,
    parts_of,
)
from bircher.spaces import encode_observation
from bircher.types import Discrete, EnvSpec, part_names
from builders import quick_jit

KEY = jax.random.key(0)
SIZE = {"torso_widths": (8,), "latent_width": 6, "channels": 3, "dense_width": 5, "num_atoms": 11}
SPACE = spaces.Dict({
    "grid": spaces.Box(0, 1, (6, 6, 2), np.float32),
    "tile": spaces.Box(0, 1, (4, 8, 2), np.float32),
    "image": spaces.Box(0, 255, (40, 36, 3), np.uint8),
    "deep": spaces.Tuple([
        spaces.Dict(number=spaces.Box(-1, 1, (), np.float64), flag=spaces.Box(0, 1, (2,), bool)),
        spaces.Discrete(4, start=3),
    ]),
    "many": spaces.Discrete(5000),
    "choices": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [1, 1]]),
    "bits": spaces.MultiBinary(3),
    "wide": spaces.Box(-(10**12), 10**12, (2,), np.int64),
    "cells": spaces.Box(0, 9, (4, 4, 2), np.uint8),
    "things": spaces.Box(0, 255, (6, 3), np.uint8),
    "boxes": spaces.Box(-1, 1, (3, 2), np.float32),
    "words": spaces.Box(0, 255, (12,), np.uint8),
    "noise": spaces.Box(0, 1, (3,), np.float32),
    "nothing": spaces.Box(0, 1, (0, 2), np.float32),
})  # fmt: skip
ENCODERS = {
    "things": {"kind": "tokens", "padding": 255, "width": 7},
    "boxes": {"kind": "tokens", "width": 4},
    "words": {"kind": "text", "width": 5},
    "noise": {"kind": "ignore"},
}
KINDS = {
    "bits": Numbers, "boxes": Tokens, "cells": Symbols, "choices": Index, "deep.0.flag": Numbers,
    "deep.0.number": Numbers, "deep.1": Index, "grid": Picture, "image": Picture, "many": Index, "things": Tokens,
    "tile": Numbers, "wide": Numbers, "words": Text,
}  # fmt: skip


def spec_of(space: spaces.Space) -> EnvSpec:
    shapes, encoding = observation_spec(space)
    return EnvSpec("test/parts", shapes, Discrete(3), encoding=encoding)


def sampled(space: spaces.Space, spec: EnvSpec, count: int) -> tuple[list, object]:
    """Return observations of a space, and the agent's arrays of all of them."""
    space.seed(3)
    own = [space.sample() for _ in range(count)]
    encoded = [encode_observation(spec.encoding, one) for one in own]
    arrays = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *encoded)
    return own, arrays | {"wide": arrays["wide"] / 1e12} if "wide" in arrays else arrays


def torso_of(space: spaces.Space, **settings) -> JoinedTorso:
    torso = make_representation(ModelConfig.model_validate({**SIZE, **settings}), spec_of(space), KEY, 6)
    assert isinstance(torso, JoinedTorso)
    return torso


def test_each_part_has_the_encoder_of_its_shape_and_type_and_learns():
    spec, torso = spec_of(SPACE), torso_of(SPACE, encoders=ENCODERS)
    assert list(spec.parts) == part_names(spec.observation) and spec.parts["deep.0.number"].shape == ()
    assert dict(zip(torso.names, map(type, torso.encoders), strict=True)) == KINDS
    pictures = [type(encoder.torso) for encoder in torso.encoders if isinstance(encoder, Picture)]
    assert pictures == [SmallCNNTorso, ImpalaTorso]
    _, observation = sampled(SPACE, spec, 4)

    def loss(torso):
        weights = jax.random.normal(KEY, (4, 6))
        return (torso(observation) * weights).sum()

    gradients = quick_jit(jax.grad(loss))(torso)
    for name, encoder in zip(torso.names, gradients.encoders, strict=True):
        for leaf in jax.tree.leaves(encoder):
            assert np.abs(leaf).max() > 0, name
    assert all(np.abs(layer.weight).max(-1).any() for layer in gradients.mlp.layers)
    # Each part reaches the latent, and ignored and empty ones do not.
    program = quick_jit(lambda torso, observation: torso(observation))
    latent, parts = program(torso, observation), parts_of(observation)
    for name, part in parts.items():
        leaves = (parts | {name: jnp.roll(part, 1, 0)}).values()
        moved = program(torso, jax.tree.unflatten(jax.tree.structure(observation), leaves))
        assert bool((moved != latent).any()) == (name in KINDS), name


def test_numbers_and_choices_are_the_same_as_flattened_by_hand():
    space = spaces.Dict(
        a=spaces.Box(-1, 1, (3,), np.float32), b=spaces.Tuple([spaces.Discrete(4, start=3), spaces.MultiBinary(2)]),
        c=spaces.MultiDiscrete([2, 3]),
    )  # fmt: skip
    torso = torso_of(space)
    own, observation = sampled(space, spec_of(space), 5)
    by_hand = [
        np.concatenate([
            one["a"], np.eye(4)[one["b"][0] - 3], one["b"][1], np.eye(3)[one["c"][0]], np.eye(3)[one["c"][1]],
        ])
        for one in own
    ]  # fmt: skip
    flat = MLPTorso((15,), (8,), 6, KEY)
    assert jax.tree.map(jnp.shape, flat.mlp) == jax.tree.map(jnp.shape, torso.mlp)
    expected = torso.mlp(jnp.asarray(np.stack(by_hand), jnp.float32))
    hidden = torso.encode(observation)
    np.testing.assert_allclose(torso.mlp.last(hidden), expected, atol=1e-5)
    # Leading axes may be any, and a part is found by its name.
    many = jax.tree.map(lambda x: jnp.stack([x, x], 1), observation)
    np.testing.assert_allclose(torso(many)[:, 1], torso(observation), atol=1e-5)


def test_the_first_weights_give_every_part_the_same_share():
    """A single number next to a large picture is not drowned; entries of plain parts count alike."""
    space = spaces.Dict(
        image=spaces.Box(0, 1, (9, 9, 2), np.float32), number=spaces.Box(0, 1, (), np.float32), index=spaces.Discrete(7)
    )
    torso = torso_of(space, torso_widths=(4000,))
    assert torso.names == ("image", "index", "number")
    picture, index, number = np.split(np.square(torso.mlp.layers[0].weight).mean(-1), [7 * 7 * 3, 7 * 7 * 3 + 7])
    assert picture.sum() == pytest.approx(1.0, rel=0.05)
    assert index == pytest.approx(0.5, rel=0.2) and number == pytest.approx(0.5, rel=0.2)


def test_symbols_are_a_sum_of_rows_and_a_convolution():
    space = spaces.Dict(cells=spaces.Box(2, 9, (4, 5, 2), np.int64))
    (encoder,) = torso_of(space).encoders
    assert isinstance(encoder, Symbols)
    own, observation = sampled(space, spec_of(space), 2)
    rows = np.asarray(encoder.table.weight)
    cells = np.zeros((2, 4, 5, 16))
    for b, y, x in np.ndindex(2, 4, 5):
        first, second = own[b]["cells"][y, x]
        cells[b, y, x] = rows[first - 2] + rows[8 + second - 2]
    expected = np.maximum(encoder.convolution(jnp.asarray(cells, jnp.float32)), 0).reshape(2, -1)
    np.testing.assert_allclose(encoder(observation["cells"], jnp.dtype("float32")), expected, atol=1e-5)
    assert encoder.num_features == expected.shape[1]


def relu_layer(layer, x):
    return np.maximum(x @ np.asarray(layer.weight) + np.asarray(layer.bias), 0)


def test_tokens_are_pooled_over_the_rows_that_are_there():
    space = spaces.Dict(things=SPACE["things"])
    (encoder,) = torso_of(space, encoders={"things": ENCODERS["things"]}).encoders
    things = np.random.default_rng(0).integers(0, 255, (3, 6, 3)).astype(np.uint8)
    things[0, 2:], things[1, :] = 255, 255
    found, rows = [], np.asarray(encoder.table.weight)
    for one in things:
        there = [row for row in one if (row != 255).any()]
        each = [
            relu_layer(
                encoder.hidden, np.maximum(sum(rows[256 * column + int(value)] for column, value in enumerate(row)), 0)
            )
            for row in there
        ] or [np.zeros(7)]
        found.append(np.concatenate([np.mean(each, 0), np.max(each, 0), [len(there) / 6]]))
    np.testing.assert_allclose(encoder(jnp.asarray(things), jnp.dtype("float32")), found, atol=1e-5)
    shuffled = things[:, np.random.default_rng(1).permutation(6)]
    np.testing.assert_allclose(encoder(jnp.asarray(shuffled), jnp.dtype("float32")), found, atol=1e-5)


@pytest.mark.parametrize("cell_features", [None, [3, 0], []])
def test_a_token_grid_has_a_number_for_each_place_and_feature(cell_features: list[int] | None):
    space = spaces.Dict(things=spaces.Box(0, 255, (8, 3), np.uint8))
    chosen = {"kind": "token_grid", "side": 3, "features": 5, "names": [2, 4], "values": 3, "width": 7}
    chosen["cell_features"] = cell_features
    (encoder,) = torso_of(space, encoders={"things": chosen}).encoders
    things = np.random.default_rng(0).integers(0, 6, (4, 8, 3)).astype(np.uint8)
    things[..., 0] = np.random.default_rng(1).choice([0x00, 0x12, 0x21, 0x22, 254], (4, 8))
    things[0, 5:] = 255  # not there
    things[1, 0, 0], things[1, 1, 0] = 0x30, 0x03  # outside of the grid
    things[2] = 255
    grid = np.zeros((4, 10, 5 + 2 * 3))
    for row, one in enumerate(things):
        for position, feature, value in one.tolist():
            y, x = divmod(position, 16)
            cell = 9 if position == 254 else 3 * y + x
            if position == 255 or (position != 254 and max(y, x) > 2):
                continue
            if feature in (2, 4):
                grid[row, cell, 5 + 3 * (feature == 4) + min(value, 2)] += 1.0
            else:
                grid[row, cell, min(feature, 4)] += (1 + np.log2(1 + value)) / 9
    square, whole = grid[:, :9], grid[:, 9]
    if cell_features is not None:
        square = square[..., [*cell_features, *range(5, 11)]]
    expected = np.concatenate([square.reshape(4, -1), whole], axis=1)
    found = encoder(jnp.asarray(things), jnp.dtype("float32"))
    assert encoder.layer.weight.size == 7 * expected.shape[1]
    np.testing.assert_allclose(found, relu_layer(encoder.layer, expected), atol=1e-5)
    shuffled = encoder(jnp.asarray(things[:, ::-1]), jnp.dtype("float32"))
    np.testing.assert_allclose(shuffled, found, atol=1e-5)
    assert grid[2].sum() == 0 and grid[0].sum() > 0


def test_a_text_is_read_in_windows_and_ends_at_its_padding():
    space = spaces.Dict(words=spaces.Box(0, 255, (12,), np.uint8))
    (encoder,) = torso_of(space, encoders={"words": {"kind": "text", "width": 5}}).encoders
    texts, rows = [b"a red box", b"red a box", b""], np.asarray(encoder.table.weight)
    values = np.stack([np.frombuffer(text.ljust(12, b"\0"), np.uint8) for text in texts])
    found = []
    for text, value in zip(texts, values, strict=True):
        each = [
            relu_layer(encoder.hidden, np.concatenate([rows[byte] for byte in value[i : i + 5]]))
            for i in range(min(len(text), 8))
        ] or [np.zeros(5)]
        found.append(np.concatenate([np.mean(each, 0), np.max(each, 0)]))
    np.testing.assert_allclose(encoder(jnp.asarray(values), jnp.dtype("float32")), found, atol=1e-5)
    assert (np.abs(found[0] - found[1]) > 1e-3).any()


def test_values_beyond_the_last_are_the_last():
    space = spaces.Dict(cells=spaces.Box(0, 255, (3, 3, 1), np.uint8), index=spaces.Box(0, 99, (2,), np.int32))
    encoders = {"cells": {"kind": "symbols", "values": 4}, "index": {"kind": "index", "values": 3}}
    torso = torso_of(space, encoders=encoders)
    large, last = (
        {"cells": jnp.full((1, 3, 3, 1), cell, jnp.uint8), "index": jnp.full((1, 2), index)}
        for cell, index in ((77, 50), (3, 2))
    )
    np.testing.assert_array_equal(torso(large), torso(last))
    assert (torso(large) != torso(jax.tree.map(lambda x: x - 1, last))).any()


@pytest.mark.parametrize(("encoders", "torso", "sentence"), [
    ({"imag": {}}, "auto", "model.encoders.imag is not a part of .* test/parts: it has bits, .*did you mean image"),
    ({"words": {"kind": "index"}, "wide": {"kind": "tokens"}}, "grid", "model.torso=grid needs .* one array"),
    ({"grid": {"kind": "symbols"}}, "auto", r"kind=symbols needs a grid of whole numbers, at least 3 × 3, and grid is"),
    ({"noise": {"kind": "index"}}, "auto", "kind=index needs whole numbers, and noise is float32"),
    ({"things": {"kind": "text"}}, "auto", "kind=text needs one axis"),
    ({"words": {"kind": "token_grid"}}, "auto", r"kind=token_grid needs rows of three bytes, \[N, 3\], and words is"),
    ({"image": {"kind": "tokens"}}, "auto", "kind=tokens needs rows of numbers"),
    ({"grid": {"kind": "nature_cnn"}}, "auto", "at least 36 × 36, and grid is"),
    ({"many": {"kind": "tokens", "values": 20000}}, "auto", "a table of 20,000 values: set model.encoders.many.values"),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_refused(encoders, torso, sentence):
    with pytest.raises(ConfigError, match=sentence) as refused:
        torso_of(SPACE, encoders=encoders, torso=torso)
    assert "\n" not in str(refused.value)


def test_a_space_without_bounds_needs_the_number_of_values():
    space = spaces.Dict(x=spaces.Box(-(2**31), 2**31 - 1, (3,), np.int32))
    with pytest.raises(ConfigError, match="set model.encoders.x.values"):
        torso_of(space, encoders={"x": {"kind": "index"}})
    assert torso_of(space, encoders={"x": {"kind": "index", "values": 4}}).encoders[0].num_features == 12


def test_one_array_keeps_its_torso_unless_it_is_named():
    space, auto = spaces.Box(0, 9, (4, 4, 2), np.uint8), {"observation": {"kind": "auto"}}
    plain = make_representation(ModelConfig.model_validate(SIZE), spec_of(space), KEY, 6)
    same = make_representation(ModelConfig.model_validate({**SIZE, "encoders": auto}), spec_of(space), KEY, 6)
    assert isinstance(plain, SmallCNNTorso) and isinstance(same, SmallCNNTorso)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, torso in ((spaces.MultiDiscrete([2, 3]), MLPTorso), (spaces.Discrete(3), IndexTorso)):
        assert type(make_representation(ModelConfig.model_validate(SIZE), spec_of(one), KEY, 6)) is torso
    named = torso_of(space, encoders={"observation": {"kind": "symbols"}})
    assert isinstance(named.encoders[0], Symbols)
    assert named(jnp.zeros((2, 4, 4, 2), jnp.uint8)).shape == (2, 6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_of_parts_with_a_memory_has_finite_latents(precision):
    config = ModelConfig.model_validate(
        {**SIZE, "encoders": ENCODERS, "memory": "lstm", "memory_width": 4, "precision": precision}
    )
    spec = spec_of(SPACE)
    model = Model(spec, config, KEY)
    _, observation = sampled(SPACE, spec, 3)
    encode = quick_jit(lambda model, *inputs: model.encode(*inputs))
    latent, state = encode(model, observation, jnp.zeros((3, 8)), jnp.ones(3, bool))
    assert latent.shape == (3, 6) and latent.dtype == jnp.float32 and state.shape == (3, 8)
    assert np.isfinite(latent).all() and float(jnp.abs(latent).max()) <= 1.0


def test_statistics_are_of_the_floating_point_parts_alone():
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,), np.float32), b=spaces.Discrete(3), c=spaces.Box(0, 9, (), np.float64))
    spec = spec_of(space)
    statistics = ObservationStatistics.of(spec)
    assert isinstance(statistics, PartStatistics) and [part is None for part in statistics.parts] == [
        False,
        True,
        False,
    ]
    rng = np.random.default_rng(0)
    rows = {
        "a": jnp.asarray(rng.normal(3, 5, (4, 6, 2)), jnp.float32), "b": jnp.asarray(rng.integers(0, 3, (4, 6, 1))),
        "c": jnp.asarray(rng.normal(-2, 3, (4, 6)), jnp.float32),
    }  # fmt: skip
    normal = statistics.update(rows, jnp.ones((4, 6), bool)).normalize(rows)
    np.testing.assert_array_equal(normal["b"], rows["b"])
    for name in ("a", "c"):
        np.testing.assert_allclose(normal[name].mean((0, 1)), 0, atol=1e-4)
        np.testing.assert_allclose(normal[name].std((0, 1)), 1, atol=1e-3)
    assert ObservationStatistics.of(spec_of(spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]))) is None


def test_shapes_are_those_of_an_environment_with_stacked_observations():
    import gymnasium

    class Env(gymnasium.Env):
        observation_space = spaces.Dict(
            n=spaces.Box(0, 9, (), np.float32), k=spaces.Discrete(5, start=2), g=spaces.Box(0, 9, (4, 4, 1), np.uint8)
        )
        action_space = spaces.Discrete(2)
        count = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.count = 0
            return self.seen(), {}

        def seen(self):
            return {"n": np.float32(self.count), "k": 2 + self.count, "g": np.full((4, 4, 1), self.count, np.uint8)}

        def step(self, action):
            self.count += 1
            return self.seen(), 0.0, self.count == 3, False, {}

    env = environments.make(Env, 2, stack=3)
    shapes = {name: part.shape for name, part in env.spec.parts.items()}
    assert shapes == {"g": (4, 4, 3), "k": (3,), "n": (3,)}
    state, row = env.reset()
    for _ in range(2):
        state, row = env.step(state, jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(row.observation["n"][1], [0, 1, 2])
    np.testing.assert_array_equal(row.observation["k"][1], [0, 1, 2])
    torso = make_representation(ModelConfig.model_validate(SIZE), env.spec, KEY, 6)
    assert isinstance(torso, JoinedTorso) and torso(row.observation).shape == (2, 6)
    joined = {"n": np.array([0.0, 1.0, 2.0]), "k": np.array([2, 3, 4])}  # as the caller of `act` joins them
    encoded = encode_observation({name: env.spec.encoding[name] for name in joined}, joined)
    np.testing.assert_array_equal(encoded["n"], [0, 1, 2])
    np.testing.assert_array_equal(encoded["k"], [0, 1, 2])
    env.close()


@pytest.mark.parametrize("numbers", [[5], [1, 1], [2]])
def test_features_of_cells_must_exist_and_be_no_names(numbers: list[int]):
    grid = f"kind: token_grid, features: 5, names: [2], cell_features: {numbers}"
    with pytest.raises(ConfigError, match=r"cell_features must be different numbers of features from 0 to 4 that are"):
        compose("toy/cliff", ["model.encoders.observation={" + grid + "}"])
