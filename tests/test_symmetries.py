"""Boards turned by their symmetries, on the way from the replay to the targets."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents.base import Agent
from bircher.config import config
from bircher.errors import UnsupportedEnvironment
from bircher.replay.base import ReplayConfig
from bircher.replay.batching import apply_symmetries
from bircher.runs import launch, loaded_agent
from bircher.training import learner
from bircher.training.optimizer import OptimizerConfig
from bircher.types import Discrete, EnvSpec, Symmetry, Tally, TimeStep, Trajectory
from builders import ACTIONS, assert_trees_equal, muesli_agent, quick_jit, random_rows
from tiny import SETTINGS

IDENTITY = Symmetry((0, 1, 2, 3, 4, 5), (0, 1, 2))
MIRROR = Symmetry((2, 1, 0, 5, 4, 3), (2, 1, 0))
ROLLED = Symmetry((1, 2, 0, 4, 5, 3), (1, 2, 0))
"""Not its own inverse: action 0 of the turned board is 1 of the board, and action 0 of the board is 2 there."""


def board_rows(seed: int, batch: int, length: int) -> Trajectory:
    """Random rows with boards of 2 x 3 cells and two channels."""
    rows = random_rows(seed, batch, length)
    boards = np.random.default_rng(seed).normal(size=(batch, length + 1, 2, 3, 2))
    return rows._replace(observation=jnp.asarray(boards, jnp.float32))


def turned_by_hand(rows: Trajectory, symmetry: Symmetry) -> Trajectory:
    """Every number moved by itself."""
    boards, legal, logits = (
        np.array(x) for x in (rows.observation, rows.legal_actions, rows.extras.per_action["behavior_logits"])
    )
    moved = np.zeros_like(boards), np.zeros_like(legal), np.zeros_like(logits)
    for new, old in enumerate(symmetry.cells):
        moved[0][:, :, new // 3, new % 3] = boards[:, :, old // 3, old % 3]
    for new, old in enumerate(symmetry.actions):
        moved[1][..., new], moved[2][..., new] = legal[..., old], logits[..., old]
    action = np.vectorize(symmetry.actions.index)(np.asarray(rows.action))
    return rows._replace(
        observation=jnp.asarray(moved[0]), legal_actions=jnp.asarray(moved[1]),
        action=jnp.asarray(action, jnp.int32),
        extras=rows.extras._replace(per_action={"behavior_logits": jnp.asarray(moved[2])}),
    )  # fmt: skip


def test_each_sequence_is_turned_whole_by_one_of_the_symmetries():
    rows = board_rows(0, 40, 5)
    rows = rows._replace(extras=rows.extras._replace(per_row={"search_value": rows.reward + 1}))
    known = IDENTITY, MIRROR, ROLLED
    found = quick_jit(lambda key: apply_symmetries(known, rows, key))(jax.random.key(3))
    by_hand = [turned_by_hand(rows, symmetry) for symmetry in known]
    drawn = set()
    for b in range(40):

        def of(tree, b=b):
            return jax.tree.map(lambda x: x[b], tree)

        fits = [n for n, turn in enumerate(by_hand) if np.array_equal(turn.observation[b], found.observation[b])]
        assert len(fits) == 1
        assert_trees_equal(of(by_hand[fits[0]]), of(found))
        drawn.add(fits[0])
    assert drawn == {0, 1, 2}


def learned(symmetries: tuple[Symmetry, ...], on: bool, rows: Trajectory, agent: Agent):
    """Parameters after three updates with these rows alone."""
    spec = EnvSpec("test/board", jax.ShapeDtypeStruct((2, 3, 2), np.float32), Discrete(ACTIONS), symmetries=symmetries)
    optimizer = OptimizerConfig(batch_size=4, updates_per_step=3 / 32, learning_rate=1e-2)
    made = learner.Learner(
        agent,
        spec,
        learner.LearnerConfig(optimizer, ReplayConfig(capacity=256, fraction=0.0, symmetries=on), 4, 8, 100, 0.1),
    )
    no = jnp.zeros(4, bool)
    start = TimeStep(jnp.zeros((4, 2, 3, 2)), jnp.zeros(4), jnp.ones(4), ~no, no, no, jnp.ones((4, 3), bool), no)
    state = quick_jit(made.init)(jax.random.key(0), start)
    tally = Tally.zero()._replace(env_steps=jnp.int32(32))
    return quick_jit(made.update)(state, rows, tally)[0].params


@pytest.mark.long
def test_the_learner_sees_turned_boards_where_it_is_asked_to():
    """A mirror alone is the same as mirrored rows; the identity alone, or the setting off, changes nothing."""
    agent, rows = muesli_agent(), board_rows(1, 4, 8)
    plain = learned((IDENTITY, MIRROR), False, rows, agent)
    assert_trees_equal(plain, learned((IDENTITY,), True, rows, agent))
    mirrored = learned((MIRROR,), True, rows, agent)
    assert_trees_equal(mirrored, learned((), False, turned_by_hand(rows, MIRROR), agent))
    moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(mirrored), strict=True)]
    assert any(moved)


def test_observations_that_are_not_boards_are_refused(tmp_path: Path):
    composed = config.compose("CartPole-v1", {**SETTINGS, "replay.symmetries": True})
    with pytest.raises(
        UnsupportedEnvironment, match=r"replay.symmetries=true needs a board .*, but CartPole-v1 has none"
    ):
        launch.start(composed, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_run_with_symmetries_can_be_loaded(tmp_path: Path):
    composed = config.compose("tic_tac_toe", {**SETTINGS, "steps": 64, "replay.symmetries": True})
    run = launch.start(composed, out=tmp_path / "run").run()
    action = loaded_agent.load(run.path).act(np.zeros((3, 3, 2), bool))
    assert 0 <= int(action) < 9
