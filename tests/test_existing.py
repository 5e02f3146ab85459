"""Runs that are there, in a comparison: their names, commands that make them again, and what they are pooled with."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bircher.config.config import Config, compose
from bircher.errors import RunFolderError, UnknownEnvironment
from bircher.experiments import compare, grid
from bircher.runs import directory

CMPO = "losses.cmpo.weight=0.01"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the folder of a run that counts as finished, from the words behind `bircher train`."""
    monkeypatch.setattr(directory, "counters", lambda path: {"env_steps": 2**31})

    def make(name: str, env: str, *words: str) -> Path:
        return directory.create(compose(env, words), tmp_path / name)

    return make


def names(*paths: Path, planned=()) -> list[str]:
    return [cell.variant for cell in compare.finished_jobs(paths, planned)]


@pytest.mark.slow
def test_runs_are_named_by_what_differs_and_by_nothing_else(run):
    plain = [run(f"runs/{seed}", "CartPole-v1", "agent=ppo", "steps=2000", f"seed={seed}") for seed in range(2)]
    assert names(*plain) == ["ppo", "ppo"], "what all share needs no name"
    free = run("free", "CartPole-v1", "agent=ppo", "steps=2000", "seed=2", "evaluation.count=0", "env.num_threads=1")
    assert names(*plain, free) == ["ppo"] * 3, "nothing learned depends on it"
    mixed = run("runs/b/0", "CartPole-v1", "agent=ppo", "steps=2000", CMPO)
    assert names(*plain, mixed) == ["ppo", "ppo", f"ppo,{CMPO}"], "not what follows from it"
    wide = run("runs/c/0", "CartPole-v1", "agent=ppo", "steps=3000", "model.head_widths=[64,32]")
    assert names(plain[0], wide) == ["ppo,steps=2000", "ppo,steps=3000,model.head_widths=[64,32]"]
    other = run("runs/d/0", "CartPole-v1", "steps=3000")
    assert names(*plain, other) == ["ppo", "ppo", "muesli"]


def test_names_hold_over_environments(run):
    """What tells runs apart on one environment is named on every other."""
    pole, lander = "CartPole-v1", "LunarLander-v3"
    paths = [
        run("a", pole, "agent=ppo", "steps=2000", CMPO), run("b", lander, "agent=ppo", "steps=9000", CMPO),
        run("c", lander, "agent=ppo", "steps=9000"),
    ]  # fmt: skip
    assert names(*paths) == [f"ppo,{CMPO}", f"ppo,{CMPO}", "ppo"]
    assert names(*paths[:2]) == ["ppo", "ppo"], "an environment's steps are its own"


def test_a_preset_is_named_and_not_all_that_it_holds(run):
    paths = [run("a", "CartPole-v1", "preset=ppo_muesli_conservative"), run("b", "CartPole-v1", "agent=ppo")]
    assert names(*paths) == ["ppo,preset=ppo_muesli_conservative", "ppo"]


@pytest.mark.parametrize(
    "words",
    [
        ["agent=ppo", "seed=4"],
        ["agent=ppo", CMPO, "model.unroll_steps=2", "optimizer.segment_length=8", "evaluation.count=0"],
        ["preset=ppo_muesli_aggressive", "losses.entropy.final_weight=0.5", "agent.advantage.epsilon=1e-13"],
        ["agent=gumbel_muzero", "search.num_simulations=7", "agent.temperature.values=[1.0,0.5,0.1]"],
        ["env.options.name=two words", "model.policy_horizon=null", "device=cpu"],
    ],
)
def test_the_command_of_a_run_makes_its_configuration(run, words):
    path = run("a run", "CartPole-v1", *words)
    (cell,) = compare.finished_jobs([path])
    train, command, env, *settings = shlex.split(cell.command)
    assert (train, command) == ("bircher", "train")
    assert compose(env, settings) == directory.read_config(path)
    assert "--config" not in settings and len(settings) <= len(words) + 2


def test_what_no_settings_make_is_made_from_its_file(run, tmp_path):
    paths = [run(f"it is {seed}", "CartPole-v1", "agent=ppo", f"seed={seed}") for seed in range(2)]
    for path in paths:
        text = (path / "config.yaml").read_text()
        (path / "config.yaml").write_text(text.replace("preset: cartpole", "preset: of_old"))
    found = compare.finished_jobs(paths)
    assert [cell.variant for cell in found] == ["ppo", "ppo"]
    for cell, path in zip(found, paths, strict=True):
        assert shlex.split(cell.command)[2:] == ["CartPole-v1", "--config", str(path / "config.yaml")]
    assert names(*paths, run("b", "CartPole-v1", "agent=ppo")) == ["ppo,preset=of_old", "ppo,preset=of_old", "ppo"]


def test_an_option_that_is_missing_tells_runs_apart(run, monkeypatch):
    path, config = run("a", "CartPole-v1", "agent=ppo"), compose("CartPole-v1", ["agent=ppo", "env.options.b=1"])
    monkeypatch.setattr(compare, "compose", lambda env, words: config)
    assert compare.overrides_of(directory.read_config(path)) == ({"env.options.b": "env.options.b=null"}, False)


def test_a_run_is_pooled_with_a_planned_one_of_the_same_settings_only(run, tmp_path):
    words = ["ppo,steps=2000", f"ppo,steps=2000,{CMPO}"]
    planned = grid.plan(compare.variants(words), ["CartPole-v1"], range(2), [], tmp_path / "out")
    same = run("same", "CartPole-v1", "agent=ppo", "steps=2e3", "losses.cmpo.weight=1e-2", "seed=5")
    rate = run("rate", "CartPole-v1", "agent=ppo", "steps=2000", "optimizer.learning_rate=0.1", "seed=5")
    usual = run("usual", "CartPole-v1", "agent=ppo", "seed=5")
    assert names(same, rate, usual, planned=planned) == [
        words[1], "ppo,steps=2000,optimizer.learning_rate=0.1", "ppo"
    ]  # fmt: skip


def test_one_run_twice_is_refused(run):
    one, two = (run(name, "CartPole-v1", "agent=ppo", "seed=3") for name in ("one", "two"))
    with pytest.raises(RunFolderError, match="one and .*two are one run twice: ppo on CartPole-v1 with seed 3"):
        compare.finished_jobs([one, two])
    with pytest.raises(RunFolderError, match="one is given twice"):
        compare.finished_jobs([one, one])


def test_a_run_on_a_callable_cannot_be_evaluated_from_here(run):
    path = run("mine", "CartPole-v1")
    config = Config.from_yaml(path / "config.yaml")
    env = config.env.model_copy(update={"id": "callable:Mine"})
    (path / "config.yaml").write_text(config.model_copy(update={"env": env}).to_yaml())
    with pytest.raises(UnknownEnvironment, match="the callable Mine, which a file cannot contain"):
        compare.finished_jobs([path])


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("ppo", ["ppo"]),
        ("ppo,a=1,b=2", ["ppo", "a=1", "b=2"]),
        ("ppo,model.head_widths=[64,64],b=2", ["ppo", "model.head_widths=[64,64]", "b=2"]),
        ("ppo,env.options={a: [[1,2],[3,4]], b: 1},c=3", ["ppo", "env.options={a: [[1,2],[3,4]], b: 1}", "c=3"]),
    ],
)
def test_settings_of_an_agent_are_split_outside_brackets(word, parts):
    assert compare.split_settings(word) == parts
