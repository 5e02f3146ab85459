"""An agent's predictions drawn next to the frame, and search trees as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

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
        for offset, share, color in (
            (2, thought.prior[action], PRIOR),
            (LINE // 2, thought.improved[action], CHOSEN if chosen else IMPROVED),
        ):
            length = round(room * float(np.clip(share, 0, 1)))
            pen.rectangle((LABEL, top + offset, LABEL + length, top + offset + LINE // 2 - 4), fill=color)
        pen.text((LABEL + room + 8, top + 5), f"{float(thought.improved[action]):.2f}", fill=FAINT)
    return np.asarray(image)


def _shown(thought: Thought, most: int) -> list[int]:
    """The actions that are drawn, in their own order: the likeliest, and always the one that was taken."""
    likeliest = np.argsort(-(thought.improved + thought.prior), kind="stable")[:most].tolist()
    if thought.action not in likeliest:
        likeliest[-1] = thought.action
    return sorted(likeliest)


LEAF_WIDTH, LEVEL, MARGIN = 46, 92, 36
"""Pixels for each leaf side by side, for each level, and around the tree."""


class Edge(NamedTuple):
    """One visited edge of a tree, from its parent's side."""

    parent: int
    child: int
    action: int
    visits: int
    prior: float
    reward: float
    value: float
    """Mean value of the child, from the side of who moves there."""
    q_value: float
    """reward + discount x value: what the action is worth to who takes it."""


class Tree(NamedTuple):
    """The visited nodes of one search; node 0 is the root."""

    edges: tuple[Edge, ...]
    root_value: float
    root_visits: int

    @classmethod
    def of(cls, tree: Any) -> Tree:
        """The first element of a searched `mctx.Tree`, as plain numbers."""
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
        """A node's edges, most visited first."""
        return sorted((edge for edge in self.edges if edge.parent == node), key=lambda edge: -edge.visits)

    def best_line(self) -> list[Edge]:
        """The most visited edge from the root, from its child, and so on."""
        line, node = [], 0
        while following := self.following(node):
            line.append(following[0])
            node = following[0].child
        return line

    def pruned(self, nodes: int) -> Tree:
        """The tree with its most visited edges only, at most `nodes` of them; what is kept stays connected."""
        # A child has at most its parent's visits, so the most visited are connected; ties go to the older node.
        kept = sorted(self.edges, key=lambda edge: (-edge.visits, edge.child))[:nodes]
        return self._replace(edges=tuple(kept))


def draw(tree: Tree, title: str, describe: Callable[[int], str] = str, head: Sequence[str] = ()) -> str:
    """The tree as SVG: a disc for each node, its area by visits, its color by value; the best line in bold.

    Beside an edge: the action, as `describe` names it, its prior and, where it has one, its reward; in a node its
    visits and below it its value. `head` are lines of text above the tree, such as a board.
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
    """Write a drawing; returns its path."""
    path.write_text(svg, encoding="utf-8")
    return path


def _places(tree: Tree) -> tuple[dict[int, tuple[float, int]], float]:
    """Where each node stands: leaves side by side, parents in the middle of their children; and the whole width."""
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
    """From red through white to blue, as the value goes from the least in the tree to the greatest."""
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
