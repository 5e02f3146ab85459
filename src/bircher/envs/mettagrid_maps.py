"""The maps of mettagrid: those of this package in its configuration language, and its own builders.

On the maps called `gather` an agent that moves against a mine takes one ore out of it, and an agent that moves against
a depot delivers all that it carries.  An ore taken is worth 0.1 to the agent, an ore delivered 1.  An agent carries up
to five, a mine contains up to ten, and every ten steps each mine regains one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bircher.envs.mettagrid import GATHER, PREFIX, GatherMap
from bircher.errors import UnsupportedEnvironment, one_line

TAKEN, DELIVERED = 0.1, 1.0
"""The reward of an ore taken out of a mine, and of one delivered to a depot."""
LOAD, CONTENT, REGROWTH = 5, 10, 10
"""How many ores an agent carries, how many a mine contains, and after how many steps it regains one."""
STEPS = 300
"""Number of steps of an episode, in place of the 10,000 of the package."""
SIGHT = 11
"""Height and width of what an agent sees, with the agent in the middle."""
NUM_TOKENS = 200
"""Number of tokens of an observation on the package's maps, whose own number of 500 is never needed."""


def make_config(env_id: str, options: Mapping[str, Any]) -> Any:
    """Return the package's configuration of an environment.

    Args:
      env_id: a known id.
      options: checked options.

    Raises:
      UnsupportedEnvironment: an override is not a setting of the package, or no reward can differ from 0.
    """
    name = env_id.removeprefix(PREFIX)
    gather = GATHER.get(name)
    max_steps = options.get("max_steps", STEPS)
    config = _gather(gather, max_steps) if gather else _built(name, options.get("num_agents", 1))
    config.game.max_steps = max_steps
    config.game.obs.num_tokens = options.get("num_tokens", gather.num_tokens if gather else NUM_TOKENS)
    for key, value in options.get("overrides", {}).items():
        config = _overridden(env_id, config, key, value)
    config.game.episode_truncates = True  # the end of the time is not the end of the game
    if not reward_is_possible(config):
        raise UnsupportedEnvironment(
            f"every reward on {env_id} is 0, because nothing on its map changes what its rewards count; use "
            f"{PREFIX}gather-1, or give rewards by env.options.overrides, such as "
            "{game.agent.rewards.explore: {reward: {name: cell.unique_visited}}}"
        )
    return config


def _gather(numbers: GatherMap, max_steps: int) -> Any:
    from mettagrid.config import action_config  # type: ignore[import-not-found]  # an extra
    from mettagrid.config import mettagrid_config as package  # type: ignore[import-not-found]
    from mettagrid.config.obs_config import ObsConfig  # type: ignore[import-not-found]
    from mettagrid.map_builder.random_map import RandomMapBuilder  # type: ignore[import-not-found]

    ores = package.ResourceLimitsConfig(base=LOAD, resources=["ore"])
    agent = package.AgentConfig(inventory=package.InventoryConfig(limits={"load": ores}), rewards=_rewards())
    objects = {"mine": numbers.mines, "depot": numbers.depots, "wall": numbers.walls}
    game = package.GameConfig(
        num_agents=numbers.num_agents,
        max_steps=max_steps,
        resource_names=["ore"],
        protocol_details_obs=False,
        obs=ObsConfig(width=SIGHT, height=SIGHT),
        actions=action_config.ActionsConfig(change_vibe=action_config.ChangeVibeActionConfig(enabled=False)),
        agent=agent,
        objects=_objects(),
        events=_events(max_steps),
        map_builder=RandomMapBuilder.Config(
            agents=numbers.num_agents, width=numbers.size, height=numbers.size, objects=objects, border_width=1, seed=0
        ),
    )
    return package.MettaGridConfig(label="gather", game=game)


def _rewards() -> dict[str, Any]:
    from mettagrid.config.game_value import StatValue  # type: ignore[import-not-found]
    from mettagrid.config.reward_config import reward  # type: ignore[import-not-found]

    return {
        "taken": reward(StatValue(name="ore.gained"), weight=TAKEN),
        "delivered": reward(StatValue(name="ore.delivered"), weight=DELIVERED),
    }


def _objects() -> dict[str, Any]:
    from mettagrid.config import mettagrid_config as package  # type: ignore[import-not-found]
    from mettagrid.config.filter import actorHas, targetHas  # type: ignore[import-not-found]
    from mettagrid.config.game_value import InventoryValue  # type: ignore[import-not-found]
    from mettagrid.config.handler_config import Handler  # type: ignore[import-not-found]
    from mettagrid.config.mutation import (  # type: ignore[import-not-found]
        ClearInventoryMutation,
        EntityTarget,
        logActorAgentStat,
        withdraw,
    )

    count = logActorAgentStat("ore.delivered", source=InventoryValue(item="ore"))
    empty = ClearInventoryMutation(target=EntityTarget.ACTOR, limit_name="load")
    return {
        "wall": package.WallConfig(),
        "mine": package.GridObjectConfig(
            name="mine",
            inventory=package.InventoryConfig(default_limit=CONTENT, initial={"ore": CONTENT}),
            on_use_handler=Handler(filters=[targetHas({"ore": 1})], mutations=[withdraw({"ore": 1})]),
        ),
        "depot": package.GridObjectConfig(
            name="depot", on_use_handler=Handler(filters=[actorHas({"ore": 1})], mutations=[count, empty])
        ),
    }


def _events(max_steps: int) -> dict[str, Any]:
    from mettagrid.config.event_config import EventConfig, periodic  # type: ignore[import-not-found]
    from mettagrid.config.mutation import updateTarget  # type: ignore[import-not-found]
    from mettagrid.config.query import query  # type: ignore[import-not-found]
    from mettagrid.config.tag import typeTag  # type: ignore[import-not-found]

    regrowth = EventConfig(
        name="regrowth",
        target_query=query(typeTag("mine")),
        timesteps=periodic(start=REGROWTH, period=REGROWTH, end=max_steps),
        mutations=[updateTarget({"ore": 1})],
    )
    return {"regrowth": regrowth}


def _built(name: str, num_agents: int) -> Any:
    from mettagrid.builder import envs  # type: ignore[import-not-found]

    if name == "navigation/basic":
        return envs.make_navigation(num_agents)
    return envs.make_arena(num_agents, combat=name == "arena/combat")


def _overridden(env_id: str, config: Any, key: str, value: Any) -> Any:
    """Return the configuration with one setting of the package changed; raises UnsupportedEnvironment."""
    try:
        changed = config.model_copy(deep=True).override(key, value)
        with warnings.catch_warnings():  # about a value that is not yet what the validation makes of it
            warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
            return type(config).model_validate(changed.model_dump(mode="json"))
    except ValueError as error:
        reason = one_line(str(error).splitlines()[-1], 200)
        raise UnsupportedEnvironment(f"{env_id}: override {key} is not possible: {reason}") from error


def reward_is_possible(config: Any) -> bool:
    """Return whether a reward can differ from 0, as far as the configuration says.

    A reward that counts only what an agent has in its inventory stays 0 if no handler, event or initial inventory
    mentions the resource.  Every other reward is taken as possible.
    """
    game = config.game.model_dump(mode="json")
    for agent in game["agents"] or [game["agent"]]:
        for name in agent["rewards"]:
            values = list(_values(agent["rewards"][name]["reward"]))
            if any(set(value) != {"item", "scope"} and "value" not in value for value in values):
                return True
            items = {value["item"] for value in values if "item" in value}
            if items & set(_changed_resources(game)):
                return True
    return False


def _values(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the simple values within a value that a reward counts."""
    parts = value.get("values") or [value[key] for key in ("numerator", "denominator") if key in value]
    for part in parts:
        yield from _values(part)
    if not parts:
        yield value


QUIET = ("resource_names", "rewards", "limits", "obs", "render", "reward_estimates", "map_builder")
"""Settings of the package that name resources and do not change how many an agent has."""


def _changed_resources(part: Any) -> Iterator[str]:
    """Yield all words of a configuration that may be resources which agents gain."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key not in QUIET:
                yield key
                yield from _changed_resources(value)
    elif isinstance(part, list):
        for item in part:
            yield from _changed_resources(item)
    elif isinstance(part, str):
        yield part


def is_connected(grid: np.ndarray) -> bool:
    """Return whether every agent can walk to every other agent and to a neighbor of every mine and depot.

    Args:
      grid: the names of what is in each cell of a map.
    """
    agents = np.char.startswith(grid, "agent")
    free = agents | (grid == "empty")
    reached = np.zeros_like(free)
    reached[tuple(np.argwhere(agents)[0])] = True
    count = 0
    while count != (count := int(reached.sum())):
        reached |= _neighbors(reached) & free
    goals = ~free & (grid != "wall")
    return bool(reached[agents].all() and _neighbors(reached)[goals].all())


def _neighbors(cells: np.ndarray) -> np.ndarray:
    """Return the cells next to those given, by a side."""
    padded = np.pad(cells, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
