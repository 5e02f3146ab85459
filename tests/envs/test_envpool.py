"""Tests of the properties of the installed EnvPool on which the adapter depends, through the XLA handle."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import envpool
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import assert_same_rows, rollout

import environments
from bircher.envs import float64, registry
from bircher.envs.base import check_env, random_actions
from bircher.envs.config import EnvRequest
from bircher.envs.envpool import EnvPoolEnv, env_spec
from bircher.errors import UnsupportedEnvironment
from bircher.types import Discrete


def fall(max_steps=None, steps=130):
    """Roll out a lander that falls without its engines."""
    env = environments.make("LunarLander-v3", 3, seed=3, max_steps=max_steps)
    return rollout(env, steps, np.zeros((steps, 3)))


def test_spec_is_read_without_a_pool_and_equals_the_pools():
    spec = environments.spec("LunarLander-v3")
    assert registry.describe(spec.observation) == "float32 (8,)"
    assert spec.action == Discrete(4) and spec.max_steps == 1000
    assert spec == environments.make("LunarLander-v3", 1, seed=0).spec


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "CartPole-v0", "Pendulum-v1"])
def test_contract(env_id):
    check_env(environments.make(env_id, 3, seed=0, max_steps=20), 60)


def test_max_steps_truncates_and_the_next_row_is_a_reset():
    rows = fall(max_steps=7, steps=16)
    time = np.array([*range(8), *range(8), 0])
    for b in range(3):
        np.testing.assert_array_equal(rows.first[:, b], time == 0)
        np.testing.assert_array_equal(rows.last[:, b], time == 7)
    assert not rows.terminal.any() and (rows.discount == 1).all()
    assert (rows.reward[rows.first] == 0).all() and (rows.reward[rows.last] != 0).all()
    # The final observation goes on from the one before; the reset row is a new lander in the middle.
    x = rows.observation[..., 0]
    assert (np.abs(x[0]) < 0.01).all() and (np.abs(x[8]) < 0.01).all()
    assert (np.abs(x[7]) > np.abs(x[6])).all() and (np.abs(x[7]) < 2 * np.abs(x[6])).all()


def test_a_crash_is_terminal_with_its_final_observation():
    rows = fall()
    assert rows.terminal.any(0).all() and (rows.discount == np.where(rows.terminal, 0, 1)).all()
    assert (rows.reward[rows.terminal] == -100).all()
    final = rows.observation[rows.terminal]
    on_the_ground, far_out = np.abs(final[:, 1]) < 0.4, np.abs(final[:, 0]) >= 1
    assert (on_the_ground | far_out).all(), "the last observation of a crash is not where landers crash"
    np.testing.assert_array_equal(rows.terminal, rows.last)


def test_a_crash_on_the_last_allowed_step_is_reported_as_truncation_only():
    """This is EnvPool's behavior, which the adapter documents; if EnvPool changes it, change the documentation."""
    death = int(np.argmax(fall().terminal[:, 0]))
    assert fall(max_steps=death + 1).terminal[death, 0]
    rows = fall(max_steps=death)
    assert rows.last[death, 0] and rows.reward[death, 0] == -100
    assert not rows.terminal[death, 0] and rows.discount[death, 0] == 1


def test_rows_are_in_the_order_of_the_environments_for_any_number_of_threads():
    alone = rollout(environments.make("LunarLander-v3", 6, seed=9, num_threads=1), 150)
    assert_same_rows(alone, rollout(environments.make("LunarLander-v3", 6, seed=9, num_threads=4), 150))
    one = rollout(
        EnvPoolEnv(EnvRequest.of("LunarLander-v3"), registry.seeds(9, "train", 6)[4:5]), 60, np.zeros((60, 1))
    )
    six = rollout(environments.make("LunarLander-v3", 6, seed=9), 60, np.zeros((60, 6)))
    np.testing.assert_array_equal(one.observation[:, 0], six.observation[:, 4])


def test_no_start_of_an_evaluation_occurs_in_training():
    starts = {}
    for role in ("train", "evaluation"):
        rows = rollout(environments.make("LunarLander-v3", 32, seed=0, role=role, max_steps=3), 200)
        starts[role] = {row.tobytes() for row in rows.observation[rows.first]}
        assert len(starts[role]) == rows.first.sum(), f"two episodes of {role} begin alike"
    assert not starts["train"] & starts["evaluation"]


def test_words_are_the_nearest_single_numbers_and_back():
    """Ties, overflow, infinities and NaN as NumPy has them; numbers too small for a normal float32 become 0."""
    generator = np.random.default_rng(0)
    random = generator.normal(size=4000) * 10.0 ** generator.integers(-33, 39, 4000)
    ties = (1 + (2 * np.arange(8) + 1) * 2.0**-24) * 2.0 ** generator.integers(-120, 120, 8)
    most = float(np.finfo(np.float32).max)
    special = [0.0, -0.0, np.inf, -np.inf, 1e300, most, most * (1 + 2.0**-25), -most * (1 + 2.0**-24), np.nan]
    wide = np.concatenate([random, ties, special])
    words = wide.view(np.uint32).reshape(-1, 2)
    with np.errstate(over="ignore"):
        expected = wide.astype(np.float32)
    found = np.asarray(jax.jit(float64.from_words)(words))
    np.testing.assert_array_equal(found.view(np.uint32)[:-1], expected.view(np.uint32)[:-1])
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(expected[np.abs(wide) > most * (1 + 2.0**-25)]).all(), "some numbers are beyond float32"
    back = np.ascontiguousarray(jax.jit(float64.to_words)(expected)).view(np.float64)[:, 0]
    np.testing.assert_array_equal(back, expected.astype(np.float64))
    tiny = np.array([1e-39, -1e-310, 5e-324])
    assert (np.asarray(jax.jit(float64.from_words)(tiny.view(np.uint32).reshape(-1, 2))) == 0).all()
    assert (np.ascontiguousarray(jax.jit(float64.to_words)(tiny.astype(np.float32))).view(np.float64) == 0).all()


def test_mujoco_has_the_rows_of_the_pool_in_python():
    """The pool itself gives float64 and takes float64; actions and rows of a compiled scan are the same numbers."""
    env = environments.make("HalfCheetah-v4", 3, seed=4, max_steps=25)
    rows = rollout(env, 60)
    env.close()
    seeds = registry.seeds(4, "train", 3)
    pool = envpool.make_gymnasium("HalfCheetah-v4", num_envs=3, seed=seeds, max_episode_steps=25)
    assert pool.spec.state_array_spec["obs"].dtype == np.float64 == pool.spec.action_array_spec["action"].dtype
    observation, _ = pool.reset()
    assert rows.observation.dtype == np.float32 and (rows.first.sum(0) == 3).all() and not rows.terminal.any()
    for t, key in enumerate(jax.random.split(jax.random.key(0), 60)):
        np.testing.assert_array_equal(rows.observation[t], observation.astype(np.float32))
        action = random_actions(env.spec, key, jax.tree.map(lambda x, t=t: x[t], rows))
        observation, reward, _, truncated, _ = pool.step(np.asarray(action, np.float64))
        np.testing.assert_array_equal(rows.reward[t + 1], reward)
        np.testing.assert_array_equal(rows.last[t + 1], truncated)
    pool.close()


def test_mujoco_by_groups_of_frames_and_as_a_dictionary():
    env = environments.make("Hopper-v5", 2, seed=0, action_repeat=2, max_steps=40)
    check_env(env, 30)
    control = environments.spec("CheetahRun-v1", backend="envpool")
    assert registry.describe(control.observation) == "{position: float32 (8,), velocity: float32 (9,)}"


def test_integers_of_64_bits_are_an_error(monkeypatch):
    array = SimpleNamespace(dtype=np.dtype(np.int64))
    native = SimpleNamespace(state_array_spec={"obs": array}, action_array_spec={})
    monkeypatch.setattr(envpool, "make_spec", lambda *_, **__: native)
    with pytest.raises(UnsupportedEnvironment, match="values of the type int64; use backend=gymnasium"):
        env_spec(EnvRequest.of("Pendulum-v1"))


def test_a_closed_pool_is_an_error():
    env = environments.make("LunarLander-v3", 2, seed=0)
    state, _ = env.reset()
    env.close()
    with pytest.raises(RuntimeError, match="the LunarLander-v3 pool is closed"):
        env.step(state, jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("repeat", [2, 3])
def test_repeated_actions_are_those_of_single_steps_by_hand(repeat):
    """Rewards are summed up to the end, the last row is kept, and the first row of an episode is not acted on."""
    steps, envs = 130, 5
    actions = np.random.default_rng(repeat).integers(0, 4, (steps, envs))
    env = environments.make("LunarLander-v3", envs, seed=2, action_repeat=repeat, max_steps=60, num_threads=3)
    assert (env.spec.action_repeat, env.spec.max_steps) == (repeat, 60)
    rows = rollout(env, steps, actions)
    env.close()
    lengths = set()
    for index, seed in enumerate(registry.seeds(2, "train", envs)):
        pool = envpool.make_gymnasium("LunarLander-v3", num_envs=1, seed=[seed], max_episode_steps=60 * repeat)
        observation, _ = pool.reset()
        np.testing.assert_array_equal(rows.observation[0, index], observation[0])
        ended, frames = False, 0
        for t in range(steps):
            total, first = 0.0, ended
            for _ in range(repeat):
                observation, reward, terminal, truncated, _ = pool.step(actions[t, index : index + 1])
                total, frames = total + float(reward[0]), 0 if first else frames + 1
                ended = bool(terminal[0] or truncated[0])
                if first or ended:
                    break
            lengths |= {frames} if ended else set()
            row = jax.tree.map(lambda x, t=t, index=index: x[t + 1, index], rows)
            np.testing.assert_array_equal(row.observation, observation[0])
            assert row.reward == pytest.approx(total, rel=1e-5, abs=1e-5)
            assert (bool(row.first), bool(row.last)) == (first, ended)
            assert bool(row.terminal) == bool(terminal[0] and not truncated[0])
        pool.close()
    assert {length % repeat for length in lengths} == set(range(repeat)), "episodes end anywhere within a repetition"


def test_the_rows_of_repeated_actions_do_not_depend_on_threads_or_on_a_reset():
    rows = [
        rollout(environments.make("LunarLander-v3", 6, seed=9, action_repeat=3, num_threads=threads), 80)
        for threads in (1, 4)
    ]
    assert_same_rows(*rows)


def test_a_program_outlives_its_python_object():
    script = (
        "import gc, jax, jax.numpy as jnp\n"
        "from bircher.envs import registry\n"
        "from bircher.envs.config import EnvRequest\n"
        "env = registry.make(EnvRequest.of('LunarLander-v3', num_envs=4), seed=1)\n"
        "state, row = env.reset()\n"
        "action = jnp.zeros(4, jnp.int32)\n"
        "program = jax.jit(env.step).lower(state, action).compile()\n"
        "del env\n"
        "gc.collect()\n"
        "for _ in range(50):\n"
        "    state, row = program(state, action)\n"
        "print(float(row.observation[0, 1]) < 1.2)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip() == "True", result.stderr


def test_image_observations_stay_bytes():
    _, timestep = environments.make("CarRacing-v3", 1, seed=0).reset()
    assert timestep.observation.shape == (1, 96, 96, 3) and timestep.observation.dtype == jnp.uint8
    assert jax.tree.leaves(environments.spec("CarRacing-v3").observation)[0].dtype == jnp.uint8


def test_grid_worlds_have_dictionaries_and_their_own_limits():
    """A registered limit of 0, as BabyAI has, is neither none nor at once: the environment truncates by itself."""
    for env_id, limit, length, mission in (
        ("MiniGrid-DoorKey-5x5-v0", 250, 250, 96),
        ("BabyAI-GoToRedBallNoDists-v0", None, 64, 512),
    ):
        env = environments.make(env_id, 2, seed=0)
        shapes = {name: (part.shape, str(part.dtype)) for name, part in env.spec.parts.items()}
        expected = {"direction": ((1,), "int32"), "image": ((7, 7, 3), "uint8"), "mission": ((mission,), "uint8")}
        assert shapes == expected and env.spec.action == Discrete(7) and env.spec.max_steps == limit
        rows = rollout(env, length + 1, np.zeros((length + 1, 2)))  # it turns around
        assert (rows.last.sum(0) == 1).all() and rows.last[length].all() and not rows.terminal.any()
        assert rows.first[length + 1].all() and (rows.discount == 1).all()
        turns = np.diff(rows.observation["direction"][:5, 0, 0])
        assert (turns % 4 == 3).all()
        (picture, _) = env.pictures()
        assert picture.ndim == 3 and picture.shape[-1] == 3 and len(np.unique(picture)) > 3
        env.close()
    short = environments.make("BabyAI-GoToRedBallNoDists-v0", 2, seed=0, max_steps=5)
    rows = rollout(short, 5, np.zeros((5, 2)))
    assert short.spec.max_steps == 5 and rows.last[5].all() and not rows.last[:5].any()
    check_env(short, 20)


def test_grid_worlds_have_presets_and_are_listed():
    names = {line.id: line for line in registry.list_environments("DoorKey")}
    assert names["MiniGrid-DoorKey-8x8-v0"].preset == "minigrid_exploration"
    assert names["MiniGrid-DoorKey-5x5-v0"].preset == "minigrid"
    assert registry.preset_name("MiniGrid-MemoryS7-v0") == "minigrid_memory"
    assert "mission: uint8 (96,)" in names["MiniGrid-DoorKey-8x8-v0"].observation
    for env_id in ("BabyAI-BossLevel-v0", "MiniGrid-Fetch-5x5-N2-v0", "MiniGrid-LockedRoom-v0"):
        assert registry.preset_name(env_id) == "babyai" and registry.backend_of(env_id) == "envpool"
    assert registry.preset_name("MiniGrid-KeyCorridorS3R1-v0") == "minigrid"
