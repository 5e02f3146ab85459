"""What agents cost: floating-point operations of an environment step, acting and learning, at their presets.

    python benchmarks/cost.py LunarLander-v3 Breakout-MinAtar --agents muesli ppo

Matrix products and convolutions are counted from what JAX traces of one rollout and of its updates; nothing is run, so
that the figures are the same on every machine.  Wall times are the ledger's (benchmarks/learning.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

import bare
import equinox as eqx
import jax
from ledger import append, commit, entries, machine

from bircher.analysis import network_summary
from bircher.config import config
from bircher.training import learner
from bircher.training.rollout import collect_rollout


def operations(settings: config.Config) -> tuple[float, float, int]:
    """Of acting and of learning an environment step, and how many parameters there are."""
    env, parts, _, (train, state, _) = bare.start(settings)
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


def seconds_a_step(env: str, agent: str) -> float | None:
    """The median over the ledger's runs of this agent's preset; None without any."""
    plain = ("seed=", "agent=")
    lines = [
        line
        for line in entries("learning")
        if (line["env"], line["agent"]) == (env, agent)
        and all(word.startswith(plain) for word in line["command"].split()[3:])
    ]
    return median(line["wall_seconds"] / line["env_steps"] for line in lines) if lines else None


def table(rows: Sequence[dict]) -> str:
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


def main() -> None:
    """Count, print a table, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="+")
    parser.add_argument("--agents", nargs="+", default=["muesli", "ppo"])
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    rows = []
    for env in options.envs:
        for agent in options.agents:
            acting, learning, parameters = operations(config.compose(env, [f"agent={agent}"]))
            rows.append({
                "env": env, "agent": agent, "parameters": parameters, "acting": round(acting),
                "learning": round(learning), "seconds_a_step": seconds_a_step(env, agent),
            })  # fmt: skip
    print(table(rows))
    if not options.dry:
        words = " ".join([*options.envs, "--agents", *options.agents])
        append({
            "name": "cost", "command": f"python benchmarks/cost.py {words}", "commit": commit(), "machine": machine(),
            "rows": rows,
        })  # fmt: skip


if __name__ == "__main__":
    main()
