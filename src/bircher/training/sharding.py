"""One learner over several devices of a machine: batches and the replay are divided, everything else is on each device.

The update is the same program as on one device.  `jit` divides it by the shardings of its arrays, so that every mean is
over the whole batch.  Acting stays on the first device, as environments outside JAX do.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bircher import devices
from bircher.errors import ConfigError

AXIS = "batch"
"""The name of the only axis of the mesh."""


class Layout(NamedTuple):
    """How a learner's arrays are divided over devices."""

    mesh: Mesh
    num_rows: int
    """Number of rows of all environments, one for each agent."""

    @property
    def everywhere(self) -> NamedSharding:
        """Return the sharding of an array that every device has as a whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """Return the sharding of an array whose first axis is divided."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def of_state(self, train: Any) -> Any:
        """Return the sharding of each leaf of a `TrainState`: the replay is divided by environments."""

        def of_replay(leaf: Any) -> NamedSharding:
            by_env = leaf.ndim > 1 and leaf.shape[0] == self.num_rows
            return self.divided if by_env else self.everywhere

        everywhere = jax.tree.map(lambda _: self.everywhere, train)
        return dataclasses.replace(everywhere, replay=jax.tree.map(of_replay, train.replay))

    def place(self, train: Any) -> Any:
        """Return a `TrainState` with its arrays on all devices."""
        return jax.device_put(train, self.of_state(train))

    def settle(self, train: Any) -> Any:
        """Return a `TrainState` inside a program with the shardings of `of_state`."""
        return jax.lax.with_sharding_constraint(train, self.of_state(train))

    def spread(self, batch: PyTree) -> PyTree:
        """Divide the sequences [B, ...] of a batch inside a program."""
        return jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: self.divided, batch))


def gathered(tree: PyTree) -> PyTree:
    """Return a tree with the arrays that are on several devices on the default device alone."""

    def gather(leaf: Any) -> Any:
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1:
            return leaf
        return jax.device_put(leaf, devices.default())

    return jax.tree.map(gather, tree)


def layout(
    count: int | None, batch_size: int, num_envs: int, on_host: bool, num_agents: int = 1
) -> Layout | None:
    """Return the layout over `count` devices, or None for one device.

    None as the count takes as many devices as there are and divide the batch and the environments.

    Raises:
      ConfigError: there are fewer devices, or they do not divide the batch and the environments.
    """
    found = jax.local_devices(backend=devices.default().platform)
    possible = [n for n in range(1, len(found) + 1) if not batch_size % n and not num_envs % n]
    if count is None:
        count = 1 if on_host else possible[-1]
    elif count > len(found):
        raise ConfigError(
            f"devices={count} are more than there are: JAX finds {len(found)} of the kind {found[0].platform}"
        )
    elif count not in possible:
        raise ConfigError(
            f"devices={count} must divide optimizer.batch_size={batch_size} and env.num_envs={num_envs}; possible "
            f"here: {', '.join(map(str, possible))}"
        )
    elif on_host and count > 1:
        raise ConfigError(f"devices={count} divide the replay too, which replay.device=host keeps in main memory")
    return None if count == 1 else Layout(Mesh(np.array(found[:count]), (AXIS,)), num_envs * num_agents)
