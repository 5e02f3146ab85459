"""Parallel environments: rows of agents that end, arrive or never act, spaces, masks, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo import AECEnv, ParallelEnv

from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.config import EnvRequest
from bircher.envs.parallel_pool import Agents, ParallelPool, TogetherAgents, make_agents
from bircher.errors import EnvironmentFailure, UnknownEnvironment, UnsupportedEnvironment
from parallel_worlds import ACTIONS, Life, Numbered, Roles, Together

LASTING = [Life(0, 5), Life(0, 5)]


def pool_of(*envs) -> ParallelPool:
    return ParallelPool([lambda env=env, i=i: Agents(env, i, "it", "auto", None) for i, env in enumerate(envs)])


def copied(rows):
    return jax.tree.map(np.copy, rows[0])


lives = st.builds(
    lambda begin, length, truncated: Life(begin, begin + length if length else 0, truncated),
    st.integers(0, 3), st.integers(0, 4), st.booleans(),
)  # fmt: skip


@given(st.lists(lives, min_size=1, max_size=4))
def test_rows_are_those_of_the_agents_lives(others: list[Life]) -> None:
    """Every row of two episodes, for any lives next to one that lasts: who is there, begins, ends, and gets what."""
    everyone = [Life(0, 7), *others]
    count = len(everyone)
    pool = pool_of(Numbered(everyone, frozen_views=True))
    rows = [copied(pool.reset([0]))]
    for _ in range(15):
        wanted = rows[-1].observation[:, 3].astype(int)
        rows.append(copied(pool.step(wanted[None])))
    for number, row in enumerate(rows):
        episode, step = divmod(number, 8)  # 7 actions and a reset
        for agent, (begin, end, truncated) in enumerate(everyone):
            there = begin <= step <= end and end > 0
            assert row.valid[agent] == there
            if not there:
                assert not (row.first[agent] or row.terminal[agent] or row.truncated[agent] or row.reward[agent])
                continue
            np.testing.assert_array_equal(row.observation[agent, :3], [agent, episode, step])
            assert row.first[agent] == (step == begin)
            assert row.reward[agent] == (0 if step == begin else 100 * agent + step)
            assert row.terminal[agent] == (step == end and not truncated)
            assert row.truncated[agent] == (step == end and truncated)
    assert len(rows[0].valid) == count


@pytest.mark.parametrize("max_steps", [None, 3])
def test_arrays_of_all_agents_give_the_rows_of_dictionaries(max_steps: int | None) -> None:
    lives = [Life(0, 5), Life(0, 2), Life(0, 4, truncated=True)]
    pools = [
        ParallelPool([lambda kind=kind, i=i: make_agents(lambda: kind(lives, False), {}, i, "auto", max_steps)
                      for i in range(2)])
        for kind in (Numbered, Together)
    ]  # fmt: skip
    assert type(pools[1].envs[0]) is TogetherAgents and type(pools[0].envs[0]) is Agents
    found = [[copied(pool.reset([0, 1]))] for pool in pools]
    for step in range(14):
        for rows, pool in zip(found, pools, strict=True):
            rows.append(copied(pool.step(np.full((2, 3), step % ACTIONS))))
    for one, other in zip(*found, strict=True):
        valid = one.valid
        np.testing.assert_array_equal(one.observation[valid], other.observation[valid])
        jax.tree.map(np.testing.assert_array_equal, one._replace(observation=0), other._replace(observation=0))


def test_arrays_of_another_shape_and_rewards_that_are_not_finite_are_refused() -> None:
    env = Together(LASTING, obedient=False)
    pool = ParallelPool([lambda: make_agents(lambda: env, {}, 0, "auto", None)])
    pool.reset([0])
    env.rewards_of_all = np.nan
    with pytest.raises(EnvironmentFailure, match="environment 0, step 1: step returned rewards that are not finite"):
        pool.step(np.zeros((1, 2), int))
    env.seen = np.zeros((2, 4), np.float64)
    sentence = r"reset after 1 steps: reset returned observations float64\[2, 4\], expected float32\[2, 4\]"
    with pytest.raises(EnvironmentFailure, match=sentence):
        pool.reset([0])


def test_an_environment_of_several_agents_fulfils_the_protocol() -> None:
    env = registry.make(EnvRequest.of(lambda: Numbered(obedient=False), num_envs=2, max_steps=4), 0)
    assert env.spec.agents == ("0", "1", "2", "3") and env.spec.num_agents == 4
    check_env(env, steps=12)
    _, row = env.reset()
    valid = np.array([True, True, False, False] * 2)
    np.testing.assert_array_equal(row.valid, valid)
    np.testing.assert_array_equal(row.first, np.ones(8))
    np.testing.assert_array_equal(row.last, ~valid)
    assert not np.asarray(row.observation)[~valid].any()


def test_the_limit_of_steps_truncates_everyone() -> None:
    env = Agents(Numbered(obedient=False), 0, "it", "auto", 3)
    pool = ParallelPool([lambda: env])
    pool.reset([0])
    rows = [copied(pool.step(np.zeros((1, 4), int))) for _ in range(3)]
    np.testing.assert_array_equal(rows[2].truncated, [True, False, True, False])
    assert not rows[2].terminal.any()
    assert copied(pool.step(np.zeros((1, 4), int))).first[0]


def test_worker_processes_give_the_same_rows() -> None:
    def rows(workers: int):
        env = registry.make(EnvRequest.of(lambda: Numbered(obedient=False), num_envs=3, num_workers=workers), 0)
        state, row = env.reset()
        found = [row]
        for _ in range(4):
            state, row = env.step(state, jnp.zeros(12, jnp.int32))
            found.append(jax.device_get(row))
        env.close()
        return found

    for one, other in zip(rows(0), rows(2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


class TwoSizes(Roles):
    """Agents whose observations and numbers of actions differ."""

    def observation_space(self, agent):
        return spaces.Box(-2, 1, (1 if agent == "one" else 3,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2 if agent == "one" else 3)

    def _observations(self):
        return {agent: self.observation_space(agent).high for agent in self.possible_agents}


def test_shorter_vectors_are_filled_up_and_further_actions_are_illegal() -> None:
    rows = pool_of(TwoSizes()).reset([0])[0]
    np.testing.assert_array_equal(rows.observation, [[1, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(rows.legal_actions, [[True, True, False], [True, True, True]])


class OtherSpaces(Roles):
    def observation_space(self, agent):
        return spaces.Box(0, 1, (1,), np.float32) if agent == "one" else spaces.Discrete(3)


class Masked(Roles):
    """The first agent's mask is in its observation, as in PettingZoo's classic games."""

    def observation_space(self, agent):
        mask = spaces.Box(0, 1, (2,), np.int8)
        return spaces.Dict({"observation": spaces.Box(0, 1, (1,), np.float32), "action_mask": mask})

    def _observations(self):
        ones = np.ones(1, np.float32)
        masks = {"one": np.array([0, 1], np.int8), "two": np.array([1, 1], np.int8)}
        return {agent: {"observation": ones, "action_mask": masks[agent]} for agent in self.possible_agents}


class MaskedByInfo(Roles):
    def reset(self, seed=None, options=None):
        observations, infos = super().reset()
        return observations, {**infos, "one": {"action_mask": np.array([0, 1], np.int8)}}


@pytest.mark.parametrize("env", [Masked(), MaskedByInfo()])
def test_masks_are_taken_from_observations_and_infos(env: ParallelEnv) -> None:
    rows = pool_of(env).reset([0])[0]
    np.testing.assert_array_equal(rows.legal_actions, [[False, True], [True, True]])
    assert rows.observation.shape == (2, 1)


class Vanishes(Roles):
    def step(self, actions):
        result = super().step(actions)
        self.agents = ["one"]
        return result


class NoObservation(Roles):
    def step(self, actions):
        _, *rest = super().step(actions)
        return {"one": np.ones(1, np.float32)}, *rest


class FourValues(Roles):
    def step(self, actions):
        return super().step(actions)[:4]


class Infinite(Roles):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, {**rewards, "two": np.inf}, *rest


@pytest.mark.parametrize(("env", "sentence"), [
    (Vanishes(), "environment 0, step 1, two: it left env.agents without being terminated or truncated"),
    (NoObservation(), "environment 0, step 1, two: step returned no observation of it"),
    (FourValues(), "environment 0, step 1: step returned 4 values, PettingZoo has 5: observations, rewards, "
                   "terminations, truncations, infos"),
    (Infinite(), "environment 0, step 1, two: the reward is inf, expected a finite number"),
])  # fmt: skip
def test_a_breach_names_the_environment_the_step_and_the_agent(env: ParallelEnv, sentence: str) -> None:
    pool = pool_of(env)
    pool.reset([0])
    with pytest.raises(EnvironmentFailure) as raised:
        pool.step(np.zeros((1, 2), int))
    assert str(raised.value) == sentence


class ContinuousTurns(AECEnv):
    metadata = {"name": "turns"}
    possible_agents = ["one", "two"]

    def action_space(self, agent):
        return spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize(("request_", "words"), [
    (EnvRequest.of(OtherSpaces), "one has Box(0.0, 1.0, (1,), float32), and two has Discrete(3)"),
    (EnvRequest.of(ContinuousTurns), "act in turn, which is converted only where actions are Discrete"),
    (EnvRequest.of(Roles, action_repeat=2), "env.action_repeat=2 is not for environments of several agents"),
    (EnvRequest.of("toy/chain", share_rewards=True), "env.share_rewards=true is for environments of several agents"),
    (EnvRequest.of(Roles, agent_identity=True, stack=2), "env.agent_identity=true adds to single observations"),
])  # fmt: skip
def test_what_cannot_be_is_refused(request_: EnvRequest, words: str) -> None:
    with pytest.raises(UnsupportedEnvironment) as raised:
        registry.make(request_._replace(config=request_.config.model_copy(update={"num_envs": 1})), 0)
    assert words in str(raised.value)


def test_ids_functions_in_modules_and_unknown_names() -> None:
    spread = registry.spec(EnvRequest.of("pettingzoo/mpe/simple_spread_v3"))
    assert spread.agents == ("agent_0", "agent_1", "agent_2") and spread.max_steps == 25
    assert registry.backend_of("mpe2.simple_spread_v3:parallel_env") == "pettingzoo"
    assert registry.spec(EnvRequest.of("parallel_worlds:Roles")).agents == ("one", "two")
    with pytest.raises(UnknownEnvironment, match="did you mean pettingzoo/mpe/simple_spread_v3"):
        registry.backend_of("pettingzoo/mpe/simple_spred_v3")
    assert registry.backend_of("pettingzoo/classic/tictactoe-v3") == "pettingzoo"
    assert registry.backend_of(Roles) == "pettingzoo"


def test_only_the_agent_whose_turn_it_is_chooses() -> None:
    """Tic-tac-toe by turns: the waiting player has one action, which is not the one that is played."""
    env = registry.make(EnvRequest.of("pettingzoo/classic/tictactoe_v3", num_envs=1), 0)
    _, row = env.reset()
    np.testing.assert_array_equal(np.asarray(row.legal_actions).sum(-1), [9, 1])
    _, row = env.step(0, jnp.array([4, 0]))
    np.testing.assert_array_equal(np.asarray(row.legal_actions).sum(-1), [1, 8])
    assert not np.asarray(row.legal_actions)[1, 4]


def test_seeds_are_those_of_each_environment() -> None:
    def first(seed: int) -> np.ndarray:
        env = registry.make(EnvRequest.of("pettingzoo/mpe/simple_spread_v3", num_envs=2), seed)
        return np.asarray(env.reset()[1].observation)

    np.testing.assert_array_equal(first(0), first(0))
    assert (first(0)[:3] != first(0)[3:]).any() and (first(0) != first(1)).any()
    assert registry.probe(EnvRequest.of("pettingzoo/mpe/simple_spread_v3"), 0) == ()
    assert ACTIONS == Numbered().action_space(0).n


def test_a_function_is_called_for_one_kind_only() -> None:
    """What a function makes is known after its first call; a Gymnasium environment is made as often as before."""
    calls = []

    def roles() -> Roles:
        calls.append(1)
        return Roles()

    request = EnvRequest.of(roles, num_envs=2)
    assert registry.backend_of(roles) == "gymnasium" and not calls
    assert registry.make(request, 0).spec.agents == ("one", "two")
    assert registry.backend_of(roles) == "pettingzoo"
