"""Episodes of a user's own environment as pictures: which environments draw, and what is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bircher
from bircher.agents.actor_critic import PolicyAgentState
from bircher.config.config import compose
from bircher.envs.config import EnvRequest, ObservationConfig
from bircher.envs.subprocess_pool import takes_render_mode
from bircher.errors import EnvironmentFailure, UnsupportedEnvironment
from bircher.ops.improvement import AdvantageNormalizer
from bircher.runs import build, loaded_agent
from bircher.runs.loaded_agent import LoadedAgent
from bircher.types import Policy
from bircher.viz import plots
from tiny import SETTINGS, Countdown


class Sketched(Countdown):
    """Its observations are numbers, and it draws how many of them are left."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((16, 24, 3), self.left, np.uint8)


class ForgetsItsMode(Sketched):
    """Takes a render_mode and does not store it."""

    def __init__(self, render_mode: str | None = None):
        super().__init__()


class ListsNoModes(Countdown):
    """Draws, and its metadata does not say so."""

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((16, 24, 3), self.left, np.uint8)


class WithoutRender(Countdown):
    """Takes a render_mode, and has no render."""

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode


class AlwaysDraws(Sketched):
    """Draws whatever it is asked."""

    render_mode = "rgb_array"

    def __init__(self):
        pass


class Blank(Sketched):
    def render(self) -> Any:
        return None


class Small(Sketched):
    def render(self) -> Any:
        return np.zeros((16, 24), np.uint8)


class Broken(Sketched):
    def render(self) -> Any:
        raise RuntimeError("no pen")


def passes_on(**kwargs: Any) -> gymnasium.Env:
    return Sketched(**kwargs)


def passes_on_in_vain(**kwargs: Any) -> gymnasium.Env:
    return Countdown(**kwargs)


@pytest.fixture
def registered():
    """The ids of environments that a class and a function make."""
    gymnasium.register("Sketched-v0", entry_point=Sketched)
    gymnasium.register("Function-v0", entry_point=passes_on)
    gymnasium.register("ListsNoModes-v0", entry_point=ListsNoModes)
    gymnasium.register("WithoutRender-v0", entry_point=WithoutRender)
    yield
    for name in ("Sketched", "Function", "ListsNoModes", "WithoutRender"):
        gymnasium.registry.pop(f"{name}-v0")


def nothing(observation: Any, legal_actions: Any) -> np.ndarray:
    return np.array([0])


def frames_of(source: Any, make: Any = None, **settings: Any) -> list[np.ndarray]:
    return plots.render_episode(EnvRequest.of(source, **settings), nothing, seed=3, max_steps=50, make=make)


DRAWN = (
    Sketched, ForgetsItsMode, AlwaysDraws, passes_on, lambda: Sketched(render_mode="rgb_array"),
    lambda: gymnasium.wrappers.TimeLimit(AlwaysDraws(), 100), "Sketched-v0", "Function-v0",
    ListsNoModes, "ListsNoModes-v0",
)  # fmt: skip


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("source", DRAWN)
def test_an_environment_that_draws_is_drawn(source: Any) -> None:
    frames = frames_of(source)
    assert {frame.shape for frame in frames} == {(16, 24, 3)}
    assert [frame[0, 0, 0] for frame in frames] == list(range(len(frames)))[::-1], "one picture a step, down to 0"


def test_a_callable_without_a_signature_is_asked_for_nothing() -> None:
    assert not takes_render_mode(map) and takes_render_mode(Sketched) and not takes_render_mode(Countdown)


def test_options_reach_the_constructor() -> None:
    def make(height: int, render_mode: str) -> gymnasium.Env:
        env = Sketched(render_mode)
        env.render = lambda: np.zeros((height, 24, 3), np.uint8)
        return env

    assert frames_of(make, options={"height": 5})[0].shape == (5, 24, 3)


def test_agents_that_learn_from_pictures_are_drawn_at_full_size() -> None:
    seen = ObservationConfig.model_validate({"name": "pixels", "size": (4, 6)})
    assert frames_of(Sketched, observation=seen)[0].shape == (16, 24, 3)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "source", [Countdown, lambda: Sketched(), passes_on_in_vain, WithoutRender, "WithoutRender-v0"]
)
def test_an_environment_that_does_not_draw_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="Gymnasium has no picture of it"):
        frames_of(source)


def test_numbers_that_are_not_drawn_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedEnvironment, match=r'an observation of shape \(2,\).*takes render_mode="rgb_array"$'):
        bircher.watch(untrained(Countdown), tmp_path / "video.mp4")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Blank, r"environment 0, reset after 0 steps: render returned None, expected a picture uint8 \(height, width"),
        (Small, r"environment 0, reset after 0 steps: render returned an array uint8 \(16, 24\), expected"),
        (Broken, "environment 0 raised RuntimeError in render after 0 steps: no pen"),
    ],
)
def test_a_picture_that_is_not_one_is_a_failure(source: Any, sentence: str) -> None:
    with pytest.raises(EnvironmentFailure, match=sentence):
        frames_of(source)


def untrained(source: Any) -> LoadedAgent:
    """An agent with parameters that NumPy drew, of an environment that is given as a callable."""
    config = compose(source, {**SETTINGS, "agent": "pg"})
    env = build.make_env(config, source, 1, 0, "test")
    env.close()
    agent = build.make_parts(config, env.spec).agent
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), env.spec)).params
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    policy = Policy(params, PolicyAgentState(AdvantageNormalizer.zero(), None))
    return LoadedAgent(config, env.spec, agent, policy, source, 0)


def test_the_agent_of_a_callable_is_watched(tmp_path: Path) -> None:
    agent = untrained(Sketched)
    frames = loaded_agent.episode_frames(agent, 0)
    assert [frame[0, 0, 0] for frame in frames] == list(range(len(frames)))[::-1]
    video = bircher.watch(agent, tmp_path / "video.mp4", plain=True)
    assert video == tmp_path / "video.mp4" and video.stat().st_size > 0
