"""Simulations a second of bircher's searches beside mctx's own policies: one process, one core, the same network.

    python benchmarks/search.py

The network is bircher's own, an MLP of 128 units, with random heads of 601 atoms so that the trees have a shape.  All
four programs of a batch size take turns, and the medians of their runs are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import mctx
import runner
from ledger import machine
from runner import Result, Study

from bircher import search
from bircher.networks.model import Model, ModelConfig
from bircher.types import Discrete, EnvSpec

WIDTH, NUM_ACTIONS, DISCOUNT = 128, 4, 0.997


def make_model(key: jax.Array) -> Model:
    """MLPs of one hidden layer; the heads, which begin at zero, are drawn."""
    spec = EnvSpec("benchmark", jax.ShapeDtypeStruct((8,), jnp.float32), Discrete(NUM_ACTIONS))
    config = ModelConfig(torso_widths=(WIDTH,), latent_width=WIDTH, dynamics_widths=(WIDTH,), num_atoms=601)
    model = Model(spec, config, key)
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    drawn = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def look(model: Model, latent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits, value) in a latent."""
    prediction = model.predict(latent)
    return prediction.policy_logits, model.value_support.mean(prediction.value_logits)


def advance(model: Model, latent: jax.Array, action: jax.Array) -> search.Step:
    """The model as every contender calls it."""
    latent = model.step(latent, action)
    reward = model.reward_support.mean(model.reward_logits(latent))
    logits, value = look(model, latent)
    return search.Step(reward, jnp.full(reward.shape, DISCOUNT), logits, value, latent)


def ours(kind: str, num_simulations: int) -> Callable:
    """bircher's search, with noise at the root."""
    run = {"puct": search.puct_search, "gumbel": search.gumbel_search}[kind]

    def program(model, observation, key):
        latent = model.represent(observation)
        root = search.Root(*look(model, latent), latent, jnp.ones((len(latent), NUM_ACTIONS), bool))
        result = run(search.SearchConfig(), root, lambda z, a: advance(model, z, a), key, num_simulations, True)
        return result.action, result.weights, result.value

    return jax.jit(program)


def theirs(kind: str, num_simulations: int) -> Callable:
    """mctx's policy with its own defaults."""
    run = {"puct": mctx.muzero_policy, "gumbel": mctx.gumbel_muzero_policy}[kind]

    def recurrent(model, key, action, latent):
        step = advance(model, latent, action)
        output = mctx.RecurrentFnOutput(
            reward=step.reward, discount=step.discount, prior_logits=step.logits, value=step.value
        )
        return output, step.latent

    def program(model, observation, key):
        latent = model.represent(observation)
        logits, value = look(model, latent)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
        invalid = jnp.zeros(logits.shape, bool)
        output = run(model, key, root, recurrent, num_simulations, invalid)
        return output.action, output.action_weights, output.search_tree.node_values[:, 0]

    return jax.jit(program)


def seconds(program: Callable, arguments: tuple, calls: int) -> float:
    """Of so many calls, one after the other."""
    started = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(program(*arguments))
    return time.perf_counter() - started


def measure(batch_size: int, num_simulations: int, runs: int, least_seconds: float) -> dict[str, list[float]]:
    """Simulations a second of each contender, run by run."""
    arguments = (
        make_model(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (batch_size, 8)),
        jax.random.key(2),
    )
    programs = {
        f"{who} {kind}": make(kind, num_simulations)
        for kind in ("puct", "gumbel")
        for who, make in (("bircher", ours), ("mctx", theirs))
    }
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    calls = max(1, round(least_seconds / seconds(programs["mctx puct"], arguments, 1)))
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            rates[name].append(calls * batch_size * num_simulations / seconds(program, arguments, calls))
    return rates


def measure_all(options: argparse.Namespace) -> Iterator[Result]:
    """One line for each batch size and search."""
    runner.use_one_core()
    print("| search | batch | bircher, simulations/s | mctx, simulations/s | ratio |\n|---|---|---|---|---|")
    lines = []
    for batch_size in options.batch_sizes:
        rates = measure(batch_size, options.simulations, options.runs, options.seconds)
        for kind in ("puct", "gumbel"):
            mine, other = (statistics.median(rates[f"{who} {kind}"]) for who in ("bircher", "mctx"))
            print(f"| {kind} | {batch_size} | {mine:,.0f} | {other:,.0f} | {mine / other:.2f} |", flush=True)
            lines.append({
                "search": kind,
                "batch": batch_size,
                "bircher": [round(rate) for rate in rates[f"bircher {kind}"]],
                "mctx": [round(rate) for rate in rates[f"mctx {kind}"]],
                "ratio": round(mine / other, 3),
            })  # fmt: skip
    where = machine() + ", one of them used"
    yield Result({"simulations": options.simulations, "lines": lines}, machine=where)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run, about")


if __name__ == "__main__":
    runner.main(__doc__, {"search": Study(measure_all, _arguments)})
