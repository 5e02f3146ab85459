"""EnvPool's values of 64 bits in a program of 32 bits, as pairs of 32-bit words.

EnvPool's own wrapper declares a 64-bit array of MuJoCo as one of 32 bits, because JAX has no others by default, and the
pool then writes beyond its memory.  Here such an array is declared as words ``uint32 [..., 2]``, the lower one first,
which is the same memory on every machine with little-endian numbers.  The words become float32, rounded to the nearest
number with ties to even, as NumPy rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

_SIGN, _SINGLE_INFINITY, _SINGLE_NAN = (np.uint32(bits) for bits in (0x80000000, 0x7F800000, 0x7FC00000))
_BIAS = 1023 - 127
"""The exponent of a float64 minus that of the same number as a float32."""


def from_words(words: UInt32[Array, "*shape 2"]) -> Float[Array, "*shape"]:
    """Return the float32 nearest to each float64; numbers below 1.2e-38, the least normal float32, become 0."""
    low, high = words[..., 0], words[..., 1]
    exponent = (high >> 20) & 0x7FF
    mantissa, rest = ((high & 0xFFFFF) << 3) | (low >> 29), low & 0x1FFFFFFF
    half = 0x10000000
    up = (rest > half) | ((rest == half) & (mantissa & 1 == 1))
    # A mantissa that is rounded up to the next power of two carries into the exponent, up to infinity.
    bits = ((exponent - _BIAS) << 23) + mantissa + up
    bits = jnp.where(exponent <= _BIAS, 0, jnp.where(exponent >= _BIAS + 255, _SINGLE_INFINITY, bits))
    not_a_number = (exponent == 0x7FF) & ((mantissa | rest) != 0)
    bits = jnp.where(not_a_number, _SINGLE_NAN, bits).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits | (high & _SIGN), jnp.float32)


def to_words(numbers: Float[Array, "*shape"]) -> UInt32[Array, "*shape 2"]:
    """Return each float32 as a float64, exactly; numbers below 1.2e-38 become 0."""
    bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    wide = jnp.where(exponent == 255, 0x7FF, exponent + _BIAS)
    normal = exponent > 0
    high = jnp.where(normal, (wide << 20) | (mantissa >> 3), 0) | (bits & _SIGN)
    low = jnp.where(normal, mantissa << 29, 0)
    return jnp.stack([low, high], axis=-1).astype(jnp.uint32)


class Handle(NamedTuple):
    """A pool's handle, and the functions that compiled programs call with it, as `pool.xla()` returns them."""

    handle: np.ndarray
    receive: Callable[..., Any]
    send: Callable[..., Any]
    step: Callable[..., Any]


def has_wide_values(native_spec: Any) -> bool:
    """Return whether an array of a pool's specification has numbers of 64 bits."""
    return any(np.dtype(array.dtype).itemsize == 8 for array in _arrays(native_spec))


def other_wide_types(native_spec: Any) -> list[str]:
    """Return the types of 64 bits in a pool's specification that are not float64."""
    types = {np.dtype(array.dtype) for array in _arrays(native_spec)}
    return sorted(str(dtype) for dtype in types if dtype.itemsize == 8 and dtype != np.float64)


def open_handle(pool: Any) -> Handle:
    """Return a pool's functions for compiled programs; values of 64 bits are float32 outside of them."""
    if not has_wide_values(pool.spec):
        return Handle(*pool.xla())
    functions = {name: _function(pool, name, *rest) for name, rest in pool._xla()}
    handle = dict(pool._xla())["recv"][0]

    def receive(state: Array) -> tuple[Array, Any]:
        state, *arrays = functions["recv"](state)
        return state, pool._to(arrays, reset=False, return_info=True)

    def send(state: Array, action: Any, env_id: Array | None = None) -> Array:
        (state,) = functions["send"](state, *map(jnp.asarray, pool._from(action, env_id)))
        return state

    def step(state: Array, action: Any, env_id: Array | None = None) -> tuple[Array, Any]:
        return receive(send(state, action, env_id))

    return Handle(np.frombuffer(handle, np.uint8), receive, send, step)


def _arrays(native_spec: Any) -> list[Any]:
    return [*native_spec.state_array_spec.values(), *native_spec.action_array_spec.values()]


def _function(
    pool: Any, name: str, handle: bytes, arrays: tuple[Sequence[Any], Sequence[Any]], capsules: Sequence[Any]
) -> Callable[..., list[Array]]:
    """Return a function that calls the pool with arrays of these types and shapes, for a program on the CPU."""
    target = f"bircher_{type(pool).__name__}_{id(pool)}_{name}"
    jax.ffi.register_ffi_target(target, capsules[0], platform="cpu")
    received, returned = arrays
    results = [_declared(*array) for array in returned]
    call = jax.ffi.ffi_call(
        target,
        results,
        has_side_effect=True,
        input_layouts=[_row_major(_declared(*array)) for array in received],
        output_layouts=[_row_major(result) for result in results],
        input_output_aliases={0: 0},
    )
    number = int.from_bytes(handle, sys.byteorder)

    def function(*values: Array) -> list[Array]:
        words = [to_words(x) if dtype == np.float64 else x for x, (dtype, _) in zip(values, received, strict=True)]
        outputs = call(*words, handle=number)
        return [from_words(x) if dtype == np.float64 else x for x, (dtype, _) in zip(outputs, returned, strict=True)]

    return function


def _declared(dtype: Any, shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    if dtype == np.float64:
        return jax.ShapeDtypeStruct((*shape, 2), np.uint32)
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _row_major(array: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return tuple(range(len(array.shape)))  # JAX orders the axes of a layout from the outermost one on
