"""Tests of pictures as observations: their contents, their order, and the process that draws them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium_twins import Counter, Indexed, Painted
from rollouts import assert_same_rows, rollout

import environments
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.config import ObservationConfig
from bircher.envs.rendering import Pixels, quieten, resize
from bircher.errors import UnsupportedEnvironment

AT_ONCE = ["LunarLander-v3", "CartPole-v1", "Acrobot-v1", "MountainCar-v0"]

NEAR = 4
"""Largest difference of pygame's averages from exact ones: pygame rounds down, more than once."""


def seen(name: str = "pixels", **settings) -> ObservationConfig:
    return ObservationConfig.model_validate({"name": name, **settings})


def areas(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average over the areas of `size` cells with a matrix of overlaps for each axis, as an independent reference."""

    def overlaps(fine: int, coarse: int) -> np.ndarray:
        edges = np.arange(coarse + 1) * fine / coarse
        low, high = np.maximum(edges[:-1, None], np.arange(fine)), np.minimum(edges[1:, None], np.arange(fine) + 1)
        return np.maximum(high - low, 0) * coarse / fine

    rows, columns = overlaps(picture.shape[0], size[0]), overlaps(picture.shape[1], size[1])
    return np.einsum("yi,ijc,xj->yxc", rows, picture.astype(float), columns, optimize=True)


@pytest.mark.parametrize(
    ("env_id", "shrink_surface"), [*((env_id, True) for env_id in AT_ONCE), ("BipedalWalker-v3", False)]
)
@pytest.mark.parametrize("size", [(64, 96), (84, 84)])
def test_a_picture_is_the_same_shrunk_while_drawing_or_from_the_whole(env_id, shrink_surface, size):
    """Shrinking while drawing depends on how Gymnasium's environments draw, which this test checks."""
    quieten()
    envs = [
        Pixels(gymnasium.make(env_id, render_mode="rgb_array"), size, gray=False, keep_whole=whole)
        for whole in (False, True)
    ]
    assert envs[0]._shrink_surface == shrink_surface and not envs[1]._shrink_surface
    quick, slow = (env.reset(seed=5)[0] for env in envs)
    for _ in range(6):
        np.testing.assert_array_equal(quick, slow)
        action = envs[0].action_space.sample()
        quick, slow = (env.step(action)[0] for env in envs)
    whole = envs[1].whole
    assert whole.shape[0] > 2 * size[0] and quick.shape == (*size, 3) and quick.dtype == np.uint8
    np.testing.assert_allclose(slow, areas(whole, size), atol=26)  # at edges, which pygame weighs more coarsely
    assert np.abs(slow - areas(whole, size)).mean() < NEAR
    for env in envs:
        env.close()


def test_resizing_averages_areas():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.testing.assert_allclose(resize(picture, (20, 30)), areas(picture, (20, 30)), atol=NEAR)
    assert resize(picture, (80, 60)).shape == (80, 60, 3)


def test_gray_is_luma():
    env = Pixels(Painted(index=10, render_mode="rgb_array"), (4, 6), gray=True)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4, 6, 1) == env.observation_space.shape
    for time in range(5):
        luma = 0.299 * 10 * time + 0.587 * 100 + 0.114 * 100
        np.testing.assert_allclose(observation, luma, atol=NEAR)
        observation = env.step(0)[0]


def test_rows_with_pictures_equal_rows_with_states_otherwise():
    """The pictures of an episode, from the first to the last, belong to the right row and environment."""
    size, actions = (4, 6), np.random.default_rng(0).integers(0, 2, (14, 3))
    state = rollout(environments.make(Indexed, 3, seed=0), 14, actions)
    rows = rollout(environments.make(Indexed, 3, seed=0, observation=seen(size=size)), 14, actions)
    assert rows.observation.shape == (15, 3, 4, 6, 3)
    index, time = state.observation[..., 0], state.observation[..., 1]
    assert len(set(index[0])) == 3 and rows.last.any() and rows.first[1:].any()
    painted = np.stack([10 * time, 10 * index, np.full_like(time, 100)], -1)[:, :, None, None]
    np.testing.assert_allclose(rows.observation, np.broadcast_to(painted, rows.observation.shape), atol=NEAR)
    assert_same_rows(rows._replace(observation=state.observation), state)


def test_drawing_does_not_change_the_lander():
    actions = np.random.default_rng(1).integers(0, 4, (90, 2))
    options = {"seed": 3, "backend": "gymnasium"}
    state = rollout(environments.make("LunarLander-v3", 2, **options), 90, actions)
    rows = rollout(environments.make("LunarLander-v3", 2, observation=seen(gray=True), **options), 90, actions)
    assert state.last.any()
    assert_same_rows(rows._replace(observation=state.observation), state)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "FrozenLake-v1"])
def test_contract_and_stacking(env_id):
    env = environments.make(env_id, 2, seed=0, max_steps=4, observation=seen(size=(8, 12), gray=True), stack=3)
    assert registry.describe(env.spec.observation) == "uint8 (8, 12, 3)"
    assert environments.resolve(env_id, seen()) == "gymnasium"
    check_env(env, 12)
    spec = environments.spec(env_id, observation=seen(size=(8, 12)))
    assert registry.describe(spec.observation) == "uint8 (8, 12, 3)"
    assert environments.spec(env_id, observation=seen()).observation.shape == (64, 64, 3)


def test_starts_differ_and_training_has_no_start_of_an_evaluation():
    starts = {}
    for role in ("train", "eval"):
        rows = rollout(
            environments.make("LunarLander-v3", 6, seed=0, role=role, max_steps=2, observation=seen(size=(40, 60))), 8
        )
        starts[role] = [row.tobytes() for row in rows.observation[rows.first]]
        assert len(set(starts[role])) == len(starts[role]) == 18
    assert not set(starts["train"]) & set(starts["eval"])


def test_a_class_that_can_draw_receives_the_render_mode():
    assert environments.spec(Painted, observation=seen(size=(2, 2))).observation.shape == (2, 2, 3)
    made = environments.spec(lambda: Painted(render_mode="rgb_array"), observation=seen(size=(2, 2)))
    assert made.observation.shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("source", "backend", "sentence"),
    [
        ("Breakout-MinAtar", None, "Breakout-MinAtar cannot be observed as pixels: Gymnasium has no picture of it"),
        ("tic_tac_toe", None, "Gymnasium has no picture of it"),
        (
            "CartPole-v1",
            "gymnax",
            "observation=pixels needs Gymnasium, which draws it: env.backend=gymnax is not possible",
        ),
        (Counter, None, "it does not draw to arrays: its render_mode is None, expected rgb_array"),
        (lambda: Painted(), None, "it does not draw to arrays: its render_mode is None, expected rgb_array"),
    ],
)
def test_pixels_without_a_picture_are_an_error(source, backend, sentence):
    with pytest.raises(UnsupportedEnvironment, match=sentence) as caught:
        environments.make(source, 1, seed=0, backend=backend, observation=seen())
    assert "\n" not in str(caught.value)


class Sketch(Painted):
    """An environment whose render returns something other than a picture."""

    def render(self):
        return np.zeros((4, 4), np.float32)


def test_a_result_of_render_that_is_not_a_picture_is_a_failure():
    with pytest.raises(RuntimeError, match=r"environment 0, reset after 0 .*float32 \(4, 4\), expected"):
        environments.make(Sketch, 1, seed=0, observation=seen()).reset()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "state", "size": (4, 4)}, "size applies to pictures only"),
        ({"size": (0, 4)}, r"size=\[0, 4\] is not valid"),
    ],
)
def test_settings_of_pictures_are_checked(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        seen(**{"name": "pixels", **settings})
