"""Floating-point operations of a function, counted from what JAX traces of it: nothing is run or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
from jax.extend import core


def count(function: Callable, *arguments: Any) -> int:
    """Operations of the matrix products and convolutions in ``function(*arguments)``; a multiply-add is two.

    A scan counts as often as it goes round, the dearest branch of a condition counts, and a while loop, whose number of
    rounds nobody knows, counts once.  Everything else, element by element, is left out.  Arguments may be shapes.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, inner = equation.primitive.name, [_of(jaxpr) for jaxpr in _inner(equation.params)]
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
    """The programs within an operation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
