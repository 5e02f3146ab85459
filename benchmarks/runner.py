"""The runner of every benchmark: its studies as subcommands, and a line of the ledger for each of their results.

A study is a generator function.  It prints what it found and yields a `Result` for each line of the ledger.  The runner
adds the command as it was typed, the commit, the machine and the wall time.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ledger import Line, commit, machine, record

DRY, OUT = "--dry", "--out"


class Result(NamedTuple):
    """What a study measured."""

    results: Mapping[str, Any]
    env: str = ""
    agent: str = ""
    seeds: tuple[int, ...] = ()
    returns: tuple[float, ...] = ()
    wall_seconds: float | None = None
    """None: since the result before, or since the start"""
    command: str | None = None
    """None: the command as it was typed"""
    machine: str | None = None
    commit: str | None = None


Measure = Callable[[argparse.Namespace], Iterator[Result]]


class Study(NamedTuple):
    """A measurement and its arguments."""

    measure: Measure
    arguments: Callable[[argparse.ArgumentParser], None]
    name: str | None = None
    """of its lines in the ledger, where it is not the name of the subcommand"""


def main(doc: str | None, studies: Mapping[str, Study]) -> None:
    """Run the study that the command line names; a benchmark of one study needs no name."""
    words = sys.argv[1:]
    program = Path(sys.argv[0]).name
    name = next(iter(studies)) if len(studies) == 1 else words.pop(0) if words else ""
    if name not in studies:
        sentence = f"{program}: give one of {', '.join(studies)}; `{program} STUDY --help` says more"
        if name in ("-h", "--help"):
            print(f"{doc}\n{sentence}")
            return
        print(sentence, file=sys.stderr)
        raise SystemExit(2)
    study = studies[name]
    parser = argparse.ArgumentParser(
        prog=program if len(studies) == 1 else f"{program} {name}",
        description=doc if len(studies) == 1 else inspect.getdoc(study.measure),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.arguments(parser)
    parser.add_argument(DRY, action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args(words)
    began = time.perf_counter()
    for result in study.measure(options):
        now = time.perf_counter()
        if not options.dry:
            record(line(study.name or name, result, typed(sys.argv), now - began))
        began = now


def line(name: str, result: Result, command: str, seconds: float) -> Line:
    """The line of the ledger for a result."""
    given = {key: value for key, value in result._asdict().items() if value is not None}
    return Line(
        **{
            "name": name,
            "command": command,
            "commit": commit() if result.commit is None else result.commit,
            "machine": machine() if result.machine is None else result.machine,
            "wall_seconds": round(seconds, 1),
            **given,
        }
    )


def typed(arguments: list[str]) -> str:
    """The command that measures this again: without the place of files."""
    words = [f"benchmarks/{Path(arguments[0]).name}"]
    pairs = zip(arguments, arguments[1:], strict=False)
    words += [word for before, word in pairs if OUT not in (before, word) and not word.startswith(f"{OUT}=")]
    return shlex.join(["python", *words])


def env_and_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bircher train`."""
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as for bircher train")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is deleted afterward."""
    with tempfile.TemporaryDirectory(prefix="bircher-benchmark-") as folder:
        yield Path(folder)


def start_training(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `bircher train` with these words in a process of its own, which appends what it prints to a file."""
    with log.open("a") as file:
        return subprocess.Popen([sys.executable, "-m", "bircher", "train", *words], stdout=file, stderr=file)


def use_one_core() -> None:
    """Stay on one core; to be called before JAX counts the cores, which it does when it is first used."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
