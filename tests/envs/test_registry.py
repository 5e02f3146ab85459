"""Tests of the registry: from ids to adapters, presets and seeds."""

from __future__ import annotations

import subprocess
import sys

import envpool
import gymnax
import pgx
import pytest
from gymnasium_twins import Counter
from hypothesis import given
from hypothesis import strategies as st

import environments
from bircher.envs import pgx as pgx_room
from bircher.envs import registry
from bircher.envs.base import Env, check_env
from bircher.envs.config import EnvRequest
from bircher.errors import UnknownEnvironment, UnsupportedEnvironment


def test_the_lists_are_those_of_the_installed_packages():
    assert set(registry.GYMNAX) < set(gymnax.registered_envs)
    listed = {
        env_id
        for env_id, (path, *_) in envpool.registration.registry.specs.items()
        if path in ("envpool.box2d", "envpool.classic_control") and not env_id.startswith("phys2d/")
    }
    assert set(registry.ENVPOOL) == listed
    games = {name for name in pgx.available_envs() if not name.startswith("minatar")} | {"bridge_bidding"}
    assert games == {*registry.PGX, *registry.PGX_REFUSED} and set(registry.PGX) == set(pgx_room.GAMES)


@pytest.mark.parametrize(
    ("env_id", "backend", "preset"),
    [
        ("toy/chain", "toys", "default"),
        ("CartPole-v1", "gymnax", "cartpole"),
        ("Acrobot-v1", "gymnax", "acrobot"),
        ("MountainCar-v0", "gymnax", "mountaincar"),
        ("LunarLander-v3", "envpool", "lunarlander"),
        ("Breakout-MinAtar", "gymnax", "minatar"),
        ("SpaceInvaders-MinAtar", "gymnax", "minatar"),
        ("gardner_chess", "pgx", "default"),
        ("2048", "pgx", "default"),
        ("FrozenLake-v1", "gymnasium", "default"),
        ("gymnasium.envs.toy_text:FrozenLake-v1", "gymnasium", "default"),
        (Counter, "gymnasium", "default"),
    ],
)
def test_resolution(env_id, backend, preset):
    assert environments.resolve(env_id) == backend
    assert registry.preset_name(env_id) == preset


def test_a_backend_can_be_forced():
    for backend in ("gymnax", "envpool", "gymnasium"):
        env = environments.make("CartPole-v1", 2, seed=0, backend=backend)
        assert isinstance(env, Env) and env.pure == (backend == "gymnax")
        check_env(env, 5)
        env.close()
    with pytest.raises(UnknownEnvironment, match="unknown environment 'LunarLander-v3' in gymnax"):
        environments.make("LunarLander-v3", 1, seed=0, backend="gymnax")
    with pytest.raises(
        UnsupportedEnvironment, match="unknown backend 'gymnas'; expected one of toys, gymnax, pgx, envpool, gymnasium"
    ):
        registry.backend_of("CartPole-v1", "gymnas")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("lunarlander-v3", "LunarLander-v3"),
        ("breakout-minatar", "Breakout-MinAtar"),
        ("toy/cach", "toy/catch"),
        ("connect4", "connect_four"),
        ("Othelo", "othello"),
        ("FrozenLak-v1", "FrozenLake-v1"),
    ],
)
def test_unknown_ids_name_the_nearest(wrong, right):
    with pytest.raises(UnknownEnvironment) as caught:
        environments.make(wrong, 1, seed=0)
    assert wrong in str(caught.value) and right in str(caught.value)


@pytest.mark.parametrize(
    ("game", "reason"), [("bridge_bidding", "hide cards"), ("backgammon", "dice"), ("kuhn_poker", "hide cards")]
)
def test_games_that_cannot_be_played_are_refused(game, reason):
    with pytest.raises(UnsupportedEnvironment, match=f"{game} cannot be played: .*{reason}") as caught:
        environments.spec(game)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["NoSuchEnv-v0", "no_such_module:Env-v0", "CartPole-v77", "", 3])
def test_other_unknown_sources(wrong):
    with pytest.raises(UnknownEnvironment):
        registry.backend_of(wrong)


def test_an_unknown_id_imports_neither_envpool_nor_gymnax():
    script = (
        "import sys\n"
        "from bircher.envs import registry\n"
        "from bircher.envs.config import EnvRequest\n"
        "try:\n"
        "    registry.make(EnvRequest.of('NoSuchEnv-v0'), 0)\n"
        "except registry.UnknownEnvironment:\n"
        "    print([name for name in ('envpool', 'gymnax', 'pgx', 'bircher.envs.gymnasium') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_no_environment_at_all_is_an_error():
    request = EnvRequest.of("toy/chain")
    none = request._replace(config=request.config.model_copy(update={"num_envs": 0}))
    with pytest.raises(UnsupportedEnvironment, match="num_envs must be at least 1, not 0"):
        registry.make(none, seed=0)


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "CartPole-v1", "FrozenLake-v1"])
def test_unknown_options_are_an_error_of_one_sentence(env_id):
    with pytest.raises(UnsupportedEnvironment, match=f"{env_id} cannot be made with options.*color") as caught:
        environments.make(env_id, 1, seed=0, options={"color": "red"})
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_an_error_of_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.delitem(sys.modules, "bircher.envs.envpool", raising=False)
    for env_id in ("LunarLander-v3", "Ant-v4"):
        for ask in (environments.spec, environments.make):
            with pytest.raises(UnsupportedEnvironment, match=f"{env_id} cannot be made: .*envpool"):
                ask(env_id, backend="envpool")
    (line,) = registry.list_environments("LunarLander-v3")
    assert line.backend == "envpool" and line.observation.startswith("not available: ")


def test_the_list_contains_the_ids_that_match_the_filter():
    lines = registry.list_environments("cartpole")
    assert lines[0] == ("CartPole-v1", "gymnax", "float32 (4,)", "discrete, 2 actions", "cartpole")
    assert all("cartpole" in line.id.lower() for line in lines)
    assert registry.list_environments("LunarLander-v3")[0].backend == "envpool"
    assert registry.list_environments("nothing like it") == []
    (missing,) = registry.list_environments("GymV26Environment-v0")
    assert missing.observation.startswith("not available: ")


@given(st.integers(0, 2**31), st.integers(0, 50), st.sampled_from(["evaluation", "video", "test"]))
def test_seeds_are_31_bits_and_no_role_shares_them_with_training(seed, generation, role):
    train = registry.seeds(seed, "train", 64, generation)
    other = registry.seeds(seed, role, 64, generation)
    assert all(0 <= number < 2**31 for number in train + other)
    assert len(set(train)) == len(set(other)) == 64 and not set(train) & set(other)
    assert not set(train) & set(registry.seeds(seed + 1, "train", 64, generation))
    assert not set(train) & set(registry.seeds(seed, "train", 64, generation + 1))
    assert train[:8] == registry.seeds(seed, "train", 8, generation)
