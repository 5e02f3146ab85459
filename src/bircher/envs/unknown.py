"""What to write instead of an id that is not known."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bircher.envs import atari
from bircher.envs.registration import close_names

ATARI_SUFFIXES = re.compile(r"(?:-ramDeterministic|-ramNoFrameskip|-ram|Deterministic|NoFrameskip)?(?:-v\d+)?$")
"""What other packages write after the name of an Atari game."""
MINIGRID = ("MiniGrid-", "BabyAI-")
"""How ids begin that the package minigrid registers when it is imported."""


def advice(env_id: str, known_ids: Sequence[str]) -> str:
    """The end of the sentence about an unknown id."""
    game = atari_game(env_id)
    if game in known_ids:
        screen = " and show their screen, not their memory" if "-ram" in env_id else ""
        return f"; Atari games are named like {game} here{screen}, and env.protocol=usual plays them as DQN did"
    if env_id.startswith(MINIGRID):
        return f"; install the package minigrid and write minigrid:{env_id}"
    close = close_names(env_id, known_ids)
    return f"; did you mean {', '.join(close)}?" if close else "; `bircher envs` lists those that are known"


def atari_game(env_id: str) -> str | None:
    """The id here of an Atari game by another package's name, such as PongNoFrameskip-v4; None for other ids."""
    name = ATARI_SUFFIXES.sub("", env_id.removeprefix(atari.ALIAS)).replace("_", "").lower()
    return next((game for game in atari.ids() if game.removesuffix("-v5").lower() == name), None)
