"""What an agent thought, drawn beside the frame that it saw: a bar for each action, its value, and its choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Frame = UInt8[np.ndarray, "_ _ 3"]

WIDTH, LINE, LABEL = 260, 22, 44
"""Pixels: of a panel, of one action's row in it, and of the action's name."""
BACKGROUND, TEXT, FAINT = (18, 18, 24), (230, 230, 235), (120, 120, 130)
PRIOR, IMPROVED, CHOSEN = (88, 110, 160), (240, 160, 60), (120, 220, 130)


class Thought(NamedTuple):
    """One decision."""

    prior: Float[np.ndarray, " A"]
    """The network's own policy."""
    improved: Float[np.ndarray, " A"]
    """What search, or the look-ahead, made of it."""
    value: float
    action: int
    """Counted from 0."""


def beside(frames: Sequence[Frame], thoughts: Sequence[Thought], name: Callable[[int], str] = str) -> list[Frame]:
    """Each frame with the thought that it led to on its right; a last frame, which led to none, with an empty panel.

    Of more actions than there is room for, the likeliest are shown. `name` says what an action is called.
    """
    if not frames:
        return []
    height = max(len(frames[0]), 6 * LINE)
    drawn = []
    for number, frame in enumerate(frames):
        thought = thoughts[number] if number < len(thoughts) else None
        padded = np.pad(frame, ((0, height - len(frame)), (0, 0), (0, 0)))
        drawn.append(np.concatenate([padded, panel(thought, height, name)], axis=1))
    return drawn


def panel(thought: Thought | None, height: int, name: Callable[[int], str] = str) -> Frame:
    """The picture [height, WIDTH, 3] of one decision: upper bars are the prior's, lower ones the improved policy's."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    if thought is None:
        return np.asarray(image)
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), f"value {thought.value:.3g}", fill=TEXT)
    pen.text((8, 4 + LINE // 2 + 4), "prior", fill=PRIOR)
    pen.text((48, 4 + LINE // 2 + 4), "after looking ahead", fill=IMPROVED)
    shown = _shown(thought, (height - 2 * LINE) // LINE)
    room = WIDTH - LABEL - 56
    for row, action in enumerate(shown):
        top = 2 * LINE + row * LINE
        chosen = action == thought.action
        pen.text((8, top + 3), name(action), fill=CHOSEN if chosen else TEXT)
        for offset, share, colour in (
            (2, thought.prior[action], PRIOR),
            (LINE // 2, thought.improved[action], CHOSEN if chosen else IMPROVED),
        ):
            length = round(room * float(np.clip(share, 0, 1)))
            pen.rectangle((LABEL, top + offset, LABEL + length, top + offset + LINE // 2 - 4), fill=colour)
        pen.text((LABEL + room + 8, top + 5), f"{float(thought.improved[action]):.2f}", fill=FAINT)
    return np.asarray(image)


def _shown(thought: Thought, most: int) -> list[int]:
    """The actions that are drawn, in their own order: the likeliest, and always the one that was taken."""
    likeliest = np.argsort(-(thought.improved + thought.prior), kind="stable")[:most].tolist()
    if thought.action not in likeliest:
        likeliest[-1] = thought.action
    return sorted(likeliest)
