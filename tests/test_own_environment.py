"""The page on environments of one's own says what happens, and its example runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import bircher
import environments
from bircher.envs.contract import Contract, call_reset, call_step
from bircher.errors import ContractBreach
from tiny import SETTINGS, Countdown

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guide" / "your_own_environment.md").read_text(encoding="utf-8")

ROW = np.zeros(3, np.float32)
FLOATS = Contract(spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(4))
BYTES = Contract(spaces.Box(0, 255, (3,), np.uint8), spaces.Discrete(4))
STATE = Contract(spaces.Discrete(4), spaces.Discrete(4))
PARTS = Contract(spaces.Dict({"eye": spaces.Discrete(2), "place": spaces.Discrete(2)}), spaces.Discrete(4))


class WithoutOptions(Countdown):
    """Its reset has the signature of the old API."""

    def reset(self, seed=None):
        return super().reset(seed=seed)


class Old(gymnasium.Wrapper):
    """A wrapper of the old API."""

    def step(self, action):
        return ROW, 1.0, False, {}


def step(observation=ROW, reward=1.0, terminated=False, mask=None):
    return observation, reward, terminated, False, {} if mask is None else {"action_mask": mask}


BREACHES = {
    "`step` of the old Gym API": lambda: FLOATS.step((ROW, 1.0, False, {})),
    "`reset` of the old Gym API": lambda: FLOATS.reset(ROW),
    "`reset` without `options`": lambda: call_reset(WithoutOptions(), {"seed": 0, "options": None}),
    "a wrapper's `step` of the old API": lambda: call_step(gymnasium.wrappers.TimeLimit(Old(Countdown()), 9), 0),
    "no info": lambda: FLOATS.step((ROW, 1.0, False, False, None)),
    "another shape": lambda: FLOATS.step(step(ROW[None])),
    "floats where the space has bytes": lambda: BYTES.step(step(np.zeros(3))),
    "an integer that does not fit": lambda: BYTES.step(step(np.array([0, 256, 0]))),
    "a value outside a `Discrete` space": lambda: STATE.step(step(6)),
    "a missing part": lambda: PARTS.step(step({"eye": 1})),
    "a reward of NaN": lambda: FLOATS.step(step(reward=np.nan)),
    "no reward": lambda: FLOATS.step(step(reward=None)),
    "a flag that is not a boolean": lambda: FLOATS.step(step(terminated=0.5)),
    "a mask of another length": lambda: FLOATS.step(step(mask=np.ones(3, bool))),
    "a mask of logits": lambda: FLOATS.step(step(mask=np.array([-np.inf, 0, 0, 0]))),
    "no legal action": lambda: FLOATS.step(step(mask=np.zeros(4, bool))),
}
ROWS = dict(
    re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.partition("<!-- breaches")[2].partition("<!-- end")[0], re.MULTILINE)[1:]
)


def test_the_page_has_every_breach() -> None:
    assert set(ROWS) == {*BREACHES, "NaN or infinity"}


@pytest.mark.parametrize("name", BREACHES)
def test_the_sentences_are_those_of_the_page(name: str) -> None:
    with pytest.raises(ContractBreach) as told:
        BREACHES[name]()
    assert str(told.value) == ROWS[name]


def test_the_sentence_of_a_number_that_is_not_finite() -> None:
    env = environments.make(Infinite, 1, seed=0)
    with pytest.raises(RuntimeError, match=ROWS["NaN or infinity"]):
        env.reset()


class Infinite(Countdown):
    """Its observation is not finite."""

    def reset(self, **kwargs):
        return np.full(2, np.inf, np.float32), super().reset(**kwargs)[1]


@pytest.mark.slow
def test_the_example_trains_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    run = bircher.train("corridor:Corridor-v0", steps=32, out=tmp_path / "run", **SETTINGS)
    assert bircher.resume(run.path, steps=64).counters["env_steps"] >= 64
    assert len(bircher.evaluate(bircher.load(run.path), episodes=2).returns) == 2
    frame = sys.modules["corridor"].Corridor(render_mode="rgb_array")
    frame.reset(seed=0)
    assert frame.render().shape == (16, 144, 3)
