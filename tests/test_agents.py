"""Several agents through rollout, replay, learner and evaluation: none lost or mixed, and absent ones ignored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.random import key

import bircher
from bircher.agents.base import Agent, Carry
from bircher.config.config import compose
from bircher.envs import registry
from bircher.envs.agents import SharedRewards, by_agent, moment_of, team, to_rows
from bircher.envs.base import blank_where_absent
from bircher.envs.config import EnvRequest
from bircher.errors import UnsupportedEnvironment
from bircher.metrics import describe
from bircher.replay.base import ReplayConfig
from bircher.runs import build, directory
from bircher.runs.logger import agent_returns
from bircher.training import remote_worker
from bircher.training.evaluator import Evaluator
from bircher.training.learner import make_replay
from bircher.training.remote_worker import Part
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import ActOutput, EnvSpec, Policy, TimeStep
from parallel_worlds import LIVES, Alone, Numbered, Roles
from tiny import SETTINGS, Countdown

LENGTH = 5
"""The steps of an episode of `Numbered`."""


def obedient() -> Agent:
    """An agent that does what each row asks for, which raises in the environment if rows are mixed."""

    def act(policy, carry, timestep, key, mode, progress):
        return ActOutput(timestep.observation[:, 3].astype(jnp.int32)), carry

    def nothing(*_args, **_more):
        raise NotImplementedError

    return Agent("obedient", nothing, lambda size: Carry(), act, nothing, nothing, nothing, {}, False)


@pytest.fixture(scope="module")
def rollouts():
    """Three successive rollouts of two environments with four agents each, and the sums over them."""
    env = registry.make(EnvRequest.of(Numbered, num_envs=2), 0)
    collect = jax.jit(lambda state: collect_rollout(obedient(), env, Policy(None, None), state, 4, 0.0))
    state, found = start_actors(obedient(), env, key(0)), []
    for _ in range(3):
        state, rows, tally = collect(state)
        assert env.failure() is None
        found.append(jax.device_get((rows, tally)))
    return found


def test_no_row_is_lost_or_mixed_in_rollouts(rollouts) -> None:
    rows = jax.tree.map(lambda *xs: np.concatenate([x[:, :-1] for x in xs], 1), *[rows for rows, _ in rollouts])
    assert rows.valid.shape == (8, 12)
    for row in range(8):
        agent = row % 4
        begin, end, truncated = LIVES[agent]
        for time in range(12):
            episode, step = divmod(time, LENGTH + 1)
            there = bool(end) and begin <= step <= end
            assert rows.valid[row, time] == there
            assert rows.last[row, time] == (not there or step == end)
            assert rows.first[row, time] == (not there or step == begin)
            if there:
                np.testing.assert_array_equal(rows.observation[row, time, :3], [agent, episode, step])
                assert rows.terminal[row, time] == (step == end and not truncated)
                assert rows.discount[row, time] == (0 if rows.terminal[row, time] else 1)
    for (one, _), (other, _) in zip(rollouts[:-1], rollouts[1:], strict=True):
        np.testing.assert_array_equal(one.observation[:, -1], other.observation[:, 0])


def test_counts_are_those_of_environments(rollouts) -> None:
    tallies = [tally for _, tally in rollouts]
    assert sum(int(tally.env_steps) for tally in tallies) == 2 * 10 and sum(int(t.episodes) for t in tallies) == 4
    assert sum(int(tally.length_sum) for tally in tallies) == 4 * LENGTH
    own = np.array([15, 100 * 2 + 3, 200 * 2 + 3 + 4, 0])
    np.testing.assert_array_equal(sum(tally.agent_returns for tally in tallies), 4 * own)
    assert sum(float(tally.return_sum) for tally in tallies) == 4 * own.sum()
    # The agent that was cut short ended before the others, which terminated.
    assert int(tallies[1].longest) == LENGTH and int(tallies[1].died_at_longest) == 2


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_the_replay_keeps_agents_apart_and_leaves_out_absent_ones(rollouts, exponent: float) -> None:
    config = ReplayConfig(capacity=160, priority_exponent=exponent)
    observation = jax.ShapeDtypeStruct((4,), np.float32)
    replay = make_replay(config, observation, 8, 4, with_absent=True)
    state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0, 0]), rollouts[0][0]))
    add = jax.jit(replay.add)
    for rows, _ in rollouts:
        state = add(state, jax.tree.map(lambda x: jnp.asarray(x[:, :-1]), rows))
    drawn = jax.device_get(jax.jit(lambda k: replay.sample(state, k, 256).rows)(key(1)))
    assert drawn.valid[:, :-1].any(1).all()
    agent, episode, step = np.moveaxis(drawn.observation[..., :3], -1, 0)
    assert set(agent[drawn.valid]) == {0, 1, 2}
    for sequence in range(256):
        there = drawn.valid[sequence]
        assert len(set(agent[sequence][there])) == 1
        time = (episode * (LENGTH + 1) + step)[sequence]
        places = np.flatnonzero(there)
        np.testing.assert_array_equal(np.diff(time[places]), np.diff(places))


def test_evaluations_report_each_agent_and_the_team() -> None:
    def make(count: int, batch: int):
        return registry.make(EnvRequest.of(Numbered, num_envs=count), batch, "eval")

    report = Evaluator(obedient(), make)(Policy(None, None), 3, 0)
    own = {"0": 15.0, "1": 203.0, "2": 407.0, "3": 0.0}
    assert {name: agent.mean for name, agent in report.agents.items()} == own
    assert report.returns == [sum(own.values())] * 3 and report.lengths == [LENGTH] * 3
    fields = report.to_json()
    assert fields["agents"]["2"]["returns"] == [407.0] * 3


PPO = {"optimizer.epochs": 1, "optimizer.minibatches": 1}
def test_parts_of_workers_are_joined_by_environment(rollouts) -> None:
    """The second worker has one environment; its failure is that of the third environment of all."""
    rows, tally = rollouts[0]
    failed = tally._replace(failed=np.int32(0))
    one = jax.tree.map(lambda x: x[:4], rows)
    joined, sums = remote_worker.join([Part(rows, tally, None, None), Part(one, failed, "it broke", None)], 3)
    assert joined.valid.shape == (12, 5) and int(sums.failed) == 2
    np.testing.assert_array_equal(sums.agent_returns, 2 * tally.agent_returns)
    no_action = Part(one, tally._replace(failed=np.int32(1)), None, None)  # beyond its one environment: no legal action
    assert int(remote_worker.join([Part(rows, tally, None, None), no_action], 3)[1].failed) == 5


def test_another_number_of_agents_is_refused() -> None:
    spec = registry.spec(EnvRequest.of("pettingzoo/mpe/simple_spread_v3"))
    build.require_same_spaces(spec, spec)
    with pytest.raises(UnsupportedEnvironment, match="of 3 agents, but .* of 2 agents"):
        build.require_same_spaces(spec, spec._replace(agents=spec.agents[:2]))


SMALL = {
    **SETTINGS, "env.num_envs": 2, "model.memory": "lstm", "agent.normalize_observations": True,
    "optimizer.batch_size": 4, "optimizer.updates_per_step": 1 / 4,
}  # fmt: skip


@pytest.mark.parametrize(("agent", "more"), [
    pytest.param("muesli", {"exploration.kind": "e3b"}, marks=pytest.mark.slow),
    ("ppo", PPO),
    pytest.param("gumbel_muzero", {"search.num_simulations": 2}, marks=pytest.mark.long),
])  # fmt: skip
def test_what_absent_rows_contain_has_no_effect(agent: str, more: dict) -> None:
    """Losses, normalizers and bonuses are the same to the bit, whatever the rows of absent agents contain."""
    settings = {**SMALL, **more, "agent.name": agent}
    if agent == "gumbel_muzero":
        del settings["agent.normalize_observations"]
    config = compose(Numbered, settings)
    env = build.make_env(config, lambda: Numbered(obedient=False), 2, 0, "train")
    parts = build.make_parts(config, env.spec)
    state = start_actors(parts.agent, env, key(1))
    train = parts.init(key(0), state.timestep)
    policy = Policy(train.params, train.agent_state)
    collect = jax.jit(lambda state: collect_rollout(parts.agent, env, policy, state, config.loop.rollout_length, 0.0))
    _, rows, tally = collect(state)
    assert rows.valid.shape == (8, 5) and not rows.valid.all()

    def garbage(x):
        valid = rows.valid.reshape(*rows.valid.shape, *[1] * (x.ndim - 2))
        return x if x.dtype == bool else jnp.where(valid, x, jnp.asarray(3, x.dtype))

    keep = {"first": rows.first, "last": rows.last, "valid": rows.valid, "terminal": rows.terminal}
    other = jax.tree.map(garbage, rows)._replace(**keep, legal_actions=rows.legal_actions)
    update = jax.jit(parts.learner.update)
    (one, metrics), (two, others) = (update(train, rollout, tally) for rollout in (rows, other))
    jax.tree.map(np.testing.assert_array_equal, metrics, others)
    for name in ("params", "target_params", "agent_state", "optimizer_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(one, name), getattr(two, name))
    assert float(metrics["model/gradient_norm"]) > 0


flags = st.lists(st.sampled_from(["absent", "first", "middle", "terminal", "truncated"]), min_size=3, max_size=3)


@given(st.lists(flags, min_size=1, max_size=4))
def test_the_rows_of_an_environment_say_what_its_episode_does(kinds: list[list[str]]) -> None:
    kind = np.array(kinds).reshape(-1)
    valid = kind != "absent"
    reward = jnp.asarray(np.where(kind == "first", 0.0, np.arange(len(kind)) + 1.0), jnp.float32)
    row = blank_where_absent(TimeStep(
        jnp.ones((len(kind), 2)), reward, jnp.asarray(kind != "terminal", jnp.float32), jnp.asarray(kind == "first"),
        jnp.asarray((kind == "terminal") | (kind == "truncated")), jnp.asarray(kind == "terminal"),
        jnp.ones((len(kind), 2), bool), jnp.zeros(len(kind), bool), jnp.asarray(valid),
    ))  # fmt: skip
    moment = moment_of(row, 3)
    for index, own in enumerate(kinds):
        assert moment.first[index] == (set(own) <= {"absent", "first"})
        over = set(own) <= {"absent", "terminal", "truncated"}
        assert moment.last[index] == over
        assert moment.terminal[index] == (over and "truncated" not in own)
    np.testing.assert_array_equal(by_agent(to_rows(jnp.arange(len(kinds)), 3), 3)[:, 1], np.arange(len(kinds)))
    shared = SharedRewards.__new__(SharedRewards)
    shared.spec = EnvSpec("it", None, None, agents=("a", "b", "c"))  # type: ignore[arg-type]
    mean = shared.change(row).reward
    np.testing.assert_allclose(team(mean, 3), team(row.reward, 3), rtol=1e-6)
    receives = ~np.asarray(row.first)
    assert not np.asarray(mean)[~receives].any()
    for own in np.split(np.asarray(mean), len(kinds)):
        assert len(set(own[own != 0])) <= 1


def lines(run) -> list[dict[str, float]]:
    """A run's metrics without those that depend on the machine."""
    own = directory.read_metrics(run.path)
    return [{k: v for k, v in line.items() if not k.startswith("speed/") and k != "wall_seconds"} for line in own]


def total(found: list[dict[str, float]]) -> dict[str, float]:
    """The last line: lines begin where the clock says, counters and losses are the run's."""
    return {name: found[-1][name] for name in ("env_steps", "learner_steps", "episodes")}


@pytest.mark.parametrize("agent", ["muesli", pytest.param("ppo", marks=pytest.mark.slow)])
def test_one_agent_is_exactly_the_single_agent_run(agent: str, tmp_path) -> None:
    """Parameters after training are equal to the bit, and so are the counters."""
    def alone() -> Alone:
        return Alone(Countdown())

    settings = {**SETTINGS, **(PPO if agent == "ppo" else {}), "agent": agent, "steps": 96}
    one = bircher.train(Countdown, out=tmp_path / "one", **settings)
    two = bircher.train(alone, out=tmp_path / "two", **settings)
    assert total(lines(one)) == total(lines(two))
    jax.tree.map(np.testing.assert_array_equal, one.agent.policy, two.agent.policy)
    if len(lines(one)) == len(lines(two)):
        assert lines(one) == lines(two)


@pytest.mark.long
def test_a_team_learns_roles_by_identity_and_shared_rewards(tmp_path) -> None:
    """Both agents see the same, and only the first is paid: without both settings this is not learned."""
    run = bircher.train(
        Roles, agent="ppo", steps=2000, out=tmp_path / "run",
        **{
            "env.num_envs": 16, "loop.rollout_length": 8, "optimizer.minibatches": 4, "optimizer.epochs": 4,
            "optimizer.learning_rate": 1e-2, "model": {"torso_widths": [16], "latent_width": 16},
            "env.share_rewards": True, "env.agent_identity": True, "evaluation.count": 1, "evaluation.episodes": 4,
            "evaluation.gradients": False,
        },
    )  # fmt: skip
    assert bircher.evaluate(run.agent, episodes=8, greedy=True).mean == 2 * Roles.LENGTH
    ones = np.ones(1, np.float32)
    assert run.agent.act({"two": ones, "one": ones}, greedy=True) == {"two": 1, "one": 0}
    np.testing.assert_array_equal(run.agent.act(np.ones((2, 1)), greedy=True), [0, 1])
    with pytest.raises(ValueError, match="needs one observation for each of its 2 agents"):
        run.agent.act(ones)
    with pytest.raises(ValueError, match="no agent 'three'"):
        run.agent.act({"three": ones})
    loaded = bircher.load(run.path, Roles)
    assert loaded.spec.agents == run.agent.spec.agents == ("one", "two")
    assert loaded.spec.anonymous.observation.shape == (1,) and loaded.spec.observation.shape == (3,)
    metrics = directory.read_metrics(run.path)
    names = {name for line in metrics for name in line if "agent_return" in name}
    assert names == {f"{group}/agent_return/{agent}" for group in ("act", "eval") for agent in ("one", "two")}
    assert all(describe(name).name == name for name in names)
    last = [line for line in metrics if "act/agent_return/one" in line][-1]
    own = last["act/agent_return/one"] + last["act/agent_return/two"]
    assert own == pytest.approx(last["act/episode_return"], rel=1e-5)
    assert "last evaluation returns of the agents: one " in agent_returns(metrics)


def test_memory_of_an_agent_that_comes_back_begins_anew(tmp_path) -> None:
    settings = {**SETTINGS, **PPO, "model.memory": "lstm", "steps": 16, "agent": "ppo"}
    agent = bircher.train(lambda: Numbered(obedient=False), out=tmp_path / "run", **settings).agent
    row = np.ones(4, np.float32)
    for both in (True, True, False, True):
        agent.act({0: row, 1: row} if both else {0: row})
    carry = jax.tree.map(np.asarray, agent._carry.memory)
    agent.reset()
    for _ in range(4):
        agent.act({0: row})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), carry, agent._carry.memory)
    agent.reset()
    agent.act({1: row})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), carry, agent._carry.memory)
