"""Running mean and deviation of observations."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from bircher.models.torsos import names_states
from bircher.types import EnvSpec

FAINT = 16.0
"""Of 255: deviations of a pixel far below this are nothing, and are not blown up to what others have."""


class ObservationStatistics(eqx.Module):
    """Mean and second central moment of every observation seen, merged batch by batch (Chan et al. 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, "*observation"]
    variance: Float[Array, "*observation"]

    @classmethod
    def zero(cls, spec: EnvSpec) -> ObservationStatistics:
        """Statistics before anything was seen: observations pass unchanged."""
        shape = spec.observation.shape
        return cls(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))

    @classmethod
    def of(cls, spec: EnvSpec) -> ObservationStatistics | None:
        """The same; None for a number that only names a state, which has no mean."""
        return None if names_states(spec) else cls.zero(spec)

    def update(self, observation: Shaped[Array, "B T *observation"], mask: Bool[Array, "B T"]) -> ObservationStatistics:
        """Merge the rows in `mask`."""
        weight = mask.reshape(*mask.shape, *(1,) * (observation.ndim - 2)).astype(jnp.float32)
        count = mask.sum()
        safe = jnp.maximum(count, 1.0)
        x = observation.astype(jnp.float32)
        mean = (x * weight).sum((0, 1)) / safe
        variance = (jnp.square(x - mean) * weight).sum((0, 1)) / safe
        total = self.count + count
        share = count / jnp.maximum(total, 1.0)
        difference = mean - self.mean
        merged = self.variance * (1 - share) + variance * share + jnp.square(difference) * share * (1 - share)
        return ObservationStatistics(total, self.mean + difference * share, merged)

    def normalise(self, observation: Shaped[Array, "*B"]) -> Float[Array, "*B"]:
        """(x - mean) / deviation, cut at 10 deviations; of a picture's bytes, pixel by pixel, with `FAINT` added."""
        bytes_of_an_image = observation.dtype == jnp.uint8 and self.mean.ndim == 3
        least = FAINT**2 if bytes_of_an_image else 1e-8
        return jnp.clip((observation.astype(jnp.float32) - self.mean) / jnp.sqrt(self.variance + least), -10.0, 10.0)
