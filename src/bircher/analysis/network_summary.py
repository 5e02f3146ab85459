"""Parameters, memory and floating-point operations of each part of a network, counted from its trace.

Nothing is allocated, run or compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import PyTree

from bircher.networks.exploration import WIDTH, Ensemble, InverseDynamics
from bircher.networks.model import Model
from bircher.ops.distributions import Distribution
from bircher.types import EnvSpec


def count(function: Callable, *arguments: Any) -> int:
    """Count the operations of matrix products and convolutions in ``function(*arguments)``; a multiply-add is two.

    A scan counts once for each of its steps.  Of a condition the most expensive branch counts.  A while loop counts
    once, because its number of steps is unknown.  Element-wise operations are left out.  Arguments may be shapes.
    """
    return _operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def _operations(jaxpr: core.Jaxpr) -> int:
    return sum(_operations_of(equation) for equation in jaxpr.eqns)


def _operations_of(equation: core.JaxprEqn) -> int:
    name, inner = equation.primitive.name, [_operations(jaxpr) for jaxpr in _inner(equation.params)]
    if name in ("dot_general", "conv_general_dilated"):
        left, right, result = (_shape(variable) for variable in (*equation.invars, *equation.outvars))
        numbers = equation.params["dimension_numbers"]
        if name == "dot_general":
            (contracted, _), _ = numbers
            return 2 * prod(result) * prod(left[axis] for axis in contracted)
        return 2 * prod(result) * prod(right) // right[numbers.rhs_spec[0]]
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs inside an operation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


ENCODER = "encoder"
PART_OF_FIELD = {
    "representation": ENCODER,
    "memory": "memory",
    "dynamics": "dynamics",
    "reader": "reader",
    "policy": "policy_head",
    "value": "value_head",
    "reward": "reward_head",
    "projection": "projection",
    "exploration": "exploration",
}
"""The part of `metrics.PARTS` that the field of a model belongs to."""


class Part(NamedTuple):
    """The size and the cost of one part, for one use: one observation, one step of the model, or one latent."""

    name: str
    parameters: int
    flops: int
    """Operations of its matrix products and convolutions in the forward pass; a multiply-add is two."""
    activation_bytes: int
    """Bytes that the forward pass stores for the backward pass in JAX's trace; a compiler may store fewer."""


def part_of(path: tuple) -> str:
    """Return the part that a parameter belongs to, by its path in the model."""
    fields = [entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)]
    if "exploration" in fields:  # which has a separate encoder
        return "exploration"
    # The innermost of these names: heads.policy is a part, heads is not.
    return next(PART_OF_FIELD[field] for field in reversed(fields) if field in PART_OF_FIELD)


def summarize(model: PyTree, spec: EnvSpec, exploration: InverseDynamics | Ensemble | None = None) -> list[Part]:
    """Return every part that a model, or its shapes, has, in the order of `PART_OF_FIELD`.

    `exploration` are the networks of a bonus for exploring.
    """
    sizes = dict.fromkeys(PART_OF_FIELD.values(), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(model, _is_array)):
        sizes[part_of(path)] += leaf.size
    uses = [(name, model, use, inputs) for name, (use, inputs) in _uses(model, spec).items()]
    if exploration is not None:
        sizes["exploration"] = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(exploration, _is_array)))
        uses.append(("exploration", exploration, *_use_of_exploration(exploration, spec)))
    return [
        Part(
            name, sizes[name], count(use, owner, *(batch(1) for batch in inputs)),
            _activation_bytes(use, owner, inputs),
        )
        for name, owner, use, inputs in uses
    ]  # fmt: skip


def total(parts: list[Part]) -> Part:
    """Return the sum of all parts, each used once."""
    return Part(
        "total",
        sum(part.parameters for part in parts),
        sum(part.flops for part in parts),
        sum(part.activation_bytes for part in parts),
    )


Batch = Callable[[int], PyTree]
"""(number of frames) -> the shape of an input, or of each of its arrays."""


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape")


def _uses(model: Model, spec: EnvSpec) -> dict[str, tuple[Callable, tuple[Batch, ...]]]:
    """Return the function that uses each part, and the shapes of its inputs."""

    observation = _observations(spec)
    latent = _like(lambda model, x: model.represent(x), model, observation)
    features = _like(lambda model, x: model.head_input(x), model, latent)
    uses: dict[str, tuple[Callable, tuple[Batch, ...]]] = {ENCODER: (lambda m, x: m.represent(x), (observation,))}
    if model.memory is not None:
        features_of_row, state = (
            _like(lambda model, x: model.features(x), model, observation),
            2 * model.memory.lstm.width,
        )
        inputs = (features_of_row, _batch((state,), jnp.float32), _batch((), jnp.bool_))
        uses["memory"] = (lambda m, x, state, first: m.memory(x, state, first)[0], inputs)
    if model.dynamics is not None:
        uses["dynamics"] = (lambda m, x, action: m.step(x, action), (latent, _actions(model.distribution)))
    if model.reader is not None:
        uses["reader"] = (lambda m, x: m.head_input(x), (latent,))
    uses["policy_head"] = (lambda m, x: m.heads.policy(x), (features,))
    uses["value_head"] = (lambda m, x: m.heads.value(x), (features,))
    if model.heads.reward is not None:
        uses["reward_head"] = (lambda m, x: m.heads.reward(x), (features,))
    if model.projection is not None:
        uses["projection"] = (lambda m, x: m.projection.distance(x, x), (latent,))
    return uses


def _use_of_exploration(networks: InverseDynamics | Ensemble, spec: EnvSpec) -> tuple[Callable, tuple[Batch, ...]]:
    """Return how the networks of a bonus are used for one observation, and the shapes of their inputs."""
    if isinstance(networks, Ensemble):
        inputs = (_batch((WIDTH,), jnp.float32), _actions(networks.distribution))
        return lambda ensemble, x, action: ensemble(x, action), inputs
    return lambda inverse, x: inverse.features(x), (_observations(spec),)


def _observations(spec: EnvSpec) -> Batch:
    return lambda size: jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), spec.observation)


def _actions(distribution: Distribution) -> Batch:
    """Return the shape of one action for each frame."""
    params = jax.ShapeDtypeStruct((1, distribution.num_params), jnp.float32)
    action = jax.eval_shape(distribution.mode, params)
    return _batch(action.shape[1:], action.dtype)


def _batch(shape: tuple[int, ...], dtype: Any) -> Batch:
    return lambda size: jax.ShapeDtypeStruct((size, *shape), dtype)


def _like(function: Callable, model: Model, argument: Batch) -> Batch:
    """Return the shape of a function's result for an input."""
    result = jax.eval_shape(function, model, argument(1))
    return _batch(result.shape[1:], result.dtype)


def _activation_bytes(use: Callable, model: PyTree, inputs: tuple[Batch, ...]) -> int:
    """Return the bytes that are stored for the backward pass of one frame.

    It is the difference between two frames and one, so that parameters and values computed from them do not count.
    """

    def stored_bytes(size: int) -> int:
        arguments = [batch(size) for batch in inputs]
        pullback = jax.eval_shape(lambda m, *x: jax.vjp(lambda m: use(m, *x), m)[1], model, *arguments)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    return stored_bytes(2) - stored_bytes(1)
