"""The search behind one decision of a run's agent, as a drawing."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from bircher import trees
from bircher.games import boards
from bircher.run import assembly
from bircher.run.inputs import Inputs
from bircher.run.loaded import LoadedAgent
from bircher.settings import ConfigError


class Decision(NamedTuple):
    """One observation of an episode, and the tree that was searched from it."""

    observation: np.ndarray
    step: int
    mover: int
    """Who moves, 0 or 1, in games of two."""
    action: int
    """What the search chose, counted from 0."""
    value: float
    """What the search found the observation to be worth; the tree's own mean at its root counts bad actions too."""
    tree: trees.Tree


def decide(agent: LoadedAgent, step: int = 0, seed: int = 0) -> Decision:
    """Play a fresh episode to its row `step`, and search there.

    Raises:
      ConfigError: the agent does not search, or the episode ended before that step.
    """
    assembly.require_source(agent.config, agent.source)
    if agent.agent.plan is None:
        raise ConfigError(f"{agent.name} acts here without a search: give it one, such as search.num_simulations=50")
    env = agent.make_env(1, seed, "search")
    try:
        state, row = env.reset()
        agent.reset()
        move = jax.jit(env.step)
        for number in range(step):
            inputs = Inputs(np.asarray(row.observation), np.asarray(row.legal_actions))
            state, row = move(state, agent.choose(inputs))
            if bool(row.last[0]):
                raise ConfigError(
                    f"the episode of seed {seed} ended after {number + 1} actions: --step {step} is beyond it"
                )
        row = jax.device_get(row)
    finally:
        env.close()
    found = agent.search_of(Inputs(row.observation, row.legal_actions), seed)
    mover = step % 2 if agent.spec.num_players == 2 else 0
    observation, action, value = np.asarray(row.observation[0]), int(found.action[0]), float(found.value[0])
    return Decision(observation, step, mover, action, value, trees.Tree.of(found.tree))


def draw(agent: LoadedAgent, decision: Decision, nodes: int) -> str:
    """The decision as SVG, on its board where there is one; at most `nodes` nodes below the root."""
    head: list[str] = []
    describe: Any = agent.action_name
    if agent.spec.id in boards.BOARDS:
        board = boards.board_of(agent.spec.id)
        head = board.draw(decision.observation, decision.mover).splitlines()
        # A move's name depends on who makes it in chess only, where a tree's second level is not the root's mover.
        describe = lambda action: board.name(action, decision.mover)  # noqa: E731
    chosen = describe(decision.action)
    title = (
        f"{agent.spec.id}, {agent.name}, step {decision.step}: {decision.tree.root_visits} visits, "
        f"value {decision.value:.3f}, chose {chosen}"
    )
    return trees.draw(decision.tree.pruned(nodes), title, describe, head)
