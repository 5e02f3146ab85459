"""Rollouts: what the rows hold, the tallies, and how one follows another."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.envs.config import EnvRequest
from bircher.envs.toys import counter_reward, make_toy
from bircher.training.rollout import collect_rollout, describe_failure, start_actors
from bircher.types import Policy, Tally
from builders import assert_trees_equal, muesli_agent, quick_jit, random_model

AGENT = muesli_agent()
NOW = jnp.zeros(())


def setting(name: str, num_envs: int = 3, **options):
    """An environment, a policy for it and a compiled rollout."""
    env = make_toy(EnvRequest.of(name, options=options), list(range(num_envs)))
    state = AGENT.init(jax.random.key(0), env.spec).state
    policy = Policy(random_model(1, spec=env.spec), state)
    program = quick_jit(lambda state, length: collect_rollout(AGENT, env, policy, state, length, NOW), static_argnums=1)
    return env, policy, program, start_actors(AGENT, env, jax.random.key(7))


@pytest.fixture(scope="module")
def cliff():
    return setting("toy/cliff", length=2)


@pytest.fixture(scope="module")
def counter():
    return setting("toy/counter-truncated", length=3)


@pytest.mark.slow
def test_rows_are_where_their_actions_led(cliff):
    """The environment, stepped with the rows' actions, gives the rows; logits are the policy's at each of them."""
    env, policy, program, start = cliff
    state, rows, _ = program(start, 16)
    assert rows.reward.shape == (3, 17)
    env_state, timestep = env.reset()
    step = quick_jit(env.step)
    for t in range(17):
        for name in ("observation", "reward", "discount", "first", "last", "terminal", "legal_actions"):
            np.testing.assert_array_equal(getattr(rows, name)[:, t], getattr(timestep, name), err_msg=f"{name} {t}")
        logits = policy.params.predict(policy.params.represent(timestep.observation)).policy_logits
        np.testing.assert_allclose(rows.extras.per_action["behavior_logits"][:, t], logits, rtol=1e-3, atol=1e-4)
        if t < 16:
            env_state, timestep = step(env_state, rows.action[:, t])
    assert_trees_equal(state.timestep, timestep)
    assert rows.terminal.any() and (rows.last & ~rows.terminal).any()


def test_axes_and_times_are_in_their_places(counter):
    """Trap 3: rewards say environment, time and the action of the row before."""
    _, _, program, start = counter
    _, rows, _ = program(start, 10)
    rows = jax.tree.map(np.asarray, rows)
    for b, t in np.ndindex(3, 11):
        time = t % 4  # three steps, then the reset row
        action = int(rows.action[b, t - 1]) if time else 0
        assert rows.reward[b, t] == (counter_reward(b, time, action) if time else 0.0)
        np.testing.assert_array_equal(rows.observation[b, t], [b, time, action])
        assert (rows.first[b, t], rows.last[b, t], rows.terminal[b, t]) == (time == 0, time == 3, False)


@pytest.mark.parametrize("name", ["cliff", "counter"])
def test_tallies_against_a_plain_loop(name, request):
    """Over three rollouts, whose ends fall inside episodes; the step after an end is no decision."""
    _, _, program, state = request.getfixturevalue(name)
    episode = np.zeros((3, 2))
    for _ in range(3):
        state, rows, tally = program(state, 7)
        expected = {"env_steps": 0, "episodes": 0, "return_sum": 0.0, "length_sum": 0, "last_reward_sum": 0.0}
        ends = []
        for t in range(1, 8):
            for b in range(3):
                if rows.first[b, t]:
                    episode[b] = 0
                    continue
                episode[b] += float(rows.reward[b, t]), 1
                expected["env_steps"] += 1
                if rows.last[b, t]:
                    expected["episodes"] += 1
                    expected["return_sum"] += episode[b, 0]
                    expected["length_sum"] += episode[b, 1]
                    expected["last_reward_sum"] += float(rows.reward[b, t])
                    ends.append((episode[b, 1], bool(rows.terminal[b, t])))
        expected["longest"] = max((length for length, _ in ends), default=0)
        expected["died_at_longest"] = ends.count((expected["longest"], True))
        for field, value in expected.items():
            assert float(getattr(tally, field)) == pytest.approx(value), field
        assert int(tally.failed) == -1
        np.testing.assert_allclose(state.episode_return, episode[:, 0])
        np.testing.assert_array_equal(state.episode_length, episode[:, 1])


def test_tallies_follow_one_another():
    """Sums add up; of the longest episodes only those of the longest of all are counted."""
    short = Tally.zero()._replace(env_steps=jnp.int32(7), longest=jnp.int32(3), died_at_longest=jnp.int32(2))
    long = Tally.zero()._replace(env_steps=jnp.int32(5), longest=jnp.int32(4), died_at_longest=jnp.int32(1))
    failed = Tally.zero()._replace(failed=jnp.int32(6), longest=jnp.int32(4), died_at_longest=jnp.int32(3))
    for tallies, died in (((short, long), 1), ((long, short), 1), ((short, long, failed), 4), ((short, short), 4)):
        total = Tally.zero()
        for tally in tallies:
            total = total.merge(tally)
        assert int(total.died_at_longest) == died
        assert int(total.env_steps) == sum(int(tally.env_steps) for tally in tallies)
        assert int(total.failed) == (6 if failed in tallies else -1)


@pytest.mark.slow
def test_in_games_of_two_the_return_is_the_first_movers():
    """Of a heap of 4 who wins moves first or second; a game of three moves is won by who moved first, others lost."""
    _, _, program, state = setting("toy/nim", num_envs=8, heap=4)
    won = lost = 0
    for _ in range(3):
        before = state
        state, rows, tally = program(state, 7)
        lengths, total, episodes = np.asarray(before.episode_length).copy(), 0.0, 0
        for t in range(1, 8):
            lengths = np.where(rows.first[:, t], 0, lengths + 1)
            for length in lengths[np.asarray(rows.last[:, t])]:
                total += 1 if length % 2 else -1
                won, lost, episodes = won + length % 2, lost + (1 - length % 2), episodes + 1
        assert float(tally.return_sum) == total and int(tally.episodes) == episodes
    assert won and lost
    going = ~np.asarray(state.timestep.last)
    np.testing.assert_array_equal(state.side[going], np.where(state.episode_length % 2, -1, 1)[going])


def test_one_rollout_or_two_are_the_same(cliff):
    """2 x 8 steps are 16, bit for bit; the row where they meet is the same row, its action too."""
    _, _, program, start = cliff
    whole_state, whole, _ = program(start, 16)
    middle, one, _ = program(start, 8)
    end, two, _ = program(middle, 8)
    assert_trees_equal(jax.tree.map(lambda x: x[:, -1], one), jax.tree.map(lambda x: x[:, 0], two))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[:, :-1], b], axis=1), one, two)
    assert_trees_equal(joined, whole)
    assert_trees_equal(end, whole_state)


def test_actions_differ_between_environments_and_steps(cliff):
    _, _, program, start = cliff
    _, rows, _ = program(start, 16)
    action = np.asarray(rows.action)
    assert len({tuple(actions) for actions in action}) == 3
    other = eqx.tree_at(lambda s: s.key, start, jax.random.key(8))
    assert (np.asarray(program(other, 16)[1].action) != action).any()


@pytest.mark.parametrize(("field", "value"), [("reward", jnp.inf), ("observation", jnp.nan)])
def test_a_number_that_is_not_finite_is_flagged_also_on_the_first_row(cliff, field, value):
    """The row that a rollout begins with was seen by nobody: not by a reset, nor by the rollout before."""
    _, _, program, start = cliff
    bad = getattr(start.timestep, field).at[1].set(value)
    broken = eqx.tree_at(lambda s: s.timestep, start, start.timestep._replace(**{field: bad}))
    assert int(program(broken, 16)[2].failed) == 1


class Failing:
    """The cliff, whose environments fail at rows of their own: the later, the lower its index."""

    pure = True

    def __init__(self, rows: tuple[int, ...]):
        self.env = make_toy(EnvRequest.of("toy/cliff"), list(range(len(rows))))
        self.spec, self.num_envs, self.rows = self.env.spec, len(rows), jnp.array(rows)

    def reset(self):
        """Rows of the cliff."""
        return self.env.reset()

    def step(self, state, action):
        """A reward that is not finite at the row of each environment."""
        state, timestep = self.env.step(state, action)
        return state, timestep._replace(reward=jnp.where(state.count - 1 == self.rows, jnp.nan, timestep.reward))

    def close(self):
        """Nothing is held."""


@pytest.mark.parametrize(("rows", "failed"), [((99, 99, 99), -1), ((99, 4, 99), 1), ((5, 3, 99), 1), ((3, 99, 6), 0)])
def test_the_first_environment_to_fail_is_named(cliff, rows, failed):
    _, policy, _, _ = cliff
    env = Failing(rows)
    start = start_actors(AGENT, env, jax.random.key(0))
    _, _, tally = quick_jit(lambda state: collect_rollout(AGENT, env, policy, state, 8, NOW))(start)
    assert int(tally.failed) == failed


def test_a_mask_that_allows_nothing_is_flagged_where_an_action_is_to_be_chosen(cliff):
    _, _, program, start = cliff
    none = start.timestep.legal_actions.at[2].set(False)
    broken = eqx.tree_at(lambda s: s.timestep, start, start.timestep._replace(legal_actions=none))
    code = int(program(broken, 16)[2].failed)
    assert describe_failure(code, 3) == ("environment 2 gave a mask that allows no action in the middle of an episode")
    last = eqx.tree_at(lambda s: s.timestep.last, broken, jnp.ones(3, bool))
    assert int(program(last, 16)[2].failed) == -1
    both = eqx.tree_at(lambda s: s.timestep.reward, broken, broken.timestep.reward.at[1].set(jnp.nan))
    assert describe_failure(int(program(both, 16)[2].failed), 3).startswith("environment 1 gave a reward or obs")
