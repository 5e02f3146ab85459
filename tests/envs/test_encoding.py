"""Tests of the encoding of observations: types, numbers that do not fit, layouts, and the errors about them."""

from __future__ import annotations

import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium_twins import Spaces
from hypothesis import given
from hypothesis import strategies as st
from rollouts import rollout

import environments
from bircher.agents.base import require_supported
from bircher.errors import UnsupportedEnvironment
from bircher.spaces import (
    Encoding,
    channels_last_shape,
    encode_observation,
    encoding_of,
    fit_check,
    layout_of,
    misfit,
    notes,
    to_channels_last,
)

BYTES = {"low": 0, "high": 255, "dtype": np.uint8}


@pytest.mark.parametrize(
    ("space", "dtype", "shape"),
    [
        (spaces.Box(0, 10**12, (2,), np.int64), "float32", (2,)),
        (spaces.Box(0, 10**9, (2,), np.int64), "int32", (2,)),
        (spaces.Box(-np.inf, np.inf, (2,), np.int64), "int32", (2,)),
        (spaces.Box(0, 2**32 - 1, (2,), np.uint32), "float32", (2,)),
        (spaces.Box(0, 2**64 - 1, (2,), np.uint64), "float32", (2,)),
        (spaces.Box(0, 7, (2,), np.uint64), "int32", (2,)),
        (spaces.Box(-(2**40), 0, (2,), np.int64), "float32", (2,)),
        (spaces.MultiDiscrete([2**40, 3]), "float32", (2,)),
        (spaces.MultiDiscrete([4, 3]), "int32", (2,)),
        (spaces.MultiBinary((2, 3)), "int32", (2, 3)),
        (spaces.Discrete(10**9), "int32", (1,)),
    ],
)
def test_integers_beyond_int32_become_float32_by_their_bounds(space, dtype, shape):
    encoding = encoding_of(space)
    assert (encoding.dtype, encoding.encoded_shape) == (dtype, shape)
    told = [text for text in notes(encoding) if "beyond int32" in text]
    assert bool(told) == (dtype == "float32")


def test_a_discrete_observation_takes_one_integer():
    """A table of one-hot vectors of a million values would have four terabytes."""
    env = environments.make(lambda: Spaces(spaces.Discrete(1_000_000, start=-3)), 2, seed=0)
    _, timestep = env.reset()
    assert timestep.observation.shape == (2, 1) and timestep.observation.dtype == jnp.int32
    assert environments.spec(lambda: Spaces(spaces.Discrete(2**40))).observation.description.endswith(
        "which has more values than a network can have weights for"
    )


@pytest.mark.parametrize(
    ("space", "good", "bad", "words"),
    [
        (
            spaces.Box(-np.inf, np.inf, (2,), np.int64),
            [2**31 - 1, -(2**31)],
            [0, 2**31],
            "2147483648, which",
        ),
        (spaces.Box(0, np.iinfo(np.uint32).max, (1,), np.uint32), [2**32 - 1], None, ""),
        (
            spaces.Box(-np.inf, np.inf, (2,), np.float64),
            [1e38, np.inf],
            [0.0, 1e39],
            r"1e\+39, which",
        ),
        (spaces.Box(shape=(1,), **BYTES), [255], [256], "256, which the agent's uint8"),
        (spaces.Discrete(3, start=2), 4, 5, "5, expected a whole number from 2 to 4"),
        (spaces.Discrete(3, start=2), 2, 1, "1, expected a whole number from 2 to 4"),
        (spaces.Discrete(3), 2.0, 1.5, "1.5, expected a whole number from 0 to 2"),
        (
            spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (1,))}),
            {"a": 1, "b": [0]},
            {"a": 2, "b": [0]},
            "2",
        ),
    ],
)
def test_numbers_that_do_not_fit_the_type_are_found(space, good, bad, words):
    encoding = encoding_of(space)
    assert misfit(encoding, good) is None
    if bad is not None:
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(misfit(encoding, bad))


class Growing(gymnasium.Env):
    """Returns ten times the previous number at each step, which is beyond int32 at the tenth step."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype: type = np.int64):
        self.dtype = dtype
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.int32 if dtype == np.int32 else dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.number = 1
        return np.array([self.number], np.int64), {}

    def step(self, action: int):
        self.number *= 10
        return np.array([self.number], np.int64), 1.0, False, False, {}


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_number_beyond_int32_ends_the_run_with_one_sentence(dtype):
    """This includes spaces with the type int32, for which NumPy would wrap the number."""
    env = environments.make(lambda: Growing(dtype), 2, seed=0)
    rows = rollout(env, 11, np.zeros((11, 2)))
    np.testing.assert_array_equal(rows.failed[:, 0], np.arange(12) >= 10)
    np.testing.assert_array_equal(rows.observation[:10, 0, 0], 10 ** np.arange(10))
    whose = "the agent" if dtype == np.int64 else "its space"
    told = f"environment 0, step 10: the observation contains 10000000000, which {whose}'s int32 cannot hold"
    assert env.failure() == told


LAYOUTS = [
    ((84, 84, 4), True, "as_given", (84, 84, 4)),
    ((84, 84, 1), True, "as_given", (84, 84, 1)),
    ((84, 84, 3), True, "as_given", (84, 84, 3)),
    ((64, 96, 12), True, "as_given", (64, 96, 12)),
    ((4, 84, 84), True, "channels_first", (84, 84, 4)),
    ((3, 64, 96), True, "channels_first", (64, 96, 3)),
    ((1, 84, 84), True, "channels_first", (84, 84, 1)),
    ((16, 84, 84), True, "channels_first", (84, 84, 16)),
    ((4, 10, 10), True, "channels_first", (10, 10, 4)),
    ((3, 64, 64), False, "channels_first", (64, 64, 3)),
    ((84, 3, 84), True, "channels_middle", (84, 84, 3)),
    ((64, 1, 96), True, "channels_middle", (64, 96, 1)),
    ((84, 3, 84), False, "as_given", (84, 3, 84)),
    ((10, 3, 10), True, "as_given", (10, 3, 10)),
    ((84, 3, 3), True, "as_given", (84, 3, 3)),
    ((84, 12, 84), True, "as_given", (84, 12, 84)),
    ((84, 84), True, "no_channels", (84, 84, 1)),
    ((84, 84), False, "as_given", (84, 84)),
    ((8, 8), True, "as_given", (8, 8)),
    ((8, 8), False, "as_given", (8, 8)),
    ((6, 7, 3), False, "as_given", (6, 7, 3)),
    ((3, 3, 2), False, "as_given", (3, 3, 2)),
    ((10, 10, 4), False, "as_given", (10, 10, 4)),
    ((4, 10, 10), False, "as_given", (4, 10, 10)),
    ((8, 8, 119), False, "as_given", (8, 8, 119)),
    ((19, 19, 17), False, "as_given", (19, 19, 17)),
    ((7, 7, 3), True, "as_given", (7, 7, 3)),
    ((1, 84, 3), True, "as_given", (1, 84, 3)),
    ((4, 84, 84, 3), True, "frames_first", (84, 84, 12)),
    ((4, 84, 84, 1), True, "frames_first", (84, 84, 4)),
    ((4, 7, 7, 3), True, "frames_first", (7, 7, 12)),
    ((4, 3, 84, 84), True, "frames_channels_first", (84, 84, 12)),
    ((4, 84, 84, 3), False, "as_given", (4, 84, 84, 3)),
    ((128,), True, "as_given", (128,)),
    ((), False, "as_given", ()),
]


@pytest.mark.parametrize(("shape", "is_picture", "layout", "turned"), LAYOUTS)
def test_layouts_are_recognized(shape, is_picture, layout, turned):
    assert layout_of(shape, is_picture) == layout
    assert channels_last_shape(shape, layout) == turned
    space = spaces.Box(shape=shape, **BYTES) if is_picture else spaces.Box(0, 1, shape, np.int8)
    encoding = encoding_of(space)
    assert (encoding.layout, encoding.encoded_shape) == (layout, turned)
    assert encoding_of(space, "as_given").encoded_shape == shape
    if layout != "as_given":
        (told,) = notes(encoding)
        assert str(shape) in told and str(turned) in told and "env.layout=as_given" in told


@given(
    st.sampled_from(["channels_first", "channels_middle", "no_channels", "frames_first", "frames_channels_first"]),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_a_transposed_picture_has_every_pixel(layout, lengths, lead):
    frames, height, width, channels = lengths
    whole = np.arange(np.prod([*lead, *lengths])).reshape(*lead, *lengths)  # frames, height, width, channels
    own = {
        "channels_first": np.moveaxis(whole[..., 0, :, :, :], -1, -3),
        "channels_middle": np.moveaxis(whole[..., 0, :, :, :], -1, -2),
        "no_channels": whole[..., 0, :, :, 0],
        "frames_first": whole,
        "frames_channels_first": np.moveaxis(whole, -1, -3),
    }[layout]
    expected = {
        "channels_first": whole[..., 0, :, :, :],
        "channels_middle": whole[..., 0, :, :, :],
        "no_channels": whole[..., 0, :, :, :1],
    }.get(layout, np.concatenate([whole[..., i, :, :, :] for i in range(frames)], axis=-1))
    np.testing.assert_array_equal(to_channels_last(own, layout), expected)
    assert channels_last_shape(own.shape[len(lead) :], layout) == expected.shape[len(lead) :]


def test_encodings_work_in_programs_and_are_saved():
    for space in (
        spaces.Discrete(4, start=2),
        spaces.Box(shape=(4, 20, 24), **BYTES),
        spaces.Box(0, 10**12, (2,), np.int64),
    ):
        for layout in ("auto", "as_given"):
            encoding = encoding_of(space, layout)
            many = np.stack([np.asarray(space.sample()) for _ in range(3)])
            expected = encode_observation(encoding, many)
            assert expected.shape == (3, *encoding.encoded_shape) and expected.dtype == encoding.dtype
            if many.dtype != np.int64 or not encoding.shape:
                inside = jax.jit(lambda x, encoding=encoding: encode_observation(encoding, x))(many)
                np.testing.assert_array_equal(inside, expected)
            assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


def test_only_numbers_of_other_types_are_compared_with_the_agents_types():
    far, near = spaces.Box(-(2**40), 2**40, (2,), np.int64), spaces.Box(-9, 9, (2,), np.int64)
    wide = spaces.Box(-np.inf, np.inf, (), np.float32)
    space = spaces.Dict({"deep": spaces.Tuple([spaces.Discrete(3), near]), "far": far, 5: wide})
    check = fit_check(encoding_of(space))
    good = {"deep": (2, np.array([3, -3])), "far": np.array([2**39, 0]), 5: np.float64(1.5)}
    assert check(good) is None and check(good | {5: np.float32(2)}) is None
    assert (
        check(good | {5: np.float64(1e300)})
        == "the observation['5'] contains 1e+300, which the agent's float32 cannot hold"
    )
    large = {**good, "deep": (2, np.array([3, 2**35]))}
    assert check(large) == "the observation['deep'][1] contains 34359738368, which the agent's int32 cannot hold"


def test_notes_about_parts_have_their_names():
    picture = spaces.Box(shape=(3, 20, 24), **BYTES)
    space = spaces.Dict(eyes=spaces.Tuple([spaces.Discrete(2), picture]), action_mask=spaces.MultiBinary(2))
    mask, layout = notes(encoding_of(space))
    assert (
        mask
        == 'action_mask is a part of the observation and restricts no action: a mask belongs in info["action_mask"]'
    )
    assert layout.startswith("observations in eyes.1 (3, 20, 24) are taken as 3 channels first")
    assert notes(encoding_of(picture))[0].startswith("observations (3, 20, 24) are taken as 3 channels first")


def test_an_error_about_a_space_names_it_and_the_way_out():
    eye, graph = spaces.Box(0, 1, (2,)), spaces.Graph(spaces.Box(0, 1, (2,)), None)
    text = spaces.Dict({"eye": eye, "deep": spaces.Tuple([spaces.Text(5)])})
    cases = [
        (Spaces(text), [str(text), "because of Text(1, 5", "as a Box of uint8", "model.encoders.PART=text"]),
        (Spaces(spaces.Tuple([eye, graph])), ["because of Graph", "TransformObservation", "kind: tokens"]),
        (Spaces(spaces.Sequence(spaces.Discrete(2))), ["Sequence(Discrete(2)", "TransformObservation", "kind: tokens"]),
        (Spaces(spaces.Dict(x=spaces.Dict())), ["Dict()), which has no numbers"]),
        (Spaces(spaces.Tuple([spaces.Dict(a=spaces.Box(0, 1, (0, 3)))])), ["which has no numbers"]),
        (Spaces(spaces.Box(0, 1, (0,))), ["which has no numbers"]),
        (Spaces(spaces.Dict({"a.b": eye, "a": spaces.Dict(b=eye)})), ["two parts have the name a.b"]),
        (Spaces(spaces.Dict({1: eye, "1": eye})), ["same name as text"]),
        (Spaces(action_space=spaces.Tuple([eye])), ["Tuple(Box(0.0, 1.0, (2,)", "TransformAction"]),
        (Spaces(action_space=spaces.Box(-np.inf, 1, (2,))), ["Box(-inf, 1.0, (2,), float32)", "env.action_bound=1"]),
        (Spaces(action_space=spaces.Box(-1, 1, (0,))), ["(0,), float32), which has no numbers"]),
    ]
    for env, words in cases:
        with pytest.raises(UnsupportedEnvironment) as refused:
            require_supported("muesli", environments.spec(lambda env=env: env))
        assert all(word in str(refused.value) for word in words), refused.value
        assert "\n" not in str(refused.value)
