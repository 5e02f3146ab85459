"""An update over several devices: batches and the replay are divided, everything else is on each device.

The update is the same program as on one device.  `jit` divides it by the shardings of its arrays, so that every mean is
over the whole batch.  Acting stays on the first device, as environments outside JAX do.

The devices may be those of several processes, which are the learners of `learners`.  A process then reads and writes
only its own rows of a divided array, and all of them must run the same programs in the same order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    num_learners: int = 1
    """Number of processes whose devices are in the mesh."""
    learner: int = 0
    """The number of this process among them."""

    def rows(self, learner: int) -> slice:
        """Return the rows of a learner's environments."""
        share = self.num_rows // self.num_learners
        return slice(learner * share, (learner + 1) * share)

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
        """Return a `TrainState`, which is whole in this process, with its arrays on all devices.

        With several learners the other ones place their `share` at the same time.
        """
        if self.num_learners == 1:
            return jax.device_put(train, self.of_state(train))
        shapes = jax.eval_shape(lambda: train)
        return self.place_share(self.share(train, self.learner), shapes)

    def share(self, train: Any, learner: int) -> Any:
        """Return a `TrainState` with only a learner's rows of the arrays that are divided."""
        rows = self.rows(learner)
        return jax.tree.map(lambda leaf, at: leaf[rows] if at == self.divided else leaf, train, self.of_state(train))

    def place_share(self, share: Any, shapes: Any) -> Any:
        """Return the `TrainState` of these shapes on the devices of all learners, from this one's share of it."""
        return jax.tree.map(self._assembled, share, shapes, self.of_state(shapes))

    def put(self, tree: PyTree) -> PyTree:
        """Return arrays, which are the same in every process, on every device."""
        if self.num_learners == 1:
            return jax.device_put(tree, self.everywhere)
        return jax.tree.map(lambda leaf: self._put(leaf, self.everywhere, np.shape(leaf)), tree)

    def put_rows(self, tree: PyTree) -> PyTree:
        """Return this process' rows of arrays as a part of the whole arrays [num_rows, ...], which are divided."""
        if self.num_learners == 1:
            return jax.device_put(tree, self.divided)
        return jax.tree.map(lambda leaf: self._put(leaf, self.divided, (self.num_rows, *np.shape(leaf)[1:])), tree)

    def _put(self, leaf: Any, sharding: NamedSharding, shape: tuple[int, ...]) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # the result of a program of all learners
            return leaf
        return self._assembled(leaf, jax.ShapeDtypeStruct(shape, leaf.dtype), sharding)

    def _assembled(self, local: Any, whole: Any, sharding: NamedSharding) -> Any:
        """Return an array on the devices of all learners, from this one's rows of it or from all of it."""
        if jnp.issubdtype(whole.dtype, jax.dtypes.prng_key):
            numbers = jax.eval_shape(jax.random.key_data, whole)
            return jax.random.wrap_key_data(self._assembled(jax.random.key_data(local), numbers, sharding))
        first = self.rows(self.learner).start if sharding == self.divided else 0

        def piece(index: Any) -> Any:
            if whole.shape:
                start, stop, _ = index[0].indices(whole.shape[0])
                index = slice(start - first, stop - first), *index[1:]
            # A copy, because an array that shares NumPy's memory must not be donated to a program.
            return jnp.array(local[index], whole.dtype, copy=True)

        return jax.make_array_from_callback(whole.shape, sharding, piece)

    def whole(self, tree: PyTree) -> PyTree:
        """Return the arrays of several learners as whole ones on the default device; all learners must call it."""

        def gather(leaf: Any) -> Any:
            if not leaf.is_fully_replicated:
                # One after the other, because all learners must send and receive in the same order.
                leaf = jax.block_until_ready(jax.jit(_same, out_shardings=self.everywhere)(leaf))
            return gathered(leaf)

        return jax.tree.map(gather, tree)

    def settle(self, train: Any) -> Any:
        """Return a `TrainState` inside a program with the shardings of `of_state`."""
        return jax.lax.with_sharding_constraint(train, self.of_state(train))

    def spread(self, batch: PyTree) -> PyTree:
        """Divide the sequences [B, ...] of a batch inside a program."""
        return jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: self.divided, batch))


def _same(leaf: Any) -> Any:
    return leaf


def gathered(tree: PyTree) -> PyTree:
    """Return a tree with the arrays that are on several devices on the default device alone.

    Arrays of several learners must be the same on every device.
    """

    def gather(leaf: Any) -> Any:
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        if not leaf.is_fully_addressable:
            return jnp.copy(leaf.addressable_data(0))  # a copy, because the whole array may be donated to a program
        return jax.device_put(leaf, devices.default())

    return jax.tree.map(gather, tree)


def layout(
    count: int | None, batch_size: int, num_envs: int, on_host: bool, num_agents: int = 1, num_learners: int = 1
) -> Layout | None:
    """Return the layout over `count` devices of each learner, or None for one device of one learner.

    None as the count takes as many devices as there are and divide the batch and the environments.

    Raises:
      ConfigError: there are fewer devices, or they do not divide the batch and the environments.
    """
    found = _found(num_learners)
    most = min(map(len, found))
    possible = [n for n in range(1, most + 1) if not (batch_size % (n * num_learners) or num_envs % (n * num_learners))]
    of_each = "" if num_learners == 1 else f" of each of ray.learners={num_learners} learners"
    if count is None:
        count = 1 if on_host else possible[-1]
    elif count > most:
        raise ConfigError(
            f"devices={count}{of_each} are more than there are: JAX finds {most} of the kind {found[0][0].platform}"
        )
    elif count not in possible:
        raise ConfigError(
            f"devices={count}{of_each} must divide optimizer.batch_size={batch_size} and env.num_envs={num_envs}; "
            f"possible here: {', '.join(map(str, possible))}"
        )
    elif on_host and count > 1:
        raise ConfigError(f"devices={count} divide the replay too, which replay.device=host keeps in main memory")
    if count == num_learners == 1:
        return None
    mesh = Mesh(np.array([each[:count] for each in found]).reshape(-1), (AXIS,))
    return Layout(mesh, num_envs * num_agents, num_learners, jax.process_index() if num_learners > 1 else 0)


def _found(num_learners: int) -> list[list[devices.Device]]:
    """Return the devices of each learner that are of the default device's kind."""
    kind = devices.default().platform
    if num_learners == 1:
        return [jax.local_devices(backend=kind)]
    every = jax.devices(kind)
    return [[device for device in every if device.process_index == index] for index in range(num_learners)]
