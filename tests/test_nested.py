"""Observations of several arrays, in whole runs and in what surrounds them."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import bircher
from bircher.analysis import model_error
from bircher.config.config import compose
from bircher.errors import ConfigError
from bircher.replay.base import ReplayConfig
from bircher.runs import build, directory, inspect
from bircher.runs.loaded_agent import inputs_of
from bircher.training import learner
from bircher.types import Discrete, EnvSpec, Trajectory
from builders import assert_trees_equal, quick_jit
from tiny import SETTINGS

FAST = {
    "env.num_envs": 16,
    "loop.rollout_length": 8,
    "model": {"torso_widths": [32], "latent_width": 32, "dynamics_widths": [32], "num_atoms": 41, "support": 5.0,
              "unroll_steps": 1, "channels": 4},
    "replay.capacity": 4096,
    "agent.gamma": 0.8,
    "evaluation.count": 0,
}  # fmt: skip


class Riddle(gymnasium.Env):
    """Five questions: which of three parts of the observation gives the answer is told by a fourth.

    The best return is 5, and that of an agent that does not see one of the parts is at most about 4.2.
    """

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (4, 4, 1), np.uint8),
        where=spaces.Tuple([spaces.Discrete(3, start=1), spaces.Dict(number=spaces.Box(-1, 1, (), np.float64))]),
        choice=spaces.MultiDiscrete([3, 2]),
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.time = 0
        return self.ask(), {}

    def ask(self) -> dict[str, Any]:
        where, left, negative, choice = (int(self.np_random.integers(n)) for n in (3, 2, 2, 2))
        self.answer = (left, negative, choice)[where]
        image = np.zeros((4, 4, 1), np.uint8)
        image[:, :2] = 255 * left
        image[:, 2:] = 255 * (1 - left)
        number = np.float64(-0.5 if negative else 0.5)
        return {"image": image, "where": (where + 1, {"number": number}), "choice": np.array([self.time % 3, choice])}

    def step(self, action: int):
        reward = float(action == self.answer)
        self.time += 1
        return self.ask(), reward, self.time == 5, False, {}


@pytest.mark.parametrize(("agent", "steps", "settings"), [
    ("muesli", 6_000, {"optimizer": {"learning_rate": 3e-3, "updates_per_step": 1 / 16, "batch_size": 16}}),
    pytest.param(
        "ppo", 12_000, {"optimizer": {"learning_rate": 3e-3, "minibatches": 4}, "replay.capacity": None},
        marks=pytest.mark.long,
    ),
])  # fmt: skip
def test_a_picture_an_integer_and_numbers_are_learned_from_together(agent, steps, settings, tmp_path):
    run = bircher.train(Riddle, agent=agent, steps=steps, seed=0, out=tmp_path / "run", **{**FAST, **settings})
    assert bircher.evaluate(run.agent, episodes=100, greedy=True).mean > 4.7


class Everything(Riddle):
    """Observations with an empty part, a part of text in bytes, and numbers of 64 bits and one bit."""

    observation_space = spaces.Tuple([
        Riddle.observation_space,
        spaces.Dict(
            flags=spaces.Box(0, 1, (2,), bool), far=spaces.Box(-(10**12), 10**12, (2,), np.int64),
            empty=spaces.Box(0, 1, (0, 2), np.float32), text=spaces.Box(0, 255, (9,), np.uint8),
        ),
    ])  # fmt: skip

    def ask(self) -> Any:
        text = np.frombuffer(f"step {self.time}".encode().ljust(9, b"\0"), np.uint8)
        more = {"flags": np.array([True, False]), "far": np.array([5, self.time]), "text": text}
        return super().ask(), {**more, "empty": np.zeros((0, 2), np.float32)}


HOST = {
    "replay.device": "host", "replay.compressed_bytes": 300, "replay.priority_exponent": 0.6, "loop": "pipeline",
    "env.stack": 2, "env.num_workers": 2, "agent.normalize_observations": True, "model.memory": "lstm",
    "model.memory_width": 4, "model.encoders": {"1": {"text": "text", "far": "ignore"}},
}  # fmt: skip


@pytest.mark.long
def test_a_run_with_everything_is_saved_continued_and_looked_at(tmp_path, capsys):
    """A compressed replay of single frames on the host, a memory, workers, statistics: trained, resumed, loaded."""
    run = bircher.train(Everything, steps=64, out=tmp_path / "run", **{**SETTINGS, **HOST})
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "1.text" in config and "kind: text" in config
    run = bircher.resume(run.path, env=Everything, steps=128)
    agent = bircher.load(run.path, env=Everything)
    assert_trees_equal(agent.policy, run.agent.policy)
    env = Everything()
    seen = [env.reset(seed=1)[0], env.step(0)[0]]
    joined = jax.tree.map(lambda *x: np.concatenate([np.atleast_1d(part) for part in x], -1), *seen)
    assert agent.act(joined) in (0, 1)
    many = jax.tree.map(lambda x: np.stack([x] * 3), joined)
    agent.reset()
    assert agent.act(many, greedy=True).shape == (3,)
    agent.reset()
    assert bircher.evaluate(agent, episodes=4).lengths == [5] * 4
    agent.reset()
    assert np.isfinite(inspect.diagnose(agent, steps=64)["value_error"][0])
    agent.reset()
    assert len(inspect.episode(agent, seed=0)) == 6  # drawn from the picture
    assert "far" not in capsys.readouterr().err


def spec_of(env: type[Riddle]) -> EnvSpec:
    from bircher.envs.specs import observation_spec

    shapes, encoding = observation_spec(env.observation_space)
    return EnvSpec("test/nested", shapes, Discrete(2), encoding=encoding)


def test_a_specification_is_saved_with_its_nesting():
    for env in (Riddle, Everything):
        spec = spec_of(env)
        saved = json.loads(json.dumps(directory.spec_to(spec)))
        assert directory.spec_from(saved) == spec


def test_observations_of_the_environment_are_encoded_alone_and_in_batches():
    spec, env = spec_of(Everything), Everything()
    one = env.reset(seed=0)[0]
    single = inputs_of(spec, list(one))
    assert single.single and single.size == 1
    batch = inputs_of(spec, jax.tree.map(lambda x: np.stack([x, x]), one))
    assert not batch.single and batch.size == 2
    assert_trees_equal(
        jax.tree.map(lambda x: x[0], batch.observation), jax.tree.map(lambda x: x[0], single.observation)
    )
    again = inputs_of(spec, batch.observation)  # as bircher's environments give them
    assert_trees_equal(again.observation, batch.observation)
    assert single.observation[0]["where"][0].tolist() == [[one[0]["where"][0] - 1]]


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda one: one[0], "test/nested has observations of 2 parts, as a tuple or list"),
    (lambda one: (one[0], {**one[1], "more": 1}), "has observations with the keys .*empty.* in 1, not the keys"),
    (lambda one: ({**one[0], "where": (1, 2)}, one[1]), "with the keys number in 0.where.1, not int"),
    (lambda one: ({**one[0], "choice": np.zeros(3)}, one[1]), r"has observations \(2,\) in 0.choice, .* not \(3,\)"),
    (lambda one: ({**one[0], "where": (9, one[0]["where"][1])}, one[1]), "contains 9, expected .* 1 to 3 in 0.where.0"),
    (lambda one: ({**one[0], "choice": np.zeros((4, 2))}, one[1]), "must have one batch size, not 0.choice"),
])  # fmt: skip
def test_an_observation_of_another_nesting_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        inputs_of(spec_of(Everything), change(Everything().reset(seed=0)[0]))


def rows_of(spec: EnvSpec, number: int, envs: int, length: int) -> Trajectory:
    rng, shape = np.random.default_rng(number), (envs, length)

    def draw(like: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.integers(0, 2, (*shape, *like.shape)) * (number + 1), like.dtype)

    no = jnp.zeros(shape, bool)
    return Trajectory(
        jax.tree.map(draw, spec.observation), jnp.full(shape, float(number)), jnp.ones(shape), no, no, no,
        jnp.ones((*shape, 2), bool), jnp.zeros(shape, jnp.int32),
    )  # fmt: skip


def test_a_compressed_replay_gives_back_every_part_and_its_bytes_are_printed():
    spec = spec_of(Everything)
    stored = {}
    for name, settings in (("plain", {}), ("compressed", {"device": "host", "compressed_bytes": 400})):
        config = ReplayConfig.model_validate({"capacity": 64, **settings})
        replay = learner.make_replay(config, spec.observation, num_envs=2, rollout_length=4)
        state = replay.init(jax.tree.map(lambda x: x[0, 0], rows_of(spec, 0, 2, 4)))
        add = quick_jit(replay.add)
        for number in range(4):
            state = add(state, rows_of(spec, number, 2, 4))
        stored[name] = replay, state
    replay, state = stored["compressed"]
    draw = quick_jit(replay.sample, static_argnums=2)(state, jax.random.key(0), 8).rows
    for sequence in range(8):
        for row in range(5):
            number = int(draw.reward[sequence, row])
            written = rows_of(spec, number, 2, 4).observation
            found = jax.tree.map(lambda x, s=sequence, r=row: x[s, r], draw.observation)
            candidates = [jax.tree.map(lambda x, e=e, t=t: x[e, t], written) for e in range(2) for t in range(4)]
            assert any(
                all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found, one)), strict=True))
                for one in candidates
            )
    row_bytes = sum(part.dtype.itemsize * int(np.prod(part.shape)) for part in spec.parts.values())
    assert row_bytes == 16 + 4 + 4 + 8 + 2 + 2 * 4 + 9
    plain_bytes = build.num_bytes(stored["plain"][1].experience.observation)
    assert plain_bytes == 64 * row_bytes


def test_rewards_after_equal_observations_are_those_of_all_parts_together():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (4, 9, 2)).astype(np.float32), rng.integers(0, 2, (4, 9)).astype(np.int32)
    flags = np.zeros((4, 9), bool)
    reward = (first.sum(-1) + second + rng.normal(size=(4, 9))).astype(np.float32)
    rest = (reward, flags + 1.0, flags, flags, flags, np.ones((4, 9, 2), bool), second * 0)
    nested = model_error.measure(Trajectory({"a": first, "b": (second,)}, *rest))
    flat = model_error.measure(Trajectory(np.concatenate([first, second[..., None]], -1), *rest))
    alone = model_error.measure(Trajectory(first, *rest))
    assert nested == flat != alone


def test_encoders_are_set_by_name_at_any_depth():
    given = {"model.encoders.image.width": 9, "model.encoders": {"a.b": "text", "deep": {"c": {"values": 3}}}}
    config = compose("MiniGrid-Empty-5x5-v0", given)
    encoders = config.model.encoders
    assert (encoders["image"].kind, encoders["image"].values, encoders["image"].width) == ("symbols", 16, 9)
    assert encoders["a.b"].kind == "text" and encoders["deep.c"].values == 3
    assert encoders["mission"].kind == "ignore" and compose("BabyAI-GoTo-v0").model.encoders["mission"].kind == "text"
    with pytest.raises(ConfigError, match=r"model.encoders.a.b.width=0 is not possible: expected a whole number"):
        compose("MiniGrid-Empty-5x5-v0", {"model.encoders.a.b.width": 0})
    with pytest.raises(ConfigError, match=r"model.encoders.a.kind=picture is not possible: expected one of auto"):
        compose("MiniGrid-Empty-5x5-v0", {"model.encoders.a": "picture"})
