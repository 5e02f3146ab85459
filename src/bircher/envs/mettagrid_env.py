"""mettagrid as a PettingZoo environment with reproducible episodes, and pictures of its grid.

The package has a PettingZoo class too.  It returns views of memory that the next step overwrites, the seed of its reset
does not decide the map, and it reports the end of the time as the end of the game, where its configuration does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Int, UInt8
from pettingzoo import ParallelEnv

from bircher.envs import mettagrid_maps
from bircher.envs.mettagrid import GATHER, PREFIX, checked_options

SEEDS = 2**31
"""Seeds of maps are below this number."""
TRIES = 1000
"""Number of maps that are tried until one has nothing behind walls."""
CELL = 16
"""Height and width of a cell in a picture, in pixels."""


class MettaGridEnv(ParallelEnv):
    """Agents on a grid, `agent_0` to `agent_N-1`, each with tokens [N, 3] of bytes as its observation.

    The actions are no move, and one cell north, south, west or east.  All agents act until the time is over, which
    truncates the episode.  The seed of a reset decides the maps of this and of all later episodes.

    Args:
      env_id: a known id, such as `mettagrid/gather-4`.
      render_mode: `rgb_array`, or None if no pictures are wanted.
      options: `num_agents` (or `num_cogs`) on the package's maps, `max_steps` (length of an episode), `num_tokens`, and
        `overrides` (settings of the package by dotted name).

    Raises:
      UnsupportedEnvironment: an option is wrong, or no reward can differ from 0.
    """

    metadata: dict[str, Any] = {"name": "mettagrid", "render_modes": ["rgb_array"], "is_parallelizable": True}

    def __init__(self, env_id: str, render_mode: str | None = None, **options: Any):
        self.render_mode = render_mode
        self.config = mettagrid_maps.make_config(env_id, checked_options(env_id, options))
        self.max_cycles = self.config.game.max_steps
        game, ids = self.config.game, self.config.game.id_map()
        self.possible_agents = [f"agent_{index}" for index in range(game.num_agents)]
        self.agents: list[str] = []
        self.features = {feature.name: feature.id for feature in ids.features()}
        """The number of each feature of the tokens, by name."""
        self.tags = {name: number for number, name in enumerate(ids.tag_names())}
        """The value of each tag, such as `type:wall`: a token of the feature `tag` has the kind of object."""
        self.action_names = tuple(action.name for action in game.actions.actions() if "vibe" not in action.name)
        self._tokens = spaces.Box(0, 255, (game.obs.num_tokens, game.obs.token_dim), np.uint8)
        self._moves = spaces.Discrete(len(self.action_names))
        self._connected = env_id.removeprefix(PREFIX) in GATHER
        self._seeds = np.random.default_rng()
        self._simulation: Any = None

    def observation_space(self, agent: str) -> spaces.Box:
        """Return the space of tokens, which is the same for all agents."""
        return self._tokens

    def action_space(self, agent: str) -> spaces.Discrete:
        """Return the space of moves, which is the same for all agents."""
        return self._moves

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, UInt8[np.ndarray, "N 3"]], dict[str, dict[str, Any]]]:
        """Begin an episode on a new map; a seed restarts the sequence of maps."""
        tokens = self.reset_all(seed).copy()  # the package overwrites its array in the next step
        return dict(zip(self.agents, tokens, strict=True)), {agent: {} for agent in self.agents}

    def reset_all(self, seed: int | None) -> UInt8[np.ndarray, "A N 3"]:
        """Begin an episode on a new map, and return the tokens of all agents, which the next step overwrites."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        from mettagrid.simulator import Simulation  # type: ignore[import-not-found]  # an extra

        self.close()
        self._simulation = Simulation(self.config, seed=self._next_map())
        self.agents = list(self.possible_agents)
        return self._simulation._c_sim.observations()  # as the package's own environment does

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Move the agents; an agent without an action does not move."""
        moves = np.array([int(actions.get(agent, 0)) for agent in self.possible_agents])
        tokens, *values = self.step_all(moves)
        rewards, terminal, truncated = (dict(zip(self.possible_agents, x.tolist(), strict=True)) for x in values)
        observations = dict(zip(self.possible_agents, tokens.copy(), strict=True))
        infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not (terminal[agent] or truncated[agent])]
        return observations, rewards, terminal, truncated, infos

    def step_all(self, actions: Int[np.ndarray, " A"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Move all agents, and return tokens, rewards, terminations and truncations, which the next step overwrites."""
        game = self._simulation._c_sim
        game.actions()[:] = actions
        self._simulation.step()
        return game.observations(), game.rewards(), game.terminals().astype(bool), game.truncations().astype(bool)

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """Return a picture of the whole map if `render_mode` is `rgb_array`; before the first reset there is none."""
        if self.render_mode != "rgb_array" or self._simulation is None:
            return None
        return draw(self._simulation)

    def close(self) -> None:
        """Free the simulation."""
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = None

    def _next_map(self) -> int:
        """Draw the seed of the next map and set it, on maps of this package until nothing is behind walls."""
        builder = self.config.game.map_builder
        seed = 0
        for _ in range(TRIES):
            seed = int(self._seeds.integers(SEEDS))
            if hasattr(builder, "seed"):
                builder.seed = seed
            if not self._connected or mettagrid_maps.is_connected(builder.create().build().grid):
                break
        return seed


COLORS = {
    "floor": (238, 234, 224), "wall": (74, 72, 70), "mine": (176, 104, 48), "depot": (58, 112, 176),
    "agent": (40, 140, 90), "load": (255, 196, 0), "empty mine": (206, 190, 172), "other": (150, 90, 160),
}  # fmt: skip
"""Colors of a picture: red, green, blue."""


def draw(simulation: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Return a picture of a map, with a cell of 16 × 16 pixels for each cell of the grid.

    Walls are dark squares and depots blue ones.  Mines are brown diamonds that shrink as they are emptied.  Agents are
    green circles, with a bar of yellow for the ores that they carry.
    """
    picture = np.empty((simulation.map_height * CELL, simulation.map_width * CELL, 3), np.uint8)
    picture[:] = COLORS["floor"]
    for thing in simulation.grid_objects().values():
        top, left = thing["r"] * CELL, thing["c"] * CELL
        _draw_cell(picture[top : top + CELL, left : left + CELL], thing["type_name"], thing.get("inv:ore", 0))
    return picture


def _draw_cell(cell: np.ndarray, name: str, ores: int) -> None:
    """Draw one thing into its cell of a picture."""
    if name == "mine":
        cell[_diamond(CELL // 2 - 1)] = COLORS["empty mine"]
        cell[_diamond((CELL // 2 - 1) * min(ores, mettagrid_maps.CONTENT) // mettagrid_maps.CONTENT)] = COLORS["mine"]
    elif name == "agent":
        cell[_circle()] = COLORS["agent"]
        cell[CELL - 4 : CELL - 1, 2 : 2 + min(ores, mettagrid_maps.LOAD) * (CELL - 4) // mettagrid_maps.LOAD] = COLORS[
            "load"
        ]
    elif name == "wall":
        cell[:] = COLORS["wall"]
    else:
        cell[1:-1, 1:-1] = COLORS.get(name, COLORS["other"])


@lru_cache
def _circle() -> np.ndarray:
    rows, columns = np.indices((CELL, CELL)) - (CELL - 1) / 2
    return rows**2 + columns**2 <= (CELL / 2 - 1) ** 2


@lru_cache
def _diamond(radius: int) -> np.ndarray:
    rows, columns = np.indices((CELL, CELL)) - (CELL - 1) / 2
    return np.abs(rows) + np.abs(columns) <= radius
