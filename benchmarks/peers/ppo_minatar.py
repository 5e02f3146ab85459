"""Trains and scores rejax's PPO, a peer for bircher's agents, on one of gymnax's MinAtar games.

One process is one run: it trains, plays fresh episodes with the final agent, sampling, and appends one line to the
ledger. README.md beside this file says where the settings come from and how to install the peer.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the imports: the wall time counts them and the compilation

import argparse  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

import gymnax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from common import LEDGER, Line, commit, machine, record  # noqa: E402
from gymnax.wrappers.compat import LegacyStepAPIWrapper  # noqa: E402
from gymnax.wrappers.purerl import LogWrapper  # noqa: E402
from rejax import PPO  # noqa: E402
from rejax.evaluate import evaluate  # noqa: E402

GAMES = ("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar")
CURVE_POINTS = 20

# Published settings; README.md names the source of each. `warmup` is a share of all updates, `anneal` ends at 0.
SETTINGS = {
    "purejaxrl": {
        "learning_rate": 5e-3, "warmup": 0.0, "anneal": True, "max_grad_norm": 0.5, "gamma": 0.99,
        "num_envs": 64, "num_steps": 128, "num_epochs": 4, "num_minibatches": 8,
        "agent_kwargs": {"activation": "relu", "hidden_layer_sizes": (64, 64)},
    },
    "gymnax-blines": {
        "learning_rate": 5e-4, "warmup": 0.05, "anneal": False, "max_grad_norm": 0.5, "gamma": 0.999,
        "num_envs": 64, "num_steps": 128, "num_epochs": 4, "num_minibatches": 8,
        "agent_kwargs": {"activation": "relu", "hidden_layer_sizes": (256, 256)},
    },
    "rejax": {
        "learning_rate": 0.00025674088686342003, "warmup": 0.0, "anneal": False, "max_grad_norm": 1.0, "gamma": 0.995,
        "num_envs": 32, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4,
        "agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    },
}  # fmt: skip
COMMON = {"gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01, "vf_coef": 0.5}


class OneDone(LegacyStepAPIWrapper):
    """The step of gymnax before 1.0, with one `done`, as rejax expects it.

    rejax copies its configuration; gymnax's wrappers recurse without end when copied, and hold nothing that changes.
    """

    def __deepcopy__(self, memo: dict) -> OneDone:
        return self


def learning_rate(setting: dict, updates: int) -> optax.Schedule:
    """The schedule over `updates` gradient steps: a linear warm-up, then constant or linear to 0."""
    peak, warmup = setting["learning_rate"], int(setting["warmup"] * updates)
    main = optax.linear_schedule(peak, 0.0 if setting["anneal"] else peak, updates - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup]) if warmup else main


def training_return(algo: PPO, state, key: jax.Array) -> jax.Array:
    """Mean return of the latest finished episode of each training environment, nan before the first one."""
    del algo, key
    log = state.env_state
    return jnp.mean(log.returned_episode_returns, where=log.returned_episode_valid)


def build(env_id: str, settings: str, steps: int) -> tuple[PPO, int]:
    """The peer and the environment steps that it will take: `steps`, rounded up to whole iterations."""
    setting = SETTINGS[settings]
    env, env_params = gymnax.make(env_id)
    iteration = setting["num_envs"] * setting["num_steps"]
    iterations = -(-steps // iteration)
    points = min(CURVE_POINTS, iterations)
    # rejax runs whole iterations between two points of the curve, so the budget is divided exactly, never exceeded.
    points = max(n for n in range(1, points + 1) if iterations % n == 0)
    updates = iterations * setting["num_epochs"] * setting["num_minibatches"]
    passed_on = {key: value for key, value in setting.items() if key not in ("learning_rate", "warmup", "anneal")}
    algo = PPO.create(
        env=OneDone(LogWrapper(env)),
        env_params=env_params,
        total_timesteps=iterations * iteration,
        eval_freq=iterations * iteration // points,
        skip_initial_evaluation=True,
        learning_rate=learning_rate(setting, updates),
        **COMMON,
        **passed_on,
    )
    return algo.replace(eval_callback=training_return), iterations * iteration


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", choices=GAMES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=lambda text: int(float(text)), default=2_000_000, help="environment steps")
    parser.add_argument("--settings", choices=sorted(SETTINGS), default="purejaxrl")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    return parser.parse_args()


def main() -> None:
    """Trains, scores, appends the line and prints its summary."""
    args = arguments()
    algo, env_steps = build(args.env, args.settings, args.steps)
    state, curve = jax.block_until_ready(jax.jit(algo.train)(jax.random.key(args.seed)))
    wall_seconds, cpu_seconds = time.perf_counter() - STARTED, time.process_time()

    # Hashing (seed, role) keeps the keys of the evaluation apart from every key that training draws.
    eval_seed = 1_000_000 + args.seed
    key = jax.random.fold_in(jax.random.key(eval_seed), 1)
    lengths, returns = evaluate(algo.make_act(state), key, algo.env, algo.env_params, args.episodes)
    returns, lengths = np.asarray(returns, dtype=float), np.asarray(lengths)
    line = Line(
        name="peer-ppo",
        command="python " + shlex.join(sys.argv),
        commit=commit(),
        machine=machine("jax", "jaxlib", "gymnax", "rejax", "flax", "optax", "distrax", "numpy"),
        env=args.env,
        agent=f"ppo (rejax {version('rejax')})",
        seeds=(args.seed,),
        returns=tuple(returns.tolist()),
        wall_seconds=round(wall_seconds, 1),
        results={
            "settings": args.settings,
            "env_steps": env_steps,
            "eval_seed": eval_seed,
            "mode": "sample",
            "episodes": args.episodes,
            "max_steps": int(algo.env_params.max_steps_in_episode),
            "mean": round(float(returns.mean()), 4),
            "lengths": lengths.tolist(),
            "training_return": [None if np.isnan(r) else round(float(r), 3) for r in np.asarray(curve)],
            "cpu_seconds": round(cpu_seconds, 1),
            "eval_wall_seconds": round(time.perf_counter() - STARTED - wall_seconds, 1),
        },
    )
    record(line, args.ledger)
    print(json.dumps(line._replace(returns=(), results={**line.results, "lengths": None})._asdict()))


if __name__ == "__main__":
    main()
