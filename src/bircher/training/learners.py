"""Several learners: processes that Ray places and `jax.distributed` joins, which run one update over all devices.

The driver is learner 0.  It also logs, evaluates and writes checkpoints.  A program that divides its arrays over the
devices of all learners must be called by each of them in the same order.  So the driver calls the methods of the other
learners, which are Ray actors, and runs the same program in the meantime (`Learners.together`).

    driver       init | compile | update, with the rows of its environments | … | gather the replay
    learner 1    init | compile | update, with the rows of its environments | … | gather the replay

The networks and the optimizer are on every device, and the replay of an environment is on its learner's devices.
Workers' rows go to the learners by reference.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bircher import devices
from bircher.agents.base import Agent
from bircher.envs.base import blank_rows
from bircher.errors import ConfigError, LearnerLost
from bircher.training.cluster import RayConfig, connect, ray_module
from bircher.training.learner import Learner, TrainState, acting_policy
from bircher.training.loops import DeviceUpdate, Progress
from bircher.training.remote_worker import Part, import_from
from bircher.types import Key, Policy, TimeStep

PLACE_SECONDS = 60.0
"""The time in which Ray must find a place for every learner."""
JOIN_SECONDS = 120
"""The time in which all learners must have joined."""
REPORT_SECONDS = 20.0
"""The time in which Ray reports which learner ended, after a common program has failed in another one."""


def observe(agent: Agent, train: TrainState) -> tuple[Policy, Array]:
    """Return what workers need of a state, in separate buffers, as the next update overwrites the learner's."""
    return jax.tree.map(jnp.copy, (acting_policy(agent, train), train.counters.env_steps))


def make_init(learner: Learner) -> Callable[[Key, TimeStep], TrainState]:
    """Return the program of the first state, for a learner with a layout; all learners must call it.

    Its arrays are on all devices from the beginning, as one may not have the memory for the whole replay.
    """
    layout = learner.layout
    assert layout is not None
    shapes = jax.eval_shape(learner.init, jax.random.key(0), _first_rows(learner))
    program = jax.jit(learner.init, out_shardings=layout.of_state(shapes))
    return lambda key, timestep: program(*layout.put((key, timestep)))


def _first_rows(learner: Learner) -> TimeStep:
    """Return the shapes of the first rows of all environments."""
    return jax.eval_shape(partial(blank_rows, learner.spec, learner.config.num_envs))


def rows_between(parts: Sequence[Part], start: int, stop: int) -> PyTree:
    """Return rows [start, stop) of the rollouts of some workers, one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[start:stop], *(part.rollout for part in parts))


class RemoteLearner:
    """A learner in another process: its share of the state, and the programs that all learners run together."""

    def __init__(self, index: int, module_path: list[str]):
        """Prepare to import what the driver's process can import."""
        self._index = index
        import_from(module_path)

    def __repr__(self) -> str:
        return f"learner {self._index}"  # Ray puts it in front of what the process prints

    def host(self) -> str:
        """Return the name of the machine."""
        return platform.node()

    def join(self, coordinator: str, count: int, device: str | None) -> None:
        """Join the other learners, of which the driver's process has this address."""
        join_processes(coordinator, count, self._index)
        devices.use_device(device)
        devices.keep_programs()

    def prepare(self, make: Callable[[], Learner]) -> None:
        """Make the learner; nothing is compiled."""
        learner = make()
        assert learner.layout is not None
        self._learner, self._layout = learner, learner.layout
        self._rollout, self._tally = learner.rollout_shapes()
        self._update = DeviceUpdate(learner, partial(observe, learner.agent))

    def init(self, key: np.ndarray) -> None:
        """Compute the first state from the numbers of a random key."""
        rows = blank_rows(self._learner.spec, self._learner.config.num_envs)
        self._train = make_init(self._learner)(jax.random.wrap_key_data(jnp.asarray(key)), rows)

    def place(self, leaves: list[np.ndarray]) -> None:
        """Continue from a state, of which these are the leaves with this learner's rows; keys are plain numbers."""
        shapes = jax.eval_shape(self._learner.init, jax.random.key(0), _first_rows(self._learner))
        flat, structure = jax.tree.flatten(shapes)
        share = [
            jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(like) else x
            for x, like in zip(leaves, flat, strict=True)
        ]
        self._train = self._layout.place_share(jax.tree.unflatten(structure, share), shapes)

    def compile(self) -> None:
        """Compile the update."""
        self._zero = self._update.zero_progress(self._train, self._rollout, self._tally)
        self._update.compile(self._train, self._zero, self._rollout, self._tally)

    def update(self, begins: bool, sums: list[np.ndarray], start: int, *parts: Part) -> None:
        """Learn from the next rollout, and return once that has been computed.

        Args:
          begins: whether the driver's sums of metrics begin anew.
          sums: the leaves of the tally of all environments.
          start: the first row of this learner among those of the parts.
          parts: the parts of the workers that play this learner's environments.
        """
        tally = jax.tree.unflatten(jax.tree.structure(self._tally), sums)
        own = self._layout.rows(self._index)
        rollout = rows_between(parts, start, start + own.stop - own.start)
        progress: Progress = jax.tree.map(jnp.copy, self._zero) if begins else self._progress
        self._train, self._progress, _ = self._update(self._train, progress, rollout, tally)
        jax.block_until_ready((self._train, self._progress))

    def gather(self) -> None:
        """Take part in the program that makes the driver's replay whole."""
        self._layout.whole(self._train.replay)


class Learners:
    """The driver's side of several learners: their processes, and calls that all of them answer together."""

    def __init__(self, config: RayConfig, device: str | None, num_devices: int | None):
        """Connect to Ray, place all learners but the driver's, and join them.

        Raises:
          ConfigError: this process has used JAX before, there is no cluster, or it has no place for the learners.
        """
        self.count = config.learners
        _require_unused(self.count)
        self._disconnect = connect(config)
        self._pending: dict[Any, str] = {}
        self._actors: list[Any] = []
        try:
            self.names = self._placed(device, num_devices)
            self._joined(device)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes of the other learners, and Ray if it was started here."""
        for actor in self._actors:
            with contextlib.suppress(ray_module().exceptions.RayError):
                ray_module().kill(actor)
        self._actors = []
        self._disconnect()

    def prepare(self, make: Callable[[], Learner]) -> None:
        """Let the other learners make theirs, without waiting for them."""
        self._call("prepare", lambda learner: (make,))

    def init(self, learner: Learner) -> Callable[[Key, TimeStep], TrainState]:
        """Return the program of the first state, which all learners run."""
        program = make_init(learner)

        def init(key: Key, timestep: TimeStep) -> TrainState:
            numbers = np.asarray(jax.random.key_data(key))
            with self.together("init", lambda learner: (numbers,)):
                return program(key, timestep)

        return init

    def place(self, learner: Learner, train: TrainState) -> TrainState:
        """Return a state, which is whole in this process, with its arrays on the devices of all learners."""
        layout = learner.layout
        assert layout is not None

        def leaves(learner: int) -> tuple[list[np.ndarray]]:
            share = jax.tree.leaves(layout.share(train, learner))
            return (jax.device_get([jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in share]),)

        with self.together("place", leaves):
            return layout.place(train)

    def whole(self, learner: Learner, train: TrainState) -> TrainState:
        """Return a state with all of its arrays in this process."""
        layout = learner.layout
        assert layout is not None
        with self.together("gather"):
            return layout.whole(train)

    @contextlib.contextmanager
    def together(self, method: str, arguments: Callable[[int], tuple[Any, ...]] = lambda learner: ()) -> Iterator[None]:
        """Let the other learners run a method while the block runs the same programs here; then wait for them.

        Raises:
          LearnerLost: a learner ended or failed, or the block failed here.
        """
        self._call(method, arguments)
        try:
            yield
        except (RuntimeError, ValueError) as error:  # JAX's errors where a program lost the other learners
            self._wait(REPORT_SECONDS)
            raise LearnerLost(f"learner 0, which is this process, failed: {_first_line(error)}") from error
        self._wait()

    def _call(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        for learner, (name, actor) in enumerate(zip(self.names, self._actors, strict=True), 1):
            self._pending[getattr(actor, method).remote(*arguments(learner))] = name

    def _wait(self, seconds: float | None = None) -> None:
        """Wait for the calls of all learners, or for so many seconds.

        Raises:
          LearnerLost: one of them ended or failed.
        """
        ray, failed = ray_module(), None
        deadline = None if seconds is None else time.monotonic() + seconds
        pending, self._pending = self._pending, {}
        while pending:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            done, _ = ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            name = pending.pop(done[0])
            try:
                ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                # Perhaps only because another one ended, which Ray reports a little later.
                failed = failed or LearnerLost(f"{name} failed: {_first_line(getattr(error, 'cause', error))}")
                deadline = deadline or time.monotonic() + REPORT_SECONDS
            except ray.exceptions.RayError as error:
                raise LearnerLost(f"{name} ended, and the others cannot continue without it") from error
        if failed is not None:
            raise failed

    def _placed(self, device: str | None, num_devices: int | None) -> list[str]:
        """Start the processes, and return their names.

        Raises:
          ConfigError: the cluster has no place for all of them.
        """
        ray = ray_module()
        gpus = num_devices or 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")(RemoteLearner)
        numbers = range(1, self.count)
        self._actors = [remote.remote(index, sys.path) for index in numbers]
        hosts = [actor.host.remote() for actor in self._actors]
        placed, _ = ray.wait(hosts, num_returns=len(hosts), timeout=PLACE_SECONDS)
        if len(placed) < len(hosts):
            needed = "a core" if not gpus else f"a core and {gpus} GPU{'s' * (gpus > 1)}"
            raise ConfigError(
                f"ray.learners={self.count} need {needed} each in addition to this process, and the cluster had a "
                f"place for {len(placed)} of them within {PLACE_SECONDS:.0f} s"
            )
        return [f"learner {index} (on {host})" for index, host in zip(numbers, ray.get(hosts), strict=True)]

    def _joined(self, device: str | None) -> None:
        """Join all learners, this one as the first.

        Raises:
          ConfigError: they cannot reach each other.
        """
        address = ray_module().util.get_node_ip_address()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
            free.bind((address, 0))
            coordinator = f"[{address}]" if ":" in address else address
            coordinator += f":{free.getsockname()[1]}"
        self._call("join", lambda learner: (coordinator, self.count, device))
        try:
            join_processes(coordinator, self.count, 0)
            devices.use_device(device)
            self._wait()
        except (RuntimeError, LearnerLost) as error:
            raise ConfigError(
                f"ray.learners={self.count}: the learners cannot join at {coordinator}: {_first_line(error)}"
            ) from error


def join_processes(coordinator: str, count: int, index: int) -> None:
    """Join the processes of all learners, of which this is number `index`, before JAX finds its devices.

    `coordinator` is HOST:PORT of the first one, which listens there.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Without it JAX ends this process when another one ends, before anything can be saved.
    jax.config.update("jax_enable_recoverability", True)
    # It would take SIGTERM, with which a run is saved and ended.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator, count, index, cluster_detection_method="deactivate", initialization_timeout=JOIN_SECONDS,
        coordinator_bind_address=coordinator,
    )  # fmt: skip


def _require_unused(count: int) -> None:
    """Require that JAX has computed nothing in this process.

    Raises:
      ConfigError: it has.
    """
    try:
        # Zero processes are refused with a ValueError, but only where the processes could be joined.
        jax.distributed.initialize("nowhere:1", 0, 0, cluster_detection_method="deactivate", local_device_ids=())
    except RuntimeError as error:
        raise ConfigError(
            f"ray.learners={count} join their processes before JAX computes anything, and this process has used JAX "
            "before: start the run in a new process, for example with bircher train"
        ) from error
    except ValueError:
        pass


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _first_line(error: Any) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
