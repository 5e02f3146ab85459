"""MiniGrid and BabyAI: the ids of EnvPool's grid worlds, and which of them need their mission to be read."""

from __future__ import annotations

PREFIXES = ("MiniGrid-", "BabyAI-")
"""The prefixes of the ids of these environments."""
WITH_MISSION = (
    "BabyAI-", "MiniGrid-Fetch-", "MiniGrid-GoToDoor-", "MiniGrid-GoToObject-", "MiniGrid-PutNear-",
    "MiniGrid-LockedRoom-",
)  # fmt: skip
"""The prefixes of the ids whose mission differs between episodes, so that an agent has to read it."""


OTHER_PRESETS = {"MiniGrid-DoorKey-8x8-v0": "minigrid_exploration", "MiniGrid-Memory": "minigrid_memory"}
"""Presets of single grid worlds, by what their ids begin with."""


def preset_name(env_id: str) -> str | None:
    """Return the preset of a grid world: `babyai` where the mission is to be read; None for other ids."""
    if not env_id.startswith(PREFIXES):
        return None
    own = next((preset for prefix, preset in OTHER_PRESETS.items() if env_id.startswith(prefix)), None)
    return own or ("babyai" if env_id.startswith(WITH_MISSION) else "minigrid")


def ids() -> tuple[str, ...]:
    """Return the ids that the installed EnvPool has; none where it is not installed."""
    try:
        import envpool
    except ImportError:
        return ()
    return tuple(name for name in envpool.list_all_envs() if name.startswith(PREFIXES))
