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
def test_runs_are_named_by_the_settings_that_differ(run):
    plain = [run(f"runs/{seed}", "CartPole-v1", "agent=ppo", "steps=2000", f"seed={seed}") for seed in range(2)]
    assert names(*plain) == ["ppo", "ppo"], "what all share needs no name"
    free = run("free", "CartPole-v1", "agent=ppo", "steps=2000", "seed=2", "evaluation.count=0", "env.num_threads=1")
    assert names(*plain, free) == ["ppo"] * 3, "nothing learned depends on it"
    mixed = run("runs/b/0", "CartPole-v1", "agent=ppo", "steps=2000", CMPO)
    assert names(*plain, mixed) == ["ppo,losses.cmpo.weight=0.0"] * 2 + [f"ppo,{CMPO}"], "without derived settings"
    wide = run("runs/c/0", "CartPole-v1", "agent=ppo", "steps=3000", "model.head_widths=[64,32]")
    assert names(plain[0], wide) == [
        "ppo,steps=2000,model.head_widths=[64]", "ppo,steps=3000,model.head_widths=[64,32]"
    ]  # fmt: skip
    other = run("runs/d/0", "CartPole-v1", "steps=3000")
    assert names(*plain, other) == ["ppo", "ppo", "muesli"]


def test_names_hold_over_environments(run):
    """What tells runs apart on one environment is named on every other."""
    pole, lander = "CartPole-v1", "LunarLander-v3"
    paths = [
        run("a", pole, "agent=ppo", "steps=2000", CMPO), run("b", lander, "agent=ppo", "steps=9000", CMPO),
        run("c", lander, "agent=ppo", "steps=9000"),
    ]  # fmt: skip
    assert names(*paths) == [f"ppo,{CMPO}", f"ppo,{CMPO}", "ppo,losses.cmpo.weight=0.0"]
    assert names(*paths[:2]) == ["ppo", "ppo"], "an environment's steps are its own"


def test_a_preset_is_named_and_not_all_that_it_holds(run):
    paths = [run("a", "CartPole-v1", "preset=ppo_muesli_conservative"), run("b", "CartPole-v1", "agent=ppo")]
    assert names(*paths) == ["ppo,preset=ppo_muesli_conservative", "ppo,preset=cartpole"]


def test_the_command_of_a_run_makes_its_configuration(run):
    path = run("a run", "CartPole-v1", "agent=ppo", CMPO, "env.options.name=two words")
    (job,) = compare.finished_jobs([path])
    train, command, env, *settings = shlex.split(job.command)
    assert (train, command, env, settings) == ("bircher", "train", "CartPole-v1", ["--config", f"{path}/config.yaml"])
    assert compose(env, (), settings[1]) == directory.read_config(path)


def test_a_preset_that_no_longer_exists_is_named(run):
    paths = [run(f"it is {seed}", "CartPole-v1", "agent=ppo", f"seed={seed}") for seed in range(2)]
    for path in paths:
        text = (path / "config.yaml").read_text()
        (path / "config.yaml").write_text(text.replace("preset: cartpole", "preset: of_old"))
    assert names(*paths) == ["ppo", "ppo"]
    assert names(*paths, run("b", "CartPole-v1", "agent=ppo")) == ["ppo,preset=of_old"] * 2 + ["ppo,preset=cartpole"]


def test_derived_settings_are_named_only_where_nothing_else_differs(run):
    paths = [run("a", "CartPole-v1", "agent=ppo"), run("b", "CartPole-v1", "agent=ppo", "optimizer.batch_size=4")]
    assert names(*paths) == ["ppo,optimizer.batch_size=8", "ppo,optimizer.batch_size=4"]
    wide = run("c", "CartPole-v1", "agent=ppo", "env.num_envs=16")
    assert names(paths[0], wide) == ["ppo,env.num_envs=8", "ppo,env.num_envs=16"]


def test_a_missing_option_distinguishes_runs(run):
    paths = [run("a", "CartPole-v1", "agent=ppo"), run("b", "CartPole-v1", "agent=ppo", "env.options.b=1")]
    assert names(*paths) == ["ppo,env.options={}", "ppo,env.options.b=1"]


def test_a_run_is_pooled_with_a_planned_one_of_the_same_settings_only(run, tmp_path):
    words = ["ppo,steps=2000", f"ppo,steps=2000,{CMPO}"]
    planned = grid.plan(compare.variants(words), ["CartPole-v1"], range(2), [], tmp_path / "out")
    same = run("same", "CartPole-v1", "agent=ppo", "steps=2e3", "losses.cmpo.weight=1e-2", "seed=5")
    rate = run("rate", "CartPole-v1", "agent=ppo", "steps=2000", "optimizer.learning_rate=0.1", "seed=5")
    usual = run("usual", "CartPole-v1", "agent=ppo", "seed=5")
    assert names(same, rate, usual, planned=planned) == [
        words[1],
        "ppo,steps=2000,losses.cmpo.weight=0.0,optimizer.learning_rate=0.1",
        "ppo,steps=100000,losses.cmpo.weight=0.0,optimizer.learning_rate=0.001",
    ]


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
