"""Wrong names and values made from the settings models: each is refused in one sentence, or is in fact valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bircher.cli import app
from bircher.config import settings as configuration
from bircher.config.config import AGENTS
from bircher.errors import ConfigError
from bircher.runs import directory
from mutations import NAMES, SETTINGS, STRUCTURES, Mutation, files, mutations, spelled_otherwise

NAMED_OTHERWISE = ("agent.name", "loop.name", "observation.name", "env.backend", "env.id", "preset")
"""Settings whose unknown values are refused as unknown agents, loops, environments and so on."""
GENERATE = (Phase.explicit, Phase.generate)
"""To shrink a failure would take longer than to read it."""


class ReachedFolder(BaseException):
    """Everything that can be refused was checked, and the folder of the run would be made now."""


@pytest.fixture(autouse=True)
def _stopped_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ReachedFolder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(directory, "create", stop)


def refusal(*words: str) -> str | None:
    """Return the one sentence by which a command is refused; None where a run would begin."""
    try:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    except ReachedFolder:
        return None
    stderr = re.sub(r"\Abircher: old names of settings: [^\n]*\n", "", result.stderr)  # said next to the refusal
    sentence = stderr.removeprefix("bircher: ").removesuffix("\n")
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert stderr == f"bircher: {sentence}\n" and sentence.isprintable(), repr(result.stderr)
    assert 10 < len(sentence) <= 1000 and "Traceback" not in sentence, sentence
    return sentence


def current_name(name: str) -> str:
    """Return the name of today for a setting of version 0.1.0, and any other name as it is."""
    try:
        tree = configuration.nested({name: 1})
    except ConfigError:
        return name
    return next(iter(configuration.leaves(tree)), name)


def check(mutation: Mutation) -> None:
    """Hold a mutation of a command line against what must come of it."""
    sentence = refusal("train", "toy/cliff", f"agent={mutation.agent}", mutation.pair)
    if sentence is None:
        known = {*NAMES, "agent", "loop", "observation"}
        assert mutation.name.strip() in known or current_name(mutation.name.strip()) in known, mutation
    elif mutation.name == mutation.original and mutation.name not in NAMED_OTHERWISE:
        # A combination is named by its settings, of which this is one, or by those that it leaves no room for.
        group = mutation.name.split(".")[0]
        assert any(name in sentence for name in NAMES if name.split(".")[0] == group) or "replay.capacity" in sentence


@pytest.mark.long
@settings(max_examples=150, phases=GENERATE)
@given(mutations())
def test_a_changed_setting_is_refused_in_one_sentence_or_is_valid(mutation: Mutation) -> None:
    check(mutation)


@pytest.mark.long
@settings(max_examples=1000, phases=GENERATE)
@given(mutations(), st.integers())
def test_a_thousand_of_them(mutation: Mutation, more: int) -> None:
    del more  # another draw leads to other examples than those above
    check(mutation)


@settings(max_examples=80, phases=GENERATE)
@given(files())
def test_a_changed_file_is_refused_in_one_sentence_or_is_valid(content: bytes) -> None:
    Path("mine.yaml").write_bytes(content)
    refusal("train", "toy/cliff", "--config", "mine.yaml")


def test_every_unusual_structure_of_a_file_is_refused_in_one_sentence_or_is_valid() -> None:
    for content in STRUCTURES:
        Path("mine.yaml").write_bytes(content)
        refusal("train", "toy/cliff", "--config", "mine.yaml")


def test_every_setting_is_walked() -> None:
    assert len(NAMES) > 120 and {"optimizer.learning_rate", "agent.returns.lambda", "losses.cmpo.weight"} <= set(NAMES)
    assert {setting.agent for setting in SETTINGS} == set(AGENTS)


@pytest.mark.parametrize("name", [name for name in NAMES if spelled_otherwise(name) != name])
def test_the_other_spelling_is_understood(name: str) -> None:
    """British spellings: those of version 0.1.0 are read, and the others are answered with the name here."""
    agent, british = next(setting.agent for setting in SETTINGS if setting.name == name), spelled_otherwise(name)
    sentence = refusal("train", "toy/cliff", f"agent={agent}", f"{british}=1")
    if current_name(british) == name:
        assert sentence is None or f"unknown setting {british}" not in sentence
    else:
        assert sentence == f"unknown setting {british}; did you mean {name}?"


def run_process(words: list, part: str, folder: Path) -> None:
    """Run a command in a process of its own, and hold it against the same rules."""
    done = subprocess.run([sys.executable, "-m", "bircher", *words], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("bircher: ") and part in done.stderr
    assert list(folder.iterdir()) == []


def test_a_real_process_ends_the_same_way(tmp_path: Path) -> None:
    run_process(["train", "toy/cliff", b"seed=\xff\x1b[31m"], "seed=", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "toy/cliff", "optimizer.learning_rat=1"], "did you mean optimizer.learning_rate?"),
        (["train", "toy/cliff", "model=" + "[" * 3000], "nested more than 50 levels deep"),
        (["train", "toy/cliff", "seed=1" + "0" * 100_000], "seed=1000"),
        (["train", "toy/cliff", "a." * 50_000 + "a=1"], "unknown setting a.a.a."),
        (["train", "toy/cliff", "env.num_envs=!!python/object/apply:os.getcwd []"], "cannot be read"),
        (["train", "toy/cliff", "--config", "/dev/null"], "contains no settings"),
        (["train", "toy/cliff", "--config", "."], "cannot read the configuration"),
        (["config", "toy/cliff", "optimizer.learning_rate=1e300"], "of a magnitude from 1.2e-38 to 3.4e+38"),
        (["eval", "nowhere", "--episodes", "0"], "--episodes"),
        (["trian", "toy/cliff"], "No such command 'trian'"),
    ],
)
def test_more_real_processes(words: list, part: str, tmp_path: Path) -> None:
    run_process(words, part, tmp_path)
