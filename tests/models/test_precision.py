"""A network in bfloat16 learns what the same network in float32 learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents import muzero
from bircher.agents.base import weights_at
from bircher.ops import losses
from bircher.search import SearchConfig
from bircher.types import Discrete, EnvSpec, Extras, Policy
from builders import ACTIONS, SMALL, SPEC, batch_of, drawn_model, muesli_agent, quick_jit, random_rows

KEY = jax.random.key(0)
IMAGE = EnvSpec("test/image", jax.ShapeDtypeStruct((12, 12, 2), np.uint8), Discrete(ACTIONS))
SMALL = SMALL.model_copy(update={"unroll_steps": 2})
NETWORKS = {
    "mlp": (SPEC, SMALL),
    "impala, lstm": (
        IMAGE,
        SMALL.model_copy(update={"torso": "impala", "dynamics": "lstm", "sections": (4,), "section_blocks": 1}),
    ),
    "muzero_resnet": (IMAGE, SMALL.model_copy(update={"torso": "muzero_resnet", "channels": 4})),
}


def in_precision(config, precision):
    return config.model_copy(update={"precision": precision})


def agent_of(name, config):
    if name == "muesli":
        return muesli_agent(config)
    return muzero.make(muzero.MuZeroConfig(), config, muzero.MuZeroLosses(), SearchConfig(num_simulations=2))


def rows_of(spec):
    rows = random_rows(0, 4, 6, all_legal=True)
    rng = np.random.default_rng(1)
    if spec is IMAGE:
        rows = rows._replace(observation=jnp.asarray(rng.integers(0, 256, (4, 7, 12, 12, 2)), jnp.uint8))
    searched = {**rows.extras.per_action, "search_policy": jax.nn.softmax(rows.extras.per_action["behavior_logits"])}
    return rows._replace(extras=Extras({"search_value": rows.reward}, searched))


def learned(agent, model, rows, spec):
    """Every term's mean, and the gradient of their weighted sum."""
    state = agent.init(KEY, spec).state
    target, _ = agent.targets(Policy(model, state), batch_of(rows), KEY)

    def objective(model):
        terms, _ = agent.loss(model, state, batch_of(rows), target, KEY)
        total, metrics = losses.combine(terms, weights_at(agent.weights, 0.0), target.mask, jnp.ones(4))
        return total, {name: metrics[f"loss/{name}"] for name in terms}

    (total, terms), gradient = jax.value_and_grad(objective, has_aux=True)(model)
    return total, terms, gradient, target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"), [("muesli", "impala, lstm"), ("muzero", "mlp"), ("muzero", "muzero_resnet")]
)
def test_losses_agree_and_gradients_are_float32(name, network):
    spec, config = NETWORKS[network]
    rows, found = rows_of(spec), {}
    for precision in ("float32", "bfloat16"):
        agent = agent_of(name, in_precision(config, precision))
        # The same numbers in either.
        model = drawn_model(5, in_precision(config, precision), spec)
        found[precision] = quick_jit(lambda model, agent=agent: learned(agent, model, rows, spec))(model)
    (total, terms, gradient, target), (low, low_terms, low_gradient, low_target) = found.values()
    assert float(total) != float(low), "nothing was computed in another precision"
    for term in terms:
        np.testing.assert_allclose(low_terms[term], terms[term], rtol=0.1, atol=0.05, err_msg=term)
    np.testing.assert_allclose(low_target.value, target.value, rtol=0.05, atol=0.3)
    for leaf in jax.tree.leaves((low_gradient, low_target.value, low_target.reward, low_target.advantage, low_terms)):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all())
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(low_gradient), strict=True)
    one, other = (jnp.concatenate(x) for x in zip(*((a.ravel(), b.ravel()) for a, b in pairs), strict=True))
    cosine = float(one @ other / (jnp.linalg.norm(one) * jnp.linalg.norm(other)))
    assert cosine > 0.98


@pytest.mark.parametrize("network", NETWORKS)
def test_products_are_bfloat16_and_results_are_float32(network):
    spec, config = NETWORKS[network]
    model = drawn_model(0, in_precision(config, "bfloat16"), spec)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))

    def everything(model, observation):
        latent = model.represent(observation)
        following = model.unroll(latent, jnp.zeros((2, 3), jnp.int32))
        features = model.head_input(following)
        return (
            latent,
            following,
            model.prediction(features),
            model.reward_logits(features),
            model.look_ahead(latent, 0.9),
        )

    observation = jnp.zeros((3, *spec.observation.shape), spec.observation.dtype)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(everything, model, observation)))
    lines = str(jax.make_jaxpr(everything)(model, observation)).splitlines()
    products = [line for line in lines if "= dot_general[" in line or "= conv_general_dilated[" in line]
    assert len(products) >= 5 and all(":bf16[" in line for line in products)
