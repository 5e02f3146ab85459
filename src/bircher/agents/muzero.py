"""MuZero and Gumbel MuZero: planning with a learned model, and the targets that searches give.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" by Schrittwieser et al. 2020
(https://arxiv.org/abs/1911.08265); "Policy Improvement by Planning with Gumbel" by Danihelka et al. 2022
(https://openreview.net/forum?id=bERaNdoegnO); reanalysis as in "Online and Offline Reinforcement Learning by Planning
with a Learned Model" by Schrittwieser et al. 2021 (https://arxiv.org/abs/2104.06294).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped
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
    model_of,
    require_supported,
)
from bircher.agents.metrics import compute_if, search_metrics
from bircher.agents.model_search import Node, Proposal, has_candidates, lists_all, search_root, simulator, take_actions
from bircher.agents.unroll import Absorbing, episode_ends, root_mask, unroll
from bircher.networks.model import Model, ModelConfig
from bircher.ops import distributions, improvement, returns, turns
from bircher.ops.distributions import Categorical, Distribution
from bircher.ops.turns import PAIR, own
from bircher.search import SearchConfig, SearchResult, completed_q_values
from bircher.types import (
    ActOutput,
    Batch,
    EnvSpec,
    Extras,
    Key,
    Policy,
    PolicyTarget,
    TargetExtras,
    Targets,
    TimeStep,
    Trajectory,
)


def model_discount_of(gamma: float, num_players: int) -> float:
    """Return the factor between consecutive states of the model: gamma, negative if the next is the other of two's."""
    return -gamma if num_players == PAIR else gamma


Plan = Callable[..., SearchResult]
"""A search with the target network: (latents [N, ...], legal actions [N, A], key=...) -> SearchResult."""


class ReturnConfig(BaseModel):
    """The return that is the target of values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["n_step", "lambda", "outcome"] = "n_step"
    """The estimator. `outcome` is the game's result; values then learn only from rows whose game ends within their
    sequence."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """The number n of steps of the n-step return."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.95
    """The weight lambda of longer returns."""
    bootstrap: Literal["search", "network"] = "search"
    """The source of the value at a return's end: the searches, or the current target network (as in EfficientZero)."""


def encode_rows(model: Model, rows: Trajectory, burn_in: int = 0) -> Float[Array, "B R latent"]:
    """Encode rows into latents, starting from the memory that is stored in the first row of each sequence."""
    return model.encode_rows(rows.observation, initial_memory(rows), rows.first, burn_in)


def muzero_targets(
    config: ReturnConfig, gamma: float, fraction: float, burn_in: int, plan: Plan, model: Model, batch: Batch,
    key: Key, minibatches: int = 1,
) -> Targets:  # fmt: skip
    """Compute the targets from the searches of acting, and from new searches for the reanalyzed share of a minibatch.

    `model` is the target network and `plan` a search with it: (latents [N, …], legal actions [N, A], key=…) ->
    SearchResult. The batch holds `minibatches` equal minibatches, one after the other.
    """
    rows = batch.trajectory
    ends = episode_ends(rows)
    mask = root_mask(ends, burn_in)
    latent = encode_rows(model, rows)
    policy, value = _reanalyzed(fraction, minibatches, plan, latent, rows, key)
    if policy.actions is not None:
        policy = _with_density(model, latent, policy)
    if config.bootstrap == "network":
        value = model.value(latent)
    target, exists = _returns(config, gamma, rows, ends, value)
    advantage = own(target - value[:, :-1], 2)
    error = jnp.abs(jnp.where(mask & exists, advantage, 0.0))
    result = Targets(
        value=target,
        reward=rows.reward[:, 1:],
        advantage=advantage,
        policy=policy,
        mask=mask,
        priority=error.max(-1),
        extras=TargetExtras({"value_mask": mask & exists}),
    )
    return jax.lax.stop_gradient(result)


def _reanalyzed(
    fraction: float, minibatches: int, plan: Plan, latent: Float[Array, "B R latent"], rows: Trajectory, key: Key
) -> tuple[PolicyTarget, Float[Array, "B R *P"]]:
    """Return the policies and values of searches.

    The last `fraction` of each minibatch is searched again, because its replayed sequences are the last ones.
    """
    stored, value = rows.extras.per_action, rows.extras.per_row["search_value"]
    policy = PolicyTarget(stored.get("search_actions"), stored["search_policy"])
    size = len(value) // minibatches
    count = round(fraction * size)
    if not count:
        return policy, value

    def last(x: Array) -> Array:
        grouped = x.reshape(minibatches, size, *x.shape[1:])[:, -count:]
        return grouped.reshape(minibatches * count * x.shape[1], *x.shape[2:])

    def with_last(x: Array, new: Array) -> Array:
        grouped = x.reshape(minibatches, size, *x.shape[1:])
        new = new.reshape(minibatches, count, *x.shape[1:])
        return jnp.concatenate([grouped[:, :-count], new], axis=1).reshape(x.shape)

    result = plan(last(latent), last(rows.legal_actions), key=key)
    new = PolicyTarget(result.actions, result.weights)
    return jax.tree.map(with_last, policy, new), with_last(value, result.value)


def _with_density(model: Model, latent: Float[Array, "B R latent"], policy: PolicyTarget) -> PolicyTarget:
    """Return the policy of searches over candidates with its densities, as the target network has them.

    Each is the network's density at the candidate times the ratio of the search's weight to the mean weight.  The
    densities have no part in a gradient.
    """
    assert policy.actions is not None
    log_prior = model.distribution.log_prob_many(model.predict(latent).policy_logits, policy.actions)
    even = jnp.full(policy.weights.shape, 1 / policy.weights.shape[-1])
    return improvement.reweighted(PolicyTarget(policy.actions, even, log_prior), policy.weights)


def _returns(
    config: ReturnConfig, gamma: float, rows: Trajectory, ends: Bool[Array, "B R"], value: Float[Array, "B R *P"]
) -> tuple[Float[Array, "B T *P"], Bool[Array, "B T"]]:
    """Return the value target of each root row, and whether it exists."""
    if value.ndim > ends.ndim:
        return _returns_of_players(config, gamma, rows, ends, value)
    reward, discounts, bootstrap = rows.reward[:, 1:], gamma * rows.discount[:, 1:], value[:, 1:]
    random = rows.extras.per_row.get("random_action", jnp.zeros_like(ends))
    # The rewards after a random action are no estimate of its state's value, so that returns end before such an action
    # and bootstrap from the search's value.
    continues = (~(ends | random)[:, 1:]).astype(jnp.float32)
    exists = ~random[:, :-1]
    if config.kind == "n_step":
        n_step = partial(returns.n_step_returns, n=config.steps)
        return jax.vmap(lambda r, d, v, c: n_step(r, d, v, continue_t=c))(
            reward, discounts, bootstrap, continues
        ), exists
    if config.kind == "lambda":
        return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, config.lambda_ * continues), exists
    # Whether an episode ends later within the sequence: a sum backward from the last row.
    exists &= jnp.cumsum(ends[:, 1:][:, ::-1], axis=1)[:, ::-1] > 0
    return jax.vmap(returns.lambda_returns)(reward, discounts, bootstrap, continues), exists


def _returns_of_players(
    config: ReturnConfig, gamma: float, rows: Trajectory, ends: Bool[Array, "B R"], value: Float[Array, "B R P"]
) -> tuple[Float[Array, "B T P"], Bool[Array, "B T"]]:
    """Return the value targets of each player, which are those of a single one from the same player's view.

    They are computed from the view of the first row's player, and returned from those of each row's.
    """
    reward, value = turns.from_first(rows.reward, before=1), turns.from_first(value)

    def of_player(reward: Float[Array, "B R"], value: Float[Array, "B R"]) -> tuple[Array, Array]:
        return _returns(config, gamma, rows._replace(reward=reward), ends, value)

    target, exists = jax.vmap(of_player, (-1, -1), (-1, None))(reward, value)
    return turns.from_each(target), exists


class TemperatureConfig(BaseModel):
    """The temperature by which visit counts become actions during training; the defaults are those for Atari.

    For Gumbel MuZero it multiplies the noise by which the search draws an action.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...] = (1.0, 0.5, 0.25)
    """The temperatures in their order; 0 takes the most visited action."""
    changes: tuple[float, ...] = (0.5, 0.75)
    """The shares of training after which the next temperature applies."""
    moves: Annotated[int, Field(ge=0)] = 0
    """The number of moves at the beginning of an episode that are drawn, after which moves are greedy (board games:
    30); 0 draws every move."""

    @model_validator(mode="after")
    def _fits(self) -> TemperatureConfig:
        if len(self.values) != len(self.changes) + 1 or any(value < 0 for value in self.values):
            raise ValueError(
                f"values must be temperatures of at least 0, one more than there are changes, not {list(self.values)} "
                f"and {list(self.changes)}"
            )
        if list(self.changes) != sorted(self.changes) or any(not 0 < change < 1 for change in self.changes):
            raise ValueError(f"changes must be in ascending order and between 0 and 1, not {list(self.changes)}")
        return self

    def at(self, progress: Array | float) -> Array:
        """Return the temperature at a share of training between 0 and 1."""
        index = (jnp.asarray(progress) >= jnp.asarray(self.changes)).sum() if self.changes else 0
        return jnp.asarray(self.values)[index]


class MuZeroState(NamedTuple):
    """The state of these agents next to their parameters."""

    largest_return: Float[Array, ""] | None = None
    """The largest discounted return of training so far; None where the unit of values does not follow it."""


class MuZeroConfig(AgentConfig):
    """Settings of MuZero and Gumbel MuZero; the defaults are those of the paper for Atari."""

    name: Literal["muzero", "gumbel_muzero"] = "muzero"
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.997
    target_update_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """The share by which the target network, which reanalyzes, moves toward the online network at each update."""
    temperature: TemperatureConfig = TemperatureConfig()
    enumerate_actions: Annotated[int, Field(ge=0, le=100_000)] = 5000
    """The largest number of different multi-discrete actions that are all edges of a node. Of more, and of continuous
    actions, a node has `num_candidates`. Discrete actions are always all edges."""
    num_candidates: Annotated[int, Field(ge=1, le=100_000)] = 20
    """The number of candidates of each node (Sampled MuZero: 20)."""
    uniform_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of these candidates that are drawn uniformly; the prior corrects for it. The others are drawn from the
    policy."""
    random_action_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of training's actions that are drawn uniformly from the legal ones; returns end before them."""
    returns: ReturnConfig = ReturnConfig()
    reanalyze_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of each minibatch whose policies and bootstraps come from a new search with the target network.

    Replayed sequences come first. Fresh ones are searched again only if the share is larger than `replay.fraction`.
    """


class MuZeroLosses(LossTable):
    """Loss terms of MuZero and Gumbel MuZero."""

    policy: Term = Term()
    model_policy: Term = Term()
    value: Term = Term(weight=0.25)
    model_value: Term = Term(weight=0.25)
    model_reward: Term = Term()
    consistency: Term = Term(weight=0.0)
    """The consistency term of EfficientZero. Its projection exists only if the weight is above 0, and never with
    `torso=identity`."""
    entropy: Term = Term(weight=0.0)


def make(
    config: MuZeroConfig,
    model_config: ModelConfig,
    loss_config: MuZeroLosses,
    search_config: SearchConfig,
    num_players: int = 1,
) -> Agent:
    """Build MuZero or Gumbel MuZero as a tuple of pure functions.

    Without simulations it acts by its network alone.
    """
    weights = loss_config.weights()
    model_discount = model_discount_of(config.gamma, num_players)
    plan = planner(config, search_config, model_discount)

    def init(key: Key, spec: EnvSpec) -> Policy:
        require_supported(config.name, spec)
        return Policy(
            Model(spec, model_config, key, project="consistency" in weights), MuZeroState(model_config.no_return())
        )

    def start(batch_size: int) -> Carry:
        moves = jnp.zeros(batch_size, jnp.int32) if config.temperature.moves else None
        return Carry(model_config.start(batch_size), moves)

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        return muzero_act(config, search_config.num_simulations > 0, plan, policy, carry, timestep, key, mode, progress)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, MuZeroState]:
        model = model_of(policy)
        return muzero_targets(
            config.returns, config.gamma, config.reanalyze_fraction, model_config.burn_in,
            partial(plan, model, mode="sample"), model, batch, key, minibatches,
        ), policy.state  # fmt: skip

    def loss(
        params: Model, state: MuZeroState, batch: Batch, target: Targets, key: Key, with_metrics: Array | bool = True
    ) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
        del key
        absorbing = Absorbing(num_players, outcome=not model_config.reward_head)
        return muzero_loss(
            model_config,
            frozenset(weights),
            absorbing,
            params.following(state.largest_return),
            batch,
            target,
            with_metrics,
        )

    searches = partial(search_with, plan) if search_config.num_simulations else None
    return Agent(
        config.name, init, start, act, targets, loss, muzero_encode, weights, False, model_discount,
        partial(_look, plan), searches, model_config.value_unit == "returns",
    )  # fmt: skip


def muzero_encode(policy: Policy, rows: Trajectory) -> Array:
    """Encode rows [B, R] into latents, starting from the memory that is stored in the first row of each sequence."""
    return encode_rows(policy.params, rows)


def _look(plan: Plan, policy: Policy, latent: Array, legal_actions: Array, key: Key) -> LookAhead:
    return muzero_look_ahead(plan(model_of(policy), latent, legal_actions, key, "sample"))


def search_with(plan: Plan, policy: Policy, latent: Array, legal_actions: Array, key: Key) -> SearchResult:
    """Return the search for the best actions of B latents, with its tree."""
    return plan(model_of(policy), latent, legal_actions, key, "greedy", keep_tree=True)


def muzero_act(
    config: MuZeroConfig, searches: bool, plan: Callable[..., SearchResult], policy: Policy, carry: Carry,
    timestep: TimeStep, key: Key, mode: Mode, progress: Array | float,
) -> tuple[ActOutput, Carry]:  # fmt: skip
    """Search, and draw an action from its result; without simulations, draw it from the network's policy."""
    search_key, draw_key, random_key = jax.random.split(key, 3)
    temperature = config.temperature.at(progress)
    moves = carry.moves
    if moves is not None:
        moves = jnp.where(timestep.first, 0, moves)
        temperature, moves = jnp.where(moves < config.temperature.moves, temperature, 0.0), moves + 1
    model = model_of(policy)
    latent, memory = model.encode(timestep.observation, carry.memory, timestep.first)
    result = plan(model, latent, timestep.legal_actions, search_key, mode, temperature=temperature)
    if mode == "greedy" or (searches and config.name == "gumbel_muzero"):
        # The noise of that search has drawn its action already.
        action = result.action
    else:
        action = draw(draw_key, result.weights, temperature if searches else jnp.ones(()))
    per_row, per_action = search_extras(result)
    action = action.astype(jnp.int32)
    if result.actions is not None:
        action = take_actions(result.actions, action)
    if config.random_action_share:
        share = config.random_action_share if mode == "explore" else 0.0
        legal, kind = timestep.legal_actions, model.distribution
        action, replaced = replace_some(random_key, action, legal, share, kind)
        per_row = {**per_row, "random_action": replaced}
    return ActOutput(action, Extras(per_row, per_action), carry.memory), Carry(memory, moves)


def search_extras(result: SearchResult) -> Extras:
    """Return what rows store of a search: its value and policy, and the candidates to which the policy belongs."""
    actions = {} if result.actions is None else {"search_actions": result.actions}
    return Extras({"search_value": result.value}, {"search_policy": result.weights, **actions})


def muzero_look_ahead(result: SearchResult) -> LookAhead:
    """Return the estimates of a search from B latents; actions that were not searched have completed values."""
    assert result.root is not None
    prior, value = jax.nn.softmax(result.root.logits), result.root.value
    q_values = completed_q_values(result.q_values, result.visits, prior, own(value, 1))
    return LookAhead(value, prior, q_values, result.weights, result.actions)


def planner(config: MuZeroConfig, search_config: SearchConfig, model_discount: float) -> Callable[..., SearchResult]:
    """Return a function (model, latent [B, …], legal_actions [B, A], key, mode) -> SearchResult.

    Without simulations the result consists of the network's own policy and value.  `temperature` multiplies the noise
    by which Gumbel's search draws its action.  Actions are drawn from PUCT's visits after the search.
    """
    searcher = search.gumbel_search if config.name == "gumbel_muzero" else search.puct_search
    return partial(_plan, searcher, search_config, proposal_of(config), model_discount)


def gumbel_planner(config: SearchConfig, proposal: Proposal, model_discount: float) -> Callable[..., SearchResult]:
    """Return what `planner` does for agents that learn without a search: Gumbel MuZero's search when they act."""
    return partial(_plan, search.gumbel_search, config, proposal, model_discount)


def proposal_of(config: MuZeroConfig) -> Proposal:
    """Return how the candidates of a node are chosen."""
    return Proposal(config.num_candidates, config.uniform_share, config.enumerate_actions)


def _plan(
    searcher, config: SearchConfig, proposal: Proposal, model_discount: float, model: Model, latent: Array,
    legal_actions: Array, key: Key, mode: Mode, keep_tree: bool = False, temperature: Array | float = 1.0,
) -> SearchResult:  # fmt: skip
    # A separate key: searches over discrete actions draw what they drew without candidates.
    root_key = jax.random.fold_in(key, 1)
    root = search_root(model, latent, legal_actions, proposal, root_key, with_mode=mode == "greedy")
    if config.num_simulations:
        arguments = config, root, simulator(model, model_discount, proposal), key, config.num_simulations
        if searcher is search.gumbel_search:
            result = searcher(*arguments, mode != "greedy", keep_tree, temperature)
        else:
            result = searcher(*arguments, mode == "explore", keep_tree)
    else:
        weights = jax.nn.softmax(root.logits)
        blank = jnp.zeros_like(weights)
        choice = jnp.argmax(root.logits, -1)
        if mode == "greedy" and has_candidates(model) and not lists_all(model.distribution, proposal):
            choice = jnp.zeros_like(choice)  # the most probable action: ratios to the proposal do not rank candidates
        result = SearchResult(choice, weights, root.value, blank.astype(jnp.int32), blank, None)
    actions = root.latent.actions if isinstance(root.latent, Node) else None
    return result._replace(actions=actions, root=root)


def draw(key: Key, weights: Float[Array, "B A"], temperature: Array) -> Array:
    """Draw actions in proportion to weights^(1 / temperature); at temperature 0 take those with the largest weight."""
    logits = jnp.log(jnp.maximum(weights, 1e-30)) / jnp.maximum(temperature, 1e-3)[..., None]
    logits = jnp.where(weights > 0, logits, distributions.ILLEGAL)
    return jnp.where(temperature > 0, jax.random.categorical(key, logits), jnp.argmax(weights, -1))


def replace_some(
    key: Key, action: Shaped[Array, "B ..."], legal_actions: Bool[Array, "B A"], share: float, kind: Distribution
) -> tuple[Shaped[Array, "B ..."], Bool[Array, " B"]]:
    """Replace a share of the actions by legal ones drawn uniformly; return the actions, and which were replaced."""
    draw_key, where_key = jax.random.split(key)
    replaced = jax.random.bernoulli(where_key, share, action.shape[:1])
    if isinstance(kind, Categorical):
        uniform = jax.random.categorical(draw_key, jnp.where(legal_actions, 0.0, distributions.ILLEGAL))
    else:
        uniform = kind.uniform_many(jnp.zeros((len(action), kind.num_params)), draw_key, 1)[:, 0]
    return jnp.where(replaced.reshape(-1, *[1] * (action.ndim - 1)), uniform, action), replaced


def muzero_loss(
    model_config: ModelConfig,
    enabled: frozenset[str],
    absorbing: Absorbing,
    model: Model,
    batch: Batch,
    target: Targets,
    with_metrics: Array | bool,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """Return the enabled loss terms, and the metrics to log; the metrics are zeros unless `with_metrics`."""
    rows = batch.trajectory
    # Only the consistency term needs the last row encoded.
    used_rows = slice(None if "consistency" in enabled else -1)
    latent = encode_rows(model, jax.tree.map(lambda x: x[:, used_rows], rows), model_config.burn_in)
    roots = latent[:, : target.value.shape[1]]
    unrolled = unroll(model, roots, rows, target, model_config.unroll_steps, absorbing, mask_illegal=False)
    inputs = loss_terms.LossInputs(model, rows, target, unrolled, latent, model_config.policy_horizon)
    constant = jax.lax.stop_gradient(inputs)
    metrics = compute_if(with_metrics, lambda: search_metrics(constant))
    return loss_terms.build(enabled, inputs), metrics
