"""Atari games in EnvPool: their ids, the evaluation protocols, and human-normalized scores.

"Revisiting the Arcade Learning Environment: Evaluation Protocols and Open Problems for General Agents" by Machado et
al. 2018 (https://arxiv.org/abs/1709.06009) is where sticky actions come from.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bircher.envs.config import EnvRequest, ObservationConfig
from bircher.errors import UnsupportedEnvironment

ProtocolName = Literal["paper", "dqn"]

SCORES = Path(__file__).with_name("atari_human_random.csv")
"""Random and human scores of the 57 games: the table of DeepMind's dqn_zoo (`dqn_zoo/atari_data.py`, Apache-2.0;
https://github.com/google-deepmind/dqn_zoo).  Means of at least 3 episodes after 1 to 30 no-ops, at most 108,000 frames
each; humans are one professional games tester."""

OTHERS = (
    "Adventure AirRaid Atlantis2 Backgammon BasicMath Blackjack Carnival Casino Crossbow Darkchambers DonkeyKong "
    "Earthworld ElevatorAction Entombed Et FlagCapture Frogger Galaxian Hangman HauntedHouse HumanCannonball "
    "JourneyEscape Kaboom KeystoneKapers KingKong Klax Koolaid LaserGates LostLuggage MarioBros MiniatureGolf MrDo "
    "Othello Pacman Pitfall2 Pooyan SirLancelot SpaceWar Superman Tetris TicTacToe3d Trondead Turmoil VideoCheckers "
    "VideoChess VideoCube WordZapper"
)
"""EnvPool's other games, in addition to the 57."""

FEWER_ACTIONS = {"Skiing-v5": 9}
"""Games whose full action set does not have 18 actions: the emulator counts the actions that the game allows."""

ALIAS = "ALE/"
"""The prefix of Gymnasium's ids; here an id means the same with and without it."""


class Scores(NamedTuple):
    """The mean scores of a random player and of a human in one game."""

    random: float
    human: float


class Protocol(NamedTuple):
    """How the games are played: the default size and color of the picture, and EnvPool's settings."""

    size: tuple[int, int]
    gray: bool
    settings: Mapping[str, Any]


COMMON = {
    "max_episode_steps": 27_000,  # 108,000 frames, half an hour
    "frame_skip": 4,
    "stack_num": 1,  # env.stack concatenates frames, and the replay may store each frame once
    "episodic_life": False,
    "zero_discount_on_life_loss": False,
    "reward_clip": False,  # env.reward_clip does that, in training only
}
PROTOCOLS: dict[str, Protocol] = {
    # EnvPool cannot start without a no-op: its minimum is one frame without an action.
    "paper": Protocol(
        (96, 96),
        False,
        {"repeat_action_probability": 0.25, "full_action_space": True, "noop_max": 1, "use_fire_reset": False},
    ),
    "dqn": Protocol(
        (84, 84),
        True,
        {"repeat_action_probability": 0.0, "full_action_space": False, "noop_max": 30, "use_fire_reset": True},
    ),
}
"""Two protocols.  `paper` is the Muesli paper's: sticky actions, all 18 actions, no no-ops.  `dqn` has been usual since
DQN: the actions that a game uses, up to 30 no-ops at the start, then FIRE, and no sticky actions.  A lost life does not
end an episode in either."""

ELSEWHERE = {
    "img_height": "observation.size",
    "img_width": "observation.size",
    "gray_scale": "observation.gray",
    "stack_num": "env.stack",
    "max_episode_steps": "env.max_steps",
    "reward_clip": "env.reward_clip",
}
"""EnvPool's options that have a separate setting here."""


@cache
def scores() -> dict[str, Scores]:
    """Return the random and human scores of the 57 games by id."""
    with SCORES.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        return {game_id(line["game"]): Scores(float(line["random"]), float(line["human"])) for line in lines}


@cache
def ids() -> tuple[str, ...]:
    """Return every game's id, the 57 first."""
    return (*scores(), *(f"{name}-v5" for name in OTHERS.split()))


def game_id(game: str) -> str:
    """Return the id of a game from the name of its ROM: ``space_invaders`` gives SpaceInvaders-v5."""
    return "".join(word.capitalize() for word in game.split("_")) + "-v5"


def canonical(source: object) -> str | None:
    """Return the id of an Atari game without the prefix ``ALE/``; None if the source is not an Atari game."""
    if not isinstance(source, str):
        return None
    env_id = source.removeprefix(ALIAS)
    return env_id if env_id in ids() else None


def human_normalized(env_id: str, score: float) -> float | None:
    """Scale a score so that a random player has 0 and a human 1; None for a game without a human score.

    (score - random) / (human - random), as in "Human-level control through deep reinforcement learning" by Mnih et al.
    2015 (https://doi.org/10.1038/nature14236).
    """
    reference = scores().get(env_id)
    return None if reference is None else (score - reference.random) / (reference.human - reference.random)


def pool_settings(request: EnvRequest) -> dict[str, Any]:
    """Return EnvPool's settings for a protocol, by default the paper's; options replace those of the protocol.

    Raises:
      UnsupportedEnvironment: an option has a separate setting.
    """
    for name, setting in ELSEWHERE.items():
        if name in request.config.options:
            raise UnsupportedEnvironment(f"env.options.{name} of an Atari game is set by {setting}")
    protocol = PROTOCOLS[request.config.protocol or "paper"]
    observation = request.observation or ObservationConfig()
    size, gray = observation.size or protocol.size, observation.gray
    picture = {"img_height": size[0], "img_width": size[1], "gray_scale": protocol.gray if gray is None else gray}
    return {**COMMON, **protocol.settings, **picture, **request.config.options}


def summary(env_id: str) -> tuple[str, str]:
    """Describe the observation and the actions under the paper's protocol.

    This does not load the ROM, which would take a tenth of a second.
    """
    (height, width), gray, _ = PROTOCOLS["paper"]
    return f"uint8 ({height}, {width}, {1 if gray else 3})", f"discrete, {FEWER_ACTIONS.get(env_id, 18)} actions"
