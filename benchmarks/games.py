"""Board games: how strength grows with time, play that cannot be beaten, and what a learned model costs.

python benchmarks/games.py strength connect_four agent=gumbel_muzero --minutes 60 --opponent mcts:1000
python benchmarks/games.py perfect_play --seeds 0 1 2
python benchmarks/games.py every_position toy/auction agent=gumbel_muzero --seeds 20
python benchmarks/games.py true_rules RUN --opponent mcts:1000 --simulations 200
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import runner
from ledger import machine
from runner import Result, Study

import bircher
from bircher import search
from bircher.agents import muzero
from bircher.envs.jax_env import PureEnv
from bircher.games import enumeration, matches, opponents, players, solvers
from bircher.ops import distributions
from bircher.runs import build, directory
from bircher.training import checkpoint

BIRCHER = [sys.executable, "-m", "bircher"]

TIC_TAC_TOE = "tic_tac_toe"


def train(env: str, settings: list[str], run: Path, minutes: float, every: float, copies: Path) -> list[tuple]:
    """Train, and copy what was saved every so often: [(minutes, folder of a copy)], the last one of the end."""
    command = [*BIRCHER, "train", env, *settings, "checkpoint.keep=4", "--out", str(run)]
    found = []
    with (copies / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        next_copy = every
        while process.poll() is None:
            time.sleep(1)
            passed = (time.monotonic() - began) / 60
            if passed >= minutes:
                process.send_signal(signal.SIGINT)
                process.wait()
                break
            if passed >= next_copy and checkpoint.latest(run / directory.CHECKPOINTS, "train"):
                found.append((passed, copy(run, copies / str(len(found)))))
                next_copy += every
    passed = (time.monotonic() - began) / 60
    return [*found, (passed, run)]


def copy(run: Path, target: Path) -> Path:
    """A run's folder with its newest checkpoint alone."""
    saved = directory.last_checkpoint(run)
    (target / directory.CHECKPOINTS).mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
    shutil.copytree(saved, target / directory.CHECKPOINTS / saved.name)
    return target


def play(run: Path, opponent: str, episodes: int, seed: int, settings: list[str]) -> dict:
    """The report of `bircher eval`."""
    command = [*BIRCHER, "eval", str(run), *settings, "--opponent", opponent, "--episodes", str(episodes)]
    answer = subprocess.run([*command, "--seed", str(seed), "--json"], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def strength(options: argparse.Namespace) -> Iterator[Result]:
    """Train a board game for some minutes, and print how its strength against an opponent grew.

    The run is one process of the command line, stopped as Ctrl-C would when its time is over.  Its checkpoints are
    copied meanwhile.  Afterward each copy plays the opponent, half of the games in each seat.
    """
    with runner.scratch() as folder:
        run, copies, curve = options.out or folder / "run", folder / "copies", []
        copies.mkdir()
        for passed, saved in train(options.env, options.settings, run, options.minutes, options.every, copies):
            meta = checkpoint.read_meta(directory.last_checkpoint(saved))
            report = play(saved, options.opponent, options.episodes, options.seed, options.search)
            steps = meta["counters"]["env_steps"]
            # `env_steps` of the report are the moves of the games played.
            curve.append({"minutes": round(passed, 1), "trained_steps": steps, **report})
            print(
                f"{passed:5.1f} minutes, {steps:,} steps: score {report['score']:.3f} "
                f"({report['score_low']:.3f} to {report['score_high']:.3f}), first {report['first']}, "
                f"second {report['second']}",
                flush=True,
            )
    where = machine() + f", {len(os.sched_getaffinity(0))} of them used"
    yield Result({"opponent": options.opponent, "curve": curve}, options.env, machine=where)


def _strength_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="minutes between copies")
    parser.add_argument("--opponent", default="mcts:1000")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000, help="of the games played")
    parser.add_argument("--search", nargs="*", default=[], help="search.KEY=VALUE of the agent when it plays")
    parser.add_argument("--out", type=Path, help="keep the run here")


def _moves(run: Path) -> np.ndarray:
    """The move of the greatest probability in every position, of the run's network without search."""
    agent = bircher.load(run, search={"num_simulations": 0})
    cells = np.arange(3**9)[:, None] // solvers.POWERS % 3
    grid = cells.reshape(-1, 3, 3)
    observation = np.stack([grid == 1, grid == 2], -1)
    return np.asarray(agent.act(observation, greedy=True, legal_actions=cells == 0))


def _perfect(seed: int, settings: list[str], folder: Path) -> Result:
    """One seed: train, then follow every line of play."""
    run = folder / str(seed)
    command = ["train", TIC_TAC_TOE, f"seed={seed}", *settings]
    environment = dict(os.environ, BIRCHER_CACHE=str(folder / f"cache-{seed}"))
    started = time.perf_counter()
    with (folder / f"{seed}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "bircher", *command, "--out", str(run)],
            check=True, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    wall = time.perf_counter() - started
    chosen = _moves(run)
    return Result(
        env=TIC_TAC_TOE,
        seeds=(seed,),
        wall_seconds=round(wall, 1),
        command="bircher " + " ".join(command),
        results={
            "env_steps": bircher.load(run).env_steps,
            "cold_cache": True,
            "mode": "greedy, without search",
            "lost_to_minimax": [len(solvers.lost_lines(chosen, seat, best_only=True)) for seat in (0, 1)],
            "lost_to_any": [len(solvers.lost_lines(chosen, seat, best_only=False)) for seat in (0, 1)],
        },
    )


def perfect_play(options: argparse.Namespace) -> Iterator[Result]:
    """Train tic-tac-toe over several seeds, and count the lines of play that the network alone loses.

    Every seed is one process of the command line.  Then the network plays greedily, without search, in both seats
    against every reply: once those that exact minimax may choose, and once all that are legal.  A player with 0 lost
    lines in both cannot be beaten.
    """
    with runner.scratch() as folder:
        for seed in options.seeds:
            result = _perfect(seed, options.settings, folder)
            print(
                f"seed {seed}: lines lost to minimax, moving first and second: {result.results['lost_to_minimax']}; to "
                f"any replies: {result.results['lost_to_any']}; wall {result.wall_seconds:.1f} s",
                flush=True,
            )
            yield result


def _perfect_play_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", default=["agent=gumbel_muzero"], help="KEY=VALUE for bircher train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def every_position(options: argparse.Namespace) -> Iterator[Result]:
    """Train a small game over several seeds, and compare its best action in every reachable position with right play.

    Every seed is one process of the command line.  Right play is max^n by enumeration.  A move is an error if the
    player to move could do better, and then its regret is what it loses against right play afterward.
    """
    with runner.scratch() as folder:
        for seed in options.seeds:
            run = (options.out or folder) / str(seed)
            command = ["train", options.env, f"seed={seed}", *options.settings]
            started = time.perf_counter()
            with (folder / f"{seed}.log").open("w") as log:
                subprocess.run([*BIRCHER, *command, "--out", str(run)], check=True, stdout=log, stderr=log)
            wall = time.perf_counter() - started
            found = [_errors(run, number) for number in options.simulations]
            for row in found:
                print(
                    f"seed {seed}, {row['simulations']} simulations: {row['errors']} errors in {row['positions']} "
                    f"positions ({row['choices']} with a choice), greatest regret {row['greatest_regret']}; wall "
                    f"{wall:.1f} s",
                    flush=True,
                )
            agent = bircher.load(run)
            results = {"env_steps": agent.env_steps, "mode": "greedy", "rows": found}
            name = agent.config.agent.name
            typed = "bircher " + " ".join(command)
            yield Result(results, options.env, name, (seed,), wall_seconds=round(wall, 1), command=typed)


def _errors(run: Path, simulations: int) -> dict:
    """The errors of a run's best actions, each position counted once, however many moves lead to it."""
    agent = bircher.load(run, search={"num_simulations": simulations})
    solution = enumeration.solve(players.rules_of(build.make_env(agent.config, None, 1, 0, "diagnose")))
    observation = np.asarray(solution.observation)
    _, once = np.unique(observation.reshape(len(observation), -1), axis=0, return_index=True)
    action = np.asarray(agent.act(observation, greedy=True, legal_actions=solution.legal_actions))
    regret, choices = solution.regret(action)[once], solution.legal_actions[once].sum(-1) > 1
    return {
        "simulations": simulations, "positions": len(once), "choices": int(choices.sum()),
        "errors": int((regret > enumeration.TOLERANCE).sum()), "greatest_regret": round(float(regret.max()), 4),
    }  # fmt: skip


def _every_position_arguments(parser: argparse.ArgumentParser) -> None:
    runner.env_and_settings(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--simulations", type=int, nargs="+", default=[0, 16], help="of the agent's search when it plays"
    )
    parser.add_argument("--out", type=Path, help="keep the runs here")


class Truth(NamedTuple):
    """What the search has from the rules instead of the model."""

    rewards: bool = False
    ends: bool = False
    positions: bool = False
    moves: bool = False


TRUTHS = (
    Truth(),
    Truth(rewards=True),
    Truth(ends=True),
    Truth(True, True),
    Truth(True, True, True),
    Truth(True, True, True, True),
)


def half_learned(agent: bircher.LoadedAgent, rules: PureEnv, simulations: int, truth: Truth) -> players.Player:
    """The agent's network as a player whose search carries imagined latents and true states side by side."""

    def decide(params, carry, states, timestep, key):
        model, games = params.params, len(timestep.last)
        chances = jax.random.split(jax.random.key(0), games)

        def simulate(node, action):
            latent, states, over = node
            following, observation, reward, terminal, truncated = rules.move(chances, states, action)
            imagined = model.step(latent, action)
            shown = model.represent(observation.astype(jnp.float32)) if truth.positions else imagined
            prediction = model.predict(shown)
            ended = over | terminal | truncated
            logits = prediction.policy_logits
            if truth.moves:
                # A game that is over has none left: there any is as good.
                legal = solvers.legal_actions(rules, following, games) | ended[:, None]
                logits = distributions.mask_logits(logits, legal)
            return search.Step(
                reward=jnp.where(over, 0.0, reward) if truth.rewards else model.reward(imagined),
                discount=jnp.where(ended, 0.0, -1.0) if truth.ends else -jnp.ones(games),
                logits=logits,
                value=model.value_support.mean(prediction.value_logits),
                latent=(shown, following, ended),
            )

        latent = model.represent(timestep.observation.astype(jnp.float32))
        root = muzero.search_root(model, latent, timestep.legal_actions)
        root = root._replace(latent=(latent, states, jnp.zeros(games, bool)))
        found = search.gumbel_search(agent.config.search, root, simulate, key, simulations, True)
        return found.action, carry

    return players.Player("half learned", agent.policy, players.no_memory, decide)


def true_rules(options: argparse.Namespace) -> Iterator[Result]:
    """Measure what errors of a learned model cost: the same searches, with parts of the model replaced by the rules.

    The trained network plays the opponent several times.  First its search uses the learned model alone.  Then rewards,
    the end of the game, or both are those of the rules.  Then values and policies are those of the true position
    instead of the imagined one.  At last its legal moves are known as well, so that no error of the model remains.
    """
    agent = bircher.load(options.run)
    if agent.config.agent.name != "gumbel_muzero" or not agent.config.model.reward_head:
        raise SystemExit(f"{options.run} is not a run of gumbel_muzero with a reward head")

    def make_env(size: int, batch: int):
        return build.make_env(agent.config, None, size, batch, "diagnose")

    env = make_env(1, 0)
    opponent = opponents.make(options.opponent, env)
    rows = []
    for truth in TRUTHS:
        own = half_learned(agent, players.rules_of(env), options.simulations, truth)
        report = matches.Match(own, opponent, make_env, "sample")(options.episodes, options.seed)
        parts = [name for name, given in truth._asdict().items() if given]
        print(
            f"true {', '.join(parts) or 'nothing'}: {report.score:.3f} "
            f"({report.score_low:.3f} to {report.score_high:.3f})",
            flush=True,
        )
        rows.append({"true": parts, "score": report.score, "low": report.score_low, "high": report.score_high})
    yield Result(
        {"opponent": options.opponent, "simulations": options.simulations, "rows": rows},
        agent.config.env.id,
        agent.config.agent.name,
        (agent.config.seed,),
    )


def _true_rules_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)
    parser.add_argument("--opponent", default="mcts:1000")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7, help="of the games played")


if __name__ == "__main__":
    runner.main(
        __doc__,
        {
            "strength": Study(strength, _strength_arguments),
            "perfect_play": Study(perfect_play, _perfect_play_arguments),
            "every_position": Study(every_position, _every_position_arguments),
            "true_rules": Study(true_rules, _true_rules_arguments),
        },
    )
