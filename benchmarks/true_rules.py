"""How much of an agent's play its learned model costs it: the same searches, with parts of the model replaced by rules.

    python benchmarks/true_rules.py RUN --opponent mcts:1000 --simulations 200

The network that was trained plays the opponent several times.  First its search walks in the learned model alone; then
rewards, the game's end, or both are those of the rules; then values and policies are those of the true position,
encoded, instead of the imagined one; at last its legal moves are known as well: a search that no model's error reaches.
Nothing is appended to the ledger.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import bircher
from bircher import search
from bircher.agents import muzero
from bircher.envs.jax_env import PureEnv
from bircher.games import matches, opponents, players, solvers
from bircher.ops import distributions
from bircher.runs import build


class Truth(NamedTuple):
    """What the search has from the rules instead of the model."""

    rewards: bool = False
    ends: bool = False
    positions: bool = False
    moves: bool = False


ROWS = (
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
            following, observation, reward, terminal, truncated = rules.moved(chances, states, action)
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


def main() -> None:
    """Play, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--opponent", default="mcts:1000")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7, help="of the games played")
    options = parser.parse_args()
    agent = bircher.load(options.run)
    if agent.config.agent.name != "gumbel_muzero" or not agent.config.model.reward_head:
        parser.error(f"{options.run} is no run of gumbel_muzero with a reward head")

    def make_env(size: int, batch: int):
        return build.make_env(agent.config, None, size, batch, "diagnose")

    env = make_env(1, 0)
    opponent = opponents.make(options.opponent, env)
    for truth in ROWS:
        own = half_learned(agent, players.rules_of(env), options.simulations, truth)
        report = matches.Match(own, opponent, make_env, "sample")(options.episodes, options.seed)
        parts = ", ".join(name for name, given in truth._asdict().items() if given) or "nothing"
        print(f"true {parts}: {report.score:.3f} ({report.score_low:.3f} to {report.score_high:.3f})", flush=True)


if __name__ == "__main__":
    main()
