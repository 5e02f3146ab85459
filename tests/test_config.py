"""The configuration: layers, presets, YAML and back, and what is refused with which sentence."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bircher.agents.actor_critic import MuesliConfig
from bircher.config import settings
from bircher.config.config import AGENTS, DEBUG, Config, compose
from bircher.config.presets import read_preset
from bircher.errors import ConfigError, UnknownEnvironment, UnsupportedEnvironment


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agent: {gamma: 0.5}\nreplay.capacity: 4096\nsteps: 3e4\n")
    config = compose("toy/cliff", ["agent.gamma=0.25", "seed=7"], file)
    assert (config.agent.gamma, config.replay.capacity, config.steps, config.seed) == (0.25, 4096, 30_000, 7)
    preset = read_preset("default", "muesli")
    assert preset["model"]["num_atoms"] == config.model.num_atoms != Config.model_fields["model"].default.num_atoms
    assert config.agent.returns == MuesliConfig.model_validate({}).returns


def test_the_preset_is_found_by_the_environment_and_can_be_chosen(tmp_path: Path) -> None:
    assert compose("CartPole-v1").preset == "cartpole"
    assert compose("toy/cliff").preset == "default"
    assert compose("toy/cliff", ["preset=CartPole"]).preset == "cartpole"
    file = tmp_path / "mine.yaml"
    file.write_text("preset: acrobot\n")
    assert compose("CartPole-v1", (), file).preset == "acrobot"
    assert compose("CartPole-v1", ["preset=default"], file).preset == "default"


def test_the_paper_preset_holds_the_papers_constants() -> None:
    config = compose("Pong-v5", ["preset=paper_base"])
    paper = MuesliConfig.model_validate({"cmpo": {"samples": 16}})
    assert config.agent == paper
    assert (config.optimizer.batch_size, config.loop.rollout_length, config.replay.fraction) == (96, 30, 0.75)
    assert (config.model.num_atoms, config.model.support, config.model.unroll_steps) == (601, 300.0, 5)


@pytest.mark.slow
@given(st.floats(1e-12, 1e3), st.integers(0, 2**31 - 1), st.lists(st.integers(1, 999), min_size=1), st.booleans())
def test_any_values_come_back_exactly(tmp_path_factory, rate, seed, widths, enabled) -> None:
    given = {"optimizer.learning_rate": rate, "seed": seed, "model": {"dynamics_widths": widths}}
    config = compose("toy/cliff", {**given, "losses.value.enabled": enabled})
    assert (config.optimizer.learning_rate, config.seed, config.model.dynamics_widths) == (rate, seed, tuple(widths))
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config


@pytest.mark.slow
@given(st.dictionaries(st.text("abc", min_size=1), st.text() | st.text("0123456789eE+-._x", max_size=6)))
def test_text_options_come_back_as_text(tmp_path_factory, options) -> None:
    config = compose("toy/cliff", {"env.options": options})
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path).env.options == options == compose(None, (), path).env.options


def test_numbers_may_be_written_as_people_write_them() -> None:
    config = compose("toy/cliff", ["steps=2e6", "optimizer.learning_rate=1e-3", "replay.capacity=9_000"])
    assert config.steps == 2_000_000 and isinstance(config.steps, int)
    assert config.optimizer.learning_rate == 1e-3 and config.replay.capacity == 9000
    assert compose("toy/cliff", ["env.max_steps=null"]).env.max_steps is None
    assert compose("toy/cliff", ["agent.returns.lambda=1"]).agent.returns.lambda_ == 1.0


def test_a_group_set_in_part_keeps_its_other_defaults() -> None:
    config = compose("toy/cliff", ["losses.policy_gradient.weight=0.5", "losses.value.enabled=false"])
    assert config.losses.policy_gradient.enabled and config.losses.weights()["policy_gradient"] == 0.5
    assert "value" not in config.losses.weights()
    prior = compose("toy/cliff", ["agent.prior.behavior_share=0.1"]).agent.prior
    assert (prior.behavior_share, prior.uniform_share) == (0.1, 0.001)


def test_shortcuts_stand_for_names() -> None:
    config = compose("toy/cliff", ["agent=muesli", "loop=synchronous"])
    assert (config.agent.name, config.loop.name) == ("muesli", "synchronous")


def test_debug_makes_every_size_tiny_unless_it_is_set() -> None:
    config = compose("CartPole-v1", ["debug=true", "env.num_envs=3"])
    assert (config.steps, config.env.num_envs) == (DEBUG["steps"], 3)


def test_values_from_python_are_as_plain_as_those_of_a_file() -> None:
    class Kind(enum.Enum):
        PPO = "ppo"

    given = {
        "agent": Kind.PPO, "seed": np.int64(3), "steps": np.float32(400), "model.torso_widths": np.array([8, 8]),
        "losses": {"value": {"weight": np.float32(0.5)}}, "preset": Path("default"), "debug": np.bool_(False),
        "env": {"options": {"length": (np.int32(4), 2.5)}},
    }  # fmt: skip
    config = compose("toy/cliff", given)
    assert (config.agent.name, config.seed, config.steps, config.model.torso_widths) == ("ppo", 3, 400, (8, 8))
    assert config.env.options == {"length": [4, 2.5]} and type(config.losses.weights()["value"]) is float


endless: dict = {}
endless["a"] = endless


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seed": np.array([3])}, r"^seed=\[3\] is not possible: expected a whole number"),
        ({"seed": 10**400}, r"^seed=2\*\*1328\.\.\. is not possible"),
        ({"optimizer": {None: 1}}, "^invalid key None in optimizer: the name of a setting must be text"),
        (
            {"optimizer.learning_rate": {"a": 1}},
            r"^optimizer\.learning_rate=\{a: 1\} is not possible: expected a number",
        ),
        ({"optimizer.learning_rate": 1e300}, r"of a magnitude from 1\.2e-38 to 3\.4e\+38$"),
        ({"model.torso_widths": range(3)}, r"^model\.torso_widths=range\(0, 3\) is not possible: expected a list"),
        ({"env.options": {"a": object()}}, r"^env\.options\.a has a value of type object: expected text, numbers"),
        ({"env": endless}, r"^unknown setting env\.a\.a\.a"),
        ({"": 1}, "^unknown setting ''"),
        ({"env.id": "CartPole-v1"}, r"^env\.id=CartPole-v1 contradicts the environment toy/cliff: remove one of them"),
        ({"agent.cmpo": 3, "agent.cmpo.samples": 1}, r"^agent\.cmpo is given both as 3 and as \{samples: 1\}"),
    ],
)
def test_values_from_python_are_refused_in_one_sentence(given: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        compose("toy/cliff", given)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300


def test_a_callable_is_named_but_not_kept() -> None:
    def my_env():
        raise AssertionError("composing makes no environment")

    assert compose(my_env).env.id == "callable:my_env"


REFUSED = {
    "agent.cmpo.clip_bond=1": r"unknown setting agent\.cmpo\.clip_bond; did you mean agent\.cmpo\.clip_bound\?",
    "learning_rate=1": r"unknown setting learning_rate; here: optimizer\.learning_rate$",
    "model.unrol_steps=1": r"did you mean model\.unroll_steps\?",
    "zzz=1": "unknown setting zzz; `bircher config ENV` shows every setting",
    "agent=ppp": r"unknown agent 'ppp'; did you mean ppo\?; known: muesli",
    "agent=musli": "unknown agent 'musli'; did you mean muesli",
    "loop=pipelin": r"unknown loop 'pipelin'; did you mean pipeline\?; known: synchronous, pipeline, ray",
    "preset=cartpol": "unknown preset 'cartpol'; did you mean cartpole",
    "search.num_simulations=-1": "search.num_simulations=-1 is not possible: expected a whole number, at least 0",
    "agent.cmpo=3": r"agent.cmpo is a group of settings \(clip_bound, samples, baseline\), not a value",
    "seed": "invalid override 'seed': expected KEY=VALUE",
    "seed=-1": "seed=-1 is not possible: expected a whole number, at least 0",
    "seed=true": "seed=true is not possible: expected a whole number",
    "seed=1.5": "seed=1.5 is not possible: expected a whole number",
    "steps=many": "steps=many is not possible: expected a whole number, at least 1",
    "steps=3e9": "steps=3000000000 is not possible: expected a whole number, at least 1, below 2,147,483,648",
    "episodes=0": "episodes=0 is not possible: expected a whole number or null, at least 1",
    "device=tpu": "device=tpu is not possible: expected one of cpu, gpu or null",
    "debug=3": "debug=3 is not possible: expected true or false",
    "replay.fraction=1.5": "replay.fraction=1.5 is not possible: expected a number, at least 0.0, at most 1.0",
    "agent.gamma=.inf": "agent.gamma=inf is not possible: expected a number",
    "optimizer.learning_rate=fast": "optimizer.learning_rate=fast is not possible: expected a number, above 0",
    "model.torso_widths=[a]": r"model.torso_widths=\[a\] is not possible: expected a list of whole numbers",
    "model.torso_widths=[0]": "torso_widths must contain positive widths",
    "env.options=3": "env.options=3 is not possible: expected a group of settings",
    "seed={": "seed={ cannot be read",
    "replay.capacity=100": "replay.capacity=100 is too small: 16 environments times sequences of 17 rows need",
    "optimizer.updates_per_step=1e-9": "updates_per_step=1e-09 gives .* steps .env.num_envs × loop.rollout_length.",
    "optimizer.minibatches=1000": "it must give at least optimizer.epochs × optimizer.minibatches = 1000",
    "agent.prior.behavior_share=1": r"agent\.prior\.behavior_share \+ uniform_share must be at most 1",
}


@pytest.mark.parametrize("pair", REFUSED)
def test_one_sentence_names_the_error(pair: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[pair]) as refusal:
        compose("toy/cliff", [pair])
    assert "\n" not in str(refusal.value)


def test_priorities_need_a_replayed_share() -> None:
    sentence = r"^replay\.priority_exponent=0\.6 needs sequences from replay: set replay\.fraction above 0, or leave"
    with pytest.raises(ConfigError, match=sentence):
        compose("toy/cliff", ["replay.priority_exponent=0.6", "replay.fraction=0"])


def test_something_must_be_learned() -> None:
    terms = [f"losses.{name}.enabled=false" for name in compose("toy/cliff").losses.weights()]
    with pytest.raises(ConfigError, match="no enabled term"):
        compose("toy/cliff", terms)


def test_a_search_by_returns_needs_values_that_follow_them() -> None:
    words = ["agent=gumbel_muzero", "search.q_range=returns"]
    assert compose("toy/cliff", words).search.q_range == "returns"
    for more, named in (("model.value_unit=fixed", "fixed"), ("model.value_head=tanh", "tanh")):
        for agent in words[0], "agent=muesli":
            sentence = f"q_range=returns needs model.value_unit=returns.*={named}"
            with pytest.raises(ConfigError, match=sentence) as refusal:
                compose("toy/cliff", [*words, agent, more])
            assert "\n" not in str(refusal.value)


def test_environments_are_checked_with_the_rest() -> None:
    with pytest.raises(UnknownEnvironment, match="CartPole-v9.*did you mean.*CartPole-v1"):
        compose("CartPole-v9")
    with pytest.raises(UnsupportedEnvironment, match="unknown backend 'gymnaz'.*gymnax"):
        compose("CartPole-v1", ["env.backend=gymnaz"])
    with pytest.raises(ConfigError, match="no environment was given"):
        compose(None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: [1", "is not valid YAML"),
        ("just words", "contains no settings"),
        ("steps: soon", r"steps=soon is not possible: expected a whole number.*mine\.yaml"),
        ("agent: {gama: 1}", r"unknown setting agent\.gama; did you mean agent\.gamma\?.*mine\.yaml"),
        ("1: 2", "invalid key 1: the name of a setting must be text"),
        ("model: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_is_checked_like_overrides(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        Config.from_yaml(file) if "soon" in text else compose("toy/cliff", (), file)
    with pytest.raises(ConfigError, match="cannot read the configuration .*nowhere"):
        compose("toy/cliff", (), tmp_path / "nowhere")


def test_every_setting_has_a_name_and_an_expectation() -> None:
    own = {"muesli": {"agent.returns.lambda", "losses.cmpo.weight"}, "muzero": {"agent.returns.steps"}}
    for agent, kind in AGENTS.items():
        names = settings.names(kind)
        assert {"seed", "env.num_envs", "loop.name"} | own.get(agent, set()) <= set(names)
        assert len(names) == len(set(names)) > 50
        given = ["env.options.length=3", f"agent={agent}"]
        dumped = settings.leaves(compose("toy/cliff", given).model_dump(by_alias=True))
        assert set(names) - set(dumped) == {"env.options", "model.encoders"}


@pytest.mark.parametrize("agent", AGENTS)
def test_each_agent_has_its_own_settings_and_presets(agent: str) -> None:
    config = compose("CartPole-v1", [f"agent={agent}"])
    assert config.agent.name == agent and type(config) is AGENTS[agent]
    assert config.preset == "cartpole" and compose("toy/cliff", [f"agent={agent}"]).preset == "default"


def test_settings_of_another_agent_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting agent\.cmpo"):
        compose("toy/cliff", ["agent=muzero", "agent.cmpo.clip_bound=0.5"])
    with pytest.raises(ConfigError, match="needs at least 1 simulation"):
        compose("toy/cliff", ["agent=gumbel_muzero", "search.num_simulations=0"])
    with pytest.raises(ConfigError, match="model.reward_head=false leaves nothing to learn for losses.model_reward"):
        compose("toy/cliff", ["agent=muzero", "model.reward_head=false"])


def test_each_layer_is_checked_once_and_the_whole_is_validated_once(tmp_path: Path, monkeypatch) -> None:
    file, checked, validated = tmp_path / "mine.yaml", [], []
    file.write_text("steps: 100\n")
    check, validate = settings.checked, AGENTS["ppo"].model_validate
    monkeypatch.setattr(settings, "checked", lambda layer, *rest: checked.append(layer) or check(layer, *rest))
    monkeypatch.setattr(
        AGENTS["ppo"], "model_validate", lambda layer, **options: validated.append(layer) or validate(layer, **options)
    )
    config = compose("CartPole-v1", ["agent=ppo", "seed=3"], file)
    assert (config.steps, config.seed) == (100, 3)
    assert [sorted(layer) for layer in checked[:2]] == [["agent", "seed"], ["steps"]]
    assert len(checked) == 3 and len(validated) == 1, "the third is the preset"


def test_null_derives_a_setting_again_over_a_file_that_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(compose("CartPole-v1", ["agent=ppo"]).to_yaml())
    again = ["env.num_envs=32", "optimizer.batch_size=null", "optimizer.updates_per_step=null", "replay.capacity=null"]
    assert compose(None, again, file) == compose("CartPole-v1", ["agent=ppo", "env.num_envs=32"])
    own = compose("CartPole-v1", ["agent=ppo", "env.num_envs=32", "replay.capacity=2048"])
    assert own.replay.capacity == 2048
    with pytest.raises(ConfigError, match="replay.capacity=64 is too small"):
        compose(None, [*again[:3], "replay.capacity=64"], file)


def test_null_is_derived_for_every_agent() -> None:
    words = ["optimizer.batch_size=null", "optimizer.updates_per_step=null", "replay.capacity=null"]
    config = compose("toy/cliff", [*words, "optimizer.minibatches=4", "env.num_envs=32"])
    assert (config.optimizer.batch_size, config.replay.capacity) == (8, 8192)
    assert config.optimizer.updates_per_step == 4 / (32 * config.loop.rollout_length)
    weights = ["losses.model_value.weight=null", "losses.model_reward.weight=null"]
    assert compose("toy/cliff", weights).losses.weights()["model_value"] == 1.0
    words = ["optimizer.segment_length=auto", "model.unroll_steps=2"]
    assert compose("toy/cliff", words).optimizer.segment_length == 8
    assert compose("toy/cliff", ["agent=ppo", "optimizer.segment_length=auto"]).optimizer.segment_length == 1
    with pytest.raises(ConfigError, match="optimizer.minibatches=5 does not divide env.num_envs=32"):
        compose("toy/cliff", ["optimizer.batch_size=null", "optimizer.minibatches=5", "env.num_envs=32"])


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"losses.cmpo.weight": 0.01}, {"model.memory": "lstm"}])
def test_no_setting_depends_on_which_others_are_typed(given: dict) -> None:
    given = {"agent": "ppo", **given}
    config = compose("CartPole-v1", given)

    def values(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
        for key, value in tree.items():
            yield from values(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    for name, value in values(config.model_dump(by_alias=True)):
        assert compose("CartPole-v1", {**given, name: value}) == config, f"{name} typed at the value that it has anyway"
