"""Presets: which one an environment has, how its blocks are merged, and the names of earlier versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from bircher.config.config import AGENTS, Config, compose
from bircher.config.presets import (
    LINEAGES,
    PRESETS,
    _is_for,
    _read,
    choose,
    find_preset,
    preset_for,
    read_preset,
    require_known_blocks,
    select,  # fmt: skip
)
from bircher.envs.registry import PRESETS as PRESET_OF
from bircher.errors import ConfigError

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
SUITED = dict.fromkeys(("atari", "atari_fast", "paper_base"), "Breakout-v5")
"""Environments for the presets of pictures, which not every environment has."""
HAS = {name: [agent for agent in LINEAGES if _is_for(_read(name), agent)] for name in NAMES}
"""The agents that each preset is for."""


@pytest.mark.parametrize(("name", "agent"), [(name, agent) for name in NAMES for agent in HAS[name]])
def test_every_preset_is_valid_and_comes_back_from_yaml(name: str, agent: str, tmp_path: Path) -> None:
    config = compose(SUITED.get(name, "toy/cliff"), {"preset": name, "agent": agent})
    assert config.preset == name
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config
    assert compose(None, (), path) == config


def test_every_environment_has_its_preset() -> None:
    assert set(LINEAGES) == set(AGENTS) and set(PRESET_OF.values()) | {"default", "paper_base"} <= set(NAMES)
    for env_id, name in PRESET_OF.items():
        for agent in AGENTS:
            config = compose(env_id, [f"agent={agent}"])
            assert config.preset == (name if agent in HAS[name] else "default") and config.agent.name == agent
            assert compose(env_id, [f"agent={agent}", f"preset={config.preset}"]) == config
    lander = {agent: compose("LunarLander-v3", [f"agent={agent}"]) for agent in ("muzero", "gumbel_muzero")}
    assert [found.search.num_simulations for found in lander.values()] == [50, 12], "an agent's own after its family's"


def test_blocks_win_in_their_order() -> None:
    block = {
        "steps": 1, "a": 1, "b": 1, "c": 1, "extends": "default", "pixels": {"steps": 9},
        "agents": {"muzero": {"a": 2, "b": 2, "c": 2, "steps": 2}, "gumbel_muzero": {"a": 3}, "ppo": {"a": 4}},
        "environments": {"hex": {"b": 5, "c": 5, "agents": {"muzero": {"c": 6}}}, "othello": {"b": 7}},
    }  # fmt: skip
    assert select(block, "ppo", "CartPole-v1") == {"steps": 1, "a": 4, "b": 1, "c": 1}
    assert select(block, "muzero", "hex") == {"steps": 2, "a": 2, "b": 5, "c": 6}
    assert select(block, "gumbel_muzero", "othello") == {"steps": 2, "a": 3, "b": 7, "c": 2}


def test_pictures_come_after_everything_else_and_only_where_they_are_asked_for() -> None:
    plain, pixels = (read_preset("lunarlander", "muesli", "LunarLander-v3", pictures) for pictures in (False, True))
    assert (plain["losses"]["entropy"]["weight"], pixels["losses"]["entropy"]["weight"]) == (0.1, 0.05)
    assert pixels["replay"]["capacity"] == 32768, "what the default says of pictures comes after the lander's own"
    atari = read_preset("atari", "ppo", "Pong-v5", True)
    assert atari == read_preset("atari", "ppo", "Pong-v5"), "it has no other observation"
    assert preset_for("CartPole-v1", "muesli", pixels=True) == "default", "what it says is not for pictures"


def test_values_of_the_default_preset_reach_no_environment_that_was_measured_with_others() -> None:
    for env_id in ("CartPole-v1", "Acrobot-v1", "Breakout-MinAtar", "toy/recall"):
        found = compose(env_id)
        assert (found.model.value_unit, found.agent.advantage.decay) == ("fixed", 0.99), env_id
    assert compose("toy/cliff").model.value_unit == compose("LunarLander-v3").model.value_unit == "returns"


@pytest.mark.parametrize("agent", ["muesli", "ppo", "muzero", "gumbel_muzero"])
def test_the_lander_has_actions_of_three_frames_and_a_preset_with_actions_of_one(agent: str) -> None:
    three = compose("LunarLander-v3", [f"agent={agent}"])
    one = compose("LunarLander-v3", [f"agent={agent}", "preset=lunarlander_one_frame"])
    assert (three.env.action_repeat, one.env.action_repeat) == (3, None)
    assert (three.steps, three.agent.gamma) == (300_000 if agent in ("muesli", "ppo") else 100_000, 0.991)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"agents": {"muzro": {}}}, "unknown agent 'muzro'; did you mean muzero"),
        ({"environments": {"Hex": {}}}, "'Hex' is not an environment of preset board_games; did you mean hex"),
        ({"environments": {"CartPole-v1": {}}}, "'CartPole-v1' is not an environment of preset board_games"),
        ({"environments": {"hex": {"agents": {"nobody": {}}}}}, "unknown agent 'nobody'"),
        ({"pixels": {"agents": {"nobody": {}}}}, "unknown agent 'nobody'"),
    ],
)
def test_blocks_that_nothing_reads_are_refused(layer: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        require_known_blocks(layer, "board_games")


def test_a_preset_chosen_by_name_brings_its_agent() -> None:
    assert compose("toy/cliff", ["preset=ppo_muesli_aggressive"]).agent.name == "ppo"
    assert compose("toy/cliff", ["preset=tic_tac_toe", "model.torso=mlp"]).agent.name == "muzero"
    assert compose("toy/cliff", ["preset=tic_tac_toe", "agent=gumbel_muzero"]).agent.name == "gumbel_muzero"
    with pytest.raises(ConfigError, match="preset paper_base is not for agent=ppo: it is for muesli, muzero"):
        compose("Pong-v5", ["preset=paper_base", "agent=ppo"])


def test_a_preset_may_be_named_by_an_environment() -> None:
    config = compose("Asterix-MinAtar", ["preset=breakout-minatar"])
    assert (config.preset, config.losses.entropy.weight) == ("Breakout-MinAtar", 0.2)
    assert compose("Asterix-MinAtar").losses.entropy.weight == 0
    assert compose("Breakout-MinAtar", ["preset=Breakout-MinAtar"]) == compose("Breakout-MinAtar")


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("cartpole_ppo", "preset=cartpole agent=ppo"),
        ("lunarlander_gumbel_muzero", "preset=lunarlander agent=gumbel_muzero"),
        ("minatar_space_invaders", "preset=SpaceInvaders-MinAtar"),
        ("minatar_breakout_ppo", "preset=Breakout-MinAtar agent=ppo"),
        ("default_pixels", "preset=default observation=pixels"),
        ("lunarlander_pixels_muzero", "preset=lunarlander agent=muzero observation=pixels"),
        ("connect_four_muzero", "preset=connect_four agent=muzero"),
        ("paper_base_muzero", "preset=paper_base agent=muzero"),
        ("pixels", "preset=default observation=pixels"),
    ],
)
def test_names_of_earlier_versions_are_read_with_one_line(name: str, now: str, capsys) -> None:
    env = "Breakout-v5" if "paper" in name or "pixels" in name else "toy/cliff"
    config = compose(env, [f"preset={name}"])
    assert capsys.readouterr().err == f"preset={name} is now {now}\n"
    assert compose(env, now.split()) == config and capsys.readouterr().err == ""


def test_a_run_of_an_earlier_version_has_the_preset_of_today(tmp_path: Path, capsys) -> None:
    config, file = compose("Breakout-MinAtar", ["agent=ppo"]), tmp_path / "config.yaml"
    file.write_text(config.to_yaml().replace("preset: minatar\n", "preset: minatar_breakout_ppo\n"))
    assert Config.from_yaml(file) == config and capsys.readouterr().err == ""
    assert compose(None, (), file) == config


def test_presets_are_found_in_any_case() -> None:
    assert find_preset("LUNARLANDER") == ("lunarlander", {}) == choose("lunarlander")


@pytest.mark.parametrize("name", ["_ppo", "ppo", "_pixels", "", "cartpole_", "cartpole_ppo_ppo", "cartpole_sac"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="^unknown preset"):
        find_preset(name)


@pytest.mark.parametrize(("env_id", "agent", "name"), [
    ("MiniGrid-DoorKey-8x8-v0", "muesli", "minigrid_exploration"), ("MiniGrid-DoorKey-8x8-v0", "ppo", "minigrid"),
    ("MountainCar-v0", "ppo", "default"), ("CartPole-v1", "ppo", "cartpole"), ("Acrobot-v1", "muzero", "default"),
])  # fmt: skip
def test_an_agent_that_a_preset_does_not_list_has_the_one_that_it_extends(env_id, agent, name):
    assert preset_for(env_id, agent) == name


@pytest.mark.parametrize("agent", list(AGENTS))
@pytest.mark.parametrize("env", ["LunarLander-v3", "LunarLanderContinuous-v3"])
def test_the_lander_has_settings_of_every_agent_for_states_and_pictures(env: str, agent: str) -> None:
    for name in ("state", "pixels"):
        assert compose(env, [f"agent={agent}", f"observation={name}"]).preset == "lunarlander"
