"""Tests of ids that a module in the current folder registers, and of the errors for unknown ids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
from rollouts import rollout

import environments
from bircher.errors import UnknownEnvironment

MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    pass

for env_id in IDS:
    gymnasium.register(env_id, entry_point=Mine, max_episode_steps=7)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide a current folder that Python does not search, and remove its modules and ids afterward."""
    before, ids = set(sys.modules), set(gymnasium.registry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for env_id in set(gymnasium.registry) - ids:
        del gymnasium.registry[env_id]


def write(path: Path, *ids: str, text: str = MODULE) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"IDS = {ids!r}\n{text}")


@pytest.mark.parametrize("module", ["found_here", "a_package.inner"])
def test_a_module_of_the_current_folder_registers_its_ids(folder: Path, module: str) -> None:
    write(folder / f"{module.replace('.', '/')}.py", "Mine-v0")
    assert environments.resolve(f"{module}:Mine-v0") == "gymnasium"
    for workers in (0, 1):
        env = environments.make(f"{module}:Mine-v0", 2, seed=0, num_workers=workers)
        assert env.spec.max_steps == 7 and not rollout(env, 3).failed.any()
        env.close()
    assert environments.probe(f"{module}:Mine-v0", seed=0) == ()


def test_a_file_in_the_folder_does_not_hide_a_package(folder: Path) -> None:
    write(folder / "beside.py", "Beside-v0")
    (folder / "colorsys.py").write_text("raise RuntimeError('the wrong one')")
    environments.resolve("beside:Beside-v0")
    assert sys.path[-1] == str(folder)
    sys.modules.pop("colorsys", None)
    import colorsys

    assert Path(colorsys.__file__).parent != folder


def sentence(env_id: str) -> str:
    with pytest.raises(UnknownEnvironment) as told:
        environments.resolve(env_id)
    return str(told.value)


def test_the_error_of_a_failed_import_names_module_and_reason(folder: Path) -> None:
    (folder / "needs_more.py").write_text("import no_such_package\n")
    (folder / "half.py").write_text("def (:\n")
    (folder / "script.py").write_text("raise SystemExit('usage: script')\n")
    (folder / "divides.py").write_text("1 / 0\n")
    assert sentence("needs_more:X-v0") == (
        "needs_more cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
    )
    assert sentence("half:X-v0").startswith("half cannot be imported: SyntaxError: invalid syntax")
    assert sentence("script:X-v0") == "script cannot be imported: SystemExit: usage: script"
    assert sentence("divides:X-v0") == "divides cannot be imported: ZeroDivisionError: division by zero"
    assert sentence("absent:X-v0") == (
        "absent cannot be imported: ModuleNotFoundError: No module named 'absent'; modules are found in "
        f"{folder} and in installed packages"
    )
    assert sentence("absent.py:X-v0").endswith("write the module without its suffix: absent:X-v0")


def test_an_id_that_a_module_does_not_register(folder: Path) -> None:
    write(folder / "several.py", "Apple-v0", "Pear-v0")
    write(folder / "none.py")
    for _ in range(2):  # also where the module was imported before
        assert sentence("several:Aple-v0") == (
            "several does not register Aple-v0; did you mean several:Apple-v0, several:Pear-v0?"
        )
    assert sentence("several:Quince-v3") == "several does not register Quince-v3; it registers Apple-v0, Pear-v0"
    assert sentence("none:X-v0").endswith("its import registered no environment, add gymnasium.register(...) to it")


@pytest.mark.slow
def test_the_command_finds_a_module_of_the_current_folder(folder: Path) -> None:
    """The console script, unlike `python -m`, does not search the current folder by itself."""
    write(folder / "mine.py", "Mine-v0")
    command = "import sys; sys.path = [p for p in sys.path if p]; from bircher.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", command, "config", "mine:Mine-v0"], capture_output=True, text=True)
    assert done.returncode == 0 and "id: mine:Mine-v0" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", command, "config", "mime:Mine-v0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("bircher: mime cannot be imported: ModuleNotFoundError")


ATARI = "Atari games are named like Pong-v5 here, and env.protocol=dqn plays them as DQN did"


@pytest.mark.parametrize(
    "env_id", ["PongNoFrameskip-v4", "PongDeterministic-v4", "Pong-v0", "ALE/Pong-v4", "ALE/PongNoFrameskip-v4", "pong"]
)
def test_atari_ids_of_other_packages_get_advice(env_id: str) -> None:
    assert sentence(env_id) == f"unknown environment {env_id!r}; {ATARI}"


def test_ids_of_other_packages_get_advice() -> None:
    for env_id in ("Pong-ram-v5", "ALE/Pong-ram-v5", "Pong-ramNoFrameskip-v4"):
        assert "named like Pong-v5 here and show their screen, not their memory" in sentence(env_id)
    assert "named like SpaceInvaders-v5 here" in sentence("space_invadersNoFrameskip-v4")
    assert "named like Breakout-v5 here" not in sentence("Breakout-MinAtar-v0")
    newer = sentence("MiniGrid-Empty-8x8-v7")
    assert "did you mean MiniGrid-Empty-8x8-v0" in newer and "and write minigrid:MiniGrid-Empty-8x8-v7" in newer
    assert "did you mean FrozenLake-v1" in sentence("FrozenLake-v0")
    assert environments.resolve("ALE/Pong-v5") == environments.resolve("LunarLander-v2") == "envpool"
