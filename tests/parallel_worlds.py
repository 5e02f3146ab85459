"""Parallel environments of PettingZoo whose rows are known: who is there when, and which agent sees what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

ACTIONS = 7


class Life(NamedTuple):
    """When an agent arrives in an episode, after which step its part ends, and how; an `end` of 0 is never there."""

    begin: int
    end: int
    truncated: bool = False


LIVES = (Life(0, 5), Life(0, 2), Life(2, 4, truncated=True), Life(0, 0))
"""The first agent is always there, the second dies early, the third arrives late and is cut short, one never acts."""


class Numbered(ParallelEnv):
    """Observations are (agent, episode, step, action that is expected next), and each reward is the agent and the step.

    An action that is not what the same agent's last observation asked for raises.
    """

    metadata = {"name": "numbered"}
    render_mode = None

    def __init__(self, lives: Sequence[Life] = LIVES, obedient: bool = True, frozen_views: bool = False):
        self.lives, self.obedient = [Life(*life) for life in lives], obedient
        self.possible_agents = list(range(len(self.lives)))
        self.episode, self.step_count, self.agents = -1, 0, []
        self._views = np.zeros((len(self.lives), 4), np.float32) if frozen_views else None

    def observation_space(self, agent):
        return spaces.Box(0, 1e6, (4,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(ACTIONS)

    def expected(self, agent: int) -> int:
        """Return the action that the agent's observation asks for."""
        return (3 * agent + 5 * self.episode + self.step_count) % ACTIONS

    def observe(self, agent: int) -> np.ndarray:
        values = (agent, self.episode, self.step_count, self.expected(agent))
        if self._views is None:
            return np.array(values, np.float32)
        self._views[agent] = values
        return self._views[agent]  # the same memory at every step

    def reset(self, seed=None, options=None):
        self.episode, self.step_count = self.episode + 1, 0
        self.agents = [agent for agent in self.possible_agents if self._there(agent)]
        self.asked = {agent: self.expected(agent) for agent in self.agents}
        return {agent: self.observe(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents), (set(actions), self.agents)
        if self.obedient:
            assert {agent: int(action) for agent, action in actions.items()} == self.asked
        self.step_count += 1
        before = self.agents
        self.agents = [agent for agent in self.possible_agents if self._there(agent)]
        seen = sorted({*before, *self.agents})
        self.asked = {agent: self.expected(agent) for agent in self.agents}
        over = {agent: self.step_count == self.lives[agent].end for agent in seen}
        cut = {agent: self.lives[agent].truncated for agent in seen}
        return (
            {agent: self.observe(agent) for agent in seen},
            {agent: float(100 * agent + self.step_count) if agent in before else 0.0 for agent in seen},
            {agent: over[agent] and not cut[agent] for agent in seen},
            {agent: over[agent] and cut[agent] for agent in seen},
            {agent: {} for agent in seen},
        )

    def _there(self, agent: int) -> bool:
        begin, end, _ = self.lives[agent]
        return begin <= self.step_count < end


class Together(Numbered):
    """The same with arrays of all agents, in memory that the next step overwrites."""

    rewards_of_all = 1.0

    def _arrays(self):
        self.seen = getattr(self, "seen", np.zeros((len(self.lives), 4), np.float32))
        for agent in self.possible_agents:
            self.seen[agent] = self.observe(agent)
        return self.seen

    def reset_all(self, seed):
        self.reset(seed)
        return self._arrays()

    def step_all(self, actions):
        _, *values, _ = self.step({agent: actions[agent] for agent in self.agents})
        # What is there for an agent that has ended has no meaning.
        rewards, over, cut = ([value.get(agent, True) for agent in self.possible_agents] for value in values)
        return self._arrays(), self.rewards_of_all * np.array(rewards), np.array(over, bool), np.array(cut, bool)


class Alone(ParallelEnv):
    """A Gymnasium environment as a parallel one with a single agent."""

    render_mode = None

    def __init__(self, env: gymnasium.Env):
        self.env, self.metadata = env, {"name": "alone"}
        self.possible_agents, self.agents = ["only"], []

    def observation_space(self, agent):
        return self.env.observation_space

    def action_space(self, agent):
        return self.env.action_space

    def reset(self, seed=None, options=None):
        observation, info = self.env.reset(seed=seed)
        self.agents = ["only"]
        return {"only": observation}, {"only": info}

    def step(self, actions):
        values = self.env.step(actions["only"])
        self.agents = [] if values[2] or values[3] else ["only"]
        return tuple({"only": value} for value in values)


class Roles(ParallelEnv):
    """Each of two agents has an action of its own, and both see the same: only the first is paid, for both."""

    metadata = {"name": "roles"}
    render_mode = None
    possible_agents = ["one", "two"]
    LENGTH = 8

    def observation_space(self, agent):
        return spaces.Box(0, 1, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def _observations(self):
        return {agent: np.ones(1, np.float32) for agent in self.possible_agents}

    def reset(self, seed=None, options=None):
        self.agents, self.left = list(self.possible_agents), self.LENGTH
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.left -= 1
        paid = float(actions["one"] == 0) + float(actions["two"] == 1)
        over = {agent: self.left == 0 for agent in self.possible_agents}
        self.agents = [] if self.left == 0 else self.agents
        nothing = {agent: False for agent in self.possible_agents}
        return self._observations(), {"one": paid, "two": 0.0}, nothing, over, {a: {} for a in self.possible_agents}
