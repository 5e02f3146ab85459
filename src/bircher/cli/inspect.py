"""The commands that inspect an installation, a run, its model and its searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bircher.cli.shared import FAILED, AsJson, Overrides, SavedRun, Seed, exit_on_error


def check(as_json: AsJson = False) -> None:
    """Test this installation in about a minute, and print the information for a bug report.

    It prints versions, devices and memory. It takes a step with each adapter, computes the loss and the gradients of
    each agent, writes and reads a checkpoint, and trains briefly in a temporary folder.

    \b
    bircher check
    bircher check --json

    The exit status is 0 if all checks passed, and 1 if one failed.
    """
    with exit_on_error():
        from bircher import devices
        from bircher.runs import self_check

        devices.use_device(None)
        devices.keep_programs()
        described, results = self_check.describe(), []
        if not as_json:
            print("\n".join(self_check.lines(described)), flush=True)
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


FLAGGED = 3
"""The exit status of `bircher doctor` if it raises a flag."""


def doctor(run: SavedRun, as_json: AsJson = False) -> None:
    """Find out why a run does not learn.

    It prints red flags with evidence, likely cause and the setting to change, and then answers the usual questions with
    the numbers of the run.

    \b
    bircher doctor runs/mine
    bircher doctor runs/mine --json

    The exit status is 0 without flags, and 3 with flags.
    """
    with exit_on_error():
        from bircher.runs import logger

        flags, questions = logger.examine(run), logger.questions(run)
    if as_json:
        print(json.dumps({"flags": [flag._asdict() for flag in flags]}))
    else:
        for flag in flags:
            print(f"{flag.number:2d} {flag.name}\n   {flag.evidence}\n   likely: {flag.cause}\n   try: {flag.advice}")
        if not flags:
            print("no red flag")
        for question, answer in questions:
            print(f"{question}\n   {answer}")
    if flags:
        raise typer.Exit(FLAGGED)


def diagnose(
    run: SavedRun,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1024, help="The number of environment steps to measure.")] = 8192,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture; by default diagnosis.png in RUN.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a run's model with new episodes: its errors by depth, and the gain of its look-ahead.

    The picture also shows three decisions of an episode: the policy before and after looking ahead, as bars, or as
    densities with their samples.

    \b
    bircher diagnose runs/mine
    bircher diagnose runs/mine --steps 20000 --json
    """
    with exit_on_error():
        from bircher.runs import inspect, launch
        from bircher.viz import plots

        agent = launch.load_for_playing(run, overrides or ())
        path = out or run / "diagnosis.png"
        plots.require_writable(path)
        found = inspect.diagnose(agent, steps, seed)
        inspect.draw(found, path, inspect.moments(agent, seed))
    if as_json:
        print(json.dumps({**found, "picture": str(path)}))
        return
    print(f"{found['env']}, {found['agent']}, {found['env_steps']:,} steps of new episodes, seed {seed}")
    print("depth   reward     value    return   policy KL")
    errors = zip(
        found["depths"], found["reward_error"], found["value_error"], found["return_error"], found["policy_kl"],
        strict=True,
    )  # fmt: skip
    for depth, *row in errors:
        beyond = "" if depth <= found["unroll_steps"] else "   beyond the unroll of training"
        shown = [
            "—" if number is None else f"{number:.{digits}f}" for number, digits in zip(row, (3, 3, 3, 4), strict=True)
        ]
        print(f"{depth:5d} {shown[0]:>8} {shown[1]:>9} {shown[2]:>9} {shown[3]:>11}{beyond}")
    print(f"standard deviation of rewards {found['reward_deviation']:.3f}, of returns {found['return_deviation']:.3f}")
    print(f"gain {found['gain']:.4f} at {found['improvement_kl']:.4f} nats from the prior (by the model's own values)")
    print(
        f"correlation of the model's advantages with real one-step errors {found['advantage_correlation']:.3f}, "
        f"of at most {found['advantage_ceiling']:.3f} if they were true"
    )
    print(path)


def search(
    run: SavedRun,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(min=0, help="The number of actions before the decision.")] = 0,
    seed: Seed = 0,
    nodes: Annotated[
        int, typer.Option(min=1, help="The number of nodes below the root; the most visited ones are drawn.")
    ] = 60,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture; by default search-STEP.svg in RUN.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the search tree of one decision as SVG: visits, values, priors, rewards, and the best line.

    \b
    bircher search runs/mine --step 20
    bircher search runs/mine search.num_simulations=200 --out tree.svg
    """
    with exit_on_error():
        from bircher.runs import inspect, launch
        from bircher.viz import panels, plots

        agent = launch.load_for_playing(run, overrides or ())
        path = out or run / f"search-{step}.svg"
        plots.require_writable(path)
        decision = inspect.decide(agent, step, seed)
        panels.write(inspect.draw_search(agent, decision, nodes), path)
    tree, chosen = decision.tree, agent.own_action(decision.action_at(decision.action))
    if as_json:
        line = [edge._asdict() for edge in tree.best_line()]
        children = [edge._asdict() for edge in tree.following(0)]
        found = {
            "env": agent.spec.id, "agent": agent.name, "step": step, "seed": seed, "action": chosen.tolist(),
            "value": decision.value, "children": children, "best_line": line, "picture": str(path),
        }  # fmt: skip
        if decision.candidates is not None and decision.thought is not None:
            found["candidates"] = agent.own_action(decision.candidates).tolist()
            found["weights"] = decision.thought.improved.tolist()
        print(json.dumps(found))
        return
    name = agent.action_name(decision.action_at(decision.action))
    print(f"{agent.spec.id}, {agent.name}, step {step}: value {decision.value:.3f}, action {name}")
    for edge in tree.following(0):
        action = agent.action_name(decision.action_at(edge.action))
        print(f"action {action:>3}  visits {edge.visits:4d}  prior {edge.prior:.3f}  q {edge.q_value:8.3f}")
    print(path)
