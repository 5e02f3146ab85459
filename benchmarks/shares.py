"""Where a running agent's time goes: environment, search, learning; and its search beside the same search alone.

    python benchmarks/shares.py LunarLander-v3 agent=gumbel_muzero
    python benchmarks/shares.py connect_four agent=gumbel_muzero

Five programs with the run's own agent, network, batch and settings take turns in one process, on one core: a whole
iteration (a rollout and its updates), a rollout, the same number of acts without an environment, the same number of
searches without an agent around them, and a rollout's updates.  Medians are printed.  The loop is the synchronous one.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

import bare
import jax
import jax.numpy as jnp
from ledger import append, commit, machine

from bircher import search
from bircher.agents import muzero
from bircher.config import config
from bircher.training import learner
from bircher.training.rollout import collect_rollout
from bircher.types import Policy


def bare_search(settings: config.Config, discount: float) -> Callable:
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


def bare_acts(agent, settings: config.Config) -> Callable:
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


def measure(settings: config.Config, runs: int) -> dict[str, list[float]]:
    """Seconds of each program, run by run."""
    env, parts, programs, (train, state, progress) = bare.start(settings)
    key = jax.random.key(settings.seed)

    def roll(policy, state):
        return collect_rollout(parts.agent, env, policy, state, settings.loop.rollout_length, 0.0)

    roll_program = jax.jit(roll)
    learn_program = jax.jit(parts.learner.update)
    search_program = jax.jit(bare_search(settings, parts.agent.model_discount))
    act_program = jax.jit(bare_acts(parts.agent, settings))
    timed = bare.Times()

    for _ in range(runs + 1):
        # The iteration gives up its arguments' buffers, so it goes first and what it returns serves the others.
        train, state, progress = timed("iteration", programs.advance, train, state, progress, 1)
        policy = learner.acting_policy(parts.agent, train)
        state, rows, tally = timed("rollout", roll_program, policy, state)
        timed("acts", act_program, policy, state.timestep, key)
        timed("searches", search_program, policy, state.timestep, key)
        timed("updates", learn_program, train, rows, tally)
    env.close()
    return timed.after_the_first()


def main() -> None:
    """Read the arguments, measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as for bircher train")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_intermixed_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # On one core nothing overlaps, whatever loop the preset names.
    settings = config.compose(options.env, [*options.settings, "loop.name=synchronous"])
    if "muzero" not in settings.agent.name or not settings.search.num_simulations:
        parser.error(f"agent {settings.agent.name} does not search while it learns: give agent=muzero or gumbel_muzero")
    seconds = measure(settings, options.runs)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    acts = settings.loop.rollout_length + 1
    simulations = acts * settings.env.num_envs * settings.search.num_simulations
    steps = settings.loop.rollout_length * settings.env.num_envs
    inside, alone = simulations / median["acts"], simulations / median["searches"]
    environment = max(median["rollout"] - median["acts"], 0.0)
    print(
        f"{options.env}, {settings.agent.name}, {settings.env.num_envs} environments, "
        f"{settings.search.num_simulations} simulations; an iteration is {steps:,} steps and "
        f"{median['iteration'] * 1000:.0f} ms, {steps / median['iteration']:,.0f} steps/s"
    )
    total = environment + median["acts"] + median["updates"]
    print(
        f"environment {environment / total:.0%}, search and acting {median['acts'] / total:.0%}, "
        f"learning {median['updates'] / total:.0%}"
    )
    print(f"simulations/s: {inside:,.0f} while acting, {alone:,.0f} of the search alone, ratio {inside / alone:.2f}")
    if not options.dry:
        append({
            "name": "shares",
            "command": "python benchmarks/shares.py " + " ".join([options.env, *options.settings]),
            "commit": commit(),
            "machine": machine() + ", one of them used",
            "env": options.env,
            "agent": settings.agent.name,
            "simulations": settings.search.num_simulations,
            "environments": settings.env.num_envs,
            "steps": steps,
            "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
            "simulations_per_second": {"inside": round(inside), "alone": round(alone)},
        })  # fmt: skip


if __name__ == "__main__":
    main()
