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


STRIP, MOST_STRIP = 28, 96
"""The least and the greatest height of a dimension's density in a panel."""


class Density(NamedTuple):
    """The normal distribution of a policy in each of D dimensions of an action, with N samples.

    All are in the environment's units, and samples are clipped to the bounds, as the environment receives them.
    """

    mean: Float[np.ndarray, " D"]
    deviation: Float[np.ndarray, " D"]
    low: Float[np.ndarray, " D"]
    high: Float[np.ndarray, " D"]
    samples: Float[np.ndarray, "N D"]

    def place(self, dimension: int, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return where values lie between the bounds, from 0 to 1."""
        low, high = self.low[dimension], self.high[dimension]
        return np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)

    def curve(self, dimension: int, points: int) -> Float[np.ndarray, " points"]:
        """Return the density at points evenly spaced between the bounds, as shares of its peak."""
        values = np.linspace(self.low[dimension], self.high[dimension], points)
        return np.exp(-0.5 * np.square((values - self.mean[dimension]) / self.deviation[dimension]))


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
    """The chosen action in the agent's units, where actions are samples."""
    density: Density | None = None
    """The policy, and these samples, where actions are continuous."""


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
    are relative to the longest one.  For continuous actions each dimension has the policy's density with its samples.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    if thought is None:
        return np.asarray(image)
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), f"value {thought.value:.3g}", fill=TEXT)
    pen.text((8, 4 + LINE // 2 + 4), "prior", fill=PRIOR)
    pen.text((48, 4 + LINE // 2 + 4), "after looking ahead", fill=IMPROVED)
    if thought.density is not None:
        _draw_densities(pen, thought, thought.density, height)
        return np.asarray(image)
    shown = select_actions(thought, (height - 2 * LINE) // LINE)
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


def _draw_densities(pen: Any, thought: Thought, density: Density, height: int) -> None:
    """Draw a strip for each dimension: the density, and each sample as high as its weight in the improved policy."""
    size = len(density.mean)
    count = min(size, max((height - 2 * LINE) // STRIP, 1))
    strip = min((height - 2 * LINE) // count, MOST_STRIP)
    room, tall = WIDTH - LABEL - 16, strip - 8
    shares = thought.improved / max(float(thought.improved.max()), 1e-12)
    for dimension in range(count):
        base = 2 * LINE + (dimension + 1) * strip - 4
        places = LABEL + room * density.place(dimension, density.samples[:, dimension])
        taken = density.samples[thought.action, dimension]
        pen.text((4, base - tall), f"{taken:.2f}", fill=CHOSEN)
        pen.line((LABEL, base, LABEL + room, base), fill=FAINT)
        curve = density.curve(dimension, room + 1)
        pen.line([(LABEL + x, base - 0.8 * tall * y) for x, y in enumerate(curve)], fill=PRIOR, width=2)
        for place, share in zip(places, shares, strict=True):
            pen.line((place, base, place, base - max(tall * share, 2)), fill=IMPROVED)
        pen.line((places[thought.action], base, places[thought.action], base - tall), fill=CHOSEN)
    if count < size:
        pen.text((WIDTH - 70, 4), f"{size - count} more", fill=FAINT)


def select_actions(thought: Thought, most: int) -> list[int]:
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
        below = np.asarray(tree.children_values[0])
        priors = np.exp(logits - logits.max(-1, keepdims=True))
        priors /= priors.sum(-1, keepdims=True)

        def edge(parent: int, action: int) -> Edge:
            child, reward = int(children[parent, action]), float(rewards[parent, action])
            value = float(values[child])
            # The child's value for the player at the parent: with more than two players it is another number.
            q_value = reward + float(discounts[parent, action]) * float(below[parent, action])
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


def draw(
    tree: Tree, title: str, describe: Callable[[int], str] = str, head: Sequence[str] = (),
    thought: Thought | None = None,
) -> str:  # fmt: skip
    """Draw the tree as SVG, with a disc for each node and the best line in bold.

    The area of a disc shows the visits of its node, the color its value. The label of an edge is the action, as named
    by `describe`, its prior and its reward if it has one. A node contains its visits, with its value below. `head` are
    lines of text above the tree, such as a board. A `thought` with a density has it drawn below them.
    """
    places, width = _places(tree)
    top = MARGIN + 20 + 15 * len(head)
    strips: list[str] = []
    if thought is not None and thought.density is not None:
        strips = _density_strips(thought, thought.density, top)
        top += SVG_STRIP * len(thought.density.mean) + 20
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
    body = "\n".join([*text, *strips, *lines, *discs])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:.0f}" height="{size[1]:.0f}" '
        f'font-family="sans-serif" font-size="9">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


SVG_STRIP, SVG_ROOM = 44, 560
"""The height and the width of a dimension's density above a tree."""


def _density_strips(thought: Thought, density: Density, top: float) -> list[str]:
    """Draw a strip for each dimension as SVG; each sample is as high as its weight, and the chosen one is bold."""
    shares = thought.improved / max(float(thought.improved.max()), 1e-12)
    drawn, tall, left = [], SVG_STRIP - 12, MARGIN + 44
    for dimension in range(len(density.mean)):
        base = top + (dimension + 1) * SVG_STRIP - 12
        curve = density.curve(dimension, 141)
        points = " ".join(f"{left + x / 140 * SVG_ROOM:.1f},{base - 0.8 * tall * y:.1f}" for x, y in enumerate(curve))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{_css(PRIOR)}" stroke-width="1.5"/>')
        drawn.append(f'<line x1="{left}" y1="{base}" x2="{left + SVG_ROOM}" y2="{base}" stroke="{_css(FAINT)}"/>')
        places = left + SVG_ROOM * density.place(dimension, density.samples[:, dimension])
        for number, (place, share) in enumerate(zip(places, shares, strict=True)):
            chosen = number == thought.action
            color, bold = (_css(CHOSEN), 3) if chosen else (_css(IMPROVED), 1)
            end = base - (tall if chosen else max(tall * share, 2))
            drawn.append(
                f'<line x1="{place:.1f}" y1="{base}" x2="{place:.1f}" y2="{end:.1f}" stroke="{color}" '
                f'stroke-width="{bold}"><title>#{number}: {density.samples[number, dimension]:.3f}, weight '
                f"{float(thought.improved[number]):.3f}</title></line>"
            )
        drawn.append(
            f'<text x="{MARGIN}" y="{base}">{density.low[dimension]:.3g}</text>'
            f'<text x="{left + SVG_ROOM + 6}" y="{base}">{density.high[dimension]:.3g}</text>'
        )
    return drawn


def _css(color: tuple[int, int, int]) -> str:
    return "rgb({}, {}, {})".format(*color)


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
