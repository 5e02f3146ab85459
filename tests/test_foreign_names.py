"""Names from other code are refused with the name here, and every name here that the table gives exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config import settings
from bircher.config.config import AGENTS
from bircher.config.foreign_names import _NAMES_ELSEWHERE, ENVIRONMENT, FOREIGN, of_setting, settings_in

SETTINGS = {agent: {*settings.names(kind), *settings.SHORTCUTS} for agent, kind in AGENTS.items()}
IN_FILES = sorted(name for name in FOREIGN if not name.startswith("--"))
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def refusal(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 2 and result.stdout == "", result.output
    return result.stderr.removeprefix("bircher: ").removesuffix("\n")


def agent_with(target: str) -> str:
    """The first agent that has all settings of a target."""
    return next(agent for agent, names in SETTINGS.items() if names.issuperset(settings_in(target)))


def test_every_target_exists_and_no_name_is_one_here() -> None:
    assert len(FOREIGN) == sum(len(names.split()) for names in _NAMES_ELSEWHERE.values()) > 150, "no name twice"
    options = {option for parameter in COMMANDS["train"].params for option in parameter.opts}
    for name, here in FOREIGN.items():
        assert name == name.lower() and all(name not in names for names in SETTINGS.values())
        if here.startswith("--"):
            assert here in options and name not in options
        elif here.startswith("bircher "):
            assert here.split()[1] in COMMANDS
        elif here != ENVIRONMENT:
            assert agent_with(here)


@pytest.mark.parametrize("name", IN_FILES)
def test_a_setting_is_refused_with_its_name_here(name: str) -> None:
    sentence = refusal("config", "toy/cliff", f"agent={agent_with(FOREIGN[name])}", f"{name}=1")
    assert sentence == f"unknown setting {name}; here: {FOREIGN[name]}"


@pytest.mark.parametrize("typed", ["NUM-ENVS", "trainer.num_envs", "env.num-environments", "cfg/env/num_actors"])
def test_a_name_is_known_in_any_spelling_and_group(typed: str) -> None:
    assert refusal("config", "toy/cliff", f"{typed}=1") == f"unknown setting {typed}; here: env.num_envs"


@pytest.mark.parametrize("name", ["td_steps", "temperature", "root_dirichlet_alpha"])
def test_it_is_said_where_the_agent_lacks_the_setting(name: str) -> None:
    sentence = refusal("config", "toy/cliff", f"{name}=1")
    lacking = not SETTINGS["muesli"].issuperset(settings_in(FOREIGN[name]))
    assert sentence == f"unknown setting {name}; here: {FOREIGN[name]}" + (
        ", which this agent does not have" if lacking else ""
    )


def test_a_file_is_refused_with_the_names_here(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, named, here in (
        ("categorical: {support_size: 101}", "categorical.support_size", "model.num_atoms"),
        ("trainer:\n  losses:\n    cmpo:\n      kl_coef: 0.1", "trainer.losses.cmpo.kl_coef", "losses.cmpo.weight"),
        ("losses: {muesli_model: {policy_pred_coef: 1}}", "losses.muesli_model.policy_pred_coef",
         "losses.model_policy.weight"),
    ):  # fmt: skip
        file.write_text(text)
        sentence = refusal("config", "toy/cliff", "--config", str(file))
        assert sentence == f"unknown setting {named}; here: {here} ({file})"


@pytest.mark.parametrize("name", sorted(name for name in FOREIGN if f"--{name.replace('_', '-')}" not in FOREIGN))
def test_an_option_is_refused_with_its_name_here(name: str) -> None:
    here, is_setting = FOREIGN[name], FOREIGN[name] != ENVIRONMENT and not FOREIGN[name].startswith(("--", "bircher "))
    if is_setting:
        here = " and ".join(part if "=" in part else f"{part}=VALUE" for part in here.split(" and "))
    option = name if name.startswith("--") else f"--{name.replace('_', '-')}"
    assert refusal("train", option, "1").startswith(f"no option {option}; here: {here} (see ")


def test_a_setting_given_as_an_option_is_refused_with_its_form() -> None:
    assert refusal("train", "CartPole-v1", "--seed", "3").startswith("no option --seed; here: seed=VALUE (see ")
    assert refusal("config", "--env.num-envs", "3").startswith("no option --env.num-envs; here: env.num_envs=VALUE (")


@pytest.mark.parametrize(
    "words", [("doctor", "x", "--learning-rate", "1"), ("eval", "x", "--game", "pong"), ("train", "--nonsense")]
)
def test_a_command_gives_no_name_that_it_does_not_take(words: tuple[str, ...]) -> None:
    assert re.match("no such option: --", refusal(*words), re.IGNORECASE)


def test_a_search_after_training_is_set_by_its_name_here() -> None:
    sentence = refusal("eval", "x", "--simulations", "5")
    assert sentence.startswith("no option --simulations; here: search.num_simulations=VALUE (see ")


def test_the_last_groups_of_a_name_decide() -> None:
    assert of_setting("algorithm.loss.cmpo.kl_coef") == "losses.cmpo.weight"
    assert of_setting("kl_coefficient") is None and of_setting("") is None
