"""Many runs of Muesli as one program: seeds and variants that differ in numbers alone are a batch axis, for a GPU.

    python benchmarks/replicas.py Breakout-MinAtar --seeds 10 --steps 2000000 --train build/ten
    python benchmarks/replicas.py Breakout-MinAtar --seeds 10 --steps 2000000 --evaluate build/ten
    python benchmarks/replicas.py Breakout-MinAtar --group parts scale --train build/replicas

Where `learning.py ablations` starts a process for each run, here `jax.vmap` makes one program of all runs whose network
and terms
are the same: weights of terms, the clip's bound and the advantages' factor are arrays with an entry for each.  What
remains are a few programs, one after the other.  Each run begins as `bircher train` with its settings would, with the
same keys and environments, so that the two agree up to rounding; on pure JAX environments only.  Training leaves each
run's acting policy and curve in a file; evaluating plays 100 fresh episodes of each, as `bircher eval` does, and
appends them to the ledger.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from learning import GROUPS, WHOLE
from ledger import Line, commit, machine, record

from bircher.agents import actor_critic
from bircher.config.config import Config, compose
from bircher.experiments.grid import Variant
from bircher.runs import build
from bircher.runs.loaded_agent import make_evaluator
from bircher.training import learner, loops
from bircher.training.rollout import start_actors

WEIGHTS = ("policy_gradient", "cmpo", "model_policy")
"""Terms whose weight may differ within a program."""
CLIP, FACTOR = "agent.cmpo.clip_bound", "agent.advantage.factor"
NUMBERS = (CLIP, FACTOR, *(f"losses.{name}.weight" for name in WEIGHTS))
"""Settings that may differ within a program."""
CHUNK = 50
"""Iterations between two looks at a program that runs, at most."""


class Knobs(NamedTuple):
    """What differs between the runs of a program, [runs] each."""

    weights: dict[str, jax.Array]
    clip_bound: jax.Array
    factor: jax.Array


class Run(NamedTuple):
    """One run, as `learning.py ablations` would start it."""

    variant: str
    seed: int
    config: Config
    command: str


def groups(env: str, names: Sequence[str], seeds: int, settings: Sequence[str]) -> list[list[Run]]:
    """The runs of each program; those that differ in numbers alone share one."""
    together: dict[tuple[str, ...], list[Run]] = {}
    for variant in [WHOLE, *(variant for name in names for variant in GROUPS[name])]:
        apart = tuple(word for word in variant.settings if word.split("=")[0] not in NUMBERS)
        together.setdefault(apart, []).extend(_runs(env, variant, seeds, settings))
    return list(together.values())


def _runs(env: str, variant: Variant, seeds: int, settings: Sequence[str]) -> list[Run]:
    found = []
    for seed in range(seeds):
        words = [*variant.settings, *settings, f"seed={seed}"]
        found.append(Run(variant.name, seed, compose(env, words), " ".join(["bircher train", env, *words])))
    return found


def knobs(runs: Sequence[Run]) -> Knobs:
    """The numbers of these runs."""
    bounds = [run.config.agent.cmpo.clip_bound for run in runs]
    return Knobs(
        {name: jnp.array([getattr(run.config.losses, name).weight for run in runs]) for name in WEIGHTS},
        jnp.array([jnp.inf if bound is None else bound for bound in bounds]),
        jnp.array([run.config.agent.advantage.factor for run in runs]),
    )


def agent_of(config: Config, num_players: int, knob: Knobs | None = None):
    """The agent, with a run's own numbers in the places of the configuration's."""
    settings = config.agent
    if knob is not None:
        # Traced numbers: copies are not validated, which arrays would not survive.
        cmpo = settings.cmpo.model_copy(update={"clip_bound": knob.clip_bound})
        advantage = settings.advantage.model_copy(update={"factor": knob.factor})
        settings = settings.model_copy(update={"cmpo": cmpo, "advantage": advantage})
    agent = actor_critic.make(settings, config.model, config.losses, config.search, num_players)
    if knob is None:
        return agent
    return agent._replace(weights={name: knob.weights.get(name, weight) for name, weight in agent.weights.items()})


def program(config: Config, env: Any):
    """(train, actor, progress, knobs, iterations) -> the first three after so many iterations, of all runs."""

    def advance(train, state, progress, knob, iterations):
        agent = agent_of(config, env.spec.num_players, knob)
        settings = learner.LearnerConfig(
            config.optimizer, config.replay, config.env.num_envs, config.loop.rollout_length, config.steps,
            config.agent.target_update_rate,
        )  # fmt: skip
        learn = learner.Learner(agent, env.spec, settings)
        loop = loops.synchronous(agent, env, learn, config.loop.rollout_length, config.steps)
        return loop.advance(train, state, progress, iterations)

    return jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, 0, None)), donate_argnums=(0, 1, 2))


def begin(config: Config) -> tuple[Any, Any, Any]:
    """Environments, and the states of a run as `bircher train` begins it."""
    env = build.make_env(config, None, config.env.num_envs, config.seed, "train")
    parts = build.make_parts(config, env.spec)
    actor_key, train_key = jax.random.split(jax.random.key(config.seed))
    state = start_actors(parts.agent, env, jax.random.fold_in(actor_key, 0))
    train = parts.init(train_key, state.timestep)
    loop = loops.synchronous(parts.agent, env, parts.learner, config.loop.rollout_length, config.steps)
    return env, (train, state), loop.fresh_progress(train, state)


def train(runs: Sequence[Run], out: Path) -> None:
    """Train the runs of one program, and write what acts and how it got there."""
    config, count = runs[0].config, len(runs)
    if config.loop.name != "synchronous":
        raise SystemExit(f"loop={config.loop.name} is not what replicas do: give loop=synchronous")
    # Runs of one seed begin alike.
    begun = {run.seed: begin(run.config) for run in runs}
    env, _, blank = begun[runs[0].seed]
    if not env.pure:
        raise SystemExit(f"{config.env.id} is no pure JAX environment: use learning.py ablations")
    states = jax.tree.map(lambda *xs: jnp.stack(xs), *(begun[run.seed][1] for run in runs))
    zero = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), blank)
    advance, knob = program(config, env), knobs(runs)
    began, curve = time.perf_counter(), []
    steps, compiled = 0, None
    while steps < config.steps:
        left = -(-(config.steps - steps) // (config.env.num_envs * config.loop.rollout_length))
        *states, progress = advance(*states, jax.tree.map(jnp.copy, zero), knob, min(left, CHUNK))
        tally, counters = jax.device_get((progress.tally, states[0].counters))
        steps, now = int(counters.env_steps.min()), time.perf_counter() - began
        compiled = compiled or now
        returns = tally.return_sum / np.maximum(tally.episodes, 1)
        curve.append({"env_steps": counters.env_steps.tolist(), "seconds": now, "returns": returns.tolist()})
        print(f"{count} runs, {steps:,} steps each, {now:.0f} s, returns {np.round(returns, 1)}", flush=True)
    wall = time.perf_counter() - began
    if int(np.sum(jax.device_get(states[0].non_finite))):
        raise SystemExit("some updates were not finite")
    acting = learner.acting_policy(agent_of(config, env.spec.num_players), states[0])
    name = _name(runs[0])
    np.savez(out / f"{name}.npz", *jax.device_get(jax.tree.leaves(acting)))
    told = {
        "runs": [[run.variant, run.seed] for run in runs],
        "env_steps": counters.env_steps.tolist(),
        "learner_steps": counters.learner_steps.tolist(),
        "wall_seconds": round(wall, 1),
        "first_chunk_seconds": round(compiled or wall, 1),
        "machine": f"{jax.devices()[0].device_kind}, {machine()}",
        "commit": commit(),
        "curve": curve,
    }
    (out / f"{name}.json").write_text(json.dumps(told))
    rate = int(counters.env_steps.sum()) / wall
    print(f"{name}: {count} runs in {wall:.0f} s, {rate:,.0f} environment steps a second together", flush=True)


def _name(run: Run) -> str:
    """Of the program's files: what sets it apart from the others."""
    words = [word for word in run.command.split()[3:] if word.split("=")[0] not in (*NUMBERS, "agent", "seed", "steps")]
    return "-".join(word.replace(".", "_").replace("=", "_") for word in words) or "numbers"


def evaluate(runs: Sequence[Run], out: Path, episodes: int, command: str, ablates: bool) -> None:
    """Play fresh episodes of every run of a program, and append each to the ledger."""
    name = _name(runs[0])
    told = json.loads((out / f"{name}.json").read_text())
    saved = np.load(out / f"{name}.npz", allow_pickle=False)
    leaves = [saved[key] for key in saved.files]
    evaluators: dict[int, Any] = {}
    for index, run in enumerate(runs):
        assert told["runs"][index] == [run.variant, run.seed]
        env = build.make_env(run.config, None, 1, run.config.seed, "train")
        agent = agent_of(run.config, env.spec.num_players)
        like = jax.eval_shape(lambda key, a=agent, e=env: a.init(key, e.spec), jax.random.key(0))
        acting = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf[index]) for leaf in leaves])
        if run.seed not in evaluators:
            evaluators[run.seed] = make_evaluator(agent, run.config, None, run.seed, "sample", "eval")
        report = evaluators[run.seed](acting, episodes, run.seed)
        record(
            Line(
                name="ablation" if ablates else "replicas",
                command=command,
                commit=told["commit"],
                machine=told["machine"],
                env=run.config.env.id,
                agent=run.config.agent.name,
                seeds=(run.seed,),
                returns=tuple(round(value, 2) for value in report.returns),
                wall_seconds=told["wall_seconds"],
                results={
                    "variant": run.variant,
                    "settings": run.command,
                    "env_steps": told["env_steps"][index],
                    "learner_steps": told["learner_steps"][index],
                    "together": len(runs),
                    "episodes": report.episodes,
                    "eval_seed": report.seed,
                    "mode": report.mode,
                    "mean": report.mean,
                },
            )
        )
        print(f"{run.variant}, seed {run.seed}: {report.mean:.2f}", flush=True)


def main() -> None:
    """Train, or evaluate what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--group", choices=GROUPS, nargs="*", default=[], help="without one: the preset alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--programs", type=int, nargs="+", help="which of the programs, from 0 on; else all")
    parser.add_argument("--train", type=Path, metavar="DIR")
    parser.add_argument("--evaluate", type=Path, metavar="DIR")
    options = parser.parse_intermixed_args()
    every = groups(options.env, options.group, options.seeds, [*options.settings, f"steps={options.steps}"])
    every = every if options.programs is None else [every[index] for index in options.programs]
    command = f"python benchmarks/replicas.py {options.env} " + (
        f"--group {' '.join(options.group)}" if options.group else f"--seeds {options.seeds} --steps {options.steps}"
    )
    for runs in every:
        if options.train:
            options.train.mkdir(parents=True, exist_ok=True)
            train(runs, options.train)
        if options.evaluate:
            evaluate(runs, options.evaluate, options.episodes, command, bool(options.group))


if __name__ == "__main__":
    main()
