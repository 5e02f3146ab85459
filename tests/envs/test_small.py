"""The small tasks against their rules in plain Python, and the players that their numbers come from."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import environments
from bircher.envs import registry, small
from bircher.envs.base import check_env, random_actions
from bircher.errors import UnsupportedEnvironment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STEPS, COPIES = 300, 12
IDS = tuple(small.TASKS)


@pytest.fixture
def players(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("references")


def trace(env_id: str, player, max_steps: int | None = None):
    """Rows and inner states of copies whose actions are random every other time, and otherwise a player's."""
    env = environments.make(env_id, COPIES, seed=3, max_steps=max_steps)

    def one(carry, key):
        state, timestep = carry
        coin, draw = jax.random.split(key)
        best = jnp.asarray(jax.vmap(player)(state.inner), jnp.int32)
        # The last copies follow the player all the time, so that long episodes are among them.
        random = jax.random.bernoulli(coin, 0.5, (COPIES,)) & (jnp.arange(COPIES) < COPIES - 3)
        action = jnp.where(random, random_actions(env.spec, draw, timestep), best)
        state, timestep = env.step(state, action)
        return (state, timestep), (state.inner, timestep, action)

    state, first = env.reset()
    _, (inner, rows, actions) = jax.jit(lambda c: jax.lax.scan(one, c, jax.random.split(jax.random.key(1), STEPS)))(
        (state, first)
    )
    join = lambda a, b: np.concatenate([np.asarray(a)[None], np.asarray(b)])  # noqa: E731
    return jax.tree.map(join, state.inner, inner), jax.tree.map(join, first, rows), np.asarray(actions), env.spec


# Each rule takes (state before, action, state after, facts) and returns (reward, terminal). It reads what chance
# decided from the state after, and writes it to `facts`, whose means are compared with the probabilities below.


def key(before, action, after, facts):
    ways = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    places = [tuple(int(min(max(c + w, 0), 5)) for c, w in zip(before[0], way, strict=True)) for way in ways]
    place = tuple(map(int, after[0]))
    assert place in places
    if len(set(places)) == 4:
        facts.setdefault("slips", []).append(place != places[action])
    carries = bool(before[1]) or place == (0, 5)
    assert bool(after[1]) == carries
    out = carries and place == (5, 0)
    return float(out), out


def inventory(before, action, after, facts):
    stock, soon, later, day = map(int, before)
    there = min(stock + soon, 12)
    sold = there - int(after[0])
    assert 0 <= sold <= 3
    if there >= 3:
        facts.setdefault("demand", []).append(sold)
    assert tuple(map(int, after[1:])) == (later, action, day + 1)
    return 1000.0 * sold - 500.0 * action - 50.0 * int(after[0]), day == 39


def gates(before, action, after, facts):
    row, gap, column, _ = map(int, before)
    new_row, new_gap, new_column, _ = map(int, after)
    assert new_column == min(max(column + action - 1, 0), 5)
    assert new_row == (0 if row == 6 else row + 1)
    if row == 6:
        facts.setdefault("gap", []).append(new_gap)
    else:
        assert new_gap == gap
    if new_row < 6:
        return 0.0, False
    return (1.0, False) if new_column == gap else (0.0, True)


def hover(before, action, after, facts):
    height, speed, _ = map(float, before)
    facts.setdefault("gust", []).append(200.0 * (float(after[1]) - speed - (0.02 if action else -0.02)))
    assert float(after[0]) == pytest.approx(height + float(after[1]), abs=1e-6)
    off = abs(float(after[0]))
    return 0.001 * (1.0 - min(off, 1.0)), off > 1.0


def sort(before, action, after, facts):
    x = before[0]
    right = action == (2 if (x[0] > 0) == (x[1] > 0) else 0) + (1 if x[2] > 0 else 0)
    run = 0 if right else int(before[1]) + 1
    assert int(after[1]) == run
    return float(right), run == 3


def assembly(before, action, after, facts):
    part, count, stage = map(int, before)
    right = [[0, 1, 2, 3], [2, 0, 3, 1]][stage % 2][part] == action
    assert int(after[1]) == count + right
    facts.setdefault("part", []).append(int(after[0]))
    return (float(count + right), True) if stage == 11 else (0.0, False)


def dock(before, action, after, facts):
    place, velocity, previous = before[0].astype(float), before[1].astype(float), int(before[2])
    done = int(after[2])
    assert done in (action, previous)
    if action != previous:
        facts.setdefault("sticks", []).append(done == previous)
    velocity = velocity + 0.02 * np.array([(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)][done])
    for axis in range(2):
        place[axis] += velocity[axis]
        if abs(place[axis]) > 1.0:
            place[axis], velocity[axis] = np.sign(place[axis]), 0.0
    np.testing.assert_allclose(after[0], place, atol=1e-6)
    np.testing.assert_allclose(after[1], velocity, atol=1e-6)
    docked = bool(np.abs(place).max() < 0.15 and np.abs(velocity).max() < 0.05 - 1e-6)
    return float(docked), docked


def garden(before, action, after, facts):
    ages, reward = [], 0.0
    for plot, age in enumerate(map(int, before[0])):
        if action != plot + 1:
            ages.append(0 if age == 0 else min(age + 1, 9))
        elif age == 0:
            ages.append(1)
            reward = -0.001
        else:
            ages.append(0)
            reward = 0.005 if 6 <= age <= 8 else 0.0
    assert list(map(int, after[0])) == ages
    return reward, int(before[1]) == 39


def collect(before, action, after, facts):
    walls = ["......", ".##.#.", "....#.", ".#....", ".#.##.", "......"]
    place = tuple(map(int, before[0]))
    row, column = (a + b for a, b in zip(place, [(-1, 0), (0, 1), (1, 0), (0, -1)][action], strict=True))
    if 0 <= row < 6 and 0 <= column < 6 and walls[row][column] == ".":
        place = (row, column)
    assert tuple(map(int, after[0])) == place
    apple = tuple(map(int, after[1]))
    assert walls[apple[0]][apple[1]] == "." and apple != place
    if place != tuple(map(int, before[1])):
        assert apple == tuple(map(int, before[1]))
        return 0.0, False
    return 1.0, False


def stick(before, action, after, facts):
    angle, speed, _ = map(float, before)
    facts.setdefault("shake", []).append(200.0 * (float(after[1]) - speed - 0.04 * np.sin(angle) - 0.03 * (action - 1)))
    assert float(after[0]) == pytest.approx(angle + float(after[1]), abs=1e-6)
    return 1000.0, abs(float(after[0])) > 0.5


def crossing(before, action, after, facts):
    light = int(before[1])
    for road in range(2):
        left = int(before[0][road])
        if action == 0 and road == light:
            left = max(left - 1, 0)
        came = int(after[0][road]) - left
        assert came in (0, 1) and int(after[0][road]) <= 10
        if left < 10:
            facts.setdefault(f"cars {road}", []).append(came)
    assert int(after[1]) == (1 - light if action else light)
    facts.setdefault("drift", []).extend((after[2] - 0.95 * before[2]) * before[2])
    return -0.1 * int(after[0].sum()), False


def knapsack(before, action, after, facts):
    value, weight, room, total, time = map(int, before)
    facts.setdefault("value", []).append(int(after[0]))
    facts.setdefault("weight", []).append(int(after[1]))
    if action == 1:
        room, total = room - weight, total + value
    assert tuple(map(int, after[2:4])) == (room, total)
    if room < 0:
        return 0.0, True
    return (float(total), True) if time == 15 else (0.0, False)


RULES = (key, inventory, gates, hover, sort, assembly, dock, garden, collect, stick, crossing, knapsack)
CHANCES = {
    "slips": 0.15, "demand": 1.3, "gap": 2.5, "gust": 0.0, "part": 1.5, "sticks": 0.25, "shake": 0.0, "cars 0": 0.5,
    "cars 1": 0.25, "value": 3.5, "weight": 2.5, "drift": 0.0,
}  # fmt: skip
LIMITS = {
    "small/key": 60, "small/inventory": 40, "small/gates": 48, "small/hover": 100, "small/sort": 20,
    "small/assembly": 12, "small/dock": 80, "small/garden": 40, "small/collect": 50, "small/stick": 200,
    "small/crossing": 100, "small/knapsack": 16,
}  # fmt: skip
REWARD_NOISE = {"small/sort": 0.5, "small/crossing": 0.5}
BLUR = {"small/hover": 0.05, "small/stick": 0.08}


def dots(*places, shape=(6, 6)):
    picture = np.zeros(shape)
    for place in places:
        picture[place] = 1.0
    return picture


def seen(env_id: str, inner):
    """What is observed of a state, without noise."""
    rule, parts = env_id.removeprefix("small/"), [np.asarray(part) for part in inner]
    if rule == "key":
        return [*parts[0] / 5, parts[1]]
    if rule == "inventory":
        return [parts[0] / 12, parts[1] / 3, parts[2] / 3, parts[3] / 40]
    if rule == "gates":
        row, gap, column = map(int, parts[:3])
        walls = dots(*((row, c) for c in range(6) if c != gap), shape=(7, 6))
        return np.stack([walls, dots((6, column), shape=(7, 6))], -1)
    if rule == "hover":
        return [parts[0], 10 * parts[1]]
    if rule == "sort":
        return [*parts[0], parts[1] / 3]
    if rule == "assembly":
        return [*np.eye(4)[parts[0]], parts[2] % 2, parts[2] / 12]
    if rule == "dock":
        return [*parts[0], *10 * parts[1]]
    if rule == "garden":
        return [*np.eye(10)[parts[0]].ravel(), parts[1] / 40]
    if rule == "collect":
        walls = dots((1, 1), (1, 2), (1, 4), (2, 4), (3, 1), (4, 1), (4, 3), (4, 4))
        return np.stack([dots(tuple(parts[0])), dots(tuple(parts[1])), walls], -1)
    if rule == "stick":
        return [4 * parts[0], 10 * parts[1]]
    if rule == "crossing":
        return [*parts[0] / 10, parts[1], *parts[2]]
    return [parts[0] / 6, parts[1] / 4, parts[2] / 12, parts[4] / 16]


def part(tree, step: int, copy: int):
    return jax.tree.map(lambda leaf: leaf[step, copy], tree)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_step_follows_the_rules(rule, players):
    env_id = f"small/{rule.__name__}"
    limit = LIMITS[env_id]
    inner, rows, actions, spec = trace(env_id, players.plan(env_id).player)
    assert spec.max_steps == limit and rows.first[0].all()
    facts, errors, blur, ends = {}, [], [], {"terminal": 0, "truncated": 0}
    for copy in range(COPIES):
        clock = 0
        for step in range(STEPS):
            before, after = part(inner, step, copy), part(inner, step + 1, copy)
            row = part(rows, step + 1, copy)
            blur.append(row.observation - np.asarray(seen(env_id, after)))
            if rows.last[step, copy]:
                assert row.first and row.reward == 0.0 and not row.last
                clock = 0
                continue
            clock += 1
            reward, terminal = rule(before, int(actions[step, copy]), after, facts)
            errors.append(float(row.reward) - reward)
            scale = max(abs(reward), 0.001)
            assert env_id in REWARD_NOISE or float(row.reward) == pytest.approx(reward, abs=1e-4 * scale)
            assert (bool(row.terminal), float(row.discount)) == (terminal, float(not terminal))
            assert bool(row.last) == (terminal or clock == limit)
            ends["terminal"] += terminal
            ends["truncated"] += bool(row.last) and not terminal
    assert np.std(blur) == pytest.approx(BLUR.get(env_id, 0.0), abs=0.05 * BLUR.get(env_id, 1e-5))
    assert np.std(errors) == pytest.approx(REWARD_NOISE.get(env_id, 0.0), abs=0.03)
    assert abs(np.mean(errors)) < 0.05
    for name, values in facts.items():
        assert abs(np.mean(values) - CHANCES[name]) < 4 * np.std(values) / np.sqrt(len(values)), name
        if name in ("gust", "shake"):
            assert np.std(values) == pytest.approx(1.0, abs=0.05)
    by_itself = env_id in ("small/inventory", "small/assembly", "small/garden", "small/knapsack")
    assert (ends["truncated"] > 0) != by_itself
    assert (ends["terminal"] > 0) == (env_id not in ("small/collect", "small/crossing"))


@pytest.mark.parametrize("env_id", IDS)
def test_numbers_come_from_the_players(env_id, players):
    task, made = small.TASKS[env_id], players.plan(env_id)
    random, best = players.play(env_id, made.player, 4096, seed=7)
    assert abs(random.mean - task.random) < 2 * random.margin
    assert abs(best.mean - task.best) <= 2 * best.margin + 2e-3 * abs(task.best)
    if made.best is not None:
        assert task.best == pytest.approx(made.best, rel=2e-3)
    assert task.random < task.threshold < task.best
    assert task.threshold == pytest.approx(0.2 * task.random + 0.8 * task.best)


@pytest.mark.parametrize("env_id", ["small/garden", "small/stick"])
def test_max_steps_truncates_earlier(env_id):
    env = environments.make(env_id, 2, seed=0, max_steps=3)
    assert env.spec.max_steps == 3
    state, timestep = env.reset()
    step, last = jax.jit(env.step), []
    for _ in range(4):
        state, timestep = step(state, jnp.ones(2, jnp.int32))
        last.append(bool(timestep.last[0]))
        assert not timestep.terminal.any()
    assert last == [False, False, True, False]


def test_the_lists_are_disjoint_and_listed():
    assert len(small.CHOOSING) == len(small.REPORTING) == 6
    assert set(small.CHOOSING) | set(small.REPORTING) == set(small.TASKS) == set(registry.SMALL)
    assert all(20_000 <= task.steps <= 100_000 for task in small.TASKS.values())
    assert {line.id for line in registry.list_environments("small/")} == set(small.TASKS)


def test_options_are_refused():
    with pytest.raises(UnsupportedEnvironment, match="small/key does not take the options"):
        environments.make("small/key", 1, seed=0, options={"size": 3})


@pytest.mark.parametrize("env_id", ["small/gates", "small/knapsack"])
def test_the_contract_holds(env_id):
    check_env(environments.make(env_id, 3, seed=0))
