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

A row with ``last`` and not ``terminal`` was cut short by a limit: it bootstraps.  The action on a
``last`` row takes no part in any loss, and no trace crosses it.  Axes are ``[B, T, ...]`` at every
border between modules; a mask is 1 (or True) where a value is to be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

Key = jax.Array
"""A typed key of ``jax.random.key``; who receives one consumes it."""


class Discrete(NamedTuple):
    """An action space of ``num_actions`` choices, 0 … num_actions - 1.

    The environment itself may count from another ``start``: its action is the agent's plus ``start``.
    """

    num_actions: int
    start: int = 0

    def __str__(self) -> str:
        return f"discrete, {self.num_actions} actions"


class Continuous(NamedTuple):
    """An action space of real vectors between ``low`` and ``high``, both of shape ``shape``."""

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __str__(self) -> str:
        return f"continuous, shape {self.shape}"


class Unsupported(NamedTuple):
    """A space that no adapter turns into arrays; ``description`` is what the environment says."""

    description: str

    def __str__(self) -> str:
        return self.description


class Symmetry(NamedTuple):
    """A way to turn or mirror a board that changes nothing about the game."""

    cells: tuple[int, ...]
    """Cell i of the turned board is cell ``cells[i]`` of the board, row by row."""
    actions: tuple[int, ...]
    """Action a on the turned board is action ``actions[a]`` on the board."""


class EnvSpec(NamedTuple):
    """What an environment takes and gives, without its batch axis.

    ``observation`` is a pytree of ``jax.ShapeDtypeStruct`` (one leaf for a plain array) or an
    ``Unsupported``; ``max_steps`` the number of actions after which an episode is truncated, or None.
    ``num_players`` is 2 for games of alternating turns and opposite rewards: observation, value and reward are those
    of the player to move.
    """

    id: str
    observation: PyTree
    action: Discrete | Continuous | Unsupported
    max_steps: int | None = None
    num_players: int = 1
    symmetries: tuple[Symmetry, ...] = ()
    """Of an observation [height, width, channels], what leaves it as it is among them; () where none are known."""
    action_repeat: int = 1
    """Frames of the environment that each action lasts: what `env_frames` counts."""
    encoding: PyTree = None
    """An ``envs.encoding.Encoding`` for each observation array: how the environment's own observation becomes it.  None
    where the two are the same."""
    observation_space: str = ""
    """The environment's own observation space as its package prints it; "" where it has none."""
    action_space: str = ""
    """The same of its action space."""
    advice: str = ""
    """What a user can do whose observation space is not supported."""

    @property
    def action_start(self) -> int:
        """The environment's own number of its first discrete action; 0 for any other action space."""
        return self.action.start if isinstance(self.action, Discrete) else 0

    @property
    def num_actions(self) -> int:
        """Number of discrete actions; an error for any other action space."""
        if not isinstance(self.action, Discrete):
            raise TypeError(f"{self.id} has {self.action} actions, not discrete ones")
        return self.action.num_actions


class TimeStep(NamedTuple):
    """One row of each of B environments, before an action is chosen there.

    ``failed`` is raised by an adapter whose environment threw an exception inside a compiled program;
    the row's other fields are then meaningless.
    """

    observation: PyTree[Array]
    """[B, ...]"""
    reward: Float[Array, "*B"]
    """Got on arriving here; 0 on a first row."""
    discount: Float[Array, "*B"]
    """0 where the episode died here, 1 otherwise, -1 where the turn changes hands."""
    first: Bool[Array, "*B"]
    last: Bool[Array, "*B"]
    terminal: Bool[Array, "*B"]
    legal_actions: Bool[Array, "*B A"]
    failed: Bool[Array, "*B"]


class Trajectory(NamedTuple):
    """Rows ``[B, T + 1]`` (or ``[T + 1, B]`` inside a scan) with the action chosen on each."""

    observation: PyTree[Array]
    reward: Float[Array, "*BT"]
    discount: Float[Array, "*BT"]
    first: Bool[Array, "*BT"]
    last: Bool[Array, "*BT"]
    terminal: Bool[Array, "*BT"]
    legal_actions: Bool[Array, "*BT A"]
    action: Int[Array, "*BT"]
    extras: Mapping[str, Array]
    """What the agent wants kept with each row, such as ``behavior_logits``."""

    @classmethod
    def of(cls, timestep: TimeStep, action: Array, extras: Mapping[str, Array]) -> Trajectory:
        """The row of a time step once the action there is known."""
        fields = timestep._asdict()
        del fields["failed"]
        return cls(**fields, action=action, extras=extras)


class Batch(NamedTuple):
    """Sequences for one update: T + 1 rows each, the last of them only to bootstrap from."""

    trajectory: Trajectory
    """[B, T + 1, ...]"""
    indices: Int[Array, " B"]
    """Where in the replay each sequence begins; -1 where that is not kept."""
    importance: Float[Array, " B"]
    """Importance weight of each sequence: 1 for a fresh one, and 1 on average over the replayed ones of a minibatch."""


class Prediction(NamedTuple):
    """What the prediction network says of a latent: logits of policy and of the categorical value."""

    policy_logits: Float[Array, "*BT A"]
    value_logits: Float[Array, "*BT atoms"]


class PolicyTarget(NamedTuple):
    """An improved policy as weighted actions: what CMPO, completed Q-values, visits and samples give."""

    actions: Int[Array, "*BT N"]
    weights: Float[Array, "*BT N"]
    """Sum to 1 over N, or nearly so for sampled actions."""


class Targets(NamedTuple):
    """What the loss trains toward, for each transition; no gradient flows through any of it."""

    value: Float[Array, "B T"]
    reward: Float[Array, "B T"]
    """The reward that followed the row's action."""
    advantage: Float[Array, "B T"]
    policy: PolicyTarget
    mask: Bool[Array, "B T"]
    """Rows whose action counts: False on last rows and whatever is not to be trained on."""
    priority: Float[Array, " B"]
    """What a replay with priorities will draw the sequence by; at least 0."""
    extras: Mapping[str, Array]
    """Whatever else an agent's own terms need, [B, T, ...]."""


class Policy(NamedTuple):
    """All that acting and looking ahead need: parameters, and state without a gradient."""

    params: PyTree
    state: PyTree


class ActOutput(NamedTuple):
    """Actions of B environments and what is kept beside them."""

    action: Int[Array, " B"]
    extras: Mapping[str, Array]


_SUMS = ("return_sum", "last_reward_sum")


class Tally(NamedTuple):
    """Sums over one rollout."""

    env_steps: Int[Array, ""]
    """Decisions; the step after an end is a reset and does not count."""
    episodes: Int[Array, ""]
    return_sum: Float[Array, ""]
    """In games of two the returns of who moved first."""
    length_sum: Int[Array, ""]
    last_reward_sum: Float[Array, ""]
    """Of the rewards of the steps that ended episodes."""
    failed: Int[Array, ""]
    """The first environment that failed, and its cause, as `actor.failure_code` has it; -1 where none did."""
    longest: Int[Array, ""]
    """Actions of the longest episode that ended; 0 where none did."""
    died_at_longest: Int[Array, ""]
    """Episodes of that very length that ended in a death: nearly all where an environment calls its time limit one."""

    def merge(self, later: Tally) -> Tally:
        """Both as one."""
        longest = jnp.maximum(self.longest, later.longest)
        died = [jnp.where(tally.longest == longest, tally.died_at_longest, 0) for tally in (self, later)]
        return Tally(
            env_steps=self.env_steps + later.env_steps,
            episodes=self.episodes + later.episodes,
            return_sum=self.return_sum + later.return_sum,
            length_sum=self.length_sum + later.length_sum,
            last_reward_sum=self.last_reward_sum + later.last_reward_sum,
            failed=jnp.where(self.failed >= 0, self.failed, later.failed),
            longest=longest,
            died_at_longest=died[0] + died[1],
        )

    @classmethod
    def zero(cls) -> Tally:
        """Of nothing yet, in buffers of its own."""
        none = {name: jnp.zeros((), jnp.float32 if name in _SUMS else jnp.int32) for name in cls._fields}
        return cls(**none | {"failed": jnp.full((), -1, jnp.int32)})


class Counters(NamedTuple):
    """What has been done so far; never a bare ``step``."""

    env_steps: Array
    """Decisions taken; reset rows do not count."""
    env_frames: Array
    """Decisions times the action repeat."""
    learner_steps: Array
    episodes: Array

    @classmethod
    def zero(cls) -> Counters:
        """All counters at zero, as arrays of their own (donated buffers must not be shared)."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in range(4)))
