"""Scalars as categorical distributions: the signed hyperbolic transform and exact two-hot targets.

"Observe and Look Further: Achieving Consistent Performance on Atari" by Pohlen et al. 2018
(https://arxiv.org/abs/1805.11593) for h; the two-hot form as in MuZero, appendix F.
"""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bircher.ops import losses

EPSILON = 1e-3
"""Slope of h at infinity, which makes it invertible."""
FILL = 0.9
"""The share of a support that the largest return takes, if the support follows it."""


def signed_hyperbolic(x: Float[Array, "*shape"], epsilon: float = EPSILON) -> Float[Array, "*shape"]:
    """Return h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x."""
    # x / (sqrt(|x| + 1) + 1) is the same number without the cancellation near 0.
    return x / (jnp.sqrt(jnp.abs(x) + 1) + 1) + epsilon * x


def signed_parabolic(x: Float[Array, "*shape"], epsilon: float = EPSILON) -> Float[Array, "*shape"]:
    """Return the inverse of `signed_hyperbolic`."""
    if epsilon == 0.0:
        return jnp.sign(x) * (jnp.square(jnp.abs(x) + 1) - 1)
    magnitude = jnp.abs(x)
    # The root r = sqrt(|y| + 1) solves epsilon r^2 + r = |x| + 1 + epsilon.  The form below has no cancellation.
    c = magnitude + 1 + epsilon
    root = 2 * c / (1 + jnp.sqrt(1 + 4 * epsilon * c))
    return jnp.sign(x) * jnp.maximum(root * root - 1, 0.0)


class Support(eqx.Module):
    """Atoms evenly spaced on [low, high] of h(x / unit), with the conversions of scalars to distributions and back."""

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    num_atoms: int = eqx.field(static=True)
    transform: bool = eqx.field(static=True, default=True)
    """Whether h is applied.  If False, the atoms are values themselves."""
    unit: Float[Array, ""] | None = None
    """The scalar that counts as 1; None for 1 itself."""

    @property
    def atoms(self) -> Float[Array, " atoms"]:
        """Return the atoms, in units of h(x)."""
        return jnp.linspace(self.low, self.high, self.num_atoms, dtype=jnp.float32)

    @property
    def width(self) -> float:
        """Return the distance between neighboring atoms."""
        return (self.high - self.low) / (self.num_atoms - 1)

    def scale(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return a scalar in the units of the atoms."""
        x = x if self.unit is None else x / self.unit
        return signed_hyperbolic(x) if self.transform else x

    def following(self, largest: Float[Array, ""]) -> Support:
        """Return the support on which a scalar as large as `largest` is at `FILL` of its end; for 0 the unit is 1."""
        return replace(self, unit=jnp.where(largest > 0, largest / self._most_units(), 1.0))

    @property
    def largest(self) -> Float[Array, ""] | None:
        """Return the scalar that the support follows, or None if its unit is 1."""
        return None if self.unit is None else self.unit * self._most_units()

    def _most_units(self) -> Float[Array, ""]:
        end = jnp.asarray(FILL * self.high)
        return signed_parabolic(end) if self.transform else end

    def two_hot(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape atoms"]:
        """Return weights of the two atoms around h(x) whose expectation is h(x).

        Beyond an end of the support, all the weight is on the atom at that end.
        """
        scaled = jnp.clip(self.scale(x), self.low, self.high)
        # A triangular kernel on an even grid is the two-hot vector.  As it is dense, XLA fuses it with its consumer.
        distance = (scaled[..., None] - self.low) / self.width - jnp.arange(self.num_atoms, dtype=jnp.float32)
        return jnp.maximum(1.0 - jnp.abs(distance), 0.0)

    def mean(self, logits: Float[Array, "*shape atoms"]) -> Float[Array, "*shape"]:
        """Return the scalar of a categorical prediction, h^-1(expected atom)."""
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        # The sum runs over distances from the middle.  Each is multiplied by the surplus of the upper atom's
        # probability over that of its mirrored lower atom.  So equal logits give exactly 0 on a symmetric support, in
        # whatever order the compiler adds.
        half = self.num_atoms // 2
        distance = self.width * ((self.num_atoms - 1) / 2 - jnp.arange(half, dtype=jnp.float32))
        surplus = probabilities[..., ::-1][..., :half] - probabilities[..., :half]
        expected = (self.low + self.high) / 2 + (surplus * distance).sum(-1)
        scalar = signed_parabolic(expected) if self.transform else expected
        return scalar if self.unit is None else scalar * self.unit

    def loss(self, x: Float[Array, "*shape"], logits: Float[Array, "*shape atoms"]) -> Float[Array, "*shape"]:
        """Return the cross-entropy of a prediction with the two-hot target of x, minus the target's entropy."""
        return losses.excess_cross_entropy(self.two_hot(x), logits)

    def overflow(self, x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Return True where a target lies beyond the support and is therefore clipped to its end."""
        scaled = self.scale(x)
        return (scaled < self.low) | (scaled > self.high)


class Bounded(eqx.Module):
    """A scalar in [-1, 1] as the tanh of one logit, learned by squared error, for games that are won or lost.

    This is the other form of MuZero's value (appendix F).  It has the same methods as `Support`.
    """

    num_atoms: int = eqx.field(static=True, default=1)

    def following(self, largest: Float[Array, ""]) -> Bounded:
        """Return the same: outcomes of games have one scale."""
        del largest
        return self

    @property
    def largest(self) -> None:
        """Return None: the form follows no scalar."""

    def mean(self, logits: Float[Array, "*shape 1"]) -> Float[Array, "*shape"]:
        """Return the scalar of a prediction, tanh(logit)."""
        return jnp.tanh(logits[..., 0].astype(jnp.float32))

    def loss(self, x: Float[Array, "*shape"], logits: Float[Array, "*shape 1"]) -> Float[Array, "*shape"]:
        """Return the squared error (x - tanh(logit))^2."""
        return jnp.square(x - self.mean(logits))

    def overflow(self, x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Return True where a target lies outside [-1, 1], which no logit can reach."""
        return jnp.abs(x) > 1.0 + 1e-6


class Unbounded(eqx.Module):
    """A scalar without a transformation, learned by squared error, as in PPO.  It has the same methods as `Support`."""

    num_atoms: int = eqx.field(static=True, default=1)
    unit: Float[Array, ""] | None = None
    """The scalar that counts as 1; None for 1 itself."""

    def following(self, largest: Float[Array, ""]) -> Unbounded:
        """Return the form whose unit is `largest`, or 1 if that is 0."""
        return replace(self, unit=jnp.where(largest > 0, largest, 1.0))

    @property
    def largest(self) -> Float[Array, ""] | None:
        """Return the scalar that the form follows, or None if its unit is 1."""
        return self.unit

    def mean(self, logits: Float[Array, "*shape 1"]) -> Float[Array, "*shape"]:
        """Return the scalar of a prediction."""
        scalar = logits[..., 0].astype(jnp.float32)
        return scalar if self.unit is None else scalar * self.unit

    def loss(self, x: Float[Array, "*shape"], logits: Float[Array, "*shape 1"]) -> Float[Array, "*shape"]:
        """Return the squared error (x - prediction)^2, in units."""
        error = x - self.mean(logits)
        return jnp.square(error if self.unit is None else error / self.unit)

    def overflow(self, x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Return False everywhere, because a prediction can be any number."""
        return jnp.zeros(x.shape, bool)


def scale_gradient(x: Float[Array, "*shape"], scale: float) -> Float[Array, "*shape"]:
    """Return x, and multiply the gradient that flows back through it by `scale` (MuZero, appendix G)."""
    if scale == 1.0:
        return x
    return x * scale + jax.lax.stop_gradient(x) * (1.0 - scale)
