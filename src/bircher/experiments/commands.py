"""Commands of bircher in separate processes, on the cores of this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bircher.errors import RunFolderError
from bircher.training import cluster


class Command(ABC):
    """A process that was started."""

    lost = False
    """Whether the machine of the process is gone, so that the command may be started again."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ask the process to save and end."""


class Commands(ABC):
    """A place for processes."""

    processes: int
    """The number of processes at the same time."""

    @abstractmethod
    def start(self, arguments: Sequence[str], log: Path, output: Path | None, slot: int) -> Command:
        """Start `bircher` with arguments.

        Args:
          arguments: the words of the command.
          log: the file to which messages are appended.
          output: the file for what is printed; None appends that to the log too.
          slot: which of the processes at the same time this is, from 0.
        """

    def close(self) -> None:  # noqa: B027  # nothing has to be ended by default
        """End what was begun for the processes."""


def spawn(
    arguments: Sequence[str], log: Path, output: Path | None, module: str = "bircher", stdin: int | None = None
) -> subprocess.Popen[bytes]:
    """Start `bircher` with arguments, with this interpreter."""
    with log.open("a") as errors, output.open("w") if output else log.open("a") as stdout:
        # A separate session, so that Ctrl-C reaches the process only through `interrupt`.
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=stdout, stderr=errors, stdin=stdin,
            start_new_session=True,
        )


class LocalCommand(Command):
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask the process to save and end."""
        self._process.send_signal(signal.SIGINT)


class LocalCommands(Commands):
    """Processes on this machine.  Each has its own share of the cores, so that they do not compete for them."""

    def __init__(self, processes: int):
        self.processes = processes

    def start(self, arguments: Sequence[str], log: Path, output: Path | None, slot: int) -> LocalCommand:
        """Start `bircher` with arguments, on the share of the cores of a slot."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = set(cores[slot % len(cores) :: self.processes]) if cores else set()
        process = spawn(arguments, log, output)
        if share:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process.pid, share)
        return LocalCommand(process)


class Runner:
    """A process on a node of a cluster, beside the Ray actor that this is made."""

    def __init__(self, arguments: Sequence[str], log: Path, output: Path | None, folder: str):
        """Start the process.

        Raises:
          RunFolderError: this node does not see the folder of the runs.
        """
        if not log.exists():  # the learner's machine has just made it
            raise RunFolderError(
                f"the node {os.uname().nodename} of the Ray cluster does not see {log.parent}: runs of `--ray` need a "
                "folder that all nodes share; set --out to one"
            )
        if os.path.isdir(folder):  # where an environment of the user's own is imported from
            os.chdir(folder)
        # The process ends when its standard input does, so that it never outlives this one.
        self._process = spawn(arguments, log, output, "bircher.experiments.commands", stdin=subprocess.PIPE)

    def wait(self) -> int:
        """Return the exit status, once the process has ended."""
        status = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def interrupt(self) -> None:
        """Ask the process to save and end."""
        self._process.send_signal(signal.SIGINT)


class RemoteCommand(Command):
    """A process on a node of a cluster."""

    def __init__(self, actor: Any):
        self._actor, self._ended = actor, actor.wait.remote()
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs.

        Raises:
          RunFolderError: its node does not see the folder of the runs.
        """
        ray = cluster.ray_module()
        if self._status is None and ray.wait([self._ended], timeout=0)[0]:
            try:
                self._status = int(ray.get(self._ended))
            except ray.exceptions.RayActorError as error:
                cause = getattr(error, "cause", None) or error
                if "RunFolderError" in str(cause):
                    raise RunFolderError(_sentence(str(cause))) from error
                self._status, self.lost = 1, True
            ray.kill(self._actor)  # its core is free for the next one
        return self._status

    def interrupt(self) -> None:
        """Ask the process to save and end."""
        self._actor.interrupt.remote()


class RemoteCommands(Commands):
    """Processes on the nodes of a Ray cluster, one for each core; all nodes share the folder of the runs."""

    def __init__(self, address: str, processes: int | None = None):
        """Connect to a cluster; by default as many processes run at the same time as it has cores.

        Raises:
          ConfigError: there is no cluster at the address, or Ray is not installed.
        """
        self._disconnect: Callable[[], None] = cluster.connect(cluster.at(address), "--ray ")
        self.processes = processes or max(int(cluster.ray_module().cluster_resources().get("CPU", 1)), 1)

    def start(self, arguments: Sequence[str], log: Path, output: Path | None, slot: int) -> RemoteCommand:
        """Start `bircher` with arguments, on any node with a free core."""
        log.touch()
        # Two threads, because one waits for the process.
        actor: Any = cluster.ray_module().remote(num_cpus=1, max_restarts=0, max_concurrency=2)(Runner)
        return RemoteCommand(actor.remote(arguments, log.absolute(), output and output.absolute(), os.getcwd()))

    def close(self) -> None:
        """Disconnect, and end Ray if it was started here."""
        self._disconnect()


def _sentence(text: str) -> str:
    """Return the last line of a remote traceback, without the name of its exception."""
    return text.strip().splitlines()[-1].partition("RunFolderError: ")[2]


def _end_with_input() -> None:
    """Wait for the end of the standard input, and ask this process to save and end."""
    while os.read(0, 1):  # not sys.stdin, whose lock a waiting thread would hold when the process ends
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    runpy.run_module("bircher", run_name="__main__")
