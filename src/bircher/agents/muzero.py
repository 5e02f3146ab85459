"""MuZero and Gumbel MuZero: planning with a learned model, and the targets that searches give.

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
from bircher.agents import loss_terms
from bircher.agents.base import (
    Agent,
    AgentConfig,
    Carry,
    LookAhead,
    LossTable,
    Mode,
    Term,
    initial_memory,
    memory_extras,
    require_discrete,
)
from bircher.agents.metrics import compute_if, search_metrics
from bircher.agents.unroll import Absorbing, episode_ends, root_mask, unroll
from bircher.networks.model import Model, ModelConfig
from bircher.ops import distributions, improvement, returns
from bircher.ops.distributions import mask_logits
from bircher.search import Root, SearchConfig, SearchResult, Simulate, Step, completed_q_values
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory


def model_discount_of(gamma: float, num_players: int) -> float:
    """Return the factor between consecutive states of the model: gamma, negative where the next is the opponent's."""
    return gamma if num_players == 1 else -gamma


def search_root(model: Model, latent: Float[Array, "B latent"], legal_actions: Bool[Array, "B A"]) -> Root:
    """The root of a search at encoded observations."""
    prediction = model.predict(latent)
    # A last row may have no legal action left; what is searched there is never used as a policy.
    legal = legal_actions | ~legal_actions.any(-1, keepdims=True)
    logits = mask_logits(prediction.policy_logits, legal)
    return Root(logits, model.value_support.mean(prediction.value_logits), latent, legal)


def simulator(model: Model, model_discount: float) -> Simulate:
    """Return a function that takes one step of the model from a latent; see `model_discount_of`."""

    def simulate(latent: Float[Array, "B latent"], action: Int[Array, " B"]) -> Step:
        following = model.step(latent, action)
        prediction = model.predict(following)
        value = model.value_support.mean(prediction.value_logits)
        return Step(
            reward=model.reward(following),
            discount=jnp.full(value.shape, model_discount),
            logits=prediction.policy_logits,
            value=value,
            latent=following,
        )

    return simulate


Plan = Callable[..., SearchResult]
"""A search with the target network: (latents [N, ...], legal actions [N, A], key=...) -> what it found."""


class ReturnConfig(BaseModel):
    """The value target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["n_step", "lambda", "outcome"] = "n_step"
    """`outcome` learns only from rows whose game ends within their sequence."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """n of the n-step return."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95
    bootstrap: Literal["search", "network"] = "search"
    """Where values at a return's end come from: the searches, or the target network of now (as in EfficientZero)."""


def encoded(model: Model, rows: Trajectory, burn_in: int = 0) -> Float[Array, "B R latent"]:
    """The latents of rows, with the memory that stands in them."""
    return model.encode_rows(rows.observation, initial_memory(rows), rows.first, burn_in)


def muzero_targets(
    config: ReturnConfig, gamma: float, fraction: float, burn_in: int, plan: Plan, model: Model, batch: Batch,
    key: Key, minibatches: int = 1,
) -> Targets:  # fmt: skip
    """Policies and bootstraps of the searches that acted, or of fresh ones for the reanalyzed share of each minibatch.

    `model` is the target network and `plan` a search with it: (latents [N, …], legal actions [N, A], key=…) ->
    SearchResult. The batch holds `minibatches` equal minibatches, one after the other.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = root_mask(ends, burn_in)
    latent = encoded(model, rows)
    policy, value = _reanalyzed(fraction, minibatches, plan, latent, rows, key)
    if config.bootstrap == "network":
        value = model.value(latent)
    target, known = _returns(config, gamma, rows, ends, value)
    error = jnp.abs(jnp.where(mask & known, target - value[:, :-1], 0.0))
    result = Targets(
        value=target,
        reward=rows.reward[:, 1:],
        advantage=target - value[:, :-1],
        policy=improvement.exact_target(policy),
        mask=mask,
        priority=error.max(-1),
        extras={"value_mask": mask & known},
    )
    return jax.lax.stop_gradient(result)


def _reanalyzed(
    fraction: float, minibatches: int, plan: Plan, latent: Float[Array, "B R latent"], rows: Trajectory, key: Key
) -> tuple[Float[Array, "B R A"], Float[Array, "B R"]]:
    """The searches' policies and values.

    The last `fraction` of each minibatch is searched anew, because its replayed sequences stand last.
    """
    policy, value = rows.extras["search_policy"], rows.extras["search_value"]
    size = len(value) // minibatches
    count = round(fraction * size)
    if not count:
        return policy, value

    def last(x: Array) -> Array:
        return x.reshape(minibatches, size, *x.shape[1:])[:, -count:].reshape(-1, *x.shape[2:])

    def with_last(x: Array, new: Array) -> Array:
        grouped = x.reshape(minibatches, size, *x.shape[1:])
        new = new.reshape(minibatches, count, *x.shape[1:])
        return jnp.concatenate([grouped[:, :-count], new], axis=1).reshape(x.shape)

    found = plan(last(latent), last(rows.legal_actions), key=key)
    return with_last(policy, found.weights), with_last(value, found.value)


def _returns(
    config: ReturnConfig, gamma: float, rows: Trajectory, ends: Bool[Array, "B R"], value: Float[Array, "B R"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """The value target of each root row, and whether there is one."""
    reward, discounts, bootstrap = rows.reward[:, 1:], gamma * rows.discount[:, 1:], value[:, 1:]
    random = rows.extras.get("random_action", jnp.zeros_like(ends))
    # What followed a random action says nothing of its state: the value before it is the search's own.
    going = (~(ends | random)[:, 1:]).astype(jnp.float32)
    known = ~random[:, :-1]
    if config.kind == "n_step":
        n_step = partial(returns.n_step_returns, n=config.steps)
        return jax.vmap(lambda r, d, v, c: n_step(r, d, v, continue_t=c))(reward, discounts, bootstrap, going), known
    if config.kind == "lambda":
        return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, config.lambda_ * going), known
    # An end lies ahead within the sequence, looking backwards from the last row.
    known &= jnp.cumsum(ends[:, 1:][:, ::-1], axis=1)[:, ::-1] > 0
    return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, going), known


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
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.997
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How far the target network, which reanalyzes, moves toward the online one at each update."""
    temperature: TemperatureConfig = TemperatureConfig()
    random_action_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training's actions drawn uniformly from the legal ones; no return looks past such an action."""
    returns: ReturnConfig = ReturnConfig()
    reanalyze_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
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
    model_discount = model_discount_of(config.gamma, num_players)
    plan = planner(config, search_config, model_discount)

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
            config.returns, config.gamma, config.reanalyze_fraction, model_config.burn_in,
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

    def look(policy: Policy, latent: Array, legal_actions: Array, key: Key) -> LookAhead:
        found = plan(policy.params, latent, legal_actions, key, "sample")
        return muzero_look(policy.params, latent, legal_actions, found)

    def searched(policy: Policy, latent: Array, legal_actions: Array, key: Key) -> SearchResult:
        return plan(policy.params, latent, legal_actions, key, "greedy", keep_tree=True)

    searches = searched if search_config.num_simulations else None
    return Agent(config.name, init, start, act, targets, loss, encode, weights, False, model_discount, look, searches)


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
    extras = {"search_policy": found.weights, "search_value": found.value, **memory_extras(carry.memory)}
    if config.random_action_share:
        share = config.random_action_share if mode == "explore" else 0.0
        action, extras["random_action"] = explored(random_key, action, timestep.legal_actions, share)
    return ActOutput(action.astype(jnp.int32), extras), Carry(memory, moves)


def muzero_look(model: Model, latent: Array, legal_actions: Array, found: SearchResult) -> LookAhead:
    """What a search found of B latents, with completed values where it did not look."""
    root = search_root(model, latent, legal_actions)
    prior = jax.nn.softmax(root.logits)
    return LookAhead(
        root.value, prior, completed_q_values(found.q_values, found.visits, prior, root.value), found.weights
    )


def planner(config: MuZeroConfig, search_config: SearchConfig, model_discount: float) -> Callable[..., SearchResult]:
    """(model, latent [B, …], legal_actions [B, A], key, mode) -> what a search from each of them finds.

    Without simulations it is what the network alone says.  `temperature` multiplies the noise by which Gumbel's search
    draws its action; PUCT's visits are drawn from afterward.
    """
    searcher = search.gumbel_search if config.name == "gumbel_muzero" else search.puct_search
    return partial(_plan, searcher, search_config, model_discount)


def _plan(
    searcher, config: SearchConfig, model_discount: float, model: Model, latent: Array, legal_actions: Array, key: Key,
    mode: Mode, keep_tree: bool = False, temperature: Array | float = 1.0,
) -> SearchResult:  # fmt: skip
    root = search_root(model, latent, legal_actions)
    if config.num_simulations:
        arguments = config, root, simulator(model, model_discount), key, config.num_simulations
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
    held = loss_terms.LossInputs(model, rows, target, unrolled, latent, model_config.policy_horizon)
    seen = jax.lax.stop_gradient(held)
    metrics = compute_if(measured, lambda: search_metrics(seen))
    return loss_terms.build(enabled, held), metrics
