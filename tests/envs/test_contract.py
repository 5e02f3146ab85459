"""Tests of the contract of Gymnasium environments: accepted values, breaches and their sentences."""

from __future__ import annotations

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from broken_environments import Valid, breaking
from gymnasium import spaces
from rollouts import rollout

import environments
from bircher.envs import registry
from bircher.errors import UnsupportedEnvironment

PARTS = spaces.Dict({"eye": spaces.Box(0, 255, (2, 2), np.uint8), "place": spaces.Discrete(3, start=1)})
PAIR = spaces.Tuple([spaces.Box(0, 1, (1,)), spaces.MultiBinary(2)])

BREACHES = {
    "no legal action": (
        breaking(mask=lambda mask: ~mask),
        'info["action_mask"] allows no action in the middle of an episode: allow one, or end the episode',
    ),
    "a short mask": (
        breaking(mask=lambda mask: mask[:3]),
        'info["action_mask"] is an array bool (3,), expected a truth value for each of 4 actions',
    ),
    "a mask with a batch axis": (breaking(mask=lambda mask: mask[None]), 'info["action_mask"] is an array bool (1, 4)'),
    "a mask of words": (breaking(mask=lambda mask: "all"), "info[\"action_mask\"] is 'all', expected a truth value"),
    "a mask of logits": (
        breaking(mask=lambda mask: np.array([0, -np.inf, 0, 0])),
        'info["action_mask"] contains -inf, expected 1 for a legal action and 0 for every other',
    ),
    "info": (breaking(info=lambda info: None), "step returned None as info, expected a dictionary"),
    "NaN as reward": (breaking(reward=lambda reward: np.float32("nan")), "the reward is nan, expected a finite number"),
    "None as reward": (breaking(reward=lambda reward: None), "the reward is None, expected one number"),
    "text as reward": (breaking(reward=lambda reward: "1"), "the reward is '1', expected one number"),
    "two rewards": (breaking(reward=lambda reward: np.ones(2)), "the reward is an array float64 (2,), expected one"),
    "terminated": (breaking(terminated=lambda flag: None), "terminated is None, expected True or False"),
    "truncated": (breaking(truncated=lambda flag: {}), "truncated is an empty dictionary, expected True or False"),
    "a number as a flag": (breaking(terminated=lambda flag: 0.0), "terminated is 0.0, expected True or False"),
    "a larger number": (breaking(terminated=lambda flag: 2), "terminated is 2, expected True or False"),
    "a number below 0": (breaking(truncated=lambda flag: np.int8(-1)), "truncated is -1, expected True or False"),
    "NaN": (breaking(observation=lambda row: row * np.float32("inf")), "the observation contains a number that is"),
    "a batch axis": (
        breaking(observation=lambda row: row[None]),
        "the observation is an array float32 (1, 3), its space has float32 (3,)",
    ),
    "no observation": (breaking(observation=lambda row: None), "the observation is None, its space has float32 (3,)"),
    "ragged": (breaking(observation=lambda row: [[1], 2, 3]), "the observation is a list of 3 values, its space has"),
    "floats for bytes": (
        breaking(spaces.Box(0, 255, (2,), np.uint8), observation=lambda row: row / 2),
        "the observation is an array float64 (2,), its space has uint8 (2,)",
    ),
    "too large for bytes": (
        breaking(spaces.Box(0, 255, (2,), np.uint8), observation=lambda row: [256, 0]),
        "the observation contains 256, which its space's uint8 cannot hold",
    ),
    "outside Discrete": (
        breaking(spaces.Discrete(4, start=2), observation=lambda state: 6),
        "the observation is 6, its space has whole numbers from 2 to 5",
    ),
    "a float for Discrete": (
        breaking(spaces.Discrete(4), observation=lambda state: 1.0),
        "the observation is 1.0, its space has whole numbers from 0 to 3",
    ),
    "outside MultiDiscrete": (
        breaking(spaces.MultiDiscrete([3, 4]), observation=lambda row: np.array([0, 4])),
        "the observation contains 4 at [1], its space has whole numbers from 0 to 3 there",
    ),
    "a part is missing": (
        breaking(PARTS, observation=lambda parts: {"eye": parts["eye"]}),
        "the observation is a dictionary with 'eye', its space is a dictionary with 'eye', 'place'",
    ),
    "a part is wrong": (
        breaking(PARTS, observation=lambda parts: {**parts, "place": 0}),
        "the observation['place'] is 0, its space has whole numbers from 1 to 3",
    ),
    "a tuple is short": (breaking(PAIR, observation=lambda parts: parts[:1]), "its space is a tuple of 2 parts"),
    "NaN in a tuple": (
        breaking(PAIR, observation=lambda parts: (np.full(1, np.nan), parts[1])),
        "the observation[0] contains a number that is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_within_an_episode_is_a_failure_with_index_and_step(name: str) -> None:
    broken, sentence = BREACHES[name]
    made = iter([Valid if broken.observation_space is Valid.observation_space else broken] + [broken] * 3)
    env = environments.make(lambda: next(made)(), 3, seed=0)
    state, row = env.reset()
    for _ in range(3):
        assert not row.failed.any() and env.failure() is None
        state, row = env.step(state, jnp.zeros(3, jnp.int32))
    assert row.failed.all()
    assert env.failure().startswith("environment 0, step 3: ") and sentence in env.failure()


def test_errors_from_a_worker_have_the_index_of_the_environment() -> None:
    broken = breaking(observation=lambda row: row * np.float32("inf"), at=2)

    class Second(broken):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.mine = seed == registry.seeds(0, "train", 3)[2]
            return super().reset(seed=seed, options=options)

        def observation(self):
            return super().observation() if self.mine else Valid.observation(self)

    for workers in (0, 2):
        env = environments.make(Second, 3, seed=0, num_workers=workers)
        rows = rollout(env, 3, np.zeros((3, 3)))
        np.testing.assert_array_equal(rows.failed.all(-1), [False, False, True, True])
        assert env.failure() == "environment 2, step 2: the observation contains a number that is not finite"
        env.close()


def test_the_error_of_a_breach_at_a_later_reset_names_the_reset() -> None:
    class Second(Valid):
        resets = 0

        def reset(self, **kwargs):
            self.resets += 1
            observation, info = super().reset(**kwargs)
            return (observation, info) if self.resets == 1 else observation

    env = environments.make(Second, 1, seed=0)
    rows = rollout(env, 7, np.zeros((7, 1)))
    assert rows.last[5].all() and rows.failed[6].all()
    assert env.failure() == (
        "environment 0, reset after 5 steps: reset returned an array float32 (3,), Gymnasium has 2: observation, info"
    )


def test_equivalent_values_are_accepted() -> None:
    """Accepted are arrays of one number, masks of 0 and 1, lists, wider types, and masks in some steps only."""

    class Loose(Valid):
        def observation(self):
            return [self.time] * 3 if self.time % 2 else np.full(3, self.time, np.float64)

        def info(self):
            masks = {1: [0, 1, 0, 0], 2: np.array([0, 0, 1, 0], np.int8), 3: None, 5: np.zeros(4)}
            return {"action_mask": masks[self.time], "other": self.time} if self.time in masks else {"other": "text"}

        def step(self, action):
            observation, _, terminated, _, info = super().step(action)
            return observation, np.array([2]), np.array([terminated]), np.bool_(False), info

    for workers in (0, 2):
        env = environments.make(Loose, 2, seed=0, num_workers=workers)
        rows = rollout(env, 6, np.zeros((6, 2)))
        env.close()
        assert not rows.failed.any(), env.failure()
        np.testing.assert_array_equal(rows.observation[:, 0, 0], [0, 1, 2, 3, 4, 5, 0])
        np.testing.assert_array_equal(rows.reward[1:, 0], [2, 2, 2, 2, 2, 0])
        np.testing.assert_array_equal(rows.legal_actions[:, 1].sum(-1), [4, 1, 1, 4, 4, 0, 4])


def test_only_some_environments_may_return_a_mask() -> None:
    made = iter([Valid, Valid, breaking(mask=lambda mask: np.eye(4, dtype=bool)[2], at=1)])
    env = environments.make(lambda: next(made)(), 2, seed=0)
    rows = rollout(env, 2, np.zeros((2, 2)))
    np.testing.assert_array_equal(rows.legal_actions[:, 0].sum(-1), [4, 4, 4])
    np.testing.assert_array_equal(rows.legal_actions[:, 1].sum(-1), [4, 1, 4])


class FourValues(Valid):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class ObservationOnly(Valid):
    def reset(self, **kwargs):
        return super().reset(**kwargs)[0]


class WithoutOptions(Valid):
    def reset(self, seed=None):
        return super().reset(seed=seed)


class ARowTooMany(Valid):
    def observation(self):
        return super().observation()[None]


class RaisesInStep(Valid):
    def step(self, action):
        raise KeyError("wheel")


PROBED = {
    FourValues: "step returned 4 values, Gymnasium has 5: observation, reward, terminated, truncated, info"
    " (at its first step)",
    ObservationOnly: "reset returned an array float32 (3,), Gymnasium has 2: observation, info (at its first reset)",
    WithoutOptions: "reset cannot be called as Gymnasium calls it, reset(self, *, seed=None, options=None): "
    "got an unexpected keyword argument 'options' (at its first reset)",
    ARowTooMany: "the observation is an array float32 (1, 3), its space has float32 (3,) (at its first reset)",
    RaisesInStep: "its first step raised KeyError: 'wheel'",
    breaking(
        observation=lambda row: row + np.float32("inf"), at=0
    ): "the observation contains a number that is not finite (at its first reset)",
}


@pytest.mark.parametrize("env", PROBED, ids=lambda env: env.__name__)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_probe_finds_a_breach_inside_any_wrapper(env: type[Valid], wrapped: bool) -> None:
    """Wrappers such as TimeLimit unpack five values themselves."""

    def make():
        return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.RescaleObservation(env(), 0, 1), 9) if wrapped else env()

    source = make if wrapped else env
    with pytest.raises(UnsupportedEnvironment) as told:
        environments.probe(source, seed=0, max_steps=7)
    sentence = PROBED[env]
    if wrapped and env is ObservationOnly:  # the wrapper that unpacks it does not say what it was
        sentence = sentence.replace("an array float32 (3,)", "more than 2 values")
    if not (wrapped and env is ARowTooMany):  # rescaled, it has another shape
        assert str(told.value) == f"{source.__name__} cannot be used: {sentence}"


class Passing(gymnasium.Wrapper):
    """A wrapper that unpacks the values of the environment inside it."""

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info


class Old(Passing):
    """A wrapper of the old API, whose step returns 4 values."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class Six(Passing):
    def step(self, action):
        return *super().step(action), None


class Silent(Passing):
    def step(self, action):
        super().step(action)


class ResetsToNothing(Passing):
    def reset(self, **kwargs):
        super().reset(**kwargs)


class Twenty(Passing):
    """A wrapper with an unrelated error that looks like a wrong number of values."""

    def step(self, action):
        one, two = [1, action, 3]
        return super().step(one + two)


BETWEEN = {
    Old: "step of Old returned 4 values, Gymnasium has 5: observation, reward, terminated, truncated, info",
    Six: "step of Six returned more than 5 values, Gymnasium has 5: observation, reward, terminated, truncated, info",
    Silent: "step of Silent returned an object of type NoneType, Gymnasium has 5: observation, reward, terminated,",
    ResetsToNothing: "reset of ResetsToNothing returned an object of type NoneType, Gymnasium has 2: observation, info",
    Twenty: "its first step raised ValueError: too many values to unpack (expected 2",
}


@pytest.mark.parametrize("wrapper", BETWEEN, ids=lambda wrapper: wrapper.__name__)
def test_a_breach_of_an_inner_wrapper_is_an_error(wrapper: type[Passing]) -> None:
    def make():
        return Passing(wrapper(Passing(Valid())))

    with pytest.raises(UnsupportedEnvironment) as told:
        environments.probe(make, seed=0)
    assert f"make cannot be used: {BETWEEN[wrapper]}" in str(told.value)
    if wrapper in (Old, Six, Silent):
        env = environments.make(make, 2, seed=0)
        assert rollout(env, 2).failed[1].all()
        assert f"environment 0, step 1: {BETWEEN[wrapper]}" in str(env.failure())


def test_a_wrapper_has_access_to_its_own_environment() -> None:
    class Reads(gymnasium.Wrapper):
        def step(self, action):
            observation, _, *rest = self.env.step(action)
            return observation, self.env.time, *rest

    rows = rollout(environments.make(lambda: Reads(Valid()), 1, seed=0), 4)
    np.testing.assert_array_equal(rows.reward[:4, 0], [0, 1, 2, 3])


def test_the_probe_reports_environments_that_cannot_be_repeated() -> None:
    class Global(Valid):
        def observation(self):
            return np.random.rand(3).astype(np.float32)

    class Later(Valid):
        def observation(self):
            return np.float32(np.random.rand(3) * self.time)

    class Own(Valid):
        def observation(self):
            return self.np_random.random(3, np.float32)

    (first,), (later,) = environments.probe(Global, seed=0), environments.probe(Later, seed=0)
    assert first.startswith("Global returns two different first observations for one seed: ")
    assert later.startswith("Later returns two different episodes for one seed and actions: ")
    assert environments.probe(Own, seed=0) == () and environments.probe(Valid, seed=0) == ()
    assert environments.probe("CartPole-v1", seed=0) == () and environments.probe("FrozenLake-v1", seed=0) == ()


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, lambda flag: np.array([flag], np.int8)])
def test_flags_of_0_and_1_are_accepted_with_one_note(kind) -> None:
    class Numbers(Valid):
        def step(self, action):
            observation, reward, terminated, _, info = super().step(action)
            return observation, reward, kind(terminated), kind(0), info

    (sentence,) = environments.probe(Numbers, seed=0)
    assert sentence == "Numbers returns terminated and truncated as 0 or 1, which is read as False or True"
    rows = rollout(environments.make(Numbers, 2, seed=0), 6)
    assert rows.terminal[:, 0].tolist() == [False] * 5 + [True, False] and not rows.failed.any()


def test_a_slow_environment_is_reset_once_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    resets = []

    class Slow(Valid):
        def reset(self, **kwargs):
            resets.append(kwargs["seed"])
            return super().reset(**kwargs)

    environments.probe(Slow, seed=0)
    assert len(resets) == 2 and len(set(resets)) == 1
    monkeypatch.setattr("bircher.envs.gymnasium.SLOW_SECONDS", 0.0)
    environments.probe(Slow, seed=0)
    assert len(resets) == 3


def test_the_probe_takes_legal_actions_only() -> None:
    class OnlyOne(Valid):
        action_space = spaces.Discrete(4, start=-1)

        def info(self):
            return {"action_mask": np.arange(4) == (3 * self.time + 2) % 4}

        def step(self, action):
            assert self.info()["action_mask"][action + 1]
            return super().step(action)

    for seed in range(5):
        assert environments.probe(OnlyOne, seed=seed) == ()
