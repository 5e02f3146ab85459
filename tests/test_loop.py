"""The loops: iterations in one call or many, pure or not, what lags behind what, and what a failure leaves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.envs.config import EnvRequest
from bircher.envs.toys import make_toy
from bircher.replay.base import ReplayConfig
from bircher.training import learner, loops
from bircher.training.optimizer import OptimizerConfig
from bircher.training.rollout import collect_rollout, start_actors
from builders import SMALL, assert_trees_equal, muesli_agent

ENVS, LENGTH = 4, 5
AGENT = muesli_agent(SMALL.model_copy(update={"unroll_steps": 1}))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The loop compiles by itself; its programs run a few times here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Handed:
    """The cliff, said to be pure or not; environment 2 fails from the row `fails_at` on, if that is not negative."""

    def __init__(self, pure: bool):
        self.env = make_toy(EnvRequest.of("toy/cliff"), list(range(ENVS)))
        self.spec, self.num_envs, self.pure, self.fails_at = self.env.spec, ENVS, pure, -1

    def reset(self):
        """Rows of the cliff; the row of the failure goes with the state, so that one program serves all."""
        state, timestep = self.env.reset()
        return (state, jnp.int32(self.fails_at)), timestep

    def step(self, state, action):
        """Where it fails an environment says so, and its reward is no number."""
        state, fails_at = state
        state, timestep = self.env.step(state, action)
        broken = (jnp.arange(ENVS) == 2) & (fails_at >= 0) & (state.count - 1 >= fails_at)
        reward = jnp.where(broken, jnp.nan, timestep.reward)
        return (state, fails_at), timestep._replace(failed=broken, reward=reward)

    def close(self):
        """Nothing is held."""


def made_learner():
    """A learner for the cliff."""
    config = OptimizerConfig(batch_size=4, updates_per_step=2 / 20, learning_rate=1e-2)
    spec = Handed(True).spec
    return learner.Learner(
        AGENT, spec, learner.LearnerConfig(config, ReplayConfig(capacity=200, fraction=0.5), ENVS, LENGTH, 400, 0.1)
    )


@functools.cache
def loop(kind: str = "joined"):
    """A loop's programs, and how to begin it: synchronous as one program or two, or the pipeline."""
    env = Handed(kind == "joined")
    made = made_learner()
    programs = loops.LOOPS["pipeline" if kind == "pipeline" else "synchronous"](AGENT, env, made, LENGTH, 400)
    init = jax.jit(made.init)

    def begin(fails_at: int = -1):
        env.fails_at = fails_at
        start = start_actors(AGENT, env, jax.random.key(1))
        train = init(jax.random.key(0), start.timestep)
        state = programs.begin(train, start)
        return train, state, programs.fresh_progress(train, state)

    return programs, begin


@pytest.mark.slow
def test_the_pipeline_acts_by_the_policy_of_one_rollout_ago():
    """Against a plain loop: r_1 and r_2 by the first parameters, r_3 by those that r_1 taught, and so on."""
    programs, begin = loop("pipeline")
    train, state, progress = begin()
    env, learn = Handed(False), made_learner()
    rollout = jax.jit(
        lambda policy, actor_state, share: collect_rollout(AGENT, env, policy, actor_state, LENGTH, share)
    )
    update = jax.jit(learn.update)
    plain, env.fails_at = train, -1
    acting = [learner.acting_policy(AGENT, plain)] * 2
    seen = [plain.counters.env_steps] * 2
    where = start_actors(AGENT, env, jax.random.key(1))
    for number in range(5):
        where, rows, tally = rollout(acting[number], where, seen[number] / 400)
        if number == 0:
            assert_trees_equal(rows, state.rollout)
        plain, _ = update(plain, rows, tally)
        acting.append(learner.acting_policy(AGENT, plain))
        seen.append(plain.counters.env_steps)
    train, state, _ = advanced(programs, (train, state, progress), 5)
    assert_trees_equal(plain, train)
    assert_trees_equal(rollout(acting[5], where, seen[5] / 400)[1], state.rollout)
    newer = rollout(acting[6], where, seen[6] / 400)[1]
    logits = [rows.extras.per_action["behavior_logits"] for rows in (newer, state.rollout)]
    assert not np.array_equal(*logits)


def learned(train):
    """What a failure must not touch, as NumPy."""
    return jax.tree.map(np.asarray, (train.params, train.target_params, train.optimizer_state, train.agent_state))


def advanced(programs, state, *calls: int):
    for iterations in calls:
        state = programs.advance(*state, iterations)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joined", "split", "pipeline"])
def test_iterations_in_one_call_or_in_many_are_the_same(kind):
    """Bit for bit: parameters, optimizer, replay, keys, counters, environments and the sums."""
    programs, begin = loop(kind)
    once = advanced(programs, begin(), 6)
    often = advanced(programs, begin(), 1, 1, 1, 1, 1, 1)
    unevenly = advanced(programs, begin(), 2, 4)
    assert_trees_equal(once, often)
    assert_trees_equal(once, unevenly)
    train, _, progress = once
    assert int(progress.iterations) == 6 and int(train.counters.learner_steps) == 12
    assert int(progress.tally.env_steps) == int(train.counters.env_steps)
    assert int(progress.tally.episodes) == int(train.counters.episodes) > 0
    assert (int(progress.failed_at), int(progress.tally.failed)) == (-1, -1)


def test_one_program_or_two_learn_the_same():
    """The joined program and the pair take the same decisions; only rounding may tell them apart."""
    one, two = (advanced(loop(kind)[0], loop(kind)[1](), 3) for kind in ("joined", "split"))
    assert_trees_equal(one[0].counters, two[0].counters)
    np.testing.assert_array_equal(one[0].replay.experience.action, two[0].replay.experience.action)
    for a, b in zip(jax.tree.leaves(one[0].params), jax.tree.leaves(two[0].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_metrics_are_sums_over_the_iterations():
    programs, begin = loop()
    state, total = begin(), {}
    for _ in range(3):
        train, start, _ = state
        state = programs.advance(train, start, programs.fresh_progress(train, start), 1)
        for name, value in state[2].metrics.items():
            total[name] = total.get(name, 0.0) + float(value)
    together = advanced(programs, begin(), 3)[2].metrics
    assert {name: float(value) for name, value in together.items()} == pytest.approx(total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["joined", "split", "pipeline"])
def test_a_failure_is_named_with_its_step_and_nothing_learned_is_lost(kind):
    """It comes in the third rollout of a call of five; what was learned in the first two stays."""
    programs, begin = loop(kind)
    healthy = advanced(programs, begin(), 2)[0]
    kept = learned(healthy)
    steps = int(healthy.counters.env_steps)
    train, _, progress = advanced(programs, begin(fails_at=13), 5)
    assert int(progress.tally.failed) == 2
    assert steps < int(progress.failed_at) <= steps + ENVS * LENGTH
    assert_trees_equal(kept, learned(train))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(train.replay.experience))
