"""Speed of programs, of the start, and of the parts of a run; and the operations that agents need.

python benchmarks/speed.py in_turn --program bircher 500000 "python -m bircher train … --out {folder}" --program …
python benchmarks/speed.py startup LunarLander-v3 CartPole-v1
python benchmarks/speed.py overhead LunarLander-v3 --steps 200000
python benchmarks/speed.py shares LunarLander-v3 agent=gumbel_muzero
python benchmarks/speed.py cost LunarLander-v3 Breakout-MinAtar --agents muesli ppo
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import programs
import runner
from ledger import entries
from runner import Result, Study

from bircher import search
from bircher.agents import muzero
from bircher.analysis import network_summary
from bircher.config import config
from bircher.runs import launch
from bircher.training import learner
from bircher.training.rollout import collect_rollout
from bircher.types import Policy


class Program(NamedTuple):
    """A command, and the environment steps that it makes."""

    name: str
    steps: int
    command: str


class Duration(NamedTuple):
    """The time of one process and its children, in seconds."""

    wall: float
    processor: float


def _run_program(program: Program, cores: list[int], folder: Path) -> Duration:
    """Run a program on some cores and measure it; its output is shown if it fails."""
    words = shlex.split(program.command.replace("{folder}", str(folder)))
    words[0] = sys.executable if words[0] == "python" else words[0]
    words = ["taskset", "-c", ",".join(map(str, cores)), *words]
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{program.name} failed:\n{output}")
    return Duration(wall, usage.ru_utime + usage.ru_stime)


def _report_turns(programs: list[Program], durations: list[list[Duration]]) -> dict:
    """Print each program's steps a second and the ratios to it, and return the numbers for the ledger."""
    speeds = [[program.steps / turn.wall for turn in turns] for program, turns in zip(programs, durations, strict=True)]
    for program, speed, turns in zip(programs, speeds, durations, strict=True):
        each = ", ".join(f"{value:,.0f}" for value in speed)
        processor = median(turn.processor for turn in turns)
        print(f"{program.name}: {median(speed):,.0f} steps a second ({each}), {processor:.1f} s of processor time")
    ratios = {}
    for program, speed in zip(programs[1:], speeds[1:], strict=True):
        turns = [first / other for first, other in zip(speeds[0], speed, strict=True)]
        ratios[program.name] = [round(ratio, 3) for ratio in turns]
        print(f"{programs[0].name} / {program.name}: {median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})")
    return {
        "programs": [program._asdict() for program in programs],
        "wall_seconds": [[round(turn.wall, 2) for turn in turns] for turns in durations],
        "processor_seconds": [[round(turn.processor, 2) for turn in turns] for turns in durations],
        "ratios": ratios,
    }


def in_turn(options: argparse.Namespace) -> Iterator[Result]:
    """Compare the speed of programs by running them in turn on the same cores.

    Every turn runs each program once, one after the other, because a machine that others use varies over a day.  Each
    turn gives one ratio.  The median of the ratios is printed with their range.  Start and compilation count.
    `{folder}` in a command is a path that does not exist yet.
    """
    compared = [Program(name, int(steps), " ".join(command.split())) for name, steps, command in options.programs]
    durations: list[list[Duration]] = [[] for _ in compared]
    with runner.scratch() as folder:
        for turn in range(options.turns):
            for number, program in enumerate(compared):
                durations[number].append(_run_program(program, options.cores, folder / f"{turn}-{number}"))
    yield Result({"cores": options.cores, **_report_turns(compared, durations)})


def _in_turn_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--program", nargs=3, action="append", required=True, metavar=("NAME", "STEPS", "COMMAND"), dest="programs"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])


def _seconds_to_first_update(env: str, run: Path, cache: Path) -> float:
    """Start one run, wait for its first line of metrics, and stop it."""
    command = [sys.executable, "-m", "bircher", "train", env, "evaluation.count=0", "--out", str(run)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "BIRCHER_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"{env} ended before its first update: {process.stderr.read().decode()[-500:]}")
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.communicate()
    return seconds


def startup(options: argparse.Namespace) -> Iterator[Result]:
    """Measure the time from the start of the process to the first update, with a warm compilation cache.

    Each run is a process.  It is timed until the first line of metrics.jsonl is on the disk, which is written after the
    first rollout and its updates, and then interrupted.  The first run of each environment fills an empty cache, and
    the others use it.
    """
    for env in options.envs:
        with runner.scratch() as folder:
            cache = folder / "cache"
            times = [_seconds_to_first_update(env, folder / f"run-{i}", cache) for i in range(options.repeats + 1)]
        cold, warm = times[0], times[1:]
        print(f"{env}: cold {cold:.1f} s; warm median {median(warm):.2f} s of {[f'{t:.2f}' for t in warm]}")
        yield Result({"cold_seconds": round(cold, 2), "warm_seconds": [round(t, 3) for t in warm]}, env)


def _startup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("envs", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)


def _whole_run(settings: config.Config, folder: Path) -> tuple[float, int]:
    """(seconds from the first update to the end, iterations after the first)."""
    training = launch.start(settings, None, folder)
    started = time.monotonic()
    training.run()
    total = time.monotonic() - started
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = lines[0]["learner_steps"]
    return total - lines[0]["wall_seconds"], lines[-1]["learner_steps"] // updates - 1


def _bare_loop(settings: config.Config, iterations: int) -> float:
    """Seconds for so many iterations after the first, with nothing around them."""
    env, _, loop, states = programs.start(settings)
    states = jax.block_until_ready(loop.advance(*states, 1))
    started = time.monotonic()
    jax.block_until_ready(loop.advance(*states, iterations))
    seconds = time.monotonic() - started
    env.close()
    return seconds


def overhead(options: argparse.Namespace) -> Iterator[Result]:
    """Measure what console, metrics and checkpoints cost: a whole run and the same iterations in a bare loop.

    Runs and bare loops alternate in one process.  A run is timed from its first update to its end, including its last
    checkpoint, without evaluations.  The bare loop dispatches the same programs for as many iterations.
    """
    settings = config.compose(options.env, {"steps": int(options.steps), "evaluation.count": 0})
    whole, bare = [], []
    with runner.scratch() as folder:
        for i in range(options.repeats):
            seconds, iterations = _whole_run(settings, folder / f"run-{i}")
            whole.append(seconds)
            bare.append(_bare_loop(settings, iterations))
            print(f"run {seconds:.2f} s, bare loop {bare[-1]:.2f} s, {iterations} iterations", flush=True)
    ratio = median(whole) / median(bare)
    print(f"{options.env}: ratio of medians {ratio:.3f}, of minima {min(whole) / min(bare):.3f}")
    times = {"run_seconds": [round(t, 3) for t in whole], "bare_seconds": [round(t, 3) for t in bare]}
    yield Result({**times, "ratio": round(ratio, 4)}, options.env)


def _overhead_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env")
    parser.add_argument("--steps", type=float, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)


def _bare_search(settings: config.Config, discount: float) -> Callable:
    """As many searches as a rollout acts, one after the other, and nothing else."""
    run = search.gumbel_search if settings.agent.name == "gumbel_muzero" else search.puct_search

    def searches(policy: Policy, timestep, key):
        def one(key, _):
            key, search_key = jax.random.split(key)
            latent = policy.params.represent(timestep.observation.astype(jnp.float32))
            root = muzero.search_root(policy.params, latent, timestep.legal_actions)
            simulate = muzero.simulator(policy.params, discount)
            found = run(settings.search, root, simulate, search_key, settings.search.num_simulations, True)
            return key, (found.action, found.weights, found.value)

        return jax.lax.scan(one, key, None, length=settings.loop.rollout_length + 1)[1]

    return searches


def _bare_acts(agent, settings: config.Config) -> Callable:
    """As many acts as a rollout has, on the same rows."""

    def acts(policy: Policy, timestep, key):
        def one(carry, _):
            key, memory = carry
            key, act_key = jax.random.split(key)
            output, memory = agent.act(policy, memory, timestep, act_key, "explore", 0.0)
            return (key, memory), output

        start = (key, agent.start(len(timestep.reward)))
        return jax.lax.scan(one, start, None, length=settings.loop.rollout_length + 1)[1]

    return acts


def _share_seconds(settings: config.Config, runs: int) -> dict[str, list[float]]:
    """Seconds of each program, run by run."""
    env, parts, loop, (train, state, progress) = programs.start(settings)
    key = jax.random.key(settings.seed)

    def roll(policy, state):
        return collect_rollout(parts.agent, env, policy, state, settings.loop.rollout_length, 0.0)

    roll_program = jax.jit(roll)
    learn_program = jax.jit(parts.learner.update)
    search_program = jax.jit(_bare_search(settings, parts.agent.model_discount))
    act_program = jax.jit(_bare_acts(parts.agent, settings))
    timed = programs.Times()

    for _ in range(runs + 1):
        # The iteration gives up its arguments' buffers, so it goes first and what it returns serves the others.
        train, state, progress = timed("iteration", loop.advance, train, state, progress, 1)
        policy = learner.acting_policy(parts.agent, train)
        state, rows, tally = timed("rollout", roll_program, policy, state)
        timed("acts", act_program, policy, state.timestep, key)
        timed("searches", search_program, policy, state.timestep, key)
        timed("updates", learn_program, train, rows, tally)
    env.close()
    return timed.after_the_first()


def shares(options: argparse.Namespace) -> Iterator[Result]:
    """Measure where the time of a running agent goes, and its search compared with the same search alone.

    Five programs with the agent, network, batch and settings of the run take turns in one process, on one core: a whole
    iteration (a rollout and its updates), a rollout, the same number of acts without an environment, the same number of
    searches without an agent, and the updates of a rollout.  Medians are printed.  The loop is the synchronous one.
    """
    runner.use_one_core()
    # On one core nothing overlaps, whatever loop the preset names.
    settings = config.compose(options.env, [*options.settings, "loop.name=synchronous"])
    if "muzero" not in settings.agent.name or not settings.search.num_simulations:
        raise SystemExit(f"agent {settings.agent.name} does not search in training: give agent=muzero or gumbel_muzero")
    seconds = _share_seconds(settings, options.runs)
    middle = {name: median(values) for name, values in seconds.items()}
    acts = settings.loop.rollout_length + 1
    simulations = acts * settings.env.num_envs * settings.search.num_simulations
    steps = settings.loop.rollout_length * settings.env.num_envs
    inside, alone = simulations / middle["acts"], simulations / middle["searches"]
    environment = max(middle["rollout"] - middle["acts"], 0.0)
    print(
        f"{options.env}, {settings.agent.name}, {settings.env.num_envs} environments, "
        f"{settings.search.num_simulations} simulations; an iteration is {steps:,} steps and "
        f"{middle['iteration'] * 1000:.0f} ms, {steps / middle['iteration']:,.0f} steps/s"
    )
    total = environment + middle["acts"] + middle["updates"]
    print(
        f"environment {environment / total:.0%}, search and acting {middle['acts'] / total:.0%}, "
        f"learning {middle['updates'] / total:.0%}"
    )
    print(f"simulations/s: {inside:,.0f} while acting, {alone:,.0f} of the search alone, ratio {inside / alone:.2f}")
    yield Result(
        {
            "simulations": settings.search.num_simulations,
            "environments": settings.env.num_envs,
            "steps": steps,
            "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
            "simulations_per_second": {"inside": round(inside), "alone": round(alone)},
        },
        options.env,
        settings.agent.name,
    )


def _shares_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--runs", type=int, default=7)


def _operations(settings: config.Config) -> tuple[float, float, int]:
    """Of acting and of learning an environment step, and how many parameters there are."""
    env, parts, _, (train, state, _) = programs.start(settings)
    policy = learner.acting_policy(parts.agent, train)

    def roll(policy, state):
        return collect_rollout(parts.agent, env, policy, state, settings.loop.rollout_length, 0.0)

    _, rows, tally = jax.eval_shape(roll, policy, state)
    steps = settings.env.num_envs * settings.loop.rollout_length
    acting = network_summary.count(roll, policy, state) / steps
    learning = network_summary.count(parts.learner.update, train, rows, tally) / steps
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(train.params, eqx.is_array)))
    env.close()
    return acting, learning, parameters


def _seconds_a_step(env: str, agent: str) -> float | None:
    """The median over the ledger's runs of this agent's preset; None without any."""
    plain = ("seed=", "agent=")
    lines = [
        line
        for line in entries("learning")
        if (line.env, line.agent) == (env, agent) and all(word.startswith(plain) for word in line.command.split()[3:])
    ]
    return median((line.wall_seconds or 0) / line.results["env_steps"] for line in lines) if lines else None


def _cost_table(rows: Sequence[dict]) -> str:
    """Markdown."""
    heads = ["environment", "agent", "parameters", "acting, kFLOP", "learning, kFLOP", "wall, µs", "steps/s"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        wall = row["seconds_a_step"]
        lines.append([
            row["env"], row["agent"], f"{row['parameters']:,}", f"{row['acting'] / 1e3:,.0f}",
            f"{row['learning'] / 1e3:,.0f}", *(["", ""] if wall is None else [f"{wall * 1e6:.0f}", f"{1 / wall:,.0f}"]),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def cost(options: argparse.Namespace) -> Iterator[Result]:
    """Count floating-point operations of an environment step, acting and learning, of presets.

    Matrix products and convolutions are counted from what JAX traces of one rollout and of its updates.  Nothing is
    run, so that the figures are the same on every machine.  Wall times are those of the ledger (learning.py runs).
    """
    rows = []
    for env in options.envs:
        for agent in options.agents:
            acting, learning, parameters = _operations(config.compose(env, [f"agent={agent}"]))
            rows.append({
                "env": env, "agent": agent, "parameters": parameters, "acting": round(acting),
                "learning": round(learning), "seconds_a_step": _seconds_a_step(env, agent),
            })  # fmt: skip
    print(_cost_table(rows))
    yield Result({"rows": rows})


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("envs", nargs="+")
    parser.add_argument("--agents", nargs="+", default=["muesli", "ppo"])


if __name__ == "__main__":
    runner.main(
        __doc__,
        {
            "in_turn": Study(in_turn, _in_turn_arguments),
            "startup": Study(startup, _startup_arguments),
            "overhead": Study(overhead, _overhead_arguments),
            "shares": Study(shares, _shares_arguments),
            "cost": Study(cost, _cost_arguments),
        },
    )
