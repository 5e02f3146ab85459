"""The data that packages exchange: specifications, rows, batches and targets.

The index convention, written once.  A *row* is one observation with everything known when it was
seen; ``reward`` and ``discount`` are those got on *arriving* there and ``action`` is the one chosen
*there*.  An episode of n actions has n + 1 rows, so its final observation is a row like any other:

    row        0        1        2   ...   n        | 0 (next episode)
    reward     0        r_1      r_2       r_n      | 0
    action     a_0      a_1      a_2       none     | a_0
    first      yes                                  | yes
    last                                   yes      |
    terminal                               if dead  |
    discount   1        1        1         0 if dead| 1

Where an environment has several agents, each has a separate row, and the rows of one environment are together.  A row
of an agent that is not there has ``valid`` False; it is ``first`` and ``last``, so that no trace, sequence or memory
crosses it.

A row with ``last`` and not ``terminal`` was cut short by a limit: it bootstraps.  The action on a
``last`` row takes no part in any loss, and no trace crosses it.  Axes are ``[B, T, ...]`` at every
border between modules; a mask is 1 (or True) where a value is to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

Key = jax.Array
"""A typed key of ``jax.random.key``.  A function that receives one consumes it."""


class Discrete(NamedTuple):
    """An action space of ``num_actions`` choices, 0 … num_actions - 1.

    The environment may count from another number, ``start``: its action is the agent's action plus ``start``.
    """

    num_actions: int
    start: int = 0

    def __str__(self) -> str:
        return f"discrete, {self.num_actions} actions"

    def decode(self, action: Any) -> Any:
        """Return the environment's actions for the agent's actions [B], which are arrays of NumPy or JAX."""
        return action.astype(np.int64 if isinstance(action, np.ndarray) else np.int32) + self.start


class MultiDiscrete(NamedTuple):
    """An action space of several choices that are made together: ``sizes[i]`` of them in dimension i.

    The agent's action is a vector of indices that count from 0.
    """

    sizes: tuple[int, ...]
    """The number of choices of each number of the environment's action, row by row."""
    shape: tuple[int, ...]
    """The shape of the environment's action."""
    start: tuple[int, ...]
    """The environment's own number for index 0 of each dimension."""
    dtype: str = "int64"
    """The type of the environment's action."""

    def __str__(self) -> str:
        sizes = self.sizes
        of = f"{sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))
        return f"multi-discrete, {len(sizes)} dimensions of {of} actions"

    def decode(self, action: Any) -> Any:
        """Return the environment's actions for the agent's actions [B, D], which are arrays of NumPy or JAX."""
        own = action.astype(self.dtype if isinstance(action, np.ndarray) else np.int32)
        return (own + np.asarray(self.start, own.dtype)).reshape(*action.shape[:-1], *self.shape)


class Continuous(NamedTuple):
    """An action space of real vectors between ``low`` and ``high``, the bounds of each number, row by row.

    The agent's action is a vector, and -1 and 1 are the bounds of each of its numbers.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"
    """The type of the environment's action."""

    def __str__(self) -> str:
        return f"continuous, shape {self.shape}"

    def decode(self, action: Any) -> Any:
        """Return the environment's actions for the agent's actions [B, n], which are arrays of NumPy or JAX.

        Numbers beyond -1 and 1 are clipped.
        """
        own = action.astype(self.dtype if isinstance(action, np.ndarray) else np.float32)
        low, high = np.asarray(self.low, own.dtype), np.asarray(self.high, own.dtype)
        scaled = low + (own.clip(-1.0, 1.0) + 1.0) / 2.0 * (high - low)
        return scaled.clip(low, high).reshape(*action.shape[:-1], *self.shape)  # rounding may exceed a bound


class Unsupported(NamedTuple):
    """A space that no adapter converts to arrays; ``description`` is the environment's own text for it."""

    description: str

    def __str__(self) -> str:
        return self.description


class Symmetry(NamedTuple):
    """A rotation or reflection of a board that leaves the game unchanged."""

    cells: tuple[int, ...]
    """Cell i of the transformed board is cell ``cells[i]`` of the original board, row by row."""
    actions: tuple[int, ...]
    """Action a on the transformed board is action ``actions[a]`` on the original board."""


SINGLE = "observation"
"""The name of an observation that is one array."""


def part_names(observation: PyTree) -> list[str]:
    """Return the names of an observation's arrays, in JAX's order: the keys and positions to each, joined by dots."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(observation)]
    return [".".join(str(getattr(step, "key", getattr(step, "idx", ""))) for step in path) or SINGLE for path in paths]


class ObservationPart(NamedTuple):
    """One array of an observation, without its batch axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: Any
    """The `spaces.Encoding` that computes it; None where the environment's own observation is the same."""


class EnvSpec(NamedTuple):
    """The observations and actions of an environment, without its batch axis.

    ``observation`` is a pytree of ``jax.ShapeDtypeStruct`` (one leaf for a plain array) or an ``Unsupported``.
    ``max_steps`` is the number of actions after which an episode is truncated, or None.  ``num_players`` is 2 for games
    of alternating turns and opposite rewards.  Observation, value and reward are then those of the player to move.
    Games of more players have a reward and a value for each of them, and players move in a fixed order (`ops.turns`).
    """

    id: str
    observation: PyTree
    action: Discrete | MultiDiscrete | Continuous | Unsupported
    max_steps: int | None = None
    num_players: int = 1
    symmetries: tuple[Symmetry, ...] = ()
    """The symmetries of a board observation [height, width, channels], among them the identity; () if none are known.
    """
    action_repeat: int = 1
    """Frames of the environment for which each action is repeated; `env_frames` counts these frames."""
    encoding: PyTree = None
    """A ``spaces.Encoding`` for each observation array, which computes it from the environment's own observation.  None
    where the two are the same."""
    observation_space: str = ""
    """The environment's own observation space as its package prints it; "" where it has none."""
    action_space: str = ""
    """The environment's own action space as its package prints it; "" where it has none."""
    advice: str = ""
    """A sentence for users whose observation space is not supported, with a way to make it so."""
    agents: tuple[str, ...] = ()
    """The names of the agents that act at the same time, in the order of their rows; () where there is only one."""
    anonymous: EnvSpec | None = None
    """The specification without the agents' identities, where they are part of the observation."""

    @property
    def num_agents(self) -> int:
        """Return the number of agents, which is the number of rows of each environment."""
        return max(len(self.agents), 1)

    @property
    def parts(self) -> dict[str, ObservationPart]:
        """Return the arrays of an observation by name; `observation` is the name of a single one."""
        arrays, encodings = jax.tree.leaves(self.observation), jax.tree.leaves(self.encoding)
        encodings = encodings or [None] * len(arrays)
        return {
            name: ObservationPart(tuple(array.shape), np.dtype(array.dtype), encoding)
            for name, array, encoding in zip(part_names(self.observation), arrays, encodings, strict=True)
        }

    @property
    def action_start(self) -> int:
        """Return the environment's own number of its first discrete action, or 0 for any other action space."""
        return self.action.start if isinstance(self.action, Discrete) else 0

    def own_action(self, action: Any) -> Any:
        """Return the environment's actions for the agent's actions, [B] or [B, n], which are arrays of NumPy or JAX.

        The agent's discrete actions count from 0, and its continuous actions have the bounds -1 and 1.

        Raises:
          TypeError: the action space is not supported.
        """
        if isinstance(self.action, Unsupported):
            raise TypeError(f"{self.id} has the {self.action}, whose actions no agent gives")
        return self.action.decode(action)

    @property
    def num_actions(self) -> int:
        """Return the number of discrete actions.

        Raises:
          TypeError: the action space is not discrete.
        """
        if not isinstance(self.action, Discrete):
            raise TypeError(f"{self.id} has {self.action} actions, not discrete ones")
        return self.action.num_actions


class TimeStep(NamedTuple):
    """One row of each of B environments, before an action is chosen there.

    An adapter sets ``failed`` where its environment raised an exception inside a compiled program.  The row's other
    fields are then meaningless.
    """

    observation: PyTree[Array]
    """[B, ...]"""
    reward: Float[Array, "*B"]
    """Reward for arriving here; 0 on a first row.  With more than two players it is a vector that begins with the
    player whose action led here, followed by the next one."""
    discount: Float[Array, "*B"]
    """0 where the episode terminated here, -1 where the turn passed to the other of two players, and 1 otherwise."""
    first: Bool[Array, "*B"]
    last: Bool[Array, "*B"]
    terminal: Bool[Array, "*B"]
    legal_actions: Bool[Array, "*B A"]
    """The mask of discrete actions; A is 0 for other action spaces, whose actions are always legal."""
    failed: Bool[Array, "*B"]
    valid: Bool[Array, "*B"] | None = None
    """Whether the row's agent is in the environment; None where every environment has one agent."""


class Extras(NamedTuple):
    """Arrays by name that an agent stores with each row, for its own targets."""

    per_row: Mapping[str, Array] = {}
    """One number for each row, [B, T + 1], such as ``search_value``; or one for each player, [B, T + 1, P]."""
    per_action: Mapping[str, Array] = {}
    """One number for each action, [B, T + 1, A], such as ``behavior_logits``; or for each candidate of a search, [B,
    T + 1, N], with the candidates themselves, [B, T + 1, N, ...], as ``search_actions``."""


class Trajectory(NamedTuple):
    """Rows ``[B, T + 1]`` (or ``[T + 1, B]`` inside a scan) with the action chosen on each."""

    observation: PyTree[Array]
    reward: Float[Array, "*BT"]
    discount: Float[Array, "*BT"]
    first: Bool[Array, "*BT"]
    last: Bool[Array, "*BT"]
    terminal: Bool[Array, "*BT"]
    legal_actions: Bool[Array, "*BT A"]
    action: Shaped[Array, ...]
    """[B, T + 1] indices of discrete actions; [B, T + 1, D], int32, of multi-discrete ones; [B, T + 1, n], float32, of
    continuous ones."""
    extras: Extras = Extras()
    memory: PyTree[Array] | None = None
    """The memory of a recurrent agent before each row; None for an agent without memory."""
    valid: Bool[Array, "*BT"] | None = None
    """Whether the row's agent is in the environment; None where every environment has one agent."""

    @classmethod
    def of(cls, timestep: TimeStep, output: ActOutput) -> Trajectory:
        """Return the row of a time step, given what the agent did there."""
        fields = timestep._asdict()
        del fields["failed"]
        return cls(**fields, action=output.action, extras=output.extras, memory=output.memory)


class Batch(NamedTuple):
    """Sequences for one update, of T + 1 rows each.  The last row is used only for the bootstrap."""

    trajectory: Trajectory
    """[B, T + 1, ...]"""
    indices: Int[Array, " B"]
    """Position in the replay where each sequence begins; -1 where the position is not recorded."""
    importance: Float[Array, " B"]
    """Importance weight of each sequence: 1 for a fresh one, and 1 on average over the replayed ones of a minibatch."""


class Prediction(NamedTuple):
    """The output of the prediction network for a latent: the policy, and logits of the categorical value."""

    policy_logits: Float[Array, "*BT P"]
    """The parameters of the policy: logits of discrete actions, or those of another `Distribution`."""
    value_logits: Float[Array, "*BT atoms"]
    """[..., P, atoms] for P > 2 players, beginning with the player to move."""


class PolicyTarget(NamedTuple):
    """An improved policy as weighted actions, from CMPO, completed Q-values, visit counts or samples."""

    actions: Shaped[Array, ...] | None
    """[B, T, N] or [B, T, N, D]; None where they are all discrete actions in their order."""
    weights: Float[Array, "*BT N"]
    """Weight of each action; they sum to 1 over N, or nearly so for sampled actions."""
    log_density: Float[Array, "*BT N"] | None = None
    """Logarithm of the improved policy's probability or density at each sampled action; None where the weights are the
    probabilities of discrete actions."""


class TargetExtras(NamedTuple):
    """Further arrays by name that an agent's own loss terms and metrics need."""

    per_transition: Mapping[str, Array] = {}
    """[B, T, ...], such as ``old_value``."""
    per_row: Mapping[str, Array] = {}
    """[B, T + 1, ...], such as ``prior``."""
    per_batch: Mapping[str, Array] = {}
    """Numbers that hold for the whole batch, such as ``advantage_scale``."""


class Targets(NamedTuple):
    """The targets of the loss for each transition.  No gradient flows through any of them."""

    value: Float[Array, "B T *P"]
    reward: Float[Array, "B T *P"]
    """The reward that followed the row's action."""
    advantage: Float[Array, "B T"]
    policy: PolicyTarget
    """[B, T + 1, ...], because a model's unroll may end on the last row."""
    mask: Bool[Array, "B T"]
    """True on rows whose action is trained on; False on last rows and on rows that are excluded for another reason."""
    priority: Float[Array, " B"]
    """Priority of each sequence in a prioritized replay; at least 0."""
    extras: TargetExtras = TargetExtras()

    def map(
        self,
        per_transition: Callable[[Array], Array] = lambda x: x,
        per_row: Callable[[Array], Array] = lambda x: x,
        per_sequence: Callable[[Array], Array] = lambda x: x,
    ) -> Targets:
        """Return the targets with each array replaced by the function for its first axes.

        They are [B, T] for transitions, [B, T + 1] for rows and [B] for sequences.  Numbers of the whole batch stay.
        """
        extras = self.extras
        return Targets(
            value=per_transition(self.value),
            reward=per_transition(self.reward),
            advantage=per_transition(self.advantage),
            policy=jax.tree.map(per_row, self.policy),
            mask=per_transition(self.mask),
            priority=per_sequence(self.priority),
            extras=TargetExtras(
                {name: per_transition(x) for name, x in extras.per_transition.items()},
                {name: per_row(x) for name, x in extras.per_row.items()},
                extras.per_batch,
            ),
        )


class Policy(NamedTuple):
    """Everything that acting and looking ahead need: the parameters, and the state that has no gradient."""

    params: PyTree
    state: PyTree


class ActOutput(NamedTuple):
    """Actions of B environments, and the arrays that are stored with them."""

    action: Shaped[Array, ...]
    """[B] or [B, D]"""
    extras: Extras = Extras()
    memory: PyTree[Array] | None = None
    """The memory with which the agent acted, which is that before this row; None for an agent without memory."""


_FLOAT_SUMS = ("return_sum", "last_reward_sum")
"""Fields of `Tally` that are floats; the others are whole numbers."""


class Tally(NamedTuple):
    """Counts and sums over one rollout."""

    env_steps: Int[Array, ""]
    """Decisions.  The step after the end of an episode is a reset and does not count."""
    episodes: Int[Array, ""]
    return_sum: Float[Array, ""]
    """Sum of the episodes' returns; in games, of the returns of the player who moved first.  Several agents have one
    return, the sum of theirs."""
    length_sum: Int[Array, ""]
    last_reward_sum: Float[Array, ""]
    """Sum of the rewards of the steps that ended episodes."""
    failed: Int[Array, ""]
    """The first environment that failed, and its cause, encoded by `rollout.failure_code`; -1 where none failed."""
    longest: Int[Array, ""]
    """Actions of the longest episode that ended; 0 where none ended."""
    died_at_longest: Int[Array, ""]
    """Episodes of exactly that length that ended in termination: nearly all of them where an environment reports its
    time limit as termination."""
    largest_return: Float[Array, ""] | None = None
    """The largest discounted sum of the rewards of an episode so far, without its sign.  None where no agent uses it,
    and in sums over several rollouts."""
    agent_returns: Float[Array, " A"] | None = None
    """The sum of the episodes' returns for each agent; None where every environment has one agent."""

    def merge(self, later: Tally) -> Tally:
        """Combine the counts and sums of two consecutive rollouts."""
        longest = jnp.maximum(self.longest, later.longest)
        deaths = [jnp.where(tally.longest == longest, tally.died_at_longest, 0) for tally in (self, later)]
        return Tally(
            env_steps=self.env_steps + later.env_steps,
            episodes=self.episodes + later.episodes,
            return_sum=self.return_sum + later.return_sum,
            length_sum=self.length_sum + later.length_sum,
            last_reward_sum=self.last_reward_sum + later.last_reward_sum,
            failed=jnp.where(self.failed >= 0, self.failed, later.failed),
            longest=longest,
            died_at_longest=deaths[0] + deaths[1],
            agent_returns=jax.tree.map(jnp.add, self.agent_returns, later.agent_returns),
        )

    @classmethod
    def zero(cls, num_agents: int = 1) -> Tally:
        """Return the tally of an empty rollout, in new arrays (donated buffers must not be shared)."""
        zeros = {name: jnp.zeros((), jnp.float32 if name in _FLOAT_SUMS else jnp.int32) for name in cls._fields}
        returns = jnp.zeros(num_agents) if num_agents > 1 else None
        return cls(
            **zeros | {"failed": jnp.full((), -1, jnp.int32), "largest_return": None, "agent_returns": returns}
        )


class Counters(NamedTuple):
    """How much a run has done so far.  No counter is called only ``step``, because there are several."""

    env_steps: Array
    """Decisions taken; reset rows do not count."""
    env_frames: Array
    """Decisions times the action repeat."""
    learner_steps: Array
    episodes: Array

    @classmethod
    def zero(cls) -> Counters:
        """Return all counters at zero, in new arrays (donated buffers must not be shared)."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in range(4)))
