"""On an operating system without file locks the import fails in one sentence that names the supported systems."""

from __future__ import annotations

import subprocess
import sys

HIDE = "import sys; sys.modules['fcntl'] = None; sys.argv = ['bircher', *sys.argv[1:]]; "
SENTENCE = "bircher supports Linux and macOS: Python has no module fcntl on "


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HIDE + script, *arguments], capture_output=True, text=True)


def test_the_import_names_the_supported_platforms():
    result = run("import bircher.runs.launch")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("bircher.errors.UnsupportedPlatform: " + SENTENCE)


def test_a_command_is_refused_in_one_sentence():
    result = run("from bircher.cli import main; main()", "train", "CartPole-v1")
    assert result.returncode == 2
    assert result.stderr.startswith(f"bircher: {SENTENCE}") and result.stderr.count("\n") == 1
