"""A worker: some of a run's environments in another process, and the compiled rollout that plays them.

It knows nothing of Ray.  `workers` makes it a Ray actor, calls its methods from afar, and passes arrays of NumPy.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bircher import devices
from bircher.agents.base import Agent
from bircher.envs.base import Env, failure
from bircher.training.rollout import collect_rollout, start_actors
from bircher.types import Policy, Tally, Trajectory


class Share(NamedTuple):
    """The part of a run's environments that one worker plays."""

    index: int
    """The worker's number."""
    first: int
    """The index of its first environment in the run."""
    count: int


def shares(num_envs: int, workers: int) -> list[Share]:
    """Divide environments among workers; the first workers have one more where the numbers do not divide."""
    least, more = divmod(num_envs, workers)
    counts = [least + (index < more) for index in range(workers)]
    return [Share(index, sum(counts[:index]), count) for index, count in enumerate(counts)]


class Recipe(NamedTuple):
    """Everything that a worker needs to play its share; it is sent once."""

    make: Callable[[Share, int], tuple[Agent, Env]]
    """(share, generation) -> agent and environments, made in the worker's process"""
    rollout_length: int
    total_steps: int


class HostTree:
    """A tree in the host's memory, as NumPy.

    It travels as its leaves and the bytes of its structure, which is made once in each process.  Equinox keeps every
    module that pickle makes, with its arrays: 300 kB for each policy of CartPole-v1.
    """

    def __init__(self, leaves: Sequence[np.ndarray], structure: Any, keys: tuple[bool, ...]):
        self.leaves, self.structure, self.keys = leaves, structure, keys

    @property
    def tree(self) -> PyTree:
        """Return the tree, with random keys as their plain numbers."""
        return jax.tree.unflatten(self.structure, self.leaves)

    def __reduce__(self) -> tuple[Any, ...]:
        return _host_tree, (self.leaves, _pickled(self.structure), self.keys)


@functools.lru_cache
def _pickled(structure: Any) -> bytes:
    return pickle.dumps(jax.tree.unflatten(structure, range(structure.num_leaves)))


@functools.lru_cache
def _structure(pickled: bytes) -> Any:
    return jax.tree.structure(pickle.loads(pickled))


def _host_tree(leaves: Sequence[np.ndarray], pickled: bytes, keys: tuple[bool, ...]) -> HostTree:
    return HostTree(leaves, _structure(pickled), keys)


class Part(NamedTuple):
    """A rollout of one worker's environments, in NumPy."""

    rollout: Trajectory
    tally: Tally
    failure: str | None
    """The error of an environment in which an exception occurred."""
    state: HostTree | None
    """The `ActorState` after the rollout; None where that of the environments cannot be saved."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _part, (to_host((self.rollout, self.tally)), self.failure, self.state)


def _part(sums: HostTree, failure: str | None, state: HostTree | None) -> Part:
    rollout, tally = sums.tree
    return Part(rollout, tally, failure, state)


def to_host(tree: PyTree) -> HostTree:
    """Return a tree of arrays and typed random keys in the host's memory."""
    leaves, structure = jax.tree.flatten(tree)
    keys = tuple(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    plain = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, keys, strict=True)]
    return HostTree(jax.device_get(plain), structure, keys)


def from_host(host: HostTree) -> PyTree:
    """Return the tree on the default device."""
    # Copies, because an array that shares NumPy's memory must not be donated to a program.
    arrays = [jnp.array(leaf, copy=True) for leaf in host.leaves]
    arrays = [jax.random.wrap_key_data(x) if key else x for x, key in zip(arrays, host.keys, strict=True)]
    return jax.tree.unflatten(host.structure, arrays)


def import_from(module_path: Sequence[str]) -> None:
    """Let this process import what the driver's process can import, which has these folders in `sys.path`."""
    sys.path += [folder for folder in module_path if folder not in sys.path]


class RemoteWorker:
    """Environments, their state and a compiled rollout, which live in the worker's process."""

    def __init__(self, share: Share, module_path: list[str]):
        """Prepare to import what the learner's process can import, before a recipe arrives that needs it."""
        self._share = share
        import_from(module_path)

    def __repr__(self) -> str:
        return f"worker {self._share.index}"  # Ray puts it in front of what the process prints

    def prepare(self, recipe: Recipe, generation: int) -> None:
        """Make the environments, reset them, and compile the rollout."""
        devices.use_device("cpu")
        devices.keep_programs()
        agent, env = recipe.make(self._share, generation)
        length, total_steps = recipe.rollout_length, recipe.total_steps

        def collect(policy: Policy, state: Any, env_steps: Any) -> Any:
            return collect_rollout(agent, env, policy, state, length, env_steps / total_steps)

        self._env = env
        # In separate buffers, because they are donated.
        self._state = jax.jit(_copies)(start_actors(agent, env, jax.random.key(0)))
        policy = jax.eval_shape(lambda key: agent.init(key, env.spec), jax.random.key(0))
        arguments = policy, self._state, jnp.zeros((), jnp.int32)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        self._collect: Any = jax.jit(collect, donate_argnums=1).lower(*shapes).compile()

    def start(self, key: HostTree, state: HostTree | None) -> None:
        """Begin with a random key, or with the state of a checkpoint."""
        self._state = dataclasses.replace(self._state, key=from_host(key)) if state is None else from_host(state)

    def collect(self, observed: HostTree) -> Part:
        """Play one rollout with (policy, environment steps of the run so far)."""
        # The program takes NumPy's arrays, which are not donated; copies of each would take as long as a small rollout.
        policy, env_steps = from_host(observed) if any(observed.keys) else observed.tree
        self._state, rollout, tally = self._collect(policy, self._state, env_steps)
        rollout, tally = jax.device_get((rollout, tally))
        return Part(rollout, tally, failure(self._env), to_host(self._state) if self._env.pure else None)


def _copies(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


_SUMS = ("env_steps", "episodes", "return_sum", "length_sum", "last_reward_sum")


def join(parts: list[Part], num_envs: int) -> tuple[Trajectory, Tally]:
    """Return one rollout of all environments, in the order of the workers, and the sums over it."""
    if len(parts) == 1:
        return parts[0].rollout, parts[0].tally
    rollout = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.rollout for part in parts))
    tallies: list[Any] = [part.tally for part in parts]
    fields: dict[str, Any] = {name: sum(getattr(tally, name) for tally in tallies) for name in _SUMS}
    longest = fields["longest"] = max(tally.longest for tally in tallies)
    fields["died_at_longest"] = sum(tally.died_at_longest for tally in tallies if tally.longest == longest)
    fields["failed"] = _failure_code(parts, num_envs)
    if tallies[0].agent_returns is not None:
        fields["agent_returns"] = sum(tally.agent_returns for tally in tallies)
    fields["largest_return"] = max(
        (tally.largest_return for tally in tallies if tally.largest_return is not None), default=None
    )
    types = tallies[0]._asdict()
    arrays: dict[str, Any] = {
        name: None if value is None else jnp.asarray(value, types[name].dtype) for name, value in fields.items()
    }
    return rollout, Tally(**arrays)


def failed_part(parts: list[Part]) -> int | None:
    """Return the position of the first part in which an environment failed; None if none did."""
    return next((index for index, part in enumerate(parts) if part.tally.failed >= 0), None)


def _failure_code(parts: list[Part], num_envs: int) -> int:
    """Return the code of `rollout.failure_code` for the environments of all workers."""
    failed = failed_part(parts)
    if failed is None:
        return -1
    rows = [part.rollout.first.shape[0] for part in parts]
    counts = [count * num_envs // sum(rows) for count in rows]  # environments, which may have several agents
    code, count = int(parts[failed].tally.failed), counts[failed]
    return sum(counts[:failed]) + code + (num_envs - count if code >= count else 0)
