"""PettingZoo's parallel environments, stepped together: a row for each agent, whether it is there or not.

Agents may end before the others, arrive later, or never act.  An agent's part of an episode ends where it is terminated
or truncated, or at the limit of steps; the environment is reset when no agent is left.  Every value that an environment
returns is checked, and copied.  Nothing here imports JAX, because worker processes load this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from jaxtyping import Bool, Float

from bircher.envs.contract import Contract, describe, float_leaves, not_finite
from bircher.envs.parallel_sources import agents_of, make_parallel, whose_turn
from bircher.errors import ContractBreach, EnvironmentFailure, UnsupportedEnvironment, short
from bircher.spaces import MASK, LayoutSetting, encoding_of, fit_check

OBSERVATION = "observation"
"""The part of a dictionary with a mask that is the observation itself."""


class SharedSpaces(NamedTuple):
    """The spaces that all agents of an environment share, and how each agent's own ones are part of them."""

    agents: tuple[Any, ...]
    observation: spaces.Space
    action: spaces.Space
    own: tuple[tuple[spaces.Space, spaces.Space], ...]
    """The observation and action space of each agent, without the part that is a mask."""
    masked: bool
    """Whether observations are dictionaries of the observation and a mask of legal actions."""


def shared_spaces(env: Any, name: str) -> SharedSpaces:
    """Return the spaces of an environment's agents.

    Vectors of different lengths are filled up with 0, and of different numbers of discrete actions the largest is
    taken, with a mask.

    Raises:
      UnsupportedEnvironment: the agents have other spaces that differ.
    """
    agents = agents_of(env, name)
    own_observations = [env.observation_space(agent) for agent in agents]
    actions = [env.action_space(agent) for agent in agents]
    masked = all(map(_has_mask, own_observations))
    if masked:
        own_observations = [space[OBSERVATION] for space in own_observations]  # type: ignore[index]
    observation = _shared(name, "observation", agents, own_observations, _longest_vector)
    action = _shared(name, "action", agents, actions, _most_actions)
    return SharedSpaces(
        tuple(agents), observation, action, tuple(zip(own_observations, actions, strict=True)), masked
    )  # fmt: skip


def _has_mask(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Dict) and set(space.spaces) == {OBSERVATION, MASK}


def _shared(
    name: str, what: str, agents: list[Any], own: list[spaces.Space], widest: Callable[..., spaces.Space | None]
) -> spaces.Space:
    other = next((index for index, space in enumerate(own) if space != own[0]), None)
    if other is None:
        return own[0]
    space = widest(own)
    if space is None:
        raise UnsupportedEnvironment(
            f"the agents of {name} share one network, which needs the same {what} space for all, or vectors of float "
            f"and Discrete actions that can be filled up: {agents[0]} has {own[0]}, and {agents[other]} has "
            f"{own[other]}"
        )
    return space


def _longest_vector(own: list[Any]) -> spaces.Space | None:
    """Return the space of vectors that are filled up with 0, or None where not all are vectors of one float type."""
    if not all(isinstance(space, spaces.Box) and len(space.shape) == 1 for space in own):
        return None
    dtype = own[0].dtype
    if np.dtype(dtype).kind != "f" or any(space.dtype != dtype for space in own):
        return None
    width = max(space.shape[0] for space in own)
    low, high = (
        [np.pad(getattr(space, bound), (0, width - space.shape[0])) for space in own] for bound in ("low", "high")
    )
    return spaces.Box(np.min(low, 0), np.max(high, 0), dtype=dtype)


def _most_actions(own: list[Any]) -> spaces.Space | None:
    if not all(isinstance(space, spaces.Discrete) and space.start == 0 for space in own):
        return None
    return max(own, key=lambda space: space.n)


class AgentRows(NamedTuple):
    """The rows of b environments with A agents each, r = b * A, those of one environment together."""

    observation: Any
    """A pytree [r, …] in the form of Gymnasium's spaces; what it contains for absent agents has no meaning."""
    reward: Float[np.ndarray, " r"]
    terminal: Bool[np.ndarray, " r"]
    truncated: Bool[np.ndarray, " r"]
    legal_actions: Bool[np.ndarray, "r n"]
    first: Bool[np.ndarray, " r"]
    valid: Bool[np.ndarray, " r"]

    @classmethod
    def blank(cls, observation: Any, rows: int, num_actions: int) -> AgentRows:
        """Return rows of absent agents."""
        terminal, truncated, first, valid = (np.zeros(rows, bool) for _ in range(4))
        legal = np.ones((rows, num_actions), bool)
        return cls(observation, np.zeros(rows, np.float32), terminal, truncated, legal, first, valid)


class Agents:
    """The agents of one environment, which writes its rows into those of a pool."""

    def __init__(self, env: Any, index: int, name: str, layout: LayoutSetting, max_steps: int | None):
        self.env, self.spaces = env, shared_spaces(env, name)
        self._index, self._max_steps = index, max_steps
        self._contracts = [Contract(*own) for own in self.spaces.own]
        # Once, because Gymnasium compares all bounds of two spaces.
        self._is_shorter = [own != self.spaces.observation for own, _ in self.spaces.own]
        self._misfit = fit_check(encoding_of(self.spaces.observation, layout))
        discrete = isinstance(self.spaces.action, spaces.Discrete)
        self._num_own = [int(action.n) for _, action in self.spaces.own] if discrete else None  # type: ignore[attr-defined]
        count = len(self.spaces.agents)
        self._there = np.zeros(count, bool)
        self._ended_but_listed = np.zeros(count, bool)
        self._steps, self._length = 0, 0
        self._moment, self._agent = "reset", None

    def advance(self, actions: Any, rows: AgentRows, begin: int, write: Callable[[int, Any], None]) -> None:
        """Step, or reset after the end of an episode, and write the rows from `begin` on; raises EnvironmentFailure."""
        if self._there.any():
            self._guarded("step", partial(self._step, actions, rows, begin, write))
        else:
            self.reset(None, rows, begin, write)

    def reset(self, seed: int | None, rows: AgentRows, begin: int, write: Callable[[int, Any], None]) -> None:
        """Reset, with a seed where one is given, and write the first rows; raises EnvironmentFailure."""
        self._guarded("reset", partial(self._reset, seed, rows, begin, write))

    def _guarded(self, moment: str, act: Callable[[], None]) -> None:
        self._moment, self._agent = moment, None
        try:
            act()
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise EnvironmentFailure(
                f"environment {self._index} raised {type(error).__name__} in {moment} after {self._steps} steps: "
                f"{error}"
            ) from error

    def breach(self, sentence: str) -> EnvironmentFailure:
        """Return an EnvironmentFailure about the values that the environment returned last."""
        where = f"reset after {self._steps} steps" if self._moment == "reset" else f"step {self._steps}"
        agent = "" if self._agent is None else f", {self._agent}"
        return EnvironmentFailure(f"environment {self._index}, {where}{agent}: {sentence}")

    def _reset(self, seed: int | None, rows: AgentRows, begin: int, write: Callable[[int, Any], None]) -> None:
        result = self.env.reset() if seed is None else self.env.reset(seed=seed)
        observations, infos = _dictionaries(result, "reset", ("observations", "infos"))
        self._length = 0
        self._ended_but_listed[:] = False
        listed = set(self.env.agents)
        for place, agent in enumerate(self.spaces.agents):
            self._there[place] = agent in listed
            if agent in listed:
                self._arrive(place, observations, infos, rows, begin + place, write)
        if not self._there.any():
            raise ContractBreach("reset left env.agents without an agent of possible_agents")

    def _step(self, actions: Any, rows: AgentRows, begin: int, write: Callable[[int, Any], None]) -> None:
        self._steps += 1
        self._length += 1
        chosen = {
            agent: self._own_action(place, actions[place])
            for place, agent in enumerate(self.spaces.agents) if agent in self.env.agents
        }  # fmt: skip
        names = ("observations", "rewards", "terminations", "truncations", "infos")
        observations, rewards, terminations, truncations, infos = _dictionaries(self.env.step(chosen), "step", names)
        listed, at_limit = set(self.env.agents), self._length == self._max_steps
        for place, agent in enumerate(self.spaces.agents):
            row = begin + place
            if self._there[place]:
                self._agent = agent
                flags = terminations.get(agent, False), truncations.get(agent, False)
                ended = bool(np.any(flags))
                if agent not in listed and not ended:
                    raise ContractBreach("it left env.agents without being terminated or truncated")
                observation = self._last_observation(observations, agent, flags)
                values = observation, rewards.get(agent, 0.0), *flags, infos.get(agent, {})
                self._agree(place, values, at_limit, rows, row, write)
                self._ended_but_listed[place] = not self._there[place] and agent in listed
            elif agent not in listed:
                self._ended_but_listed[place] = False
            elif not self._ended_but_listed[place] and not at_limit:
                self._there[place] = True
                self._arrive(place, observations, infos, rows, row, write)

    def _last_observation(self, observations: Mapping[Any, Any], agent: Any, flags: tuple[Any, Any]) -> Any:
        """Return the agent's observation; one that was terminated may have none, and its value is 0 in any case."""
        if agent in observations:
            return observations[agent]
        if not np.any(flags[0]):
            raise ContractBreach("step returned no observation of it")
        return None

    def _agree(
        self, place: int, values: tuple[Any, ...], at_limit: bool, rows: AgentRows, row: int,
        write: Callable[[int, Any], None],
    ) -> None:  # fmt: skip
        """Check the values of an agent that was there before the step, and write its row."""
        observation, info = self._split(values[0], values[4])
        if observation is None:  # the row keeps an older observation, which is not looked at
            reward, terminal, truncated = self._contracts[place].without_observation(values[1:4])
            found = {}
        else:
            checked = self._contracts[place].step((observation, *values[1:4], info))
            observation, reward, terminal, truncated, found = checked
            write(row, self._fitting(place, observation))
        truncated |= at_limit and not terminal
        self._there[place] = not (terminal or truncated)
        rows.reward[row], rows.terminal[row], rows.truncated[row] = reward, terminal, truncated
        rows.valid[row] = True
        self._mask(place, found.get(MASK), rows, row)

    def _arrive(
        self, place: int, observations: Mapping[Any, Any], infos: Mapping[Any, Any], rows: AgentRows, row: int,
        write: Callable[[int, Any], None],
    ) -> None:  # fmt: skip
        """Write the first row of an agent."""
        self._agent = agent = self.spaces.agents[place]
        if agent not in observations:
            raise ContractBreach(f"{self._moment} returned no observation of it")
        observation, found = self._contracts[place].reset(self._split(observations[agent], infos.get(agent, {})))
        write(row, self._fitting(place, observation))
        rows.first[row] = rows.valid[row] = True
        self._mask(place, found.get(MASK), rows, row)

    def _split(self, observation: Any, info: Any) -> tuple[Any, Any]:
        """Return an observation and an `info` with the mask, which may be part of the observation.

        An agent whose turn it is not has one legal action, so that it learns nothing from choosing it.
        """
        if self.spaces.masked and isinstance(observation, Mapping):
            info = {**info, MASK: observation.get(MASK)}
            observation = observation.get(OBSERVATION)
        turn = whose_turn(self.env)
        if turn is not None and turn != self._agent:
            waits = np.zeros(self._num_own[self.spaces.agents.index(self._agent)], bool)  # type: ignore[index]
            waits[0] = True
            info = {**info, MASK: waits}
        return observation, info

    def _fitting(self, place: int, observation: Any) -> Any:
        """Return an observation in the shared space."""
        if self._is_shorter[place]:
            observation = np.pad(observation, (0, self.spaces.observation.shape[0] - len(observation)))  # type: ignore[index]
        sentence = self._misfit(observation)
        if sentence is not None:
            raise ContractBreach(sentence)
        return observation

    def _mask(self, place: int, mask: Any, rows: AgentRows, row: int) -> None:
        if self._num_own is None:
            return
        own = self._num_own[place]
        rows.legal_actions[row, own:] = False
        if mask is not None:
            rows.legal_actions[row, :own] = mask

    def _own_action(self, place: int, action: Any) -> Any:
        """Return the action for the environment; that of an absent agent, which is ignored, may be beyond its own."""
        if self._num_own is None:
            return np.asarray(action)
        own = self.spaces.own[place][1]
        return min(int(action), int(own.start) + self._num_own[place] - 1)  # type: ignore[attr-defined]


def _dictionaries(result: Any, method: str, names: tuple[str, ...]) -> tuple[Mapping[Any, Any], ...]:
    """Return the dictionaries by agent that a method returned; raises ContractBreach."""
    if not isinstance(result, tuple) or len(result) != len(names):
        count = f"{len(result)} values" if isinstance(result, tuple | list) else describe(result)
        raise ContractBreach(f"{method} returned {count}, PettingZoo has {len(names)}: {', '.join(names)}")
    for name, value in zip(names, result, strict=True):
        if not isinstance(value, Mapping):
            raise ContractBreach(f"{method} returned {describe(value)} as {name}, expected a dictionary by agent")
    return result


@runtime_checkable
class StepsTogether(Protocol):
    """A parallel environment that also returns the values of all of its agents as arrays.

    All agents have the same spaces, without a mask, and the observation is a `Box`.  All arrive at the reset, and none
    later.  The arrays may be overwritten by the next step.
    """

    def reset_all(self, seed: int | None) -> np.ndarray:
        """Reset, and return the observations [A, …] in the order of `possible_agents`."""
        ...

    def step_all(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step with actions [A, …], and return observations [A, …], rewards, terminations and truncations [A]."""
        ...


class TogetherAgents(Agents):
    """The agents of an environment that returns arrays, whose rows are written together.

    With 24 agents of mettagrid that is three times as fast as a dictionary for each agent.
    """

    def _reset(self, seed: int | None, rows: AgentRows, begin: int, write: Callable[[Any, Any], None]) -> None:
        own = slice(begin, begin + len(self._there))
        write(own, self._checked(self.env.reset_all(seed)))
        self._length = 0
        self._there[:] = rows.first[own] = rows.valid[own] = True

    def _step(self, actions: Any, rows: AgentRows, begin: int, write: Callable[[Any, Any], None]) -> None:
        self._steps += 1
        self._length += 1
        own, there = slice(begin, begin + len(self._there)), self._there
        observations, rewards, terminal, truncated = self.env.step_all(actions)
        write(own, self._checked(observations))
        if not np.isfinite(rewards).all():
            raise ContractBreach(f"step returned rewards that are not finite: {short(rewards)}")
        at_limit = self._length == self._max_steps
        rows.reward[own] = np.where(there, rewards, 0.0)
        rows.terminal[own] = ended = there & terminal
        rows.truncated[own] = late = there & (np.asarray(truncated) | at_limit) & ~ended
        rows.valid[own] = there
        self._there = there & ~ended & ~late

    def _checked(self, values: np.ndarray) -> np.ndarray:
        space = self.spaces.observation
        shape = (len(self._there), *space.shape)  # type: ignore[misc]
        if values.shape != shape or values.dtype != space.dtype:
            found, expected = f"{values.dtype}{list(values.shape)}", f"{space.dtype}{list(shape)}"
            raise ContractBreach(f"{self._moment} returned observations {found}, expected {expected}")
        return values


def make_agents(
    source: Callable[..., Any] | str, options: Mapping[str, Any], index: int, layout: LayoutSetting,
    max_steps: int | None,
) -> Agents:  # fmt: skip
    """Make one environment whose errors name its index."""
    name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    env = make_parallel(source, options)
    kind = TogetherAgents if isinstance(env.unwrapped, StepsTogether) else Agents
    return kind(env, index, name, layout, max_steps)


class ParallelPool:
    """Parallel environments that are stepped one after another in this process."""

    def __init__(self, makers: Sequence[Callable[[], Agents]]):
        self.envs = [make() for make in makers]
        shared = self.envs[0].spaces
        self._num_agents = len(shared.agents)
        self._num_actions = int(shared.action.n) if isinstance(shared.action, spaces.Discrete) else 0
        # Rows are converted or sent before the next step, so that this memory is used again.
        self._observation = create_empty_array(shared.observation, self._num_agents * len(self.envs), np.zeros)
        self._write = _writer(shared.observation, self._observation)
        self._float_leaves = float_leaves(shared.observation)

    def reset(self, seeds: Sequence[int]) -> list[AgentRows]:
        """Restart every environment with its seed and return the first rows; raises EnvironmentFailure."""
        rows = self._blank()
        for number, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            env.reset(int(seed), rows, number * self._num_agents, self._write)
        return [self._finite(rows)]

    def step(self, actions: np.ndarray) -> list[AgentRows]:
        """Step every environment with actions [b, A, …], or reset it after the end of an episode; return the rows."""
        rows = self._blank()
        for number, env in enumerate(self.envs):
            env.advance(actions[number], rows, number * self._num_agents, self._write)
        return [self._finite(rows)]

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.env.close()

    def _blank(self) -> AgentRows:
        return AgentRows.blank(self._observation, self._num_agents * len(self.envs), self._num_actions)

    def _finite(self, rows: AgentRows) -> AgentRows:
        for name, leaf in self._float_leaves(rows.observation):
            finite = np.isfinite(leaf)
            if not finite.all():
                row = int(np.argmin(finite.reshape(len(finite), -1).all(-1)))
                raise self.envs[row // self._num_agents].breach(
                    f"{self.envs[0].spaces.agents[row % self._num_agents]}: {not_finite(name)}"
                )
        return rows


def _writer(space: spaces.Space, batch: Any) -> Callable[[int, Any], None]:
    """Return a function that copies an observation into a row of a batch."""
    if isinstance(space, spaces.Dict):
        parts = {key: _writer(part, batch[key]) for key, part in space.spaces.items()}

        def write_dictionary(row: int, value: Any) -> None:
            for key, write in parts.items():
                write(row, value[key])

        return write_dictionary
    if isinstance(space, spaces.Tuple):
        items = [_writer(part, batch[index]) for index, part in enumerate(space.spaces)]

        def write_tuple(row: int, value: Any) -> None:
            for write, item in zip(items, value, strict=True):
                write(row, item)

        return write_tuple
    return batch.__setitem__
