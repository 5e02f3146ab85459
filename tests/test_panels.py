"""What an agent thought, beside the frames that it saw."""

from __future__ import annotations

from xml.etree import ElementTree

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


def density_thought(size: int) -> Thought:
    """Three samples between -2 and 2, of which the second is chosen; the third has half of the first one's weight."""
    samples = np.stack([np.linspace(-1.5, 1.5, 3)] * size, axis=-1)
    density = panels.Density(np.zeros(size), np.full(size, 0.5), np.full(size, -2.0), np.full(size, 2.0), samples)
    weights = np.array([0.6, 0.1, 0.3])
    return Thought(np.full(3, 1 / 3), weights, 0.25, 1, ("a", "b", "c"), samples[1], density)


def test_a_density_has_its_samples_as_high_as_their_weights():
    thought = density_thought(1)
    picture = panels.panel(thought, 200)
    height, room = picture.shape[0], panels.WIDTH - panels.LABEL - 16
    bars = {}
    for number, share in enumerate((0.125, 0.5, 0.875)):
        column = picture[2 * panels.LINE : height, panels.LABEL + round(room * share)]
        color = panels.CHOSEN if number == thought.action else panels.IMPROVED
        bars[number] = int((column == color).all(-1).sum())
    assert bars[0] == pytest.approx(2 * bars[2], abs=3) and bars[1] > 50
    peak = (picture[:, panels.LABEL + room // 4 :] == panels.PRIOR).all(-1).any(1).argmax()
    ends = (picture[2 * panels.LINE :, panels.LABEL : panels.LABEL + 8] == panels.PRIOR).all(-1).any(1).argmax()
    assert peak < ends + 2 * panels.LINE, "the density is highest at the mean"
    np.testing.assert_allclose(thought.density.curve(0, 5), np.exp(-0.5 * np.array([16, 4, 0, 4, 16])))
    assert (thought.density.place(0, np.array([-9.0, 0.0, 2.0])) == [0, 0.5, 1]).all()
    many = [panels.panel(density_thought(size), 200) for size in (5, 40)]
    assert (many[0] != many[1]).any() and many[1].shape == (200, panels.WIDTH, 3)


def test_a_searchs_density_is_above_its_tree():
    tree = panels.Tree((panels.Edge(0, 1, 1, 2, 0.3, 0.0, 1.0, 1.0),), 1.0, 3)
    plain, drawn = panels.draw(tree, "title"), panels.draw(tree, "title", thought=density_thought(2))
    assert plain.count("<polyline") == 0 and drawn.count("<polyline") == 2
    assert drawn.count("<title>#1: 0.000, weight 0.100</title>") == 2
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


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
