"""The LSTM against a plain loop, and its memory: step by step as unrolled, forgetting where an episode begins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from bircher.networks.layers import LSTM, Memory
from bircher.networks.model import Model, ModelConfig
from builders import SPEC, quick_jit

KEY = jax.random.key(0)
BATCH, ROWS, FEATURES, WIDTH, LATENT = 3, 7, 5, 4, 6
RNG = np.random.default_rng(0)
FEATURE_ROWS = jnp.asarray(RNG.normal(size=(BATCH, ROWS, FEATURES)), jnp.float32)
FIRST = jnp.asarray(RNG.uniform(size=(BATCH, ROWS)) < 0.3)
STATE = jnp.asarray(RNG.normal(size=(BATCH, 2 * WIDTH)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_an_lstm_cell_is_its_equations():
    cell = LSTM(FEATURES, WIDTH, KEY)
    wx, b, wh = (np.asarray(x) for x in (cell.from_input.weight, cell.from_input.bias, cell.from_hidden))
    x, state = np.asarray(FEATURE_ROWS[:, 0]), np.asarray(STATE)
    expected = np.zeros_like(state)
    for n in range(BATCH):
        h, c = state[n, :WIDTH], state[n, WIDTH:]
        gates = x[n] @ wx + h @ wh + b
        for u in range(WIDTH):
            i, f, g, o = (gates[k * WIDTH + u] for k in range(4))
            new = sigmoid(f + 1) * c[u] + sigmoid(i) * np.tanh(g)
            expected[n, u], expected[n, WIDTH + u] = sigmoid(o) * np.tanh(new), new
    np.testing.assert_allclose(
        cell.next_state(cell.from_input(FEATURE_ROWS[:, 0]), STATE), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("burn_in", [0, 3])
def test_step_by_step_is_unrolled(burn_in):
    memory = Memory(FEATURES, WIDTH, KEY)
    unrolled = quick_jit(lambda m: m.rows(FEATURE_ROWS, STATE, FIRST, burn_in))(memory)
    state, one = STATE, quick_jit(lambda m, *rest: m(*rest))
    for t in range(ROWS):
        latent, state = one(memory, FEATURE_ROWS[:, t], state, FIRST[:, t])
        np.testing.assert_allclose(unrolled[:, t], latent, rtol=1e-5, atol=1e-6)


def test_a_first_row_forgets_and_others_remember():
    memory = Memory(FEATURES, WIDTH, KEY)
    first = jnp.zeros((BATCH, ROWS), bool).at[:, 3].set(True)
    rows = quick_jit(lambda f, s: memory.rows(f, s, first))
    before, after = rows(FEATURE_ROWS, STATE), rows(FEATURE_ROWS.at[:, 1].add(1.0), STATE + 1.0)
    changed = np.abs(np.asarray(before - after)).max((0, 2))
    assert (changed[:3] > 1e-4).all() and (changed[3:] == 0).all()


def test_no_gradient_reaches_the_rows_that_only_warm_the_memory():
    memory = Memory(FEATURES, WIDTH, KEY)

    def reached(burn_in, row):
        seen = lambda f: memory.rows(f, STATE, jnp.zeros_like(FIRST), burn_in)[:, row:].sum()  # noqa: E731
        return np.abs(np.asarray(quick_jit(jax.grad(seen))(FEATURE_ROWS))).max((0, 2)) > 0

    np.testing.assert_array_equal(reached(0, 4), np.ones(ROWS, bool))
    np.testing.assert_array_equal(reached(3, 4), np.arange(ROWS) >= 3)


@pytest.mark.slow
def test_a_model_encodes_rows_as_it_acts_on_them():
    config = ModelConfig(torso_widths=(8,), latent_width=LATENT, memory="lstm", memory_width=WIDTH)
    model = Model(SPEC, config, KEY)
    observation = jnp.asarray(RNG.normal(size=(BATCH, ROWS, 4)), jnp.float32)
    unrolled, state = model.encode_rows(observation, STATE, FIRST), STATE
    for t in range(ROWS):
        latent, state = model.encode(observation[:, t], state, FIRST[:, t])
        np.testing.assert_allclose(unrolled[:, t], latent, rtol=1e-5, atol=1e-6)
    assert config.start(BATCH).shape == STATE.shape
    assert ModelConfig().start(BATCH) is None


def test_memories_that_cannot_be_are_refused_by_name():
    with pytest.raises(
        ValidationError, match="needs a latent that is a vector, but the latent of torso=grid is a grid"
    ):
        ModelConfig(memory="lstm", torso="grid")
    with pytest.raises(ValidationError, match="burn_in=2 needs a memory: set memory=lstm"):
        ModelConfig(burn_in=2)
