"""MuZero's and Gumbel MuZero's searches once more: plain Python, double precision, one element, nodes as objects.

Written from the papers: nothing here knows of arrays of nodes, batches or mctx.  With several players (max^n) values
and rewards are vectors; each begins with the player to move at its node, or who took its edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Simulate = Callable[[Any, int], tuple[Any, float, np.ndarray, Any, Any]]
"""(latent, action) -> reward, discount, logits, value, latent"""


def passed(value: Any) -> Any:
    """A node's value as that of the player who moved before: the last of the vector comes first."""
    return value if np.ndim(value) == 0 else np.array([value[-1], *value[:-1]])


def own(value: Any) -> Any:
    """The number of the player whose vector it is."""
    return value if np.ndim(value) == 0 else value[0]


@dataclass
class Node:
    """A latent in the tree, and the edge that led to it."""

    index: int
    latent: Any
    logits: np.ndarray
    raw_value: Any
    reward: Any = 0.0
    discount: float = 0.0
    visits: int = 1
    value_sum: Any = 0.0
    parent: Node | None = None
    action: int = -1
    children: dict[int, Node] = field(default_factory=dict)
    edge_visits: int = 0

    @property
    def value(self) -> Any:
        """Mean of its own evaluation and of every return through it."""
        return self.value_sum / self.visits

    @property
    def q_all(self) -> Any:
        """Of the edge that leads here, for every player, beginning with the one who took it."""
        return self.reward + self.discount * passed(self.value)

    @property
    def q(self) -> float:
        """Of the edge that leads here, for the player who took it."""
        return own(self.q_all)


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities of logits, of which some may be -inf."""
    e = np.exp(x - x.max())
    return e / e.sum()


class Tree:
    """A search in progress; `choose` is given the node and its depth."""

    def __init__(self, logits: np.ndarray, value: Any, latent: Any, simulate: Simulate, max_depth: int | None):
        self.nodes = [Node(0, latent, logits, value, value_sum=value)]
        self.simulations = 0
        self.simulate = simulate
        self.max_depth = max_depth or math.inf

    def grow(self, choose: Callable[[Node, int], int]) -> None:
        """One simulation: down to an edge not yet taken (or the greatest depth), one evaluation, and up again."""
        node, depth = self.nodes[0], 0
        self.simulations += 1
        while True:
            action = choose(node, depth)
            depth += 1
            if action not in node.children or depth >= self.max_depth:
                break
            node = node.children[action]
        reward, discount, logits, value, latent = self.simulate(node.latent, action)
        if action in node.children:
            leaf = node.children[action]
            leaf.visits += 1
        else:
            leaf = Node(self.simulations, latent, logits, value, reward, discount, parent=node, action=action)
            node.children[action] = leaf
            self.nodes.append(leaf)
        leaf.value_sum = leaf.value_sum + value
        above = leaf
        while above.parent is not None:
            above.edge_visits += 1
            value = above.reward + above.discount * passed(value)
            above = above.parent
            above.visits += 1
            above.value_sum = above.value_sum + value

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree as arrays over nodes; a node's place is the simulation that made it, others stay empty."""
        shape = (self.simulations + 1, len(self.nodes[0].logits))
        over_nodes = {"parents": -1, "action_from_parent": -1, "node_visits": 0, "node_values": 0.0, "raw_values": 0.0}
        over_edges = {"index": -1, "visits": 0, "values": 0.0, "rewards": 0.0, "discounts": 0.0, "priors": 1 / shape[1]}
        arrays = {name: np.full(shape[0], empty) for name, empty in over_nodes.items()}
        arrays |= {f"children_{name}": np.full(shape, empty) for name, empty in over_edges.items()}
        for node in self.nodes:
            arrays["node_visits"][node.index] = node.visits
            arrays["node_values"][node.index] = own(node.value)
            arrays["raw_values"][node.index] = own(node.raw_value)
            arrays["children_priors"][node.index] = softmax(node.logits)
            if node.parent is not None:
                edge = node.parent.index, node.action
                arrays["parents"][node.index], arrays["action_from_parent"][node.index] = edge
                arrays["children_index"][edge] = node.index
                arrays["children_visits"][edge] = node.edge_visits
                arrays["children_values"][edge] = own(passed(node.value))
                arrays["children_rewards"][edge] = own(node.reward)
                arrays["children_discounts"][edge] = node.discount
        return arrays


def puct(
    logits: np.ndarray,
    value: Any,
    latent: Any,
    legal: np.ndarray,
    simulate: Simulate,
    num_simulations: int,
    max_depth: int | None = None,
    init: float = 1.25,
    base: float = 19652.0,
) -> Tree:
    """MuZero's search, from a prior that already holds its noise."""
    tree = Tree(np.where(legal, logits, -np.inf), value, latent, simulate, max_depth)

    def choose(node: Node, depth: int) -> int:
        q_values = [other.q for other in tree.nodes[1:]]
        low, high = min(q_values, default=0.0), max(q_values, default=0.0)
        factor = init + math.log((node.visits + base + 1) / base)
        best, best_score = -1, -math.inf
        for action, prior in enumerate(softmax(node.logits)):
            if depth == 0 and not legal[action]:
                continue
            child = node.children.get(action)
            score = factor * prior * math.sqrt(node.visits) / (1 + (child.edge_visits if child else 0))
            if child and high > low:
                score += (child.q - low) / (high - low)
            if score > best_score:
                best, best_score = action, score
        return best

    for _ in range(num_simulations):
        tree.grow(choose)
    return tree


def completed(node: Node, player: int = 0) -> np.ndarray:
    """Q of every action, the mixed value where there is no child, for a player counted from the one to move."""
    q_of = {action: np.atleast_1d(child.q_all)[player] for action, child in node.children.items()}
    prior = softmax(node.logits)
    total = sum(child.edge_visits for child in node.children.values())
    mixed = np.atleast_1d(node.raw_value)[player]
    if node.children:
        share = sum(prior[a] for a in node.children)
        weighted = sum(prior[a] * q for a, q in q_of.items()) / share
        mixed = (mixed + total * weighted) / (1 + total)
    return np.array([q_of.get(a, mixed) for a in range(len(prior))])


def sigma(node: Node, visit_offset: float, value_scale: float, others: list[Node]) -> np.ndarray:
    """(c_visit + max_b N(b)) c_scale times the completed Q, rescaled to [0, 1] with the Q of other edges."""
    q = completed(node)
    every = [*q, *(other.q for other in others)]
    most = max((child.edge_visits for child in node.children.values()), default=0)
    return (visit_offset + most) * value_scale * (q - min(every)) / max(max(every) - min(every), 1e-8)


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """How often an action must have been visited to be the next one, for every simulation of sequential halving."""
    if num_considered <= 1:
        return list(range(num_simulations))
    phases = math.ceil(math.log2(num_considered))
    visits, schedule, alive = [0] * num_considered, [], num_considered
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * alive))):
            schedule += visits[:alive]
            visits[:alive] = [n + 1 for n in visits[:alive]]
        alive = max(2, alive // 2)
    return schedule[:num_simulations]


def gumbel(
    logits: np.ndarray,
    value: Any,
    latent: Any,
    legal: np.ndarray,
    simulate: Simulate,
    num_simulations: int,
    noise: np.ndarray,
    max_depth: int | None = None,
    max_considered: int = 16,
    visit_offset: float = 50.0,
    value_scale: float = 0.1,
    q_range: str = "node",
    largest_return: float = 1.0,
) -> tuple[Tree, int, np.ndarray, Any]:
    """Gumbel MuZero's search with given Gumbel noise: tree, action, improved policy and its value."""
    tree = Tree(np.where(legal, logits, -np.inf), value, latent, simulate, max_depth)
    root = tree.nodes[0]
    schedule = considered_visits(min(max_considered, int(legal.sum())), num_simulations)

    def scaled(node: Node) -> np.ndarray:
        if q_range == "returns":
            most = max((child.edge_visits for child in node.children.values()), default=0)
            return (visit_offset + most) * value_scale * completed(node) / largest_return
        return sigma(node, visit_offset, value_scale, tree.nodes[1:] if q_range == "tree" else [])

    def best(visits_wanted: int) -> int:
        def score(action: int) -> float:
            child = root.children.get(action)
            if not legal[action] or (child.edge_visits if child else 0) != visits_wanted:
                return -math.inf
            return noise[action] + root.logits[action] + scaled(root)[action]

        return max(range(len(logits)), key=score)

    def choose(node: Node, depth: int) -> int:
        if depth == 0:
            return best(schedule[sum(child.edge_visits for child in root.children.values())])
        visits = np.array([node.children[a].edge_visits if a in node.children else 0 for a in range(len(logits))])
        policy = softmax(node.logits + scaled(node))
        return int(np.argmax(policy - visits / (1 + visits.sum())))

    for _ in range(num_simulations):
        tree.grow(choose)
    weights = softmax(root.logits + scaled(root))
    action = best(max(child.edge_visits for child in root.children.values()))
    values = [float((weights * completed(root, player))[legal].sum()) for player in range(np.size(value))]
    return tree, action, weights, values if np.ndim(value) else values[0]
