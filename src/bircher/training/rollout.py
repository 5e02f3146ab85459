"""A rollout: environment and agent in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bircher.agents.base import Agent, Mode
from bircher.envs.agents import by_agent, moment_of, team, to_rows
from bircher.envs.base import Env, num_rows
from bircher.ops.turns import PAIR, own, per_player, player_axis, to_next
from bircher.types import Key, Policy, Tally, TimeStep, Trajectory


class ActorState(eqx.Module):
    """The state of the environments and of the agent in them, and the sums over the current episodes."""

    env_state: Any
    timestep: TimeStep
    carry: PyTree
    key: Key
    episode_return: Float[Array, " R"]
    """The rewards of each agent so far."""
    episode_length: Int[Array, " E"]
    side: Float[Array, " E"] | Int[Array, " E"] | None = None
    """1 if the player who moved first is to move, -1 if the other is; with more than two players, the index of the
    player to move, counted from the first; None with one player."""
    discounted_return: Float[Array, " R *P"] | None = None
    """The discounted sum of the episode's rewards so far, later ones counting most; None for agents without use for it.
    """


Side = Float[Array, " E"] | Int[Array, " E"] | None
"""Which player is to move (`ActorState.side`)."""


def first_side(env: Env) -> Side:
    """Return which player is to move at the start of games: the one who moves first; None with one player."""
    if env.spec.num_players > PAIR:
        return jnp.zeros(env.num_envs, jnp.int32)
    return jnp.ones(env.num_envs) if env.spec.num_players == PAIR else None


def next_side(side: Side, following: TimeStep) -> Side:
    """Return which player is to move on the row after one on which it was `side`."""
    if side is None:
        return None
    if following.reward.ndim > side.ndim:
        return jnp.where(following.first, 0, (side + 1) % following.reward.shape[-1])
    return jnp.where(following.first, 1.0, jnp.where(following.discount < 0, -side, side))


def counted_reward(side: Side, following: TimeStep) -> Float[Array, " E"]:
    """Return what the reward after a row adds to the episode's return.

    In games the return is that of the player who moved first.
    """
    if side is not None and following.reward.ndim > side.ndim:
        players = following.reward.shape[-1]
        return jnp.take_along_axis(following.reward, (-side % players)[:, None], -1)[:, 0]
    return following.reward if side is None else side * following.reward


def start_actors(agent: Agent, env: Env, key: Key) -> ActorState:
    """Reset every environment and return the first state; call it outside a program, as a reset may start threads."""
    env_state, timestep = env.reset()
    rows = num_rows(env)
    sums = jnp.zeros((rows, *player_axis(env.spec.num_players)))
    return ActorState(
        env_state, timestep, agent.start(rows), key, jnp.zeros(rows), jnp.zeros(env.num_envs, jnp.int32),
        first_side(env), sums if agent.follows_returns else None,
    )  # fmt: skip


def not_finite(timestep: TimeStep) -> Array:
    """Return [R]: whether the adapter reported a failure, or a number is not finite."""
    failed = timestep.failed | ~jnp.isfinite(timestep.reward if timestep.reward.ndim == 1 else timestep.reward.sum(-1))
    for leaf in jax.tree.leaves(timestep.observation):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            failed |= ~jnp.isfinite(leaf).reshape(len(failed), -1).all(-1)
    return failed


def no_legal_action(timestep: TimeStep) -> Array:
    """Return [R]: whether an action is to be chosen, but the mask allows none."""
    if not timestep.legal_actions.shape[-1]:  # actions that are not discrete have no mask
        return jnp.zeros_like(timestep.last)
    return ~timestep.last & ~timestep.legal_actions.any(-1)


def failure_code(timesteps: Iterable[TimeStep], counted: Array | bool = True, num_agents: int = 1) -> Array:
    """Return a code for the first of E environments that failed on one of these rows; -1 if none did.

    The code is the environment's index if a number is not finite or the adapter reported a failure. It is the index
    plus E if no action is legal. Only environments that are `counted` [E] are considered.
    """
    rows = list(timesteps)

    def any_agent(flags: Array) -> Array:
        return flags if num_agents == 1 else by_agent(flags, num_agents).any(-1)

    no_action = any_agent(functools.reduce(jnp.logical_or, map(no_legal_action, rows))) & counted
    failed = any_agent(functools.reduce(jnp.logical_or, map(not_finite, rows))) & counted
    code = jnp.where(no_action.any(), len(no_action) + jnp.argmax(no_action), -1)
    return jnp.where(failed.any(), jnp.argmax(failed), code)


def describe_failure(code: int, num_envs: int) -> str:
    """Return the sentence for a code of `failure_code`."""
    if code < num_envs:
        return f"environment {code} gave a reward or observation that is not finite"
    return f"environment {code - num_envs} gave a mask that allows no action in the middle of an episode"


def collect_rollout(
    agent: Agent,
    env: Env,
    policy: Policy,
    state: ActorState,
    length: int,
    progress: Array | float,
    mode: Mode = "explore",
) -> tuple[ActorState, Trajectory, Tally]:
    """Collect T + 1 rows of each agent of E environments; the last row is the first row of the next rollout.

    Returns the new state, the rows [R, T + 1], and the sums over the rollout.
    """
    agents = env.spec.num_agents

    def step(state: ActorState, _):
        key, act_key = jax.random.split(state.key)
        timestep = state.timestep
        output, carry = agent.act(policy, state.carry, timestep, act_key, mode, progress)
        row = Trajectory.of(timestep, output)
        env_state, following = env.step(state.env_state, output.action)
        moment = moment_of(following, agents)
        fresh = moment.first
        episode_return = jnp.where(
            to_rows(fresh, agents), 0.0, state.episode_return + counted_reward(state.side, following)
        )
        episode_length = jnp.where(fresh, 0, state.episode_length + 1)
        discounted_return = _next_return(state.discounted_return, agent.model_discount, following)
        lengths = jnp.where(moment.last, episode_length, 0)
        longest = lengths.max()
        tally = Tally(
            env_steps=(~fresh).sum(),
            episodes=moment.last.sum(),
            return_sum=jnp.where(moment.last, team(episode_return, agents), 0.0).sum(),
            length_sum=lengths.sum(),
            last_reward_sum=jnp.where(moment.last, own(moment.reward, 1), 0.0).sum(),
            # Both rows are checked, because a rollout may begin on the row where the one before it failed.
            failed=failure_code((timestep, following), num_agents=agents),
            longest=longest,
            died_at_longest=(moment.last & moment.terminal & (lengths == longest)).sum(),
            largest_return=None if discounted_return is None else jnp.abs(discounted_return).max(),
            agent_returns=_of_agents(episode_return, moment.last, agents),
        )
        side = next_side(state.side, following)
        sums = episode_return, episode_length, side, discounted_return
        return ActorState(env_state, following, carry, key, *sums), (row, tally)

    state, (rows, tallies) = jax.lax.scan(step, state, None, length=length)
    # The behavior policy of the last row is needed for the prior there.  Its key is not consumed: the next rollout
    # draws the action there again, so that the random numbers do not depend on where rollouts are cut.
    _, act_key = jax.random.split(state.key)
    output, _ = agent.act(policy, state.carry, state.timestep, act_key, mode, progress)
    last = Trajectory.of(state.timestep, output)
    rows = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]).swapaxes(0, 1), rows, last)
    return state, rows, _total(tallies)


def _of_agents(episode_return: Array, ended: Array, agents: int) -> Array | None:
    """Return the sum of each agent's returns over the episodes that ended; None for one agent."""
    if agents == 1:
        return None
    return jnp.where(ended[:, None], by_agent(episode_return, agents), 0.0).sum(0)


def _next_return(sums: Float[Array, " R *P"] | None, discount: float, following: TimeStep) -> Array | None:
    """Return the discounted sums after one more reward; a sum that is not finite is taken as 0.

    With more than two players they begin with the player who moved, as rewards do.
    """
    if sums is None:
        return None
    before = sums if sums.ndim == 1 else to_next(sums)
    sums = jnp.where(per_player(following.first, sums), 0.0, discount * before + following.reward)
    return jnp.where(jnp.isfinite(sums), sums, 0.0)


def _total(tallies: Tally) -> Tally:
    """Combine the tallies of all steps into one."""
    longest = tallies.longest.max()
    sums = ("env_steps", "episodes", "return_sum", "length_sum", "last_reward_sum")
    return Tally(
        *(getattr(tallies, name).sum() for name in sums),
        failed=tallies.failed[jnp.argmax(tallies.failed >= 0)],
        longest=longest,
        died_at_longest=jnp.where(tallies.longest == longest, tallies.died_at_longest, 0).sum(),
        largest_return=None if tallies.largest_return is None else tallies.largest_return.max(),
        agent_returns=None if tallies.agent_returns is None else tallies.agent_returns.sum(0),
    )
