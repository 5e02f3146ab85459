"""Tests of the pgx adapter against pgx itself, stepped by hand, and against games with known results."""

from __future__ import annotations

import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import play

import environments
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.config import EnvRequest
from bircher.envs.pgx import GAMES, PgxEnv
from bircher.errors import UnsupportedEnvironment
from bircher.types import Discrete
from builders import quick_jit

SHAPES = {
    "tic_tac_toe": ((3, 3, 2), 9),
    "connect_four": ((6, 7, 2), 7),
    "othello": ((8, 8, 2), 65),
    "hex": ((11, 11, 4), 122),
    "go_9x9": ((9, 9, 17), 82),
    "gardner_chess": ((5, 5, 115), 1225),
    "2048": ((4, 4, 31), 4),
}
LAST = {"go_9x9": 81}
"""An action that is taken often, a pass, so that random games end earlier."""


def test_observations_and_actions():
    for game, (shape, actions) in SHAPES.items():
        spec = environments.spec(game)
        assert (spec.id, spec.observation.shape, spec.action) == (game, shape, Discrete(actions))
        assert spec.observation.dtype == (np.float32 if game == "gardner_chess" else np.bool_)
        assert spec.num_players == (1 if game == "2048" else 2) and spec.max_steps is None


@pytest.mark.slow
@pytest.mark.parametrize("game", sorted(GAMES))
def test_symmetries_of_a_board_give_the_same_game(game):
    """Observations, legal actions and rewards of random games correspond to those on every symmetric board."""
    spec = environments.spec(game)
    known = {"connect_four": 2, "hex": 2, "othello": 4, "tic_tac_toe": 8, "go_9x9": 8, "go_19x19": 8}
    assert len(spec.symmetries) == known.get(game, 0)
    if not spec.symmetries or game == "go_19x19":
        return
    module, name, arguments = GAMES[game]
    rules = getattr(importlib.import_module(f"pgx.{module}"), name)(**arguments)
    start, step = quick_jit(rules.init), quick_jit(rules.step)
    assert len({symmetry.cells for symmetry in spec.symmetries}) == len(spec.symmetries)
    for number, (cells, actions) in enumerate(spec.symmetries):
        cells, actions = np.array(cells), np.array(actions)
        random = np.random.default_rng(number)
        one = other = start(jax.random.key(0))
        for _ in range(12):
            board = np.asarray(one.observation)
            np.testing.assert_array_equal(
                board.reshape(len(cells), -1)[cells].reshape(board.shape), np.asarray(other.observation)
            )
            np.testing.assert_array_equal(np.asarray(one.legal_action_mask)[actions], other.legal_action_mask)
            np.testing.assert_array_equal(one.rewards, other.rewards)
            if one.terminated:
                break
            action = random.choice(np.flatnonzero(one.legal_action_mask))
            one = step(one, jnp.int32(action))
            other = step(other, jnp.int32(np.flatnonzero(actions == action)[0]))


def stepped(env, actions: np.ndarray):
    """Return the rows [T + 1, B] for actions [T, B]."""
    moves = iter(actions)
    return play(env, lambda _: next(moves), len(actions))


def by_hand(game: str, seed: int, actions: np.ndarray) -> list[tuple]:
    """Return one environment's rows from pgx's own game: reward, discount, first, last, legal actions, observation."""
    module, name, arguments = GAMES[game]
    rules = getattr(importlib.import_module(f"pgx.{module}"), name)(**arguments)
    start, step = quick_jit(rules.init), quick_jit(rules.step)
    keys = [jax.random.fold_in(jax.random.key(seed), count) for count in range(len(actions) + 1)]
    state = start(keys[0])
    rows = [(0.0, 1.0, True, False, state.legal_action_mask, state.observation)]
    for key, action in zip(keys[1:], actions, strict=True):
        if rows[-1][3]:
            state = start(key)
            reward, discount, first = 0.0, 1.0, True
        else:
            mover = int(state.current_player)
            state = step(state, jnp.int32(action), key)
            reward, first = float(state.rewards[mover]), False
            discount = 0.0 if state.terminated else 1.0 if int(state.current_player) == mover else -1.0
        rows.append((reward, discount, first, bool(state.terminated), state.legal_action_mask, state.observation))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("game", "steps"), [
    ("tic_tac_toe", 40), ("connect_four", 90), ("othello", 140), ("hex", 140), ("go_9x9", 90), ("gardner_chess", 150),
    ("2048", 220),
])  # fmt: skip
def test_rows_are_those_of_pgx_stepped_by_hand(game, steps):
    """All rows of random games are equal: rewards, turns, ends, final observations, legal actions and resets."""
    seeds = [3, 4]
    env = PgxEnv(EnvRequest.of(game), seeds)
    generator, step = np.random.default_rng(0), quick_jit(env.step)
    state, timestep = env.reset()
    rows, actions = [timestep], []
    for _ in range(steps):
        legal = np.asarray(timestep.legal_actions)
        action = np.array([generator.choice(np.flatnonzero(each)) for each in legal])
        if game in LAST and generator.uniform() < 0.3:
            action[:] = LAST[game]
        state, timestep = step(state, jnp.asarray(action, jnp.int32))
        rows.append(timestep)
        actions.append(action)
    seen = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)
    for b, seed in enumerate(seeds):
        reward, discount, first, last, legal, observation = zip(
            *by_hand(game, seed, np.array(actions)[:, b]), strict=True
        )
        np.testing.assert_array_equal(seen.reward[:, b], reward)
        np.testing.assert_array_equal(seen.discount[:, b], discount)
        np.testing.assert_array_equal(seen.first[:, b], first)
        np.testing.assert_array_equal(seen.last[:, b], last)
        np.testing.assert_array_equal(seen.terminal[:, b], last)
        np.testing.assert_array_equal(seen.legal_actions[:, b], np.stack(legal))
        np.testing.assert_array_equal(seen.observation[:, b], np.stack(observation))
    assert seen.last.any(), "no game ended"
    assert ((seen.discount == -1).any()) == (env.spec.num_players == 2)
    check_env(Recorded(env.spec, seen), steps)


class Recorded:
    """An environment that replays recorded rows [T + 1, B], so that nothing is compiled a second time."""

    num_envs, pure = 2, True

    def __init__(self, spec, rows):
        self.spec, self.rows = spec, jax.tree.map(jnp.asarray, rows)

    def reset(self):
        return jnp.int32(0), jax.tree.map(lambda leaf: leaf[0], self.rows)

    def step(self, time, action):
        return time + 1, jax.tree.map(lambda leaf: leaf[time + 1], self.rows)

    def close(self):
        pass


@pytest.mark.long  # each takes long to compile
@pytest.mark.parametrize("game", sorted(set(registry.PGX) - set(SHAPES)))
def test_larger_games_keep_the_contract(game):
    assert environments.spec(game).num_players == 2
    check_env(environments.make(game, 2, seed=0, max_steps=7), 20)


@pytest.mark.parametrize(("game", "moves", "reward"), [
    ("tic_tac_toe", [0, 3, 1, 4, 2], 1),  # the first mover has the upper row
    ("tic_tac_toe", [0, 3, 1, 4, 8, 5], 1),  # the second mover has the middle row
    ("tic_tac_toe", [0, 1, 2, 4, 3, 5, 7, 6, 8], 0),
    ("connect_four", [3, 0, 3, 0, 3, 0, 3], 1),
    ("connect_four", [6, 0, 5, 1, 6, 2, 5, 3], 1),  # the second mover, in the lowest row
])  # fmt: skip
def test_games_whose_results_are_known(game, moves, reward):
    """The last reward is that of the last mover; a row has its mover's stones first, whoever pgx calls player 0."""
    end = len(moves)
    rows = stepped(environments.make(game, 8, seed=1), np.repeat(np.array(moves)[:, None], 8, 1))
    assert rows.terminal[end].all() and not rows.last[:end].any()
    np.testing.assert_array_equal(rows.reward, np.where(np.arange(end + 1) == end, reward, 0)[:, None].repeat(8, 1))
    discount = [1.0, *[-1.0] * (end - 1), 0.0]
    np.testing.assert_array_equal(rows.discount, np.array(discount)[:, None].repeat(8, 1))
    stones = rows.observation.sum((-3, -2))
    time = np.arange(end + 1)
    np.testing.assert_array_equal(stones[..., 0], (time // 2)[:, None].repeat(8, 1))
    np.testing.assert_array_equal(stones[..., 1], ((time + 1) // 2)[:, None].repeat(8, 1))


def test_max_steps_truncates_a_game_without_terminating_it():
    env = environments.make("connect_four", 2, seed=0, max_steps=3)
    check_env(env, 9)
    rows = stepped(env, np.array([[0, 1]] * 5))
    np.testing.assert_array_equal(rows.last[:, 0], [False, False, False, True, False, False])
    assert not rows.terminal.any() and (rows.discount[3] == -1).all() and rows.first[4].all()


def test_2048_draws_its_starts_from_the_seeds():
    one, again, other = (environments.make("2048", 16, seed=seed).reset()[1].observation for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert len({np.asarray(board).tobytes() for board in one}) > 8 and (one != other).any()


def test_an_illegal_move_ends_and_loses_the_game():
    rows = stepped(environments.make("tic_tac_toe", 1, seed=0), np.array([[4], [4]]))
    assert rows.terminal[2, 0] and rows.reward[2, 0] == -1
    assert not rows.legal_actions[1, 0, 4] and rows.legal_actions[1, 0].sum() == 8


def test_options_are_passed_to_pgx():
    assert environments.spec("go_9x9", options={"history_length": 1}).observation.shape == (9, 9, 3)
    with pytest.raises(UnsupportedEnvironment, match="hex cannot be made with options {'size': 5}"):
        environments.spec("hex", options={"size": 5})
    with pytest.raises(UnsupportedEnvironment, match="connect_four cannot be made with options.*color"):
        environments.spec("connect_four", options={"color": "red"})


def test_a_game_loads_neither_pictures_nor_other_games():
    script = (
        "import sys, bircher.envs.registry as r; r.make(r.EnvRequest.of('connect_four'), 0); "
        "print([n for n in ('pgx.chess', 'pgx.shogi', 'haiku', 'matplotlib', 'requests') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
