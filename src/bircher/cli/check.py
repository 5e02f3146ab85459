"""The command that tests an installation."""

from __future__ import annotations

import json

import typer

from bircher.cli.shared import FAILED, AsJson, told


def check(as_json: AsJson = False) -> None:
    """Test this installation in about a minute, and print what a bug report needs.

    Versions, devices and memory; a step of each adapter; loss and gradients of each agent; a checkpoint written and
    read; a short training in a temporary folder.

    \b
    bircher check
    bircher check --json

    Exit status 0 where all checks passed, 1 where one failed.
    """
    with told():
        from bircher import machine
        from bircher.run import self_check, system

        machine.use_device(None)
        machine.keep_programs()
        described, results = system.describe(), []
        if not as_json:
            print("\n".join(system.lines(described)), flush=True)
        for result in self_check.run(self_check.checks()):
            results.append(result)
            if not as_json:
                outcome = "ok" if result.error is None else f"failed: {result.error}"
                print(f"{result.name:42}{result.seconds:6.1f} s  {outcome}", flush=True)
    failed = [result for result in results if result.error is not None]
    if as_json:
        print(json.dumps({**described, "checks": [result._asdict() for result in results]}))
    else:
        print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    if failed:
        raise typer.Exit(FAILED)
