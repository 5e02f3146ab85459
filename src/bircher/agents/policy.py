"""Agents that learn a policy without a search, as pure functions: Muesli, PPO and the paper's baselines.

They differ in settings and in the weights of the terms alone.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher import search
from bircher.agents import searching, terms
from bircher.agents.base import Agent, Carry, Look, Mode, kept, require_discrete
from bircher.agents.diagnostics import of_policy, when
from bircher.agents.policy_config import PolicyAgentConfig, PolicyLosses
from bircher.agents.policy_targets import PolicyAgentState, Wanted, encoded, improved_policy, normalised, policy_targets
from bircher.agents.unrolling import unroll
from bircher.models.model import Model, ModelConfig
from bircher.models.statistics import ObservationStatistics
from bircher.ops import distributions, improvement
from bircher.search import SearchConfig, SearchResult
from bircher.types import ActOutput, Batch, EnvSpec, Key, Policy, Targets, TimeStep, Trajectory


def make(
    config: PolicyAgentConfig,
    model_config: ModelConfig,
    loss_config: PolicyLosses,
    search_config: SearchConfig | None = None,
    num_players: int = 1,
) -> Agent:
    """One of these agents as a tuple of pure functions.

    It learns and explores without a search; one with at least one simulation takes part in acting afterwards only.
    """
    weights = loss_config.weights()
    enabled = frozenset(weights)
    wanted = products(config, enabled)
    imagines = wanted.look_ahead or terms.need(enabled, "unroll")
    discount = searching.signed_discount(config.discount, num_players)
    simulations = search_config.num_simulations if search_config is not None else 0
    if "model_reward" not in enabled:
        model_config = model_config.model_copy(update={"reward_head": False})  # nothing would ever move it

    def init(key: Key, spec: EnvSpec) -> Policy:
        require_discrete(config.name, spec)
        statistics = ObservationStatistics.of(spec) if config.normalise_observations else None
        model = Model(spec, model_config, key, terms.need(enabled, "projection"), imagines)
        return Policy(model, PolicyAgentState(improvement.AdvantageNormaliser.zero(), statistics))

    def act(
        policy: Policy, carry: Carry, timestep: TimeStep, key: Key, mode: Mode, progress: Array | float
    ) -> tuple[ActOutput, Carry]:
        del progress
        model: Model = policy.params
        latent, memory = model.encode(normalised(policy.state, timestep.observation), carry.memory, timestep.first)
        logits = distributions.mask_logits(model.predict(latent).policy_logits, timestep.legal_actions)
        if mode != "explore" and simulations:
            action = searched(policy, latent, timestep.legal_actions, key, mode == "sample", False).action
        else:
            action = jnp.argmax(logits, -1) if mode == "greedy" else jax.random.categorical(key, logits)
        extras = {"behaviour_logits": logits, **kept(carry.memory)}
        return ActOutput(action.astype(jnp.int32), extras), carry._replace(memory=memory)

    def searched(
        policy: Policy, latent: Array, legal_actions: Array, key: Key, noise: bool = False, keep_tree: bool = True
    ) -> SearchResult:
        assert search_config is not None
        model: Model = policy.params
        root = searching.root(model, latent, legal_actions)
        simulate = searching.simulator(model, discount)
        return search.gumbel_search(search_config, root, simulate, key, simulations, noise, keep_tree)

    def targets(policy: Policy, batch: Batch, key: Key, /, minibatches: int = 1) -> tuple[Targets, PolicyAgentState]:
        del minibatches  # every sequence is treated alike
        return policy_targets(config, wanted, discount, model_config.burn_in, policy, batch, key)

    loss = partial(policy_loss, config, model_config, enabled)
    look = partial(policy_look, config, wanted, discount)
    return Agent(
        config.name, init, lambda size: Carry(model_config.start(size)), act, targets, loss, policy_encode, weights,
        config.acts_with == "target", discount,
        look if imagines else None, searched if simulations else None, True,
    )  # fmt: skip


def policy_encode(policy: Policy, rows: Trajectory) -> Array:
    """The latents of rows [B, R], with the memory that stands in them."""
    return encoded(policy.params, policy.state, rows)


def products(config: PolicyAgentConfig, enabled: frozenset[str]) -> Wanted:
    """What the targets must hold for these terms."""
    cmpo = "cmpo" in enabled or ("model_policy" in enabled and config.policy_target == "cmpo")
    mpo = "mpo" in enabled
    looks = config.returns.kind == "retrace" or config.advantage.source == "look_ahead"
    return Wanted(look_ahead=cmpo or mpo or looks, cmpo=cmpo, mpo=mpo)


def policy_look(
    config: PolicyAgentConfig,
    wanted: Wanted,
    discount: float,
    policy: Policy,
    latent: Array,
    legal_actions: Array,
    key: Key,
) -> Look:
    """The one-step look-ahead of B latents, and the policy learnt towards where the network's own had acted."""
    del key
    model: Model = policy.params
    prediction = model.predict(latent)
    value, q = model.value_support.mean(prediction.value_logits), model.look_ahead(latent, discount)
    logits = distributions.mask_logits(prediction.policy_logits, legal_actions)
    shares = config.prior.behaviour_share, config.prior.uniform_share
    prior = distributions.mixture_prior(logits, logits, legal_actions, *shares)
    improved = improved_policy(config, wanted, policy.state, prior, q, value)
    return Look(value, jax.nn.softmax(logits), q, improved)


def policy_loss(
    config: PolicyAgentConfig,
    model_config: ModelConfig,
    enabled: frozenset[str],
    model: Model,
    state: PolicyAgentState,
    batch: Batch,
    target: Targets,
    key: Key,
    measured: Array | bool = True,
) -> tuple[dict[str, Float[Array, "B T"]], dict[str, Array]]:
    """The enabled terms, and what to log of them where it is measured."""
    del key
    rows = batch.trajectory
    # The last row is encoded for the consistency term alone; without a term of the model nothing looks below the root.
    used = slice(None if terms.need(enabled, "projection") else -1)
    latent = encoded(model, state, jax.tree.map(lambda x: x[:, used], rows), model_config.burn_in)
    depth = model_config.unroll_steps if terms.need(enabled, "unroll") else 0
    unrolled = unroll(model, latent[:, : target.value.shape[1]], rows, target, depth)
    clips = terms.Clips(config.clip.ratio, config.clip.value)
    held = terms.Products(model, rows, target, unrolled, latent, model_config.policy_horizon, clips)
    seen = jax.lax.stop_gradient(held)
    metrics = when(measured, lambda: of_policy(config.cmpo.clip_bound, config.clip.ratio, seen))
    return terms.build(enabled, held), metrics
