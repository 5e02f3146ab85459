"""What an agent thought, beside the frames that it saw."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
from bircher.cli import app
from bircher.viz import panels
from bircher.viz.panels import Thought

THOUGHT = Thought(np.array([0.5, 0.5, 0.0]), np.array([0.0, 1.0, 0.0]), 0.25, 1)


def length_of(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    """The longest row of pixels in a color, right of the labels."""
    return int((picture[2 * panels.LINE :, panels.LABEL :] == color).all(-1).sum(-1).max())


def test_bars_are_as_long_as_probabilities():
    picture = panels.panel(THOUGHT, 200)
    assert picture.shape == (200, panels.WIDTH, 3)
    taken, prior = length_of(picture, panels.CHOSEN), length_of(picture, panels.PRIOR)
    assert taken == pytest.approx(2 * prior, abs=3) and taken > 100
    assert length_of(picture, panels.IMPROVED) <= 1, "the other actions have no share left"
    assert (panels.panel(None, 200) == panels.BACKGROUND).all()


def test_every_frame_has_its_thought_and_the_last_has_none():
    frames = [np.full((64, 80, 3), value, np.uint8) for value in (10, 20, 30)]
    drawn = panels.with_panels(frames, [THOUGHT, THOUGHT._replace(action=0)])
    assert {frame.shape for frame in drawn} == {(6 * panels.LINE, 80 + panels.WIDTH, 3)}, "low frames are padded"
    for frame, value in zip(drawn, (10, 20, 30), strict=True):
        assert (frame[:64, :80] == value).all()
    assert (drawn[0][:, 80:] != drawn[1][:, 80:]).any()
    assert (drawn[2][:, 80:] == panels.BACKGROUND).all()


def test_of_many_actions_the_likeliest_and_the_one_taken_are_drawn():
    prior = np.linspace(0, 1, 40)
    named: list[int] = []
    panels.panel(Thought(prior, prior, 0.0, 3), 6 * panels.LINE, lambda action: named.append(action) or "x")
    assert named == [3, 37, 38, 39]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["muesli", pytest.param("gumbel_muzero", marks=pytest.mark.long)])
def test_a_thought_is_the_policy_and_value_behind_the_action(agent, tmp_path):
    from tiny import WORDS

    run = str(tmp_path / "run")
    words = ["train", "toy/catch", "steps=32", f"agent={agent}", *WORDS, "--out", run]
    words += ["search.num_simulations=4"] if agent != "muesli" else []
    assert CliRunner().invoke(app, words).exit_code == 0
    loaded, again = bircher.load(run), bircher.load(run)
    observation = np.random.default_rng(0).uniform(size=loaded.spec.observation.shape) < 0.1
    thought = loaded.think(observation, greedy=True)
    assert thought.prior.sum() == pytest.approx(1) and thought.improved.sum() == pytest.approx(1, abs=1e-4)
    assert thought.action == again.act(observation, greedy=True), "the same action as without thinking"
    with pytest.raises(ValueError, match="one observation"):
        loaded.think(np.stack([observation, observation]))
    video = str(tmp_path / "video.mp4")
    for options in ([], ["--plain"]):
        told = CliRunner().invoke(app, ["watch", run, "--video", video, *options])
        assert told.exit_code == 0, told.output
