"""Small models, rows and specifications that several test files build."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bircher.agents import actor_critic
from bircher.networks.model import Model, ModelConfig
from bircher.ops.distributions import ILLEGAL
from bircher.types import Batch, Discrete, EnvSpec, Extras, Policy, Trajectory

quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""jit for programs that run a few times: compiled in half the time."""

ACTIONS = 3
SPEC = EnvSpec("test/rows", jax.ShapeDtypeStruct((4,), np.float32), Discrete(ACTIONS))
SMALL = ModelConfig(
    torso_widths=(16,), latent_width=12, dynamics_widths=(16,), unroll_steps=3, num_atoms=21, support=10.0
)


def muesli_agent(model: ModelConfig = SMALL, losses: dict[str, Any] | None = None, **settings: Any):
    """A small Muesli; settings as in its configuration, nested."""
    return actor_critic.make(actor_critic.MuesliConfig(**settings), model, actor_critic.MuesliLosses(**(losses or {})))


def random_model(seed: int, config: ModelConfig = SMALL, spec: EnvSpec = SPEC) -> Model:
    """A model whose every parameter, those of the last layers too, is away from zero."""
    model = Model(spec, config, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def drawn_model(seed: int, config: ModelConfig, spec: EnvSpec) -> Model:
    """The same, drawn by NumPy at the size that layers begin with: of many shapes JAX would compile a program each."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1 / np.sqrt(leaf.shape[0]) if leaf.ndim == 2 else 0.3
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(lambda: Model(spec, config, jax.random.key(0))))


def random_rows(seed: int, batch: int, length: int, all_legal: bool = False) -> Trajectory:
    """Rows [B, T + 1] with deaths, limits, reset rows, and seams where an episode begins with none having ended."""
    rng = np.random.default_rng(seed)
    shape = (batch, length + 1)
    first, last, terminal = (np.zeros(shape, bool) for _ in range(3))
    for b in range(batch):
        for t in range(length + 1):
            first[b, t] = last[b, t - 1] if t and last[b, t - 1] else rng.uniform() < (0.1 if t else 0.5)
            last[b, t] = not first[b, t] and rng.uniform() < 0.25
            terminal[b, t] = last[b, t] and rng.uniform() < 0.5
    legal = np.ones((*shape, ACTIONS), bool) if all_legal else rng.uniform(size=(*shape, ACTIONS)) < 0.7
    legal[..., 0] |= ~legal.any(-1)
    behavior_logits = np.where(legal, rng.normal(size=(*shape, ACTIONS)), ILLEGAL)
    action = (behavior_logits + rng.gumbel(size=behavior_logits.shape)).argmax(-1)
    return Trajectory(
        observation=jnp.asarray(rng.normal(size=(*shape, 4)), jnp.float32),
        reward=jnp.asarray(np.where(first, 0.0, 3 * rng.normal(size=shape)), jnp.float32),
        discount=jnp.asarray(~terminal, jnp.float32),
        first=jnp.asarray(first),
        last=jnp.asarray(last),
        terminal=jnp.asarray(terminal),
        legal_actions=jnp.asarray(legal),
        action=jnp.asarray(action, jnp.int32),
        extras=Extras(per_action={"behavior_logits": jnp.asarray(behavior_logits, jnp.float32)}),
    )


def batch_of(rows: Trajectory) -> Batch:
    """The rows as one batch of an agent without memory."""
    size = len(rows.reward)
    return Batch(rows, jnp.full(size, -1), jnp.ones(size))


def policy_of(agent, params: Any) -> Policy:
    """A policy with these parameters and the agent's initial state."""
    return Policy(params, agent.init(jax.random.key(0), SPEC).state)


def assert_trees_equal(one: Any, other: Any) -> None:
    """Every leaf equal, bit for bit."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(leaves, others, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
