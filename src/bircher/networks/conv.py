"""Convolutions and pooling of images [..., H, W, C], in the forms that were measured to be fast.

The measurements are in docs/guide/networks.md.

Equinox's own convolution is not used, because its layout NCHW is slower on a CPU.
"""

from __future__ import annotations

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bircher.networks.layers import Linear
from bircher.types import Key

PATCHED_POSITIONS = 100
"""Largest number of positions for which a convolution is one product with a matrix of patches, and not JAX's own."""
FOLDED_OUTPUTS = 32
"""On a CPU, pairs of columns are combined to channels where there are fewer output channels than this."""
FORM = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], ...]


class Convolution(eqx.Module):
    """A convolution with a bias.

    With `pad` the output has the height and width of the input, divided by the stride and rounded up.
    """

    weight: Float[Array, "patch outputs"]
    """The kernel [height, width, inputs], flattened, for each output."""
    bias: Float[Array, " outputs"]
    size: int = eqx.field(static=True)
    pad: bool = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(
        self, inputs: int, outputs: int, size: int, key: Key, pad: bool = False, scale: float = 2.0, stride: int = 1
    ):
        linear = Linear(size * size * inputs, outputs, key, scale)
        self.weight, self.bias, self.size, self.pad, self.stride = linear.weight, linear.bias, size, pad, stride

    def __call__(self, x: Float[Array, "*B H W inputs"]) -> Float[Array, "*B h w outputs"]:
        kernel = self.weight.reshape(self.size, self.size, x.shape[-1], -1).astype(x.dtype)
        return convolve(x, kernel, self.stride, self.pad) + self.bias.astype(x.dtype)


def convolve(
    x: Float[Array, "*B H W inputs"], kernel: Float[Array, "k k inputs outputs"], stride: int = 1, pad: bool = True
) -> Float[Array, "*B h w outputs"]:
    """Compute a convolution in the fastest form for its sizes; all forms are the same function except for rounding.

    Measured for an update on one core of a CPU (benchmarks/convolutions.py), forward and backward:

    - Up to 10 × 10 positions, as in board games and MinAtar, a product over patches takes 0.6 to 1 times as long as
      JAX's own convolution.  At 42 × 42 with 16 channels it takes 5 times as long, because the patches exceed the
      caches.
    - XLA uses a faster library for convolutions of 32 outputs or more.  Two adjacent columns taken as one have twice
      the channels.  This costs a third more multiplications, and the update of IMPALA's network takes 0.9 of the time.
    """
    height, width = (positions(length, kernel.shape[0], stride, pad) for length in x.shape[-3:-1])
    if stride == 1 and (kernel.shape[0] == 1 or height * width <= PATCHED_POSITIONS):
        return by_patches(x, kernel, pad)
    images = x.reshape(-1, *x.shape[-3:])
    if stride == 1 and kernel.shape[-1] < FOLDED_OUTPUTS and jax.default_backend() == "cpu":
        result = by_pairs(images, kernel, pad)
    else:
        result = directly(images, kernel, stride, pad)
    return result.reshape(*x.shape[:-3], *result.shape[1:])


def positions(length: int, size: int, stride: int, pad: bool) -> int:
    """Return the number of positions of a kernel along an axis; 0 where it does not fit."""
    return -(-length // stride) if pad else max((length - size) // stride + 1, 0)


def by_patches(
    x: Float[Array, "*B H W inputs"], kernel: Float[Array, "k k inputs outputs"], pad: bool
) -> Float[Array, "*B h w outputs"]:
    """Compute a convolution of stride 1 as one matrix product over the patches."""
    size = kernel.shape[0]
    if pad:
        around = (size - 1) // 2, size // 2
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [around, around, (0, 0)])
    height, width = x.shape[-3] - size + 1, x.shape[-2] - size + 1
    patches = [x[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def directly(
    x: Float[Array, "B H W inputs"], kernel: Float[Array, "k k inputs outputs"], stride: int, pad: bool
) -> Float[Array, "B h w outputs"]:
    """Compute a convolution with JAX's own function."""
    return _convolution(x, kernel, (stride, stride), "SAME" if pad else "VALID")


def by_pairs(
    x: Float[Array, "B H W inputs"], kernel: Float[Array, "k k inputs outputs"], pad: bool
) -> Float[Array, "B h w outputs"]:
    """Compute a convolution of stride 1 with two neighboring columns taken as one column of twice the channels."""
    size, _, inputs, outputs = kernel.shape
    count, height, width, _ = x.shape
    before = (size - 1) // 2 if pad else 0
    around = (before, size // 2 if pad else 0)
    wide = positions(width, size, 1, pad)
    pairs, spanned = -(-wide // 2), -(-(size + 1) // 2)
    columns = 2 * (pairs + spanned - 1)
    x = jnp.pad(x, [(0, 0), (0, 0), (before, columns - width - before), (0, 0)])
    x = x.reshape(count, height, columns // 2, 2 * inputs)
    # The right one of a pair of outputs has its patch one column further to the right.
    shifted = [jnp.pad(kernel, [(0, 0), (right, 2 * spanned - size - right), (0, 0), (0, 0)]) for right in range(2)]
    folded = jnp.stack(shifted, axis=3).reshape(size, spanned, 2 * inputs, 2 * outputs)
    result = _convolution(x, folded, (1, 1), [around, (0, 0)])
    return result.reshape(count, result.shape[1], 2 * pairs, outputs)[:, :, :wide]


def _convolution(x: Array, kernel: Array, strides: tuple[int, int], padding: str | list[tuple[int, int]]) -> Array:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _canonical(strides, tuple(map(tuple, padding)), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _canonical(strides: tuple[int, int], padding: Pads, x: Array, kernel: Array) -> Array:
    """A convolution whose gradients have the one form for which XLA uses a fast library everywhere.

    Within a loop, where updates are, XLA seems to use the library for no other form.  There, JAX's own gradients of
    DQN's first network took 6 times as long (docs/design/performance.md).
    """
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=FORM)


def _canonical_forward(strides: tuple[int, int], padding: Pads, x: Array, kernel: Array) -> tuple[Array, tuple]:
    return _canonical(strides, padding, x, kernel), (x, kernel)


def _canonical_backward(
    strides: tuple[int, int], padding: Pads, inputs: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = inputs
    reach = [(out - 1) * stride + 1 for out, stride in zip(gradient.shape[1:3], strides, strict=True)]
    sides = list(zip(x.shape[1:3], kernel.shape[:2], reach, padding, strict=True))
    to_x = jax.lax.conv_general_dilated(
        gradient, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1),
        [(size - 1 - low, length - spread + low) for length, size, spread, (low, _) in sides],
        lhs_dilation=strides, dimension_numbers=FORM,
    )  # fmt: skip
    # Rows and columns beyond the last patch have no gradient.
    height, width = (min(length, spread + size - 1 - low) for length, size, spread, (low, _) in sides)
    to_kernel = jax.lax.conv_general_dilated(
        x[:, :height, :width].transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), (1, 1),
        [(low, max(spread + size - 1 - low - length, 0)) for length, size, spread, (low, _) in sides],
        rhs_dilation=strides, dimension_numbers=FORM,
    )  # fmt: skip
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_canonical.defvjp(_canonical_forward, _canonical_backward)


class ResidualBlock(eqx.Module):
    """x + convolution(relu(convolution(relu(x)))) with kernels of 3 × 3; initially close to the identity."""

    first: Convolution
    second: Convolution

    def __init__(self, channels: int, key: Key):
        first_key, second_key = jax.random.split(key)
        self.first = Convolution(channels, channels, 3, first_key, pad=True)
        self.second = Convolution(channels, channels, 3, second_key, pad=True, scale=0.1)

    def __call__(self, x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return x + self.second(jax.nn.relu(self.first(jax.nn.relu(x))))


@jax.custom_vjp
def max_pool(x: Float[Array, "*B H W C"]) -> Float[Array, "*B h w C"]:
    """Return maxima over windows of 3 × 3 at stride 2, padded like TensorFlow's SAME.

    A window's gradient goes to one of its maxima.  The function is the same as `jax.lax.reduce_window`.  That takes
    51 ms on a CPU, forward and backward, for 16 images of 84 × 84 with 16 channels, and this takes 5 ms.  The maxima of
    three rows are computed first, and then those of three columns.
    """
    return _maxima_of_three(_maxima_of_three(x, -3), -2)


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
    return max_pool(x), x


def _max_pool_backward(x: Array, gradient: Array) -> tuple[Array]:
    rows = _maxima_of_three(x, -3)
    return (_gradient_to_maxima(x, _gradient_to_maxima(rows, gradient, -2), -3),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _neighbors(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return the entries 2k, 2k + 1 and 2k + 2 of each window k along an axis.

    Where the length is odd, -inf is put before the first entry.
    """
    axis += x.ndim
    if x.shape[axis] % 2:
        x = _pad_by_one(x, axis, first=True)
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    return even, odd, _pad_by_one(jax.lax.slice_in_dim(even, 1, None, axis=axis), axis, first=False)


def _pad_by_one(x: Array, axis: int, first: bool, value: float = -math.inf) -> Array:
    around = [(0, 0)] * x.ndim
    around[axis] = (1, 0) if first else (0, 1)
    return jnp.pad(x, around, constant_values=value)


def _maxima_of_three(x: Array, axis: int) -> Array:
    first, second, third = _neighbors(x, axis)
    return jnp.maximum(jnp.maximum(first, second), third)


def _gradient_to_maxima(x: Array, gradient: Array, axis: int) -> Array:
    """Return the gradient of `_maxima_of_three`, which goes to the first of the largest entries of each window."""
    first, second, third = _neighbors(x, axis)
    length, axis = x.shape[axis], axis + x.ndim
    to_first = (first >= second) & (first >= third)
    to_second = ~to_first & (second >= third)
    later = jnp.where(to_first | to_second, 0.0, gradient)
    later = _pad_by_one(jax.lax.slice_in_dim(later, 0, later.shape[axis] - 1, axis=axis), axis, True, 0.0)
    pairs = jnp.stack([jnp.where(to_first, gradient, 0.0) + later, jnp.where(to_second, gradient, 0.0)], axis + 1)
    entries = pairs.reshape(*gradient.shape[:axis], -1, *gradient.shape[axis + 1 :])
    return jax.lax.slice_in_dim(entries, entries.shape[axis] - length, None, axis=axis)


def average_pool(x: Float[Array, "*B H W C"]) -> Float[Array, "*B h w C"]:
    """Return means over windows of 2 × 2 at stride 2.

    The last window along an axis of odd length contains only the remaining entry.
    """
    height, width = x.shape[-3:-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)])
    sums = x.reshape(*x.shape[:-3], x.shape[-3] // 2, 2, x.shape[-2] // 2, 2, x.shape[-1]).sum((-4, -2))
    rows, columns = (jnp.minimum(2, length - 2 * jnp.arange(-(-length // 2))) for length in (height, width))
    return sums / (rows[:, None, None] * columns[:, None]).astype(x.dtype)
