"""Random play and a scripted player on the maps of mettagrid: `python benchmarks/gather_players.py mettagrid/gather-4`.

The scripted player sees what an agent sees, the tokens of one observation, and remembers only its heading.  It prints
mean returns of an agent and of a team, and the speed of the environment by itself.  With --speed it prints how fast PPO
is, as shares of the simulations' own speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bircher.config.config import compose
from bircher.envs.mettagrid import GATHER, PREFIX, load, read_tokens, require_known
from bircher.runs import bench

MOVES = {"move_north": (-1, 0), "move_south": (1, 0), "move_west": (0, -1), "move_east": (0, 1)}
Cell = tuple[int, int]


class Greedy:
    """Walks to the nearest mine in sight until its load is full, then to the nearest depot in sight, and so on.

    With nothing to walk to it keeps its heading, and takes another where it cannot go on.  It delivers a load that is
    not full if a depot is nearer than any mine.

    Args:
      env: the environment, of which it takes the numbers of features, tags and actions.
      seed: the seed of its headings.
    """

    def __init__(self, env: Any, seed: int):
        self._random = np.random.default_rng(seed)
        self._sight = env.config.game.obs.height
        self._tag, self._ore = env.features["tag"], env.features["inv:ore"]
        self._mine, self._depot = env.tags["type:mine"], env.tags["type:depot"]
        self._full = env.config.game.agent.inventory.get_limit("ore")
        self._moves = [MOVES[name] for name in env.action_names if name in MOVES]
        self._numbers = [index for index, name in enumerate(env.action_names) if name in MOVES]
        self._heading: Cell = self._moves[0]

    def __call__(self, observation: np.ndarray) -> int:
        """Return the action for one observation."""
        tokens = [token for token in read_tokens(observation) if token.row is not None]
        kinds = {(token.row, token.column): token.value for token in tokens if token.feature == self._tag}
        ores = {(token.row, token.column): token.value for token in tokens if token.feature == self._ore}
        here = (self._sight // 2, self._sight // 2)
        load = ores.get(here, 0)
        mines = {cell for cell, kind in kinds.items() if kind == self._mine and ores.get(cell, 0) > 0}
        depots = {cell for cell, kind in kinds.items() if kind == self._depot}
        goals = depots if load >= self._full else mines | depots if load else mines
        blocked = kinds.keys() - {here}
        move = self._towards(here, goals, blocked) or self._wander(here, blocked)
        return self._numbers[self._moves.index(move)]

    def _towards(self, here: Cell, goals: set[Cell], blocked: Any) -> Cell | None:
        """Return the first move of a shortest way to a goal within sight; None if there is no way."""
        first: dict[Cell, Cell | None] = {here: None}
        queue = deque([here])
        while queue:
            cell = queue.popleft()
            for index in self._random.permutation(len(self._moves)) if cell == here else range(len(self._moves)):
                move = self._moves[index]
                after = (cell[0] + move[0], cell[1] + move[1])
                if after in first or not all(0 <= number < self._sight for number in after):
                    continue
                first[after] = first[cell] or move
                if after in goals:
                    return first[after]
                if after not in blocked:
                    queue.append(after)
        return None

    def _wander(self, here: Cell, blocked: Any) -> Cell:
        free = [move for move in self._moves if (here[0] + move[0], here[1] + move[1]) not in blocked]
        if free and (self._heading not in free or self._random.random() < 0.05):
            self._heading = free[self._random.integers(len(free))]
        return self._heading


def play(env: Any, players: Mapping[str, Callable[[np.ndarray], int]], seed: int | None) -> np.ndarray:
    """Play one episode and return the return of each agent."""
    observations, _ = env.reset(seed=seed)
    returns = dict.fromkeys(env.possible_agents, 0.0)
    while env.agents:
        actions = {agent: players[agent](observations[agent]) for agent in env.agents}
        observations, rewards, *_ = env.step(actions)
        for agent, reward in rewards.items():
            returns[agent] += reward
    return np.array(list(returns.values()))


def random_players(env: Any, seed: int) -> dict[str, Callable[[np.ndarray], int]]:
    """Return players that act at random."""
    random = np.random.default_rng(seed)
    return {agent: lambda _: int(random.integers(len(env.action_names))) for agent in env.possible_agents}


def greedy_players(env: Any, seed: int) -> dict[str, Callable[[np.ndarray], int]]:
    """Return a scripted player for each agent, with a seed that differs between agents."""
    return {agent: Greedy(env, seed + index) for index, agent in enumerate(env.possible_agents)}


def measured(env: Any, players: Mapping[str, Any], episodes: int, seed: int) -> dict[str, Any]:
    """Return mean returns of an agent, with half of the 95 % interval over episodes, and the tokens that were left out.

    The maps are the same for all players.
    """
    team, dropped, start = [], 0.0, time.perf_counter()
    for episode in range(episodes):
        team.append(play(env, players, seed if episode == 0 else None).sum())
        dropped += env._simulation.episode_stats["game"]["tokens_dropped"]
    seconds = time.perf_counter() - start
    agents = len(env.possible_agents)
    mean, spread = float(np.mean(team)), 1.96 * float(np.std(team, ddof=1)) / np.sqrt(episodes)
    return {
        "agent": round(mean / agents, 3), "team": round(mean, 2), "team_margin": round(spread, 2),
        "agent_steps_per_second": round(episodes * env.max_cycles * agents / seconds), "tokens_dropped": dropped,
    }  # fmt: skip


def alone(env_id: str, num_envs: int, seconds: float) -> float:
    """Return the steps a second of the package's simulations with random actions, without an adapter; resets count."""
    from bircher.envs.mettagrid_env import MettaGridEnv

    envs, random = [MettaGridEnv(env_id) for _ in range(num_envs)], np.random.default_rng(0)
    actions = random.integers(len(envs[0].action_names), size=(64, num_envs, len(envs[0].possible_agents)))
    for env in envs:
        env.reset_all(0)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for move in actions:
            for index, env in enumerate(envs):
                if env.step_all(move[index])[3].all():
                    env.reset_all(None)
            steps += num_envs
    return steps / (time.perf_counter() - started)


def share_of_speed(env_id: str, words: list[str], turns: int = 3, seconds: float = 6.0) -> dict[str, Any]:
    """Return the speed of a whole run of PPO as shares of that of the simulations alone, measured in turn."""
    config = compose(env_id, ["agent=ppo", *words])
    pairs = [
        (alone(env_id, config.env.num_envs, seconds), bench.measure(config, seconds).speeds[-1].steps_per_second)
        for _ in range(turns)
    ]
    return {
        "env": env_id, "alone": [round(own) for own, _ in pairs], "run": [round(run) for _, run in pairs],
        "shares": [round(run / own, 2) for own, run in pairs],
    }  # fmt: skip


def main() -> None:
    """Measure the players on one map or on all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", default=[PREFIX + name for name in GATHER])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="the speed of PPO as a share of the simulations' own")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of PPO, with --speed")
    arguments = parser.parse_args()
    for env_id in arguments.ids:
        require_known(env_id)
        load()
        if arguments.speed:
            print(json.dumps(share_of_speed(env_id, arguments.set)), flush=True)
            continue
        from bircher.envs.mettagrid_env import MettaGridEnv

        env = MettaGridEnv(env_id)
        for name, make in (("random", random_players), ("greedy", greedy_players)):
            result = measured(env, make(env, arguments.seed), arguments.episodes, arguments.seed)
            print(json.dumps({"env": env_id, "player": name, "episodes": arguments.episodes, **result}), flush=True)


if __name__ == "__main__":
    main()
