"""Checks of an installed package: versions, devices, adapters, agents, checkpoints, and a short training."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher import devices
from bircher.agents.base import Agent
from bircher.analysis import term_gradients
from bircher.analysis.term_gradients import TermGradients
from bircher.config.config import AGENTS, Config, compose
from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.config import EnvRequest
from bircher.errors import CheckFailed
from bircher.runs import build, launch
from bircher.training import checkpoint, learner
from bircher.training.rollout import ActorState, collect_rollout, start_actors
from bircher.types import Batch, EnvSpec, Policy
from bircher.version import __version__

PACKAGES = (
    "jax", "jaxlib", "numpy", "equinox", "optax", "mctx", "flashbax", "orbax-checkpoint", "envpool", "gymnax", "pgx",
    "gymnasium",
)  # fmt: skip
"""The packages whose versions are reported."""


def describe() -> dict[str, Any]:
    """Describe the installation and the machine as a dictionary for JSON."""
    device = devices.default()
    free, host = devices.available_bytes(device), devices.host_bytes()
    return {
        "bircher": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [f"{one.platform}:{one.id} {one.device_kind}" for one in jax.devices()],
        "cores": os.cpu_count(),
        "memory_bytes": host,
        "available_bytes": free,
    }


def lines(described: dict[str, Any]) -> list[str]:
    """Return the result of `describe` as lines for a terminal."""
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in described["packages"].items())
    return [
        f"bircher {described['bircher']}, Python {described['python']}",
        f"{described['platform']}, {described['libc'] or 'unknown libc'}",
        packages,
        f"devices: {', '.join(described['devices'])}; {described['cores']} cores",
        f"memory: {_size(described['memory_bytes'])}, {_size(described['available_bytes'])} available on the device",
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**30:,.1f} GiB"


ADAPTERS = {
    "toys": "toy/chain",
    "gymnax": "CartPole-v1",
    "pgx": "tic_tac_toe",
    "envpool": "LunarLander-v3",
    "gymnasium": "FrozenLake-v1",
    "pettingzoo": "pettingzoo/mpe/simple_spread_v3",
    **({"jaxmarl": "jaxmarl/MPE_simple_spread_v3"} if importlib.util.find_spec("jaxmarl") else {}),
}
"""An environment of each adapter that is installed."""
AGENT_ENV = "toy/chain"
STEPS = 500
SMALL: dict[str, Any] = {
    "env.num_envs": 4,
    "loop.rollout_length": 5,
    "replay.capacity": 512,
    "optimizer.batch_size": 4,
    "optimizer.minibatches": 1,
    "optimizer.epochs": 1,
    "optimizer.updates_per_step": 0.05,
    "model.torso_widths": [16],
    "model.latent_width": 16,
    "model.dynamics_widths": [16],
    "model.num_atoms": 11,
    "model.unroll_steps": 1,
    "evaluation.count": 0,
}
"""Settings of small programs, because compilation takes most of the time."""
SEARCH = {"muzero": {"search.num_simulations": 2}, "gumbel_muzero": {"search.num_simulations": 2}}
"""Settings of the agents that search."""
WORKERS = 2
"""The number of checks that run at the same time, if they are concurrent."""
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Check(NamedTuple):
    """A check of the installation."""

    name: str
    run: Callable[[], None]
    """() -> None; it raises if something is wrong."""
    concurrent: bool = False
    """Whether the check may run at the same time as others."""


class Result(NamedTuple):
    """The outcome of one check."""

    name: str
    seconds: float
    error: str | None
    """The reason of a failure in one line; None if the check passed."""


def checks() -> list[Check]:
    """Return all checks, in the order in which they run."""
    return [
        *(Check(f"environment {id} ({name})", partial(_step_environment, name, id)) for name, id in ADAPTERS.items()),
        *(Check(f"agent {name}", partial(_differentiate, name), concurrent=True) for name in AGENTS),
        Check("checkpoint", _save_and_restore, concurrent=True),
        Check(f"training CartPole-v1, {STEPS} steps", _train),
    ]


def run(selected: Iterable[Check]) -> Iterator[Result]:
    """Run checks in their order and yield their results; after a failure the others still run."""
    for concurrent, group in groupby(selected, lambda check: check.concurrent):
        with ThreadPoolExecutor(WORKERS) as pool:
            yield from (pool.map if concurrent else map)(_timed, group)


def _timed(check: Check) -> Result:
    start, error = time.monotonic(), None
    try:
        check.run()
    except Exception as raised:  # a broken package may raise any error, which is reported
        error = " ".join(f"{type(raised).__name__}: {raised}".split())
    return Result(check.name, time.monotonic() - start, error)


def _step_environment(adapter: str, env_id: str) -> None:
    """Reset two environments and step them once, and check every row."""
    env = registry.make(EnvRequest.of(env_id, num_envs=2, backend=adapter), 0, "check")
    try:
        check_env(env, steps=1)
    finally:
        env.close()


def _config(env_id: str, agent: str) -> Config:
    return compose(env_id, {**SMALL, **SEARCH.get(agent, {}), "agent": {"name": agent}})


def _differentiate(name: str) -> None:
    """Compute an agent's loss and gradient on a rollout that it collects."""
    config = _config(AGENT_ENV, name)
    env = build.make_env(config, None, config.env.num_envs, 0, "check")
    agent, length = build.make_agent(config, env.spec), config.loop.rollout_length

    def program(policy: Policy, state: ActorState, key: jax.Array) -> tuple[jax.Array, TermGradients]:
        _, rows, tally = collect_rollout(agent, env, policy, state, length, 0.0)
        batch = Batch(rows, jnp.full(env.num_envs, -1), jnp.ones(env.num_envs))
        targets, _ = agent.targets(policy, batch, key)
        return tally.failed, term_gradients.measure(agent, policy.params, policy.state, batch, targets, key, 0.0)

    state, key = start_actors(agent, env, jax.random.key(1)), jax.random.key(0)
    policy = Policy(_random_params(agent, env.spec), jax.jit(lambda key: agent.init(key, env.spec).state)(key))
    failed, found = jax.device_get(jax.jit(program, compiler_options=QUICK_COMPILATION)(policy, state, key))
    if failed >= 0:
        raise CheckFailed(f"environment {failed} of {AGENT_ENV} failed")
    _require_gradients(found, tuple(agent.weights))


def _random_params(agent: Agent, spec: EnvSpec) -> Any:
    """Draw every parameter at random, because layers before one that begins at zero would have no gradient."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: agent.init(key, spec).params, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def _require_gradients(found: TermGradients, names: tuple[str, ...]) -> None:
    """Check that all gradients are finite, and that every part of the network has one.

    Raises:
      CheckFailed: a gradient is not finite, or a part has none.
    """
    norms = {part: np.asarray(values) for part, values in found.norms.items()}
    for part, values in norms.items():
        if not np.isfinite(values).all():
            term = names[int(np.argmin(np.isfinite(values)))]
            raise CheckFailed(f"the gradient of {term} in the {part} is not finite")
    idle = [part for part, values in norms.items() if not values.any()]
    if idle:
        raise CheckFailed(f"no loss term has a gradient in the {', '.join(idle)}")


def _save_and_restore() -> None:
    """Write a checkpoint of a new run's state, and compare what is read back with it."""
    config = _config(AGENT_ENV, "muesli")
    env = build.make_env(config, None, config.env.num_envs, 0, "check")
    parts = build.make_parts(config, env.spec)
    state = parts.init(jax.random.key(0), env.reset()[1])
    saved = {"train": learner.without_replay(state), "replay": state.replay}
    templates = {"train": parts.saved, "replay": parts.template.replay}
    with tempfile.TemporaryDirectory(prefix="bircher-check-") as folder:
        path = checkpoint.save(folder, saved, {})
        for name, tree in saved.items():
            restored = checkpoint.restore(path, name, templates[name])
            same_structure = jax.tree.structure(tree) == jax.tree.structure(restored)
            if not same_structure or not all(map(_equal, jax.tree.leaves(tree), jax.tree.leaves(restored))):
                raise CheckFailed(f"the part {name} of a checkpoint was not read back as it was written")


def _equal(one: Any, other: Any) -> bool:
    """Return whether two arrays, or two random keys, have the same type and the same values."""
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return one.dtype == other.dtype and np.array_equal(np.asarray(one), np.asarray(other))


def _train() -> None:
    """Train briefly in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bircher-check-") as folder:
        config = compose("CartPole-v1", {**SMALL, "steps": STEPS})
        with contextlib.redirect_stdout(io.StringIO()):
            done = launch.start(config, None, Path(folder) / "run").run()
    if done.counters["env_steps"] < STEPS or not done.counters["learner_steps"]:
        raise CheckFailed(f"training ended after {done.counters['env_steps']:,} of {STEPS:,} steps")
