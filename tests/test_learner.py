"""One update, whole: what is drawn, what is counted, the optimizer, and what a failure leaves behind."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flashbax.buffers import trajectory_buffer

from bircher.agents.base import Agent, Schedule
from bircher.agents.unroll import episode_ends
from bircher.replay.base import ReplayConfig
from bircher.replay.batching import crop_sequences, split_sequences
from bircher.training import learner
from bircher.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from bircher.types import (
    ActOutput,
    Batch,
    Counters,
    Discrete,
    EnvSpec,
    Policy,
    PolicyTarget,
    Tally,
    Targets,
    TimeStep,
    Trajectory,
)
from builders import SPEC, assert_trees_equal, muesli_agent, quick_jit, random_rows

ENVS, LENGTH = 4, 3
MARKED = EnvSpec("test/marked", jax.ShapeDtypeStruct((3,), np.float32), Discrete(2))
SLOPE = np.array([3.0, -0.01, 1e-4])


def probe() -> Agent:
    """An agent whose gradient is known and whose metrics say which sequences each update was given.

    Observations are (environment, time, 1 on a rollout's last row, which is never stored).
    """

    def init(key, spec):
        return Policy({"w": jnp.zeros(3)}, {"calls": jnp.zeros(())})

    def act(policy, carry, timestep, key, mode, progress):
        return ActOutput(jnp.zeros(len(timestep.reward), jnp.int32)), carry

    def targets(policy, batch, key, minibatches):
        shape = batch.trajectory.reward[:, 1:].shape
        zeros, none = jnp.zeros(shape), jnp.zeros((shape[0], shape[1] + 1, 1))
        policy_target = PolicyTarget(none.astype(jnp.int32), none)
        # 7 for a fresh sequence, else by its environment.
        seen = batch.trajectory.observation
        priority = jnp.where(seen[:, -1, 2] == 1, 7.0, 0.1 + 0.2 * seen[:, 0, 0])
        result = Targets(zeros, zeros, zeros, policy_target, zeros == 0, priority)
        return result, {"calls": policy.state["calls"] + 1}

    def loss(params, state, batch, target, key, with_metrics):
        seen = batch.trajectory.observation
        env, time, last = seen[..., 0], seen[..., 1], seen[:, -1, 2]
        each = jax.nn.one_hot(env[:, 0].astype(int), ENVS)
        whole = (jnp.diff(time, axis=1) == 1).all(1) & (env == env[:, :1]).all(1) & (time[:, 0] > 0)
        metrics = {
            "fresh": (each * last[:, None]).sum(0),
            "replayed": (each * (1 - last)[:, None]).sum(0),
            "whole": whole.mean(),
            "oldest": time.min(),
            "indexed": ((batch.indices >= 0) == (last == 0)).mean(),
            "importance": (each * batch.importance[:, None]).sum(0),
            "asked": jnp.asarray(with_metrics, jnp.float32),
        }
        value = (params["w"] * SLOPE.astype(np.float32)).sum() * jnp.ones(target.mask.shape)
        return {"slope": value + 0 * batch.trajectory.reward[:, 1:]}, metrics

    encode = lambda policy, rows: rows.observation  # noqa: E731
    return Agent("probe", init, lambda size: (), act, targets, loss, encode, {"slope": 1.0}, True)


def marked_rollout(iteration: int) -> Trajectory:
    """The rollout of one iteration, [E, T + 1]; times begin at 1."""
    shape = (ENVS, LENGTH + 1)
    env = jnp.broadcast_to(jnp.arange(ENVS)[:, None], shape)
    time = jnp.broadcast_to(iteration * LENGTH + 1 + jnp.arange(LENGTH + 1), shape)
    last = jnp.broadcast_to(jnp.arange(LENGTH + 1) == LENGTH, shape)
    no = jnp.zeros(shape, bool)
    observation = jnp.stack([env, time, last], -1).astype(jnp.float32)
    ones = jnp.ones((*shape, 2), bool)
    return Trajectory(observation, jnp.zeros(shape), jnp.ones(shape), no, no, no, ones, env * 0)


def tally(env_steps=ENVS * LENGTH, episodes=0, failed=-1) -> Tally:
    counts = {"env_steps": env_steps, "episodes": episodes, "failed": failed}
    return Tally.zero()._replace(**{name: jnp.int32(count) for name, count in counts.items()})


def first_rows(spec: EnvSpec, num_envs: int) -> TimeStep:
    """What a reset gives."""
    no = jnp.zeros(num_envs, bool)
    legal = jnp.ones((num_envs, spec.num_actions), bool)
    observation = jnp.zeros((num_envs, *spec.observation.shape))
    return TimeStep(observation, jnp.zeros(num_envs), jnp.ones(num_envs), ~no, no, no, legal, no)


@functools.cache
def probe_learner(fraction=0.5, capacity=48, priority_exponent=0.0, importance_exponent=1.0, spec=MARKED, **optimizer):
    """A learner of the probe and its compiled functions."""
    config = OptimizerConfig(**optimizer)
    replay = ReplayConfig(
        capacity=capacity, fraction=fraction, priority_exponent=priority_exponent,
        importance_exponent=importance_exponent,
    )  # fmt: skip
    made = learner.Learner(probe(), spec, learner.LearnerConfig(config, replay, ENVS, LENGTH, 120, 0.25))
    learn = quick_jit(made.update)

    def mean(state, rollout, tally):
        """The probe tells of every update, whether it is asked to or not: what arrives is the sum."""
        state, metrics = learn(state, rollout, tally)
        return state, {name: x if "/" in name else x / made.updates_per_iteration for name, x in metrics.items()}

    return made, quick_jit(made.init)(jax.random.key(0), first_rows(MARKED, ENVS)), mean


PLAIN = {"batch_size": 4, "updates_per_step": 3 / 12, "learning_rate": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "fresh"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 0)])
def test_shares_of_fresh_and_replayed_sequences_are_exact(fraction, fresh):
    """Also that no environment's rollout is used more than once more than another's."""
    made, state, learn = probe_learner(fraction, **PLAIN)
    assert made.updates_per_iteration == 3
    for iteration in range(8):
        state, metrics = learn(state, marked_rollout(iteration), tally())
        used = np.asarray(metrics["fresh"]) * 3
        replayed = np.asarray(metrics["replayed"]).sum() * 3
        if iteration:
            assert used.sum() == pytest.approx(3 * fresh) and replayed == pytest.approx(3 * (4 - fresh))
            assert used.max() - used.min() <= 1 + 1e-4
        else:
            # Nothing whole is stored yet: fresh sequences stand in, never rows of zeros.
            assert used.sum() == pytest.approx(12)
        assert float(metrics["whole"]) == 1.0
        assert float(metrics["oldest"]) > (iteration + 1) * LENGTH - 48 // ENVS


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    PLAIN, {**PLAIN, "updates_per_step": 1.0, "minibatches": 2, "epochs": 3},
])  # fmt: skip
def test_priorities_of_samples_are_corrected_and_those_of_fresh_sequences_are_not(settings):
    """Each weight is the one it came with, or that of its environment's priority; 7 never comes in."""
    made, state, learn = probe_learner(0.5, priority_exponent=0.5, **settings)
    assert made.replay.prioritized
    corrected = 0
    for iteration in range(12):
        state, metrics = learn(state, marked_rollout(iteration), tally())
        weights = np.asarray(state.replay.weights.blocks).reshape(-1)[: made.replay.capacity].reshape(ENVS, -1)
        assert (weights > 0).sum() == ENVS * max(min(12, (iteration + 1) * LENGTH) - LENGTH, 0)
        own = np.sqrt(0.1 + 0.2 * np.arange(ENVS) + 1e-6)[:, None]
        assert ((weights == 0) | (weights == 1) | np.isclose(weights, own, rtol=1e-6)).all()
        corrected += int(np.isclose(weights, own, rtol=1e-6).sum())
        assert float(state.replay.weights.greatest) == 1.0
        if iteration:
            assert float(metrics["indexed"]) == pytest.approx(1.0) and float(metrics["whole"]) == 1.0
            assert 0.3 < float(metrics["target/importance_least"]) <= 1.0
        else:
            assert float(metrics["target/importance_least"]) == 1.0 and float(metrics["target/priority_mean"]) == 7.0
    assert corrected > 50


@pytest.mark.parametrize("settings", [
    PLAIN, {**PLAIN, "updates_per_step": 1.0, "minibatches": 2, "epochs": 3},
    {"batch_size": 2, "minibatches": 2, "epochs": 2, "segment_length": 1, "updates_per_step": 4 / 12},
])  # fmt: skip
def test_one_update_of_a_rollout_is_measured(settings):
    made, state, learn = probe_learner(0.0, **settings)
    _, metrics = learn(state, marked_rollout(0), tally())
    assert float(metrics["asked"]) * made.updates_per_iteration == pytest.approx(1.0)


@pytest.mark.slow
def test_without_priorities_the_program_knows_nothing_of_them():
    """The same program whatever the other exponent is, the same numbers, and nothing more in the state."""
    made, state, learn = probe_learner(0.5, **PLAIN)
    other = probe_learner(0.5, importance_exponent=0.25, **PLAIN)[0]
    on, on_state, _ = probe_learner(0.5, priority_exponent=0.5, **PLAIN)
    inputs = (marked_rollout(0), tally())
    program = str(jax.make_jaxpr(made.update)(state, *inputs))
    assert program == str(jax.make_jaxpr(other.update)(state, *inputs))
    assert "cumsum" not in program and "cumsum" in str(jax.make_jaxpr(on.update)(on_state, *inputs))
    assert not made.replay.prioritized
    assert made.replay.update_priority(state.replay, jnp.zeros(2, jnp.int32), jnp.ones(2)) is state.replay
    assert set(state.replay) == {"experience", "is_full", "current_index"}
    for iteration in range(3):
        state, metrics = learn(state, marked_rollout(iteration), tally())
    assert [name for name in metrics if name.startswith("target/")] == ["target/replay_age"]
    np.testing.assert_allclose(np.asarray(metrics["importance"]).sum(), 4, rtol=1e-6)
    drawn = made.replay.sample(state.replay, jax.random.key(3), 50)
    expected = trajectory_buffer.sample(state.replay, jax.random.key(3), 50, LENGTH + 1, 1).experience
    assert drawn.indices is None and drawn.probabilities is None
    assert_trees_equal(drawn.rows, expected)


def test_targets_once_for_minibatches_and_epochs():
    """One computation of targets serves 2 minibatches in 3 epochs; every sequence comes up in each epoch."""
    made, state, learn = probe_learner(0.5, **{**PLAIN, "updates_per_step": 1.0}, minibatches=2, epochs=3)
    assert made.updates_per_iteration == 12
    for iteration in range(3):
        state, metrics = learn(state, marked_rollout(iteration), tally())
    assert int(state.counters.learner_steps) == 36
    assert float(state.agent_state["calls"]) == 3 * 2
    # 2 fresh sequences in each of 12 updates: 4 of a group, one of each environment, three times over.
    np.testing.assert_allclose(np.asarray(metrics["fresh"]) * 12, 6, rtol=1e-5)
    assert float(metrics["whole"]) == 1.0


@pytest.mark.parametrize(("per_step", "minibatches", "epochs", "updates"), [
    (1 / 12, 1, 1, 1), (0.5, 1, 1, 6), (0.5, 2, 1, 6), (0.5, 2, 2, 8), (1.0, 1, 3, 12),
])  # fmt: skip
def test_updates_follow_the_environments_steps(per_step, minibatches, epochs, updates):
    config = OptimizerConfig(updates_per_step=per_step, minibatches=minibatches, epochs=epochs)
    assert learner.updates_per_iteration(config, 12) == updates


def test_less_than_one_update_is_refused():
    with pytest.raises(ValueError, match="optimizer.updates_per_step=0.01 gives 0.12 updates for a rollout of 12"):
        learner.updates_per_iteration(OptimizerConfig(updates_per_step=0.01), 12)


@pytest.mark.parametrize("action_repeat", [1, 4])
def test_counters_add_up_the_tallies(action_repeat):
    """Reset rows are no decisions: what counts is the tally, not the size of the rollout."""
    _, state, learn = probe_learner(spec=MARKED._replace(action_repeat=action_repeat), **PLAIN)
    for env_steps, episodes in ((12, 0), (9, 3), (10, 2)):
        state, _ = learn(state, marked_rollout(0), tally(env_steps, episodes))
    counters = {name: int(value) for name, value in state.counters._asdict().items()}
    assert counters == {"env_steps": 31, "env_frames": 31 * action_repeat, "learner_steps": 9, "episodes": 5}
    assert all(leaf is not other for leaf in Counters.zero() for other in Counters.zero())


def test_updates_and_target_network_against_a_plain_loop():
    """Adam, its update clipped, a rate that falls to 0 at the end, and the moving average behind it."""
    settings = {**PLAIN, "update_clip": 0.6, "epsilon": 1e-3}
    made, state, learn = probe_learner(**settings)
    total = 3 * 10  # 120 steps are 10 rollouts
    w, target, m, v = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    before = w
    for n in range(total):
        before = w.copy() if n % 3 == 0 else before
        m, v = 0.9 * m + 0.1 * SLOPE, 0.999 * v + 0.001 * SLOPE**2
        step = (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-3)
        # The rate of a rollout's three updates is that of where its 12 steps began.
        w -= 0.5 * (1 - n // 3 * 12 / 120) * np.clip(step, -0.6, 0.6)
        target += 0.25 * (w - target)
        if n % 3 == 2:
            state, metrics = learn(state, marked_rollout(n // 3), tally())
            np.testing.assert_allclose(state.params["w"], w, rtol=1e-3)
            np.testing.assert_allclose(state.target_params["w"], target, rtol=1e-3)
            assert float(metrics["model/gradient_norm"]) == pytest.approx(np.linalg.norm(SLOPE), rel=1e-4)
            assert float(metrics["model/parameter_norm"]) == pytest.approx(np.linalg.norm(w), rel=1e-3)
            assert float(metrics["model/update_norm"]) == pytest.approx(np.linalg.norm(w - before), rel=1e-3)
    last = np.asarray(state.params["w"])
    state, _ = learn(state, marked_rollout(10), tally())
    np.testing.assert_array_equal(state.params["w"], last)  # the rate is 0 now


def hand_adamw(gradients, clip, decay, bound=None, kind="none"):
    """Parameters after AdamW on these gradients, from 1."""
    w, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    for n, gradient in enumerate(gradients):
        if kind == "value":
            gradient = np.clip(gradient, -bound, bound)
        if kind == "norm":
            gradient = gradient * min(1, bound / np.linalg.norm(gradient))
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        step = np.clip((m / (1 - 0.5 ** (n + 1))) / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-8), -clip, clip)
        w = w - (0.1 + (0.02 - 0.1) * min(10 * n / 80, 1)) * (step + decay * w)
    return w


@pytest.mark.parametrize("settings", [
    {}, {"update_clip": 0.3}, {"weight_decay": 0.1}, {"update_clip": 0.3, "weight_decay": 0.5},
    {"gradient_clip": "value", "gradient_clip_bound": 0.7}, {"gradient_clip": "norm", "gradient_clip_bound": 0.7},
])  # fmt: skip
def test_the_optimizer_against_a_plain_loop(settings):
    config = OptimizerConfig(learning_rate=0.1, final_learning_rate=0.02, beta1=0.5, beta2=0.9, **settings)
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=2) * 10.0 ** rng.integers(-2, 2) for _ in range(10)]
    optimizer = make_optimizer(config)
    w = jnp.ones(2)
    state = optimizer.init(w)
    for n, gradient in enumerate(gradients):
        step, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, w)
        w = w - learning_rate(config, jnp.int32(10 * n), 80) * step
    expected = hand_adamw(
        gradients, config.update_clip, config.weight_decay, config.gradient_clip_bound, config.gradient_clip
    )
    np.testing.assert_allclose(w, expected, rtol=1e-4)


def test_default_optimizer_settings_are_the_papers():
    config = OptimizerConfig()
    assert (config.learning_rate, config.final_learning_rate, config.update_clip) == (3e-4, 0.0, 1.0)
    assert (config.weight_decay, config.gradient_clip, config.minibatches, config.epochs) == (0.0, "none", 1, 1)


@functools.cache
def muesli_learner():
    """A small Muesli on random rows, three iterations in."""
    config = OptimizerConfig(batch_size=6, updates_per_step=2 / 32, learning_rate=1e-2)
    made = learner.Learner(
        muesli_agent(), SPEC, learner.LearnerConfig(config, ReplayConfig(capacity=256, fraction=0.5), 4, 8, 10_000, 0.1)
    )
    state = quick_jit(made.init)(jax.random.key(0), first_rows(SPEC, 4))
    learn = quick_jit(made.update)
    for seed in range(3):
        state, _ = learn(state, random_rows(seed, 4, 8), tally(32))
    return made, state, learn


def learned(state):
    return state.params, state.target_params, state.agent_state, state.optimizer_state


@pytest.mark.slow
def test_every_part_learns():
    """Trap 2, through the whole update: after a few, each parameter and each target parameter has moved."""
    made, state, _ = muesli_learner()
    new = quick_jit(made.init)(jax.random.key(0), first_rows(SPEC, 4))
    for one, other in ((state.params, new.params), (state.target_params, new.target_params)):
        paths = jax.tree_util.tree_leaves_with_path(one)
        for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
            assert float(jnp.abs(a - b).max()) > 1e-5, jax.tree_util.keystr(path)
    assert int(state.non_finite) == 0


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_left_out_and_counted():
    """Parameters, optimizer and the advantages' scale stay as they were, and the next rollout is learned from."""
    made, state, learn = muesli_learner()
    rows = random_rows(5, 4, 8)
    poisoned = rows._replace(reward=jnp.full_like(rows.reward, jnp.nan))
    after, _ = learn(state, poisoned, tally(32))
    assert int(after.non_finite) == made.updates_per_iteration
    assert_trees_equal(learned(after), learned(state))
    # The ring now holds the poison, so the next rollout goes to a state that never saw it.
    healthy, metrics = learn(state, rows, tally(32))
    assert int(healthy.non_finite) == 0 and math.isfinite(float(metrics["model/gradient_norm"]))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, healthy.params, state.params))) > 1e-4


@pytest.mark.slow
def test_a_failed_rollout_teaches_nothing_and_leaves_nothing_to_learn_from():
    made, state, learn = muesli_learner()
    rows = random_rows(6, 4, 8)
    broken = rows._replace(
        reward=rows.reward.at[2, 3].set(jnp.nan), observation=rows.observation.at[1, 5:].set(jnp.inf)
    )
    after, _ = learn(state, broken, tally(32, failed=2))
    assert_trees_equal(learned(after), learned(state))
    assert int(after.counters.env_steps) == int(state.counters.env_steps) + 32
    # Another rollout follows, that begins in the middle of an episode.
    following = random_rows(7, 4, 8)
    following = following._replace(first=following.first.at[:, 0].set(False), last=following.last.at[:, 0].set(False))
    later, _ = learn(after, following, tally(32))
    assert int(later.non_finite) == 0
    drawn = made.replay.sample(later.replay, jax.random.key(0), 2000).rows
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(drawn))
    blank = ~drawn.legal_actions.any(-1)
    assert blank.any()
    taught = ~episode_ends(drawn)[:, :-1]
    assert not (taught & blank[:, :-1]).any()
    assert not (taught & blank[:, 1:]).any()


@pytest.mark.slow
def test_a_weight_may_change_over_training():
    """From its start to its end in a straight line over the run's steps, as it is summed and logged."""
    agent = muesli_agent(losses={"entropy": {"weight": 0.4, "final_weight": 0.0}})
    assert "entropy" not in muesli_agent().weights and agent.weights["entropy"] == Schedule(0.4, 0.0)
    config = OptimizerConfig(batch_size=6, updates_per_step=2 / 32)
    made = learner.Learner(
        agent, SPEC, learner.LearnerConfig(config, ReplayConfig(capacity=256, fraction=0.5), 4, 8, 64, 0.1)
    )
    state = quick_jit(made.init)(jax.random.key(0), first_rows(SPEC, 4))
    learn = quick_jit(made.update)
    for expected in (0.4, 0.2, 0.0, 0.0):
        state, metrics = learn(state, random_rows(3, 4, 8), tally(32))
        assert float(metrics["weighted/entropy"]) == pytest.approx(expected * float(metrics["loss/entropy"]), abs=1e-6)
        assert float(metrics["weighted/value"]) == pytest.approx(0.25 * float(metrics["loss/value"]), rel=1e-5)


def test_terms_and_weights_must_have_the_same_names():
    agent = probe()._replace(weights={"slop": 1.0})
    made = learner.Learner(
        agent,
        MARKED,
        learner.LearnerConfig(OptimizerConfig(**PLAIN), ReplayConfig(capacity=48), ENVS, LENGTH, 120, 0.1),
    )
    state = quick_jit(made.init)(jax.random.key(0), first_rows(MARKED, ENVS))
    with pytest.raises(ValueError, match="'slope'.*'slop'"):
        jax.eval_shape(made.update, state, marked_rollout(0), tally())


@pytest.mark.parametrize("with_target", [True, False])
def test_which_network_acts(with_target):
    agent = muesli_agent(acts_with="target" if with_target else "online")
    _, state, _ = muesli_learner()
    policy = learner.acting_policy(agent, state)
    assert_trees_equal(policy.params, state.target_params if with_target else state.params)


@pytest.mark.slow
def test_a_crop_has_rows_of_every_sequence_and_their_targets():
    """Values encode (b, t); wherever a window begins, rows and targets stay together."""
    rows = random_rows(0, 64, 9)
    agent = muesli_agent()
    policy = agent.init(jax.random.key(0), SPEC)
    batch = Batch(rows, jnp.arange(64), jnp.ones(64))
    place = jnp.arange(64)[:, None] * 100 + jnp.arange(10)
    batch = batch._replace(trajectory=rows._replace(reward=place.astype(jnp.float32)))
    targets = agent.targets(policy, batch, jax.random.key(1))[0]
    cut, cut_targets = quick_jit(lambda key: crop_sequences(key, batch, targets, 4))(jax.random.key(2))
    begin = np.asarray(cut.trajectory.reward[:, 0]).astype(int) - 100 * np.arange(64)
    assert set(begin) == set(range(6)), "everywhere, and nowhere beyond"
    for b, t in enumerate(begin):
        for leaf, whole in zip(jax.tree.leaves(cut.trajectory), jax.tree.leaves(batch.trajectory), strict=True):
            np.testing.assert_array_equal(leaf[b], whole[b, t : t + 5])
        np.testing.assert_array_equal(cut_targets.value[b], targets.value[b, t : t + 4])
        np.testing.assert_array_equal(
            cut_targets.policy.weights[b], targets.policy.weights[b, t : t + len(cut_targets.policy.weights[b])]
        )
    np.testing.assert_array_equal(cut_targets.priority, targets.priority)
    whole, whole_targets = crop_sequences(jax.random.key(2), batch, targets, 9)
    assert_trees_equal((whole, whole_targets), (batch, targets))


def test_a_crop_longer_than_a_sequence_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.crop_length=9 is more than a sequence's 8 rows"):
        learner.Learner(
            muesli_agent(),
            SPEC,
            learner.LearnerConfig(OptimizerConfig(crop_length=9, updates_per_step=1.0), ReplayConfig(), 2, 8, 100, 0.1),
        )


@pytest.mark.long
@pytest.mark.parametrize("length", [1, 3, 9])
def test_segments_have_every_transition_once_with_its_targets(length):
    rows, agent = random_rows(0, 5, 9), muesli_agent()
    place = jnp.arange(5)[:, None] * 100 + jnp.arange(10)
    batch = Batch(rows._replace(reward=place.astype(jnp.float32)), jnp.arange(5), jnp.arange(5) / 5)
    targets = agent.targets(agent.init(jax.random.key(0), SPEC), batch, jax.random.key(1))[0]
    cut, cut_targets = quick_jit(lambda: split_sequences(batch, targets, length))()
    assert cut_targets.value.shape == (5 * 9 // length, length)
    begin = np.asarray(cut.trajectory.reward[:, 0]).astype(int)
    assert sorted(begin) == [100 * b + t for b in range(5) for t in range(0, 9, length)]
    for piece, (b, t) in enumerate(divmod(x, 100) for x in begin):
        for leaf, whole in zip(jax.tree.leaves(cut.trajectory), jax.tree.leaves(batch.trajectory), strict=True):
            np.testing.assert_array_equal(leaf[piece], whole[b, t : t + length + 1])
        np.testing.assert_array_equal(cut_targets.value[piece], targets.value[b, t : t + length])
        np.testing.assert_array_equal(cut_targets.policy.weights[piece], targets.policy.weights[b, t : t + length + 1])
        assert cut.indices[piece] == b and float(cut.importance[piece]) == pytest.approx(b / 5)
    assert cut_targets.extras.per_batch == targets.extras.per_batch


def test_every_epoch_deals_out_all_rows_anew():
    """Of 4 environments × 3 rows, 2 epochs of 3 minibatches; the slope's gradient does not depend on which."""
    made, state, learn = probe_learner(
        0.0, batch_size=2, minibatches=2, epochs=2, segment_length=1, updates_per_step=4 / 12, learning_rate=0.5
    )
    assert made.updates_per_iteration == 4
    _, metrics = learn(state, marked_rollout(0), tally())
    # Pieces of one row: each environment's three rows come up once an epoch, in 4 updates of 6 rows.
    np.testing.assert_allclose(np.asarray(metrics["fresh"] + metrics["replayed"]) * 4, np.full(ENVS, 6.0))


@pytest.mark.long
def test_updates_stop_where_the_policy_has_gone_too_far():
    """The whole rest of the group is left out; without a stop the same updates go further."""
    rows = random_rows(0, ENVS, LENGTH)
    learned, steps = {}, {}
    for stop in (None, 1e-9, 1e9):
        config = OptimizerConfig(
            batch_size=4, epochs=5, updates_per_step=5 / 12, learning_rate=0.05, segment_length=3, target_kl=stop
        )
        agent = muesli_agent()
        made = learner.Learner(
            agent, SPEC, learner.LearnerConfig(config, ReplayConfig(capacity=48, fraction=0.0), ENVS, LENGTH, 120, 0.1)
        )
        state = quick_jit(made.init)(jax.random.key(0), first_rows(SPEC, ENVS))
        state, _ = quick_jit(made.update)(state, rows, tally())
        learned[stop], steps[stop] = state.params, int(state.counters.learner_steps)
    assert steps[None] == steps[1e9] == 5 and steps[1e-9] < 5

    def furthest(stop):
        return max(
            jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), learned[None], learned[stop]))
        )

    assert furthest(1e9) < 1e-5 and furthest(1e-9) > 1e-3


def test_a_stop_needs_the_policy_that_acted():
    with pytest.raises(ValueError, match="optimizer.target_kl needs the policy that acted, which probe does not store"):
        probe_learner(**PLAIN, target_kl=0.1)
