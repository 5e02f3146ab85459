"""An agent's predictions drawn next to the frame, and search trees as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float, UInt8

Frame = UInt8[np.ndarray, "_ _ 3"]

WIDTH, LINE, LABEL, SAMPLE_LABEL = 260, 22, 44, 110
"""Sizes in pixels: width of a panel, height of one action's row in it, and width of an action's and a sample's name."""
BACKGROUND, TEXT, FAINT = (18, 18, 24), (230, 230, 235), (120, 120, 130)
PRIOR, IMPROVED, CHOSEN = (88, 110, 160), (240, 160, 60), (120, 220, 130)


class Thought(NamedTuple):
    """The predictions behind one decision of the agent."""

    prior: Float[np.ndarray, " A"]
    """The policy of the network."""
    improved: Float[np.ndarray, " A"]
    """The policy after the search or the look-ahead."""
    value: float
    action: int
    """Index of the chosen action in both policies; of discrete actions it is the action, counted from 0."""
    names: tuple[str, ...] | None = None
    """The actions as text, where they are samples; None where they are all discrete actions."""
    taken: np.ndarray | None = None
    """The chosen action as environments take it, where actions are samples."""


def with_panels(frames: Sequence[Frame], thoughts: Sequence[Thought], name: Callable[[int], str] = str) -> list[Frame]:
    """Draw to the right of each frame a panel with the thought that follows it.

    A last frame without a thought gets an empty panel. If there is not enough room for all actions, the most probable
    ones are shown. `name` returns the name of an action.
    """
    if not frames:
        return []
    height = max(len(frames[0]), 6 * LINE)
    pictures = []
    for number, frame in enumerate(frames):
        thought = thoughts[number] if number < len(thoughts) else None
        padded = np.pad(frame, ((0, height - len(frame)), (0, 0), (0, 0)))
        pictures.append(np.concatenate([padded, panel(thought, height, name)], axis=1))
    return pictures


def panel(thought: Thought | None, height: int, name: Callable[[int], str] = str) -> Frame:
    """Draw one decision as a picture [height, WIDTH, 3].

    For each action the upper bar is its prior, the lower bar its probability in the improved policy.  Bars of samples
    are relative to the longest one.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    if thought is None:
        return np.asarray(image)
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), f"value {thought.value:.3g}", fill=TEXT)
    pen.text((8, 4 + LINE // 2 + 4), "prior", fill=PRIOR)
    pen.text((48, 4 + LINE // 2 + 4), "after looking ahead", fill=IMPROVED)
    shown = _select_actions(thought, (height - 2 * LINE) // LINE)
    label, full = LABEL, 1.0
    if thought.names is not None:  # vectors need more room, and each of many samples has a small weight
        label, full = SAMPLE_LABEL, max(float(np.max([thought.prior, thought.improved])), 1e-6)
    room = WIDTH - label - 56
    for row, action in enumerate(shown):
        top = 2 * LINE + row * LINE
        chosen = action == thought.action
        text = name(action) if thought.names is None else thought.names[action]
        pen.text((8, top + 3), text, fill=CHOSEN if chosen else TEXT)
        for offset, share, color in (
            (2, thought.prior[action], PRIOR),
            (LINE // 2, thought.improved[action], CHOSEN if chosen else IMPROVED),
        ):
            length = round(room * float(np.clip(share / full, 0, 1)))
            pen.rectangle((label, top + offset, label + length, top + offset + LINE // 2 - 4), fill=color)
        pen.text((label + room + 8, top + 5), f"{float(thought.improved[action]):.2f}", fill=FAINT)
    return np.asarray(image)


def _select_actions(thought: Thought, most: int) -> list[int]:
    """Return at most `most` actions in ascending order: the most probable ones, and always the one that was taken."""
    likeliest = np.argsort(-(thought.improved + thought.prior), kind="stable")[:most].tolist()
    if thought.action not in likeliest:
        likeliest[-1] = thought.action
    return sorted(likeliest)


LEAF_WIDTH, LEVEL, MARGIN = 46, 92, 36
"""Sizes in pixels: width of a leaf, height of a level, and margin around the tree."""


class Edge(NamedTuple):
    """One visited edge of a tree."""

    parent: int
    child: int
    action: int
    visits: int
    prior: float
    reward: float
    value: float
    """Mean value of the child, for the player to move there."""
    q_value: float
    """reward + discount x value: the value of the action for the player who takes it."""


class Tree(NamedTuple):
    """The visited nodes of one search; node 0 is the root."""

    edges: tuple[Edge, ...]
    root_value: float
    root_visits: int

    @classmethod
    def of(cls, tree: Any) -> Tree:
        """Convert the first batch element of an `mctx.Tree` after a search to plain numbers."""
        children, visits = np.asarray(tree.children_index[0]), np.asarray(tree.children_visits[0])
        logits, rewards = np.asarray(tree.children_prior_logits[0], float), np.asarray(tree.children_rewards[0])
        values, discounts = np.asarray(tree.node_values[0]), np.asarray(tree.children_discounts[0])
        priors = np.exp(logits - logits.max(-1, keepdims=True))
        priors /= priors.sum(-1, keepdims=True)

        def edge(parent: int, action: int) -> Edge:
            child, reward = int(children[parent, action]), float(rewards[parent, action])
            value = float(values[child])
            q_value = reward + float(discounts[parent, action]) * value
            shares = int(visits[parent, action]), float(priors[parent, action])
            return Edge(parent, child, action, *shares, reward, value, q_value)

        edges = [edge(*place) for place in np.argwhere(visits > 0).tolist()]
        return cls(tuple(edges), float(values[0]), int(np.asarray(tree.node_visits)[0, 0]))

    def following(self, node: int) -> list[Edge]:
        """Return a node's edges, most visited first."""
        return sorted((edge for edge in self.edges if edge.parent == node), key=lambda edge: -edge.visits)

    def best_line(self) -> list[Edge]:
        """Return the most visited edge from the root, then from its child, and so on."""
        line, node = [], 0
        while following := self.following(node):
            line.append(following[0])
            node = following[0].child
        return line

    def pruned(self, nodes: int) -> Tree:
        """Return the tree with only its most visited edges, at most `nodes` of them; the result is connected."""
        # A child has at most its parent's visits, so the most visited edges are connected; ties go to the older node.
        edges = sorted(self.edges, key=lambda edge: (-edge.visits, edge.child))[:nodes]
        return self._replace(edges=tuple(edges))


def draw(tree: Tree, title: str, describe: Callable[[int], str] = str, head: Sequence[str] = ()) -> str:
    """Draw the tree as SVG, with a disc for each node and the best line in bold.

    The area of a disc shows the visits of its node, the color its value. The label of an edge is the action, as named
    by `describe`, its prior and its reward if it has one. A node contains its visits, with its value below. `head` are
    lines of text above the tree, such as a board.
    """
    places, width = _places(tree)
    top = MARGIN + 20 + 15 * len(head)
    best = {edge.child for edge in tree.best_line()}
    values = [tree.root_value, *(edge.value for edge in tree.edges)]
    low, high = min(values), max(values)
    depth = max((level for _, level in places.values()), default=0)
    visits = tree.root_visits
    lines, discs = [], [_disc(places[0], top, visits, visits, tree.root_value, low, high, True)]
    for edge in tree.edges:
        place, bold = places[edge.child], edge.child in best
        lines.append(_line(places[edge.parent], place, top, edge, describe(edge.action), bold))
        discs.append(_disc(place, top, edge.visits, visits, edge.value, low, high, bold))
    text = [f'<text x="{MARGIN}" y="{MARGIN}" font-size="14" font-weight="bold">{escape(title)}</text>']
    for number, line in enumerate(head, start=1):
        text.append(
            f'<text x="{MARGIN}" y="{MARGIN + 8 + 15 * number}" xml:space="preserve" '
            f'font-family="monospace">{escape(line)}</text>'
        )
    size = (max(width, 640) + 2 * MARGIN, top + depth * LEVEL + 2 * MARGIN)
    body = "\n".join([*text, *lines, *discs])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:.0f}" height="{size[1]:.0f}" '
        f'font-family="sans-serif" font-size="9">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def write(svg: str, path: Path) -> Path:
    """Write an SVG drawing to a file and return its path."""
    path.write_text(svg, encoding="utf-8")
    return path


def _places(tree: Tree) -> tuple[dict[int, tuple[float, int]], float]:
    """Return the (x, level) of each node, and the width of the tree.

    Leaves lie next to each other, a parent in the middle of its children.
    """
    places: dict[int, tuple[float, int]] = {}
    leaves = 0

    def place(node: int, level: int) -> float:
        nonlocal leaves
        children = [place(edge.child, level + 1) for edge in sorted(tree.following(node), key=lambda edge: edge.action)]
        if children:
            x = (children[0] + children[-1]) / 2
        else:
            x = MARGIN + LEAF_WIDTH * (leaves + 0.5)
            leaves += 1
        places[node] = (x, level)
        return x

    place(0, 0)
    return places, LEAF_WIDTH * leaves


def _radius(visits: int, most: int) -> float:
    return 5 + 15 * (visits / max(most, 1)) ** 0.5


def _color(value: float, low: float, high: float) -> str:
    """Return a color from red through white to blue for values from the lowest in the tree to the highest."""
    share = 0.5 if high <= low else (value - low) / (high - low)
    red, blue = (255, int(510 * share)) if share < 0.5 else (int(510 * (1 - share)), 255)
    return f"rgb({max(red, 90)},{min(max(red, 90), max(blue, 90))},{max(blue, 90)})"


def _disc(
    place: tuple[float, int], top: float, visits: int, most: int, value: float, low: float, high: float, best: bool
) -> str:
    x, y, radius = place[0], top + place[1] * LEVEL, _radius(visits, most)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_color(value, low, high)}" '
        f'stroke="black" stroke-width="{2.5 if best else 0.7}"/>'
        f'<text x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">{visits}</text>'
        f'<text x="{x:.1f}" y="{y + radius + 10:.1f}" text-anchor="middle" fill="#333">{value:.2f}</text>'
    )


def _line(parent: tuple[float, int], child: tuple[float, int], top: float, edge: Edge, name: str, best: bool) -> str:
    x1, y1, x2, y2 = parent[0], top + parent[1] * LEVEL, child[0], top + child[1] * LEVEL
    reward = f" r {edge.reward:.2f}" if abs(edge.reward) >= 0.005 else ""
    x, y = x1 + 0.62 * (x2 - x1), y1 + 0.62 * (y2 - y1)
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{"black" if best else "#999"}" '
        f'stroke-width="{2.2 if best else 0.8}"/>'
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#555">'
        f"{escape(name)} p {edge.prior:.2f}{reward}</text>"
    )
