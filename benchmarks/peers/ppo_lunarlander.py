"""Trains and scores Stable-Baselines3's PPO, a peer for bircher's, on LunarLander-v3.

One process is one run: it trains, plays fresh episodes with the final agent, and appends one line to the ledger.
README.md beside this file says where the settings come from and how to install the peer.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the imports: the wall time counts them

import argparse  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from importlib.metadata import version  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import Line, commit, machine, record  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv  # noqa: E402

ENV = "LunarLander-v3"
SETTINGS = {
    "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01,
}  # fmt: skip
NUM_ENVS = 16


def main() -> None:
    """Train, evaluate, print a line and append it to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--processes", action="store_true", help="environments in processes of their own")
    parser.add_argument("--greedy", action="store_true", help="evaluate without drawing actions")
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = SubprocVecEnv if options.processes else DummyVecEnv
    env = make_vec_env(ENV, n_envs=NUM_ENVS, seed=options.seed, vec_env_cls=kind)
    agent = PPO("MlpPolicy", env, seed=options.seed, device="cpu", **SETTINGS)
    agent.learn(options.steps)
    wall, cpu = time.perf_counter() - STARTED, time.process_time()
    fresh = make_vec_env(ENV, n_envs=1, seed=1_000_000 + options.seed)
    returns, _ = evaluate_policy(
        agent, fresh, options.episodes, deterministic=options.greedy, return_episode_rewards=True
    )
    line = Line(
        name="peer-ppo",
        command="python " + shlex.join(sys.argv),
        commit=commit(),
        machine=machine("stable-baselines3", "torch", "gymnasium", "numpy"),
        env=ENV,
        agent=f"ppo (Stable-Baselines3 {version('stable-baselines3')})",
        seeds=(options.seed,),
        returns=tuple(round(float(value), 2) for value in returns),
        wall_seconds=round(wall, 1),
        results={
            "settings": "rl-baselines3-zoo",
            "env_steps": agent.num_timesteps,
            "eval_seed": 1_000_000 + options.seed,
            "mode": "greedy" if options.greedy else "sample",
            "episodes": options.episodes,
            "mean": round(float(np.mean(returns)), 4),
            "cpu_seconds": round(cpu, 1),
        },
    )
    print(json.dumps(line._replace(returns=())._asdict()))
    if not options.dry:
        record(line)


if __name__ == "__main__":
    main()
