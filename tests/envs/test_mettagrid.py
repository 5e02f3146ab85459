"""mettagrid: ids and refusals without the package; maps, rewards and episodes with it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bircher.envs import mettagrid, registry
from bircher.envs.base import check_env
from bircher.envs.config import EnvRequest
from bircher.envs.mettagrid import IDS, Token, checked_options, read_tokens, require_available, require_known
from bircher.errors import UnknownEnvironment, UnsupportedEnvironment

INSTALLED = importlib.util.find_spec("mettagrid") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="mettagrid, an extra for Python 3.11 and 3.12, is missing")


@pytest.fixture
def players(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("gather_players")


# Without the package


@pytest.mark.parametrize(("env_id", "error", "sentence"), [
    ("mettagrid/gather-2", UnknownEnvironment, "did you mean .*mettagrid/gather-4"),
    ("mettagrid/" + "z" * 40, UnknownEnvironment, "one of mettagrid/gather-1, .*mettagrid/navigation/basic"),
    ("mettagrid/arena/tag", UnsupportedEnvironment, "no map of tag; jaxmarl/MPE_simple_tag_v3"),
    ("mettagrid/tutorial.miner", UnsupportedEnvironment, "missions and their variants are parts of a game"),
    ("mettagrid/machina_1", UnsupportedEnvironment, "the package mettagrid does not contain them"),
])  # fmt: skip
def test_an_id_that_does_not_exist_is_refused_in_a_sentence(env_id, error, sentence):
    with pytest.raises(error, match=sentence):
        require_known(env_id)


def test_all_ids_are_known():
    for env_id in IDS:
        require_known(env_id)
        assert mettagrid.is_id(env_id)
    assert not mettagrid.is_id("CartPole-v1") and not mettagrid.is_id(print)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"version_info": (3, 13, 0)}, "needs Python 3.11 or 3.12, and this is Python 3.13"),
    ({"platform": "win32"}, "needs Linux or macOS"),
])  # fmt: skip
def test_an_unsupported_platform_is_refused(monkeypatch, changes, sentence):
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    for name, value in changes.items():
        monkeypatch.setattr(sys, name, value)
    with pytest.raises(UnsupportedEnvironment, match=sentence):
        require_available()


@pytest.mark.parametrize("library", [("glibc", "2.31"), ("", ""), ("musl", "1.2")])
def test_an_old_or_another_c_library_is_refused(monkeypatch, library):
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    with pytest.raises(UnsupportedEnvironment, match="glibc 2.34 or later"):
        require_available()


def test_a_missing_package_is_refused_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedEnvironment, match=r"pip install 'bircher\[mettagrid\]'"):
        require_available()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"num_agent": 4}, "has no option 'num_agent'; did you mean num_agents"),
    ({"num_agents": 2}, "has 4 agents, not 2; mettagrid/gather-1, mettagrid/gather-24"),
    ({"num_cogs": 24}, "has 4 agents, not 24"),
    ({"num_cogs": 4, "num_agents": 4}, "are the same number"),
    ({"num_tokens": 0}, "num_tokens must be a number of at least 1, not 0"),
    ({"num_agents": True}, "num_agents must be a number of at least 1"),
    ({"overrides": ["game"]}, "settings of the package by dotted name"),
])  # fmt: skip
def test_a_wrong_option_is_refused(options, sentence):
    with pytest.raises(UnsupportedEnvironment, match=sentence):
        checked_options("mettagrid/gather-4", options)


def test_num_cogs_is_the_number_of_agents():
    assert checked_options("mettagrid/arena/basic", {"num_cogs": 7}) == {"num_agents": 7}


def test_tokens_are_read_with_their_positions_and_without_padding():
    rows = [[254, 1, 255], [0x53, 6, 2], [0x0A, 12, 100], [255, 255, 255], [255, 255, 255]]
    tokens = read_tokens(np.array(rows, np.uint8))
    assert tokens == [Token(None, None, 1, 255), Token(5, 3, 6, 2), Token(0, 10, 12, 100)]
    assert read_tokens(np.full((4, 3), 255, np.uint8)) == []


def test_ids_are_listed_and_missing_ones_refused_before_the_package_is_looked_for(monkeypatch):
    listed = {line.id: line for line in registry.list_environments(mettagrid.PREFIX)}
    assert set(IDS) <= set(listed)
    assert {listed[env_id].backend for env_id in IDS} == {"pettingzoo"}
    assert {listed[env_id].preset for env_id in IDS} == {"mettagrid"}
    with pytest.raises(UnsupportedEnvironment, match="MPE_simple_tag_v3"):
        registry.resolve(EnvRequest.of("mettagrid/arena/tag"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    with pytest.raises(UnsupportedEnvironment, match=r"^environments of mettagrid need the package mettagrid: pip"):
        registry.spec(EnvRequest.of("mettagrid/gather-4"))


# With the package


def make(env_id: str = "mettagrid/gather-4", **options):
    from bircher.envs.mettagrid_env import MettaGridEnv

    mettagrid.load()
    return MettaGridEnv(env_id, **options)


def episode(env, seed: int | None = None, steps: int = 40) -> list:
    """Play random moves and return all observations and rewards, copied."""
    random = np.random.default_rng(7)
    observations, _ = env.reset(seed=seed)
    seen = [{agent: tokens.copy() for agent, tokens in observations.items()}]
    for _ in range(steps):
        observations, rewards, *_ = env.step({agent: random.integers(5) for agent in env.agents})
        seen.append(({agent: tokens.copy() for agent, tokens in observations.items()}, rewards))
    return seen


@needs_package
def test_the_interface_is_that_of_pettingzoo():
    test = pytest.importorskip("pettingzoo.test")
    test.parallel_api_test(make(max_steps=20), num_cycles=50)
    test.parallel_seed_test(lambda: make(max_steps=20), num_cycles=45)


@needs_package
def test_rows_follow_the_protocol_and_name_the_agents():
    env = registry.make(EnvRequest.of("mettagrid/gather-4", num_envs=2, options={"max_steps": 15}), seed=0)
    assert env.spec.agents == ("agent_0", "agent_1", "agent_2", "agent_3")
    assert (env.spec.max_steps, env.spec.action.num_actions, env.spec.observation.shape) == (15, 5, (72, 3))
    check_env(env, steps=35)
    env.close()


@needs_package
def test_episodes_are_repeated_by_a_seed_and_differ_from_each_other():
    env = make()
    first, second = episode(env, seed=3), episode(env)
    np.testing.assert_equal(episode(env, seed=3), first)
    np.testing.assert_equal(episode(env), second)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(first[0], second[0])
    with pytest.raises(AssertionError):
        np.testing.assert_equal(episode(env, seed=4)[0], first[0])


@needs_package
def test_observations_are_copies():
    env = make()
    first, _ = env.reset(seed=0)
    before = {agent: tokens.copy() for agent, tokens in first.items()}
    after, *_ = env.step(dict.fromkeys(env.agents, 1))
    np.testing.assert_equal(first, before)
    assert any((after[agent] != before[agent]).any() for agent in before)


@needs_package
def test_the_end_of_the_time_is_a_truncation_of_all_agents():
    env = make(max_steps=5)
    env.reset(seed=0)
    for step in range(5):
        assert env.agents == ["agent_0", "agent_1", "agent_2", "agent_3"]
        _, _, terminal, truncated, _ = env.step({})
        assert not any(terminal.values())
        assert set(truncated.values()) == {step == 4}
    assert env.agents == []


@needs_package
def test_rewards_are_those_of_ores_taken_and_delivered(players):
    env = make("mettagrid/gather-1", max_steps=120)
    player = players.greedy_players(env, 0)["agent_0"]
    observations, _ = env.reset(seed=2)
    rewards, loads = [], []
    while env.agents:
        observations, reward, *_ = env.step({"agent_0": player(observations["agent_0"])})
        rewards.append(reward["agent_0"])
        stats = env._simulation.episode_stats["agent"][0]
        loads.append((stats.get("ore.gained", 0.0), stats.get("ore.delivered", 0.0)))
    expected = np.diff(np.array([(0.0, 0.0), *loads]), axis=0) @ [0.1, 1.0]
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    counts = Counter(np.round(rewards, 3).tolist())
    assert counts[5.0] >= 3 and counts[0.1] >= 15
    assert max(rewards) <= 5.0  # an agent carries five


@needs_package
@pytest.mark.parametrize("env_id", ["mettagrid/gather-1", "mettagrid/gather-4", "mettagrid/gather-24"])
def test_no_token_is_left_out_and_nothing_is_behind_walls(env_id):
    from bircher.envs.mettagrid_maps import is_connected

    env = make(env_id, max_steps=60)
    for seed in range(3):
        episode(env, seed, steps=60)
        assert env._simulation.episode_stats["game"]["tokens_dropped"] == 0
        assert is_connected(env.config.game.map_builder.create().build().grid)
        assert len(env.agents) == 0


@needs_package
def test_a_connected_map_is_told_from_one_with_something_behind_walls():
    from bircher.envs.mettagrid_maps import is_connected

    names = {"#": "wall", ".": "empty", "a": "agent.agent", "m": "mine"}

    def connected(*rows: str) -> bool:
        return is_connected(np.array([[names[cell] for cell in row] for row in rows]))

    assert connected("#####", "#a.m#", "#..##", "#a..#", "#####")
    assert not connected("#####", "#a#m#", "#..##", "#a..#", "#####")
    assert not connected("#####", "#a.m#", "###.#", "#a#.#", "#####")


@needs_package
@pytest.mark.parametrize("env_id", ["mettagrid/arena/basic", "mettagrid/arena/combat", "mettagrid/navigation/basic"])
def test_a_map_of_the_package_without_rewards_is_refused_and_runs_with_others(env_id):
    with pytest.raises(UnsupportedEnvironment, match=f"every reward on {env_id} is 0"):
        make(env_id)
    with pytest.raises(UnsupportedEnvironment, match="every reward"):
        make(env_id, overrides={"game.agent.rewards.heart": {"reward": {"item": "heart"}}})
    rewards = {"game.agent.rewards.explore": {"reward": {"name": "cell.unique_visited"}}}
    env = make(env_id, overrides=rewards, num_cogs=3, max_steps=30)
    _, *steps = episode(env, seed=0, steps=30)
    assert len(env.possible_agents) == 3
    assert sum(sum(reward.values()) for _, reward in steps) > 3


@needs_package
def test_an_override_that_is_not_a_setting_is_refused():
    with pytest.raises(UnsupportedEnvironment, match=r"override game\.obs\.widht is not possible: .*no field"):
        make(overrides={"game.obs.widht": 9})
    env = make(overrides={"game.obs.width": 9, "game.max_steps": 30, "game.episode_truncates": False})
    assert (env.config.game.obs.width, env.max_cycles, env.config.game.episode_truncates) == (9, 30, True)


@needs_package
def test_the_scripted_player_gets_many_times_the_return_of_random_play(players):
    env = make()
    makers = players.random_players, players.greedy_players
    random, greedy = (players.play(env, made(env, 0), seed=1).sum() for made in makers)
    assert random < 30 and greedy > 100


@needs_package
def test_a_picture_shows_agents_mines_and_depots():
    from bircher.envs.mettagrid_env import CELL, COLORS

    env = make(render_mode="rgb_array")
    assert env.render() is None
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (16 * CELL, 16 * CELL, 3) and picture.dtype == np.uint8
    middles = Counter(map(tuple, picture[CELL // 2 :: CELL, CELL // 2 :: CELL].reshape(-1, 3).tolist()))
    expected = {"agent": 4, "mine": 6, "depot": 2, "wall": 14 + 4 * 15}
    assert {name: middles[COLORS[name]] for name in expected} == expected
    assert make().render() is None


@needs_package
def test_a_video_shows_the_map_of_the_first_environment():
    from bircher.viz import plots

    options = {"render_mode": "rgb_array", "max_steps": 6}
    request = EnvRequest.of("mettagrid/gather-4", num_envs=1, options=options)
    env = registry.make(request, seed=0)
    spec = env.spec
    frames = plots.render_episode(request, lambda rows, *_: np.ones(len(rows), np.int32), 0, 6, lambda: env, spec)
    assert len(frames) == 7 and {frame.shape[2] for frame in frames} == {3}
    assert any((frame != frames[0]).any() for frame in frames[1:])
