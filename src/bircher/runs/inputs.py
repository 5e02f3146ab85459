"""An environment's own observations and masks as the network's inputs: of one agent, a batch, or a team of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bircher.envs.agents import add_identity
from bircher.envs.base import num_legal
from bircher.errors import near, short
from bircher.spaces import encode_observation, misfit, part_of
from bircher.types import SINGLE, EnvSpec, ObservationPart


class Inputs(NamedTuple):
    """Encoded observations and their legal actions, with a batch axis."""

    observation: PyTree[np.ndarray]
    """Observations as the network takes them, [B, ...]: one array, or a nesting of dictionaries and tuples."""
    legal_actions: np.ndarray
    """Whether each action is legal, [B, A]."""
    single: bool = False
    """Whether the caller gave one observation without a batch axis."""

    @property
    def size(self) -> int:
        """Return the number B of observations."""
        return len(self.legal_actions)


def inputs_of(spec: EnvSpec, observation: Any, legal_actions: Any = None) -> Inputs:
    """Encode an observation of the environment, or a batch of them.

    `legal_actions` is the mask of the environment's `info`, or None if all actions are legal.  Observations that are
    encoded already, such as the rows of bircher's environments, are not changed.

    Where observations contain the identities of several agents, those of the environment do not.  They are then one for
    each agent, in the order of `spec.agents`, or B times that.

    Raises:
      ValueError: observation or mask has another shape than the environment's, or contains a number that does not fit.
    """
    if spec.anonymous is not None:
        return _with_identities(spec, inputs_of(spec.anonymous, observation, legal_actions))
    parts = spec.parts
    arrays = dict(zip(parts, _parts_in(spec.id, spec.observation, observation, ""), strict=True))
    found = {name: _batch_of(spec.id, name, part, arrays[name]) for name, part in parts.items()}
    sizes = {name: None if single else len(batch) for name, (batch, single) in found.items()}
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name} {np.shape(arrays[name])}" for name in parts)
        raise ValueError(f"the parts of an observation of {spec.id} must have one batch size, not {shapes}")
    batches = [batch.astype(parts[name].dtype) for name, (batch, _) in found.items()]
    size = next(iter(sizes.values()))
    mask = mask_of(spec, legal_actions, size or len(batches[0]))
    return Inputs(jax.tree.unflatten(jax.tree.structure(spec.observation), batches), mask, size is None)


def _parts_in(env_id: str, like: Any, observation: Any, where: str) -> list[Any]:
    """Return the arrays of an observation in JAX's order, which is that of sorted keys.

    Raises:
      ValueError: it is not nested as the environment's observations are; the message names the first difference.
    """
    place = f" in {where}" if where else ""
    if isinstance(like, Mapping):
        keys = [str(key) for key in observation] if isinstance(observation, Mapping) else None
        if keys is None or set(keys) != set(like):
            given = f"the keys {', '.join(keys)}" if keys is not None else type(observation).__name__
            raise ValueError(f"{env_id} has observations with the keys {', '.join(like)}{place}, not {given}")
        below = {
            key: _parts_in(env_id, like[key], part_of(observation, key), f"{where}.{key}".lstrip(".")) for key in like
        }
        return [array for key in sorted(below) for array in below[key]]
    if isinstance(like, tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(like):
            raise ValueError(f"{env_id} has observations of {len(like)} parts{place}, as a tuple or list")
        pairs = enumerate(zip(like, observation, strict=True))
        return [array for i, (x, y) in pairs for array in _parts_in(env_id, x, y, f"{where}.{i}".lstrip("."))]
    return [observation]


def _batch_of(env_id: str, name: str, part: ObservationPart, value: Any) -> tuple[np.ndarray, bool]:
    """Return one array of an observation, encoded and with a batch axis, and whether it was given without one.

    Raises:
      ValueError: it has another shape, or contains a number that does not fit.
    """
    given, encoding, encoded = np.asarray(value), part.encoding, part.shape
    own = encoding.own_shape if encoding is not None else encoded
    indices = encoding is not None and encoding.kind != "array"
    of_part = "" if name == SINGLE else f" in {name}"
    if _is_batch_of(given, own) and not (indices and given.dtype.kind == "f"):
        single = given.shape == own
        batch = given[None] if single else given
        if encoding is not None:
            problem = misfit(encoding, batch)
            if problem is not None:
                raise ValueError(f"an observation of {env_id} contains {problem}{of_part}")
            batch = encode_observation(encoding, batch)
    elif _is_batch_of(given, encoded):
        single = given.shape == encoded
        batch = given[None] if single else given
    else:
        raise ValueError(f"{env_id} has observations {own}{of_part}, or [B, …] of them, not {given.shape}")
    return batch, single


def _is_batch_of(given: np.ndarray, shape: tuple[int, ...]) -> bool:
    return given.shape == shape or (given.ndim > len(shape) and given.shape[1:] == shape)


def mask_of(spec: EnvSpec, legal_actions: Any, size: int) -> np.ndarray:
    """Return the legal actions of a batch as booleans [B, A], from one mask, one for each observation, or None.

    None means that all actions are legal.

    Raises:
      ValueError: the mask has another shape.
    """
    count = num_legal(spec)
    if legal_actions is None:
        return np.ones((size, count), bool)
    mask = np.asarray(legal_actions, bool)
    if mask.shape not in ((count,), (1, count), (size, count)):
        raise ValueError(
            f"legal_actions has the shape {mask.shape}, but {spec.id} has {count} actions: expected ({count},), "
            f"or ({size}, {count}) for each observation"
        )
    return np.broadcast_to(mask, (size, count))


def _with_identities(spec: EnvSpec, inputs: Inputs) -> Inputs:
    count = spec.num_agents
    if inputs.single or inputs.size % count:
        given = "one observation" if inputs.single else f"{inputs.size} observations"
        raise ValueError(
            f"{spec.id} was learned with env.agent_identity=true, which needs one observation for each of its {count} "
            f"agents in their order, or a dictionary by agent, not {given}"
        )
    assert spec.anonymous is not None
    identity = np.tile(np.eye(count, dtype=np.float32), (inputs.size // count, 1))
    return inputs._replace(observation=add_identity(spec.anonymous, inputs.observation, identity))


class TeamInputs(NamedTuple):
    """The inputs of all agents of one environment, of which some may not be there."""

    inputs: Inputs
    names: tuple[Any, ...]
    """The names of the agents that are there, as the caller gave them."""
    places: np.ndarray
    """The rows of these agents."""


def is_by_agent(spec: EnvSpec, observation: Any) -> bool:
    """Return whether observations are a dictionary by agent, and not the parts of one agent's observation."""
    if not spec.agents or not isinstance(observation, Mapping):
        return False
    own = (spec.anonymous or spec).observation
    return not isinstance(own, Mapping) or set(map(str, observation)) != set(own)


def team_inputs(spec: EnvSpec, observations: Mapping[Any, Any], legal_actions: Mapping[Any, Any] | None) -> TeamInputs:
    """Encode the observations of some or all agents of one environment, given by their names.

    Shorter vectors are filled up with 0, as in training.

    Raises:
      ValueError: an agent is unknown, none is given, or an observation or a mask does not fit.
    """
    names = tuple(observations)
    unknown = next((name for name in names if str(name) not in spec.agents), None)
    if unknown is not None or not names:
        given = f"no agent {short(str(unknown))}{near(str(unknown), spec.agents)}" if names else "no observation"
        raise ValueError(f"{spec.id} has the agents {', '.join(spec.agents)}: {given}")
    places = np.array([spec.agents.index(str(name)) for name in names])
    own = spec._replace(anonymous=None) if spec.anonymous is None else spec.anonymous
    masks = None if legal_actions is None else [mask_of(own, legal_actions.get(name), 1)[0] for name in names]
    batch = _stacked(own, [observations[name] for name in names])
    found = inputs_of(own, batch, None if masks is None else np.stack(masks))

    def everywhere(x: np.ndarray, blank: Any) -> np.ndarray:
        rows = np.full((spec.num_agents, *x.shape[1:]), blank, x.dtype)
        rows[places] = x
        return rows

    observation = jax.tree.map(lambda x: everywhere(x, 0), found.observation)
    inputs = Inputs(observation, everywhere(found.legal_actions, True))
    if spec.anonymous is not None:
        inputs = _with_identities(spec, inputs)
    return TeamInputs(inputs, names, places)


def _stacked(spec: EnvSpec, observations: Sequence[Any]) -> Any:
    """Return observations of several agents as one batch."""
    arrays = spec.observation
    if isinstance(arrays, jax.ShapeDtypeStruct) and len(arrays.shape) == 1:
        width = max(len(np.atleast_1d(x)) for x in observations)
        if width <= arrays.shape[0] and all(np.ndim(x) == 1 for x in observations):
            observations = [np.pad(x, (0, arrays.shape[0] - len(x))) for x in observations]
    try:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *observations)
    except ValueError as error:
        raise ValueError(f"the agents of {spec.id} have observations of different shapes: {error}") from error
