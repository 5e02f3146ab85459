"""MuZero and Gumbel MuZero: planning with a learned model.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
(https://arxiv.org/abs/1911.08265); "Policy Improvement by Planning with Gumbel" by Danihelka et al. 2022
(https://openreview.net/forum?id=bERaNdoegnO); reanalysis as in "Online and Offline Reinforcement Learning by Planning
with a Learned Model" by Schrittwieser et al. 2021 (https://arxiv.org/abs/2104.06294).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher import search
from bircher.agents import searching, terms
from bircher.agents.base import Agent, AgentConfig, Carry, Look, LossTable, Mode, Term, kept, require_discrete
from bircher.agents.diagnostics import of_search, when
from bircher.agents.search_targets import ReturnConfig, encoded, muzero_targets
from bircher.agents.unrolling import Absorbing, unroll
from bircher.models.model import Model, ModelConfig
from bircher.ops import distributions
from bircher.search import SearchConfig, SearchResult, completed_q_values
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory


class TemperatureConfig(BaseModel):
    """How visit counts become the actions of training; the defaults are those for Atari.

    For Gumbel MuZero it multiplies the noise by which its search draws an action.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Temperatures, one after the other; 0 takes the most visited action."""
    changes: tuple[float, ...] = (0.5, 0.75)
    """Shares of training after which the next value begins."""
    moves: Annotated[int, Field(ge=0)] = 0
    """Above 0: only an episode's first so many moves are drawn, the rest are greedy (boards: 30)."""

    @model_validator(mode="after")
    def _fits(self) -> TemperatureConfig:
        if len(self.values) != len(self.changes) + 1 or any(value < 0 for value in self.values):
            raise ValueError(
                f"values must hold one temperature of at least 0 more than changes, not {list(self.values)} "
                f"and {list(self.changes)}"
            )
        if list(self.changes) != sorted(self.changes) or any(not 0 < change < 1 for change in self.changes):
            raise ValueError(f"changes must rise between 0 and 1, not {list(self.changes)}")
        return self

    def at(self, progress: Array | float) -> Array:
        """The temperature at this share of training."""
        index = (jnp.asarray(progress) >= jnp.asarray(self.changes)).sum() if self.changes else 0
        return jnp.asarray(self.values)[index]


class MuZeroConfig(AgentConfig):
    """MuZero's own settings; the defaults are the paper's for Atari."""

    name: Literal["muzero", "gumbel_muzero"] = "muzero"
    discount: Annotated[float, Field(ge=0, le=1)] = 0.997
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How far the target network, which reanalyses, moves towards the online one at each update."""
    temperature: TemperatureConfig = TemperatureConfig()
    random_action_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training's actions drawn uniformly from the legal ones; no return looks past such an action."""
    returns: ReturnConfig = ReturnConfig()
    reanalyse_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each minibatch whose policies and bootstraps come from a fresh search with the target network.

    Replayed sequences are searched first, and fresh ones only where the share is larger than `replay.fraction`.
    """


class MuZeroLosses(LossTable):
    """MuZero's loss terms in their order."""

    policy: Term = Term()
    model_policy: Term = Term()
    value: Term = Term(weight=0.25)
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()
    consistency: Term = Term(weight=0.0)
    """Of EfficientZero; its projection is made only where the weight is above 0, and none with `torso=identity`."""
    entropy: Term = Term(weight=0.0)


def make(
    config: MuZeroConfig,
    model_config: ModelConfig,
    loss_config: MuZeroLosses,
    search_config: SearchConfig,
    num_players: int = 1,
) -> Agent:
    """MuZero or Gumbel MuZero as a tuple of pure functions; without simulations it acts by its network alone."""
    weights = loss_config.weights()
    discount = searching.signed_discount(config.discount, num_players)
    plan = planner(config, search_config, discount)

    def init(key: Key, spec: EnvSpec) -> Policy:
        require_discrete(config.name, spec)
        return Policy(Model(spec, model_config, key, project="consistency" in weights), ())

    def start(batch_size: int) -> Carry:
        moves = jnp.zeros(batch_size, jnp.int32) if config.temperature.moves else ()
        return Carry(model_config.start(batch_size), moves)

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        return muzero_act(config, search_config.num_simulations > 0, plan, policy, carry, timestep, key, mode, progress)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, tuple]:
        return muzero_targets(
            config.returns, config.discount, config.reanalyse_fraction, model_config.burn_in,
            partial(plan, policy.params, mode="sample"), policy.params, batch, key, minibatches,
        ), ()  # fmt: skip

    def loss(
        params: Model, state: tuple, batch: Batch, target: Targets, key: Key, measured: Array | bool = True
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        del state, key
        absorbing = Absorbing(turn=1 if num_players == 1 else -1, outcome=not model_config.reward_head)
        return muzero_loss(model_config, frozenset(weights), absorbing, params, batch, target, measured)

    def encode(policy: Policy, rows: Trajectory) -> Array:
        return encoded(policy.params, rows)

    def look(policy: Policy, latent: Array, legal_actions: Array, key: Key) -> Look:
        found = plan(policy.params, latent, legal_actions, key, "sample")
        return muzero_look(policy.params, latent, legal_actions, found)

    def searched(policy: Policy, latent: Array, legal_actions: Array, key: Key) -> SearchResult:
        return plan(policy.params, latent, legal_actions, key, "greedy", keep_tree=True)

    searches = searched if search_config.num_simulations else None
    return Agent(config.name, init, start, act, targets, loss, encode, weights, False, discount, look, searches)


def muzero_act(
    config: MuZeroConfig, searches: bool, plan: Callable[..., SearchResult], policy: Policy, carry: Carry,
    timestep: TimeStep, key: Key, mode: Mode, progress: Array | float,
) -> tuple[ActOutput, Carry]:  # fmt: skip
    """Search, and draw an action from what it found; where nothing was searched, from the network."""
    search_key, draw_key, random_key = jax.random.split(key, 3)
    temperature = config.temperature.at(progress)
    moves = carry.moves
    if config.temperature.moves:
        moves = jnp.where(timestep.first, 0, moves)
        temperature, moves = jnp.where(moves < config.temperature.moves, temperature, 0.0), moves + 1
    model: Model = policy.params
    latent, memory = model.encode(timestep.observation, carry.memory, timestep.first)
    found = plan(model, latent, timestep.legal_actions, search_key, mode, temperature=temperature)
    if mode == "greedy" or (searches and config.name == "gumbel_muzero"):
        # That search's choice is a draw already, by its noise.
        action = found.action
    else:
        action = draw(draw_key, found.weights, temperature if searches else jnp.ones(()))
    extras = {"search_policy": found.weights, "search_value": found.value, **kept(carry.memory)}
    if config.random_action_share:
        share = config.random_action_share if mode == "explore" else 0.0
        action, extras["random_action"] = explored(random_key, action, timestep.legal_actions, share)
    return ActOutput(action.astype(jnp.int32), extras), Carry(memory, moves)


def muzero_look(model: Model, latent: Array, legal_actions: Array, found: SearchResult) -> Look:
    """What a search found of B latents, with completed values where it did not look."""
    root = searching.root(model, latent, legal_actions)
    prior = jax.nn.softmax(root.logits)
    return Look(root.value, prior, completed_q_values(found.q_values, found.visits, prior, root.value), found.weights)


def planner(config: MuZeroConfig, search_config: SearchConfig, discount: float) -> Callable[..., SearchResult]:
    """(model, latent [B, …], legal_actions [B, A], key, mode) -> what a search from each of them finds.

    Without simulations it is what the network alone says.  `temperature` multiplies the noise by which Gumbel's search
    draws its action; PUCT's visits are drawn from afterwards.
    """
    searcher = search.gumbel_search if config.name == "gumbel_muzero" else search.puct_search
    return partial(_plan, searcher, search_config, discount)


def _plan(
    searcher, config: SearchConfig, discount: float, model: Model, latent: Array, legal_actions: Array, key: Key,
    mode: Mode, keep_tree: bool = False, temperature: Array | float = 1.0,
) -> SearchResult:  # fmt: skip
    root = searching.root(model, latent, legal_actions)
    if config.num_simulations:
        arguments = config, root, searching.simulator(model, discount), key, config.num_simulations
        if searcher is search.gumbel_search:
            return searcher(*arguments, mode != "greedy", keep_tree, temperature)
        return searcher(*arguments, mode == "explore", keep_tree)
    weights = jax.nn.softmax(root.logits)
    blank = jnp.zeros_like(weights)
    return SearchResult(jnp.argmax(root.logits, -1), weights, root.value, blank.astype(jnp.int32), blank, None)


def draw(key: Key, weights: Float[Array, "B A"], temperature: Array) -> Array:
    """An action in proportion to weights^(1 / temperature); at 0 the greatest."""
    logits = jnp.log(jnp.maximum(weights, 1e-30)) / jnp.maximum(temperature, 1e-3)[..., None]
    logits = jnp.where(weights > 0, logits, distributions.ILLEGAL)
    return jnp.where(temperature > 0, jax.random.categorical(key, logits), jnp.argmax(weights, -1))


def explored(
    key: Key, action: Int[Array, " B"], legal_actions: Bool[Array, "B A"], share: float
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The actions, a share of them replaced by any legal one, and where."""
    draw_key, where_key = jax.random.split(key)
    uniform = jax.random.categorical(draw_key, jnp.where(legal_actions, 0.0, distributions.ILLEGAL))
    replaced = jax.random.bernoulli(where_key, share, action.shape)
    return jnp.where(replaced, uniform, action), replaced


def muzero_loss(
    model_config: ModelConfig,
    enabled: frozenset[str],
    absorbing: Absorbing,
    model: Model,
    batch: Batch,
    target: Targets,
    measured: Array | bool,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """The enabled terms, and what to log of them where it is measured."""
    rows = batch.trajectory
    # Rows that only the consistency term looks at are encoded for it alone.
    used = slice(None if "consistency" in enabled else -1)
    latent = encoded(model, jax.tree.map(lambda x: x[:, used], rows), model_config.burn_in)
    roots = latent[:, : target.value.shape[1]]
    unrolled = unroll(model, roots, rows, target, model_config.unroll_steps, absorbing, mask_illegal=False)
    held = terms.Products(model, rows, target, unrolled, latent, model_config.policy_horizon)
    seen = jax.lax.stop_gradient(held)
    metrics = when(measured, lambda: of_search(seen))
    return terms.build(enabled, held), metrics
