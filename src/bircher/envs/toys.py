"""Small environments whose rewards are all known, for the tests of adapters, targets and agents.

    id                     observation              actions            what happens
    toy/counter            (b, t, previous action)  2, same effect     n steps, then death
    toy/counter-truncated  (b, t, previous action)  2, same effect     n steps, then truncation
    toy/bandit             a constant 1             4                  one step; reward 0, 0.25, 0.5 or 1 by the action
    toy/chain              one-hot of n places      3                  action i mod 3 leads on from place i, others to 0
    toy/cliff              (t / n, 1)               walk, jump         walk: reward 1; jump: reward 2 and death
    toy/catch              image rows x columns x 1 left, stay, right  the ball falls; 1 if caught, -1 if not, death
    toy/recall             (cue, asked)             2                  after n or a few more steps, the reward is 1
                                                                       if the action names the cue, else -1
    toy/nim                one-hot of the heap      take 1, take 2     two players; the last one taken gives 1 and ends
    toy/hands              which player moves       rock, paper,       two players, who do not see each other's hands
                                                    scissors
    toy/three-nim          one-hot of the heap      take 1, 2 or 3     three players (`envs.three_players`)
    toy/auction            bids, and who is in      pass, raise by     three players (`envs.three_players`)
                                                    1, raise by 2
    toy/riddle             a Dict of three arrays   2                  n questions; reward 1 for each right answer
    toy/dial               a constant 1             2, continuous      one step; the reward falls with the distance
                                                                       from (2, 0.5) between (-1, 0) and (3, 2)
    toy/lock               a constant 1             3 x 4              one step; half a reward for each digit of (2, 1)
    toy/shop               one of 10 customers      2,000              one step; 1 for the customer's own tenth of items
    toy/reacher            place and goal           2, continuous      n steps toward the goal; less the distance to it

Here b is the index of the environment, and t the number of actions taken in its episode. The option ``length`` sets n.
``max_steps`` truncates each of the environments earlier.

- counter: the reward for arriving at t is 1000 b + 10 t + action, so that tests detect a shift along either axis.
- chain: arriving at the end gives 1 and terminates the episode. It is truncated after 10 n steps.
- cliff: the episode is truncated after n steps.
- catch: the options ``rows`` and ``columns`` set the size of the image.
- recall: the cue is -1 or 1 and appears on the first row only. It is asked for after n to n + ``spread`` steps; the
  option ``spread`` is 4 by default.
- dial: the reward is 1 minus the mean square of the distances, each divided by half the width of its bounds.
- shop: the option ``items`` sets the number of actions, a multiple of 10.
- reacher: an action moves the place by at most 0.2 along each axis, within [-1, 1]. Place and goal begin anywhere. The
  episode is truncated after n steps, 10 by default, and each of them costs the distance to the goal.
- nim: the option ``heap`` sets the initial heap. The player to move loses if and only if 3 divides the heap.
- hands: paper beats rock and scissors beat paper by 1, rock beats scissors by 2. In equilibrium both players choose
  rock, paper and scissors with probabilities of 1/4, 1/2 and 1/4, and the value is 0.
- riddle: whether the left half of ``picture`` is bright, or the first or the second of ``numbers`` is negative, is the
  right answer; ``where``, an integer, tells which of the three. With the option ``flat`` the observation is one vector
  of the same numbers: the picture's divided by 255, the integer's one-hot vector, and the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs import small, three_players
from bircher.envs.config import EnvConfig, EnvRequest
from bircher.envs.jax_env import PureEnv, Single, repeat_actions
from bircher.errors import UnsupportedEnvironment
from bircher.spaces import Encoding
from bircher.types import Continuous, Discrete, EnvSpec, MultiDiscrete


def make_toy(request: EnvRequest, seeds: Sequence[int]) -> PureEnv:
    """Make B toys, or small tasks, of one kind; raises UnsupportedEnvironment for an option that it does not have."""
    toy = _single(request.config)
    return PureEnv(toy, seeds)


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of a toy or of a small task."""
    return _single(request.config).spec


def counter_reward(index: Any, time: Any, action: Any) -> Any:
    """Return the counter's reward for arriving at ``time`` by ``action`` in environment ``index``."""
    return 1000.0 * index + 10.0 * time + action


def _single(config: EnvConfig) -> Single:
    make = small.TASKS[config.id].make if config.id in small.TASKS else TOYS[config.id]
    try:
        single = make(config.id, config.max_frames, **config.options)
    except TypeError as error:
        raise UnsupportedEnvironment(f"{config.id} does not take the options {config.options}: {error}") from error
    return repeat_actions(single, config.repeat)


def _limited(limit: int | None, max_steps: int | None) -> int | None:
    return min((steps for steps in (limit, max_steps) if steps is not None), default=None)


def _reached(time: Any, limit: int | None) -> Any:
    return jnp.bool_(False) if limit is None else time >= limit


def _vector(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), np.float32)


def _counter(env_id: str, max_steps: int | None, length: int = 5) -> Single:
    dies = env_id == "toy/counter"
    limit = _limited(None if dies else length, max_steps)

    def start(key, index):
        index = index.astype(jnp.float32)
        return (index, 0), jnp.array([index, 0.0, 0.0])

    def move(key, inner, action):
        index, time = inner[0], inner[1] + 1
        observation = jnp.stack([index, time.astype(jnp.float32), action.astype(jnp.float32)])
        terminal = dies & (time >= length)
        return (index, time), observation, counter_reward(index, time, action), terminal, _reached(time, limit)

    return Single(EnvSpec(env_id, _vector(3), Discrete(2), limit), start, move)


def _bandit(env_id: str, max_steps: int | None) -> Single:
    rewards = (0.0, 0.25, 0.5, 1.0)

    def start(key, index):
        return 0, jnp.ones(1)

    def move(key, inner, action):
        return inner, jnp.ones(1), jnp.array(rewards)[action], True, False

    return Single(EnvSpec(env_id, _vector(1), Discrete(len(rewards)), max_steps), start, move)


def _chain(env_id: str, max_steps: int | None, length: int = 5) -> Single:
    limit = _limited(10 * length, max_steps)

    def start(key, index):
        return (0, 0), jax.nn.one_hot(0, length)

    def move(key, inner, action):
        place, time = inner
        place, time = jnp.where(action == place % 3, place + 1, 0), time + 1
        end = place == length
        observation = jax.nn.one_hot(place, length)  # all zeros at the end, which is not one of the n places
        return (place, time), observation, jnp.where(end, 1.0, 0.0), end, _reached(time, limit)

    return Single(EnvSpec(env_id, _vector(length), Discrete(3), limit), start, move)


def _cliff(env_id: str, max_steps: int | None, length: int = 8) -> Single:
    limit = _limited(length, max_steps)

    def observe(time):
        return jnp.array([time / length, 1.0])

    def start(key, index):
        return 0, observe(0)

    def move(key, time, action):
        time, jumped = time + 1, action == 1
        return time, observe(time), jnp.where(jumped, 2.0, 1.0), jumped, _reached(time, limit)

    return Single(EnvSpec(env_id, _vector(2), Discrete(2), limit), start, move)


def _catch(env_id: str, max_steps: int | None, rows: int = 10, columns: int = 5) -> Single:
    def observe(inner):
        ball_row, ball_column, paddle, _ = inner
        grid = jnp.zeros((rows, columns, 1))
        return grid.at[ball_row, ball_column, 0].set(1.0).at[rows - 1, paddle, 0].set(1.0)

    def start(key, index):
        inner = (jnp.int32(0), jax.random.randint(key, (), 0, columns), jnp.int32(columns // 2), jnp.int32(0))
        return inner, observe(inner)

    def move(key, inner, action):
        ball_row, ball_column, paddle, time = inner
        inner = (ball_row + 1, ball_column, jnp.clip(paddle + action - 1, 0, columns - 1), time + 1)
        down = inner[0] == rows - 1
        reward = jnp.where(down, jnp.where(inner[2] == ball_column, 1.0, -1.0), 0.0)
        return inner, observe(inner), reward, down, _reached(inner[3], max_steps)

    shape = jax.ShapeDtypeStruct((rows, columns, 1), np.float32)
    return Single(EnvSpec(env_id, shape, Discrete(3), max_steps), start, move)


def _recall(env_id: str, max_steps: int | None, length: int = 30, spread: int = 4) -> Single:
    def start(key, index):
        cue_key, wait_key = jax.random.split(key)
        cue = jax.random.randint(cue_key, (), 0, 2)
        wait = length + jax.random.randint(wait_key, (), 0, spread + 1)
        return (cue, wait, 0), jnp.array([2.0 * cue - 1.0, 0.0])

    def move(key, inner, action):
        cue, wait, time = inner[0], inner[1], inner[2] + 1
        answered = time > wait
        reward = jnp.where(answered, jnp.where(action == cue, 1.0, -1.0), 0.0)
        observation = jnp.array([0.0, jnp.where(time == wait, 1.0, 0.0)])
        return (cue, wait, time), observation, reward, answered, _reached(time, max_steps)

    return Single(EnvSpec(env_id, _vector(2), Discrete(2), max_steps), start, move)


def _nim(env_id: str, max_steps: int | None, heap: int = 7) -> Single:
    def start(key, index):
        return (heap, 0, 0), jax.nn.one_hot(heap, heap + 1)

    def move(key, inner, action):
        left, time, player = inner
        left, time = left - action - 1, time + 1
        end = left <= 0
        reward = jnp.where(left == 0, 1.0, jnp.where(left < 0, -1.0, 0.0))  # taking more than there is loses
        return (left, time, 1 - player), jax.nn.one_hot(left, heap + 1), reward, end, _reached(time, max_steps)

    def legal_actions(inner):
        return jnp.arange(1, 3) <= inner[0]

    spec = EnvSpec(env_id, _vector(heap + 1), Discrete(2), max_steps, num_players=2)
    return Single(spec, start, move, legal_actions, lambda inner: inner[2])


HANDS = ((0.0, -1.0, 2.0), (1.0, 0.0, -1.0), (-2.0, 1.0, 0.0))
"""The payoff of the first player's hand against the second's."""


def _hands(env_id: str, max_steps: int | None) -> Single:
    def start(key, index):
        return (0, 0, 0), jax.nn.one_hot(0, 2)

    def move(key, inner, action):
        # The second player does not see the first one's hand, so that it is as if both moved at the same time.
        hand, time, player = inner
        reward = jnp.where(player == 1, -jnp.asarray(HANDS)[hand, action], 0.0)
        return (action, time + 1, 1), jax.nn.one_hot(1, 2), reward, player == 1, _reached(time + 1, max_steps)

    return Single(EnvSpec(env_id, _vector(2), Discrete(3), max_steps, num_players=2), start, move, None, lambda x: x[2])


PICTURE = (6, 6, 1)
"""The shape of the riddle's picture."""


def _riddle(env_id: str, max_steps: int | None, length: int = 5, flat: bool = False) -> Single:
    def ask(key):
        where_key, answers_key, numbers_key = jax.random.split(key, 3)
        where = jax.random.randint(where_key, (), 0, 3)
        answers = jax.random.bernoulli(answers_key, shape=(3,))
        bright = (jnp.arange(PICTURE[1]) < PICTURE[1] // 2) == answers[0]
        picture = jnp.broadcast_to(jnp.where(bright, 255, 0)[:, None], PICTURE)
        numbers = jnp.where(answers[1:], -1.0, 1.0) * jax.random.uniform(numbers_key, (2,), minval=0.1)
        if flat:
            observation = jnp.concatenate([picture.ravel() / 255, jax.nn.one_hot(where, 3), numbers])
        else:
            observation = {"picture": picture, "where": where[None], "numbers": numbers}
        return answers[where], observation

    def start(key, index):
        answer, observation = ask(key)
        return (answer, 0), observation

    def move(key, inner, action):
        right, time = (action == 1) == inner[0], inner[1] + 1
        answer, observation = ask(key)
        return (answer, time), observation, jnp.where(right, 1.0, 0.0), time == length, _reached(time, max_steps)

    number = jax.ShapeDtypeStruct((1,), np.int32)
    parts = {"picture": jax.ShapeDtypeStruct(PICTURE, np.uint8), "where": number, "numbers": _vector(2)}
    encoding = {
        "picture": Encoding(PICTURE, "uint8", "uint8", start=0, num_values=256),
        "where": Encoding((), "int32", "int32", "index", num_values=3),
        "numbers": Encoding((2,), "float32", "float32"),
    }
    spec = EnvSpec(env_id, parts, Discrete(2), max_steps, encoding=encoding)
    if flat:
        spec = EnvSpec(env_id, _vector(PICTURE[0] * PICTURE[1] + 3 + 2), Discrete(2), max_steps)
    return Single(spec, start, move)


def _dial(env_id: str, max_steps: int | None) -> Single:
    low, high, best = jnp.array([-1.0, 0.0]), jnp.array([3.0, 2.0]), jnp.array([2.0, 0.5])

    def start(key, index):
        return 0, jnp.ones(1)

    def move(key, inner, action):
        distance = (action - best) / ((high - low) / 2)
        return inner, jnp.ones(1), 1.0 - jnp.square(distance).mean(), True, False

    action = Continuous((2,), (-1.0, 0.0), (3.0, 2.0))
    return Single(EnvSpec(env_id, _vector(1), action, max_steps), start, move)


def _lock(env_id: str, max_steps: int | None) -> Single:
    def start(key, index):
        return 0, jnp.ones(1)

    def move(key, inner, action):
        return inner, jnp.ones(1), (action == jnp.array([2, 1])).mean(), True, False

    return Single(EnvSpec(env_id, _vector(1), MultiDiscrete((3, 4), (2,), (0, 0)), max_steps), start, move)


def _shop(env_id: str, max_steps: int | None, items: int = 2000) -> Single:
    def start(key, index):
        customer = jax.random.randint(key, (), 0, 10)
        return customer, jax.nn.one_hot(customer, 10)

    def move(key, customer, action):
        reward = jnp.where(action // (items // 10) == customer, 1.0, 0.0)
        return customer, jax.nn.one_hot(customer, 10), reward, True, False

    return Single(EnvSpec(env_id, _vector(10), Discrete(items), max_steps), start, move)


def _reacher(env_id: str, max_steps: int | None, length: int = 10) -> Single:
    limit = _limited(length, max_steps)

    def observe(inner):
        place, goal, _ = inner
        return jnp.concatenate([place, goal])

    def start(key, index):
        place, goal = jax.random.uniform(key, (2, 2), minval=-1.0, maxval=1.0)
        inner = (place, goal, 0)
        return inner, observe(inner)

    def move(key, inner, action):
        place, goal, time = inner
        inner = (jnp.clip(place + 0.2 * action, -1.0, 1.0), goal, time + 1)
        distance = jnp.sqrt(jnp.square(inner[0] - goal).sum() + 1e-12)
        return inner, observe(inner), -distance, False, _reached(inner[2], limit)

    return Single(EnvSpec(env_id, _vector(4), Continuous((2,), (-1.0, -1.0), (1.0, 1.0)), limit), start, move)


TOYS: dict[str, Callable[..., Single]] = {
    "toy/counter": _counter,
    "toy/counter-truncated": _counter,
    "toy/bandit": _bandit,
    "toy/chain": _chain,
    "toy/cliff": _cliff,
    "toy/catch": _catch,
    "toy/recall": _recall,
    "toy/nim": _nim,
    "toy/hands": _hands,
    "toy/riddle": _riddle,
    "toy/dial": _dial,
    "toy/lock": _lock,
    "toy/shop": _shop,
    "toy/reacher": _reacher,
    **three_players.GAMES,
}
"""The function that makes each toy, by id."""
