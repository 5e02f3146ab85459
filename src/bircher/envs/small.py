"""Small tasks for comparing agents: six for choosing settings, and six others of the same kinds for reporting.

For choosing:

    id               observation                    actions                what is to be learned
    small/key        row, column, key               4 directions           fetch the key, then leave: 1 at the exit
    small/inventory  stock, orders, day             order 0 to 3           orders arrive two days later; rewards x 1,000
    small/gates      picture 7 x 6 x 2              left, stay, right      pass the gaps of walls that come closer
    small/hover      height, speed, with noise      off, on                stay near height 0; rewards x 0.001
    small/sort       3 signs, 13 distractors, run   4 bins                 the signs name the bin; noise in the rewards
    small/assembly   part, parity, progress         4 tools                the number of right tools is paid at the end

For reporting:

    id               observation                    actions                what is to be learned
    small/dock       position, velocity             none, 4 directions     arrive slowly enough: 1 there; sticky actions
    small/garden     ages of three plots, day       wait, tend a plot      sow now, harvest days later; rewards x 0.001
    small/collect    picture 6 x 6 x 3              4 directions           one apple after another, around walls
    small/stick      angle, speed, with noise       left, none, right      keep a stick upright; rewards x 1,000
    small/crossing   queues, light, 8 distractors   keep, switch           short queues at a light; noise in the rewards
    small/knapsack   item, room, progress           reject, accept         what was accepted is paid at the end

All are truncated after the number of actions in their specification, except inventory, assembly, garden and knapsack,
which end by themselves and show how far the end is. ``max_steps`` truncates each of them earlier.

- key: each move slips with probability 0.2, which means into a random direction. The first place is random.
- gates: each gap that is passed gives 1, and a wall that is hit ends the episode.
- hover: a constant pull, a stronger thrust, and gusts. More than 1 away from height 0 the episode ends.
- sort: each right bin gives 1, each reward has normal noise of 0.5, and three wrong bins in a row end the episode.
- dock: two dimensions with inertia. With probability 0.25 the previous action is repeated in place of the new one.
- garden: sowing costs 1, and tending a ripe plot gives 5. Tending a plot that grows destroys what grows there. What is
  not harvested rots, and has to be cleared.
- collect: each apple gives 1, and the next one appears at random.
- stick: the episode ends when the stick has fallen.
- crossing: the reward is minus a tenth of the waiting cars, with normal noise of 0.5; switching takes one step, in
  which neither road moves.
- knapsack: an item that does not fit ends the episode without pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs.jax_env import Single
from bircher.types import Discrete, EnvSpec

DIRECTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down and left, as (row, column)."""


class Task(NamedTuple):
    """A task with the numbers that scores are normalized by."""

    make: Callable[[str, int | None], Single]
    steps: int
    """Environment steps of a run in a comparison."""
    random: float
    """The mean return of uniformly random actions, measured by `python benchmarks/references.py`."""
    best: float
    """The mean return of the best player, known by reasoning or computed by the same command."""

    @property
    def threshold(self) -> float:
        """The return that counts as solved: four fifths of the way from random to best."""
        return self.random + 0.8 * (self.best - self.random)


def _limit(limit: int, max_steps: int | None) -> int:
    return limit if max_steps is None else min(limit, max_steps)


def _vector(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), np.float32)


def _picture(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def _numbers(*values: Any) -> jax.Array:
    return jnp.concatenate([jnp.atleast_1d(jnp.asarray(value, jnp.float32)) for value in values])


KEY_SIZE, KEY_PLACE, KEY_EXIT, KEY_SLIP = 6, (0, 5), (5, 0), 0.2


def _key(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(60, max_steps)

    def observe(place, carries):
        return _numbers(place / (KEY_SIZE - 1), carries)

    def start(key, index):
        place = jax.random.randint(key, (2,), 0, KEY_SIZE)
        return (place, False, 0), observe(place, False)

    def move(key, inner, action):
        place, carries, time = inner
        slip_key, way_key = jax.random.split(key)
        slips = jax.random.uniform(slip_key) < KEY_SLIP
        way = jnp.where(slips, jax.random.randint(way_key, (), 0, 4), action)
        place = jnp.clip(place + jnp.array(DIRECTIONS)[way], 0, KEY_SIZE - 1)
        carries = carries | (place == jnp.array(KEY_PLACE)).all()
        out = carries & (place == jnp.array(KEY_EXIT)).all()
        return (place, carries, time + 1), observe(place, carries), out * 1.0, out, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(3), Discrete(4), limit), start, move)


DAYS, STOCK = 40, 12
DEMAND = (0.2, 0.4, 0.3, 0.1)
"""The probabilities that 0, 1, 2 and 3 units are wanted."""
PRICE, COST, STORAGE = 1000.0, 500.0, 50.0


def _inventory(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(DAYS, max_steps)

    def observe(inner):
        stock, soon, later, day = inner
        return _numbers(stock / STOCK, soon / 3, later / 3, day / DAYS)

    def start(key, index):
        inner = (4, 0, 0, 0)
        return inner, observe(tuple(map(jnp.asarray, inner)))

    def move(key, inner, action):
        stock, soon, later, day = inner
        stock = jnp.minimum(stock + soon, STOCK)
        sold = jnp.minimum(stock, jax.random.choice(key, len(DEMAND), p=jnp.array(DEMAND)))
        stock = stock - sold
        reward = PRICE * sold - COST * action - STORAGE * stock
        inner = (stock, later, action, day + 1)
        return inner, observe(inner), reward, day + 1 >= DAYS, day + 1 >= limit

    return Single(EnvSpec(env_id, _vector(4), Discrete(4), limit), start, move)


GATE_ROWS, GATE_COLUMNS = 7, 6


def _gates(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(48, max_steps)
    bottom = GATE_ROWS - 1

    def observe(inner):
        row, gap, column, _ = inner
        walls = jnp.zeros((GATE_ROWS, GATE_COLUMNS)).at[row].set(1.0).at[row, gap].set(0.0)
        player = jnp.zeros((GATE_ROWS, GATE_COLUMNS)).at[bottom, column].set(1.0)
        return jnp.stack([walls, player], axis=-1)

    def start(key, index):
        gap, column = jax.random.randint(key, (2,), 0, GATE_COLUMNS)
        inner = (jnp.int32(0), gap, column, jnp.int32(0))
        return inner, observe(inner)

    def move(key, inner, action):
        row, gap, column, time = inner
        again = row == bottom
        row = jnp.where(again, 0, row + 1)
        gap = jnp.where(again, jax.random.randint(key, (), 0, GATE_COLUMNS), gap)
        inner = (row, gap, jnp.clip(column + action - 1, 0, GATE_COLUMNS - 1), time + 1)
        arrives, passes = row == bottom, inner[2] == gap
        return inner, observe(inner), (arrives & passes) * 1.0, arrives & ~passes, time + 1 >= limit

    return Single(EnvSpec(env_id, _picture(GATE_ROWS, GATE_COLUMNS, 2), Discrete(3), limit), start, move)


PULL, THRUST, GUST, BLUR = 0.02, 0.04, 0.005, 0.05


def _hover(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(100, max_steps)

    def observe(key, height, speed):
        return _numbers(height, 10.0 * speed) + BLUR * jax.random.normal(key, (2,))

    def start(key, index):
        height_key, blur_key = jax.random.split(key)
        height = jax.random.uniform(height_key, (), minval=-0.5, maxval=0.5)
        return (height, 0.0, 0), observe(blur_key, height, 0.0)

    def move(key, inner, action):
        height, speed, time = inner
        gust_key, blur_key = jax.random.split(key)
        speed = speed + THRUST * action - PULL + GUST * jax.random.normal(gust_key)
        height = height + speed
        reward = 0.001 * (1.0 - jnp.minimum(jnp.abs(height), 1.0))
        observation = observe(blur_key, height, speed)
        return (height, speed, time + 1), observation, reward, jnp.abs(height) > 1.0, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(2), Discrete(2), limit), start, move)


SORT_NOISE, SORT_NUMBERS, WRONG_RUN = 0.5, 16, 3


def right_bin(numbers: Any) -> Any:
    """Return the bin of an item of small/sort: whether two signs agree, and a third sign."""
    return 2 * (numbers[..., 0] * numbers[..., 1] > 0) + (numbers[..., 2] > 0)


def _sort(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(20, max_steps)

    def start(key, index):
        numbers = jax.random.normal(key, (SORT_NUMBERS,))
        return (numbers, 0, 0), _numbers(numbers, 0)

    def move(key, inner, action):
        numbers, run, time = inner
        item_key, noise_key = jax.random.split(key)
        right = action == right_bin(numbers)
        run = jnp.where(right, 0, run + 1)
        reward = right + SORT_NOISE * jax.random.normal(noise_key)
        numbers = jax.random.normal(item_key, (SORT_NUMBERS,))
        observation = _numbers(numbers, run / WRONG_RUN)
        return (numbers, run, time + 1), observation, reward, run == WRONG_RUN, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(SORT_NUMBERS + 1), Discrete(4), limit), start, move)


STAGES = 12
TOOLS = ((0, 1, 2, 3), (2, 0, 3, 1))
"""The right tool for each of four parts, at even and at odd stages."""


def _assembly(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(STAGES, max_steps)

    def observe(part, stage):
        return _numbers(jax.nn.one_hot(part, 4), stage % 2, stage / STAGES)

    def start(key, index):
        part = jax.random.randint(key, (), 0, 4)
        return (part, 0, 0), observe(part, 0)

    def move(key, inner, action):
        part, right, stage = inner
        right, stage = right + (action == jnp.array(TOOLS)[stage % 2, part]), stage + 1
        part, end = jax.random.randint(key, (), 0, 4), stage >= STAGES
        return (part, right, stage), observe(part, stage), jnp.where(end, right, 0), end, stage >= limit

    return Single(EnvSpec(env_id, _vector(6), Discrete(4), limit), start, move)


PUSH, DOCK, SLOW, STICKY = 0.02, 0.15, 0.05, 0.25
PUSHES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))


def _dock(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(80, max_steps)

    def observe(place, velocity):
        return _numbers(place, 10.0 * velocity)

    def start(key, index):
        angle = jax.random.uniform(key, (), maxval=2 * jnp.pi)
        place, velocity = 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)]), jnp.zeros(2)
        return (place, velocity, 0, 0), observe(place, velocity)

    def move(key, inner, action):
        place, velocity, previous, time = inner
        action = jnp.where(jax.random.uniform(key) < STICKY, previous, action)
        velocity = velocity + PUSH * jnp.array(PUSHES)[action]
        reached = place + velocity
        place = jnp.clip(reached, -1.0, 1.0)
        velocity = jnp.where(place == reached, velocity, 0.0)
        docked = (jnp.abs(place) < DOCK).all() & (jnp.abs(velocity) < SLOW).all()
        inner = (place, velocity, action, time + 1)
        return inner, observe(place, velocity), docked * 1.0, docked, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(4), Discrete(5), limit), start, move)


PLOTS, SEASON = 3, 40
RIPE, ROTTEN = 6, 9
"""The ages from which a plot is ripe and rotten; age 0 is an empty plot."""


def _garden(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(SEASON, max_steps)

    def observe(ages, day):
        return _numbers(jax.nn.one_hot(ages, ROTTEN + 1).ravel(), day / SEASON)

    def start(key, index):
        ages = jnp.zeros(PLOTS, jnp.int32)
        return (ages, 0), observe(ages, 0)

    def move(key, inner, action):
        ages, day = inner[0], inner[1] + 1
        tended = jnp.arange(PLOTS) == action - 1
        empty, ripe = ages == 0, (ages >= RIPE) & (ages < ROTTEN)
        reward = 0.001 * jnp.where(tended, 5.0 * ripe - 1.0 * empty, 0.0).sum()
        older = jnp.where(empty, 0, jnp.minimum(ages + 1, ROTTEN))
        ages = jnp.where(tended, jnp.where(empty, 1, 0), older)
        return (ages, day), observe(ages, day), reward, day >= SEASON, day >= limit

    return Single(EnvSpec(env_id, _vector(PLOTS * (ROTTEN + 1) + 1), Discrete(PLOTS + 1), limit), start, move)


FIELD = ("......", ".##.#.", "....#.", ".#....", ".#.##.", "......")
WALLS = np.array([[cell == "#" for cell in line] for line in FIELD])
FREE = np.argwhere(~WALLS)


def _collect(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(50, max_steps)

    def observe(place, apple):
        return jnp.stack([_dot(place), _dot(apple), jnp.asarray(WALLS, jnp.float32)], axis=-1)

    def other(key, place):
        """Return a random free place other than this one."""
        index = jnp.argmax((jnp.asarray(FREE) == place).all(-1))
        return jnp.asarray(FREE)[(index + jax.random.randint(key, (), 1, len(FREE))) % len(FREE)]

    def start(key, index):
        place_key, apple_key = jax.random.split(key)
        place = jnp.asarray(FREE)[jax.random.randint(place_key, (), 0, len(FREE))]
        apple = other(apple_key, place)
        return (place, apple, 0), observe(place, apple)

    def move(key, inner, action):
        place, apple, time = inner
        ahead = jnp.clip(place + jnp.array(DIRECTIONS)[action], 0, len(FIELD) - 1)
        place = jnp.where(jnp.asarray(WALLS)[ahead[0], ahead[1]], place, ahead)
        found = (place == apple).all()
        apple = jnp.where(found, other(key, place), apple)
        return (place, apple, time + 1), observe(place, apple), found * 1.0, False, time + 1 >= limit

    return Single(EnvSpec(env_id, _picture(6, 6, 3), Discrete(4), limit), start, move)


def _dot(place: jax.Array) -> jax.Array:
    return jnp.zeros((len(FIELD), len(FIELD))).at[place[0], place[1]].set(1.0)


LEAN, TORQUE, SHAKE, STICK_BLUR, FALLEN = 0.04, 0.03, 0.005, 0.02, 0.5


def _stick(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(200, max_steps)

    def observe(key, angle, speed):
        return _numbers(4.0 * angle, 10.0 * speed) + 4.0 * STICK_BLUR * jax.random.normal(key, (2,))

    def start(key, index):
        angle_key, blur_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, (), minval=-0.1, maxval=0.1)
        return (angle, 0.0, 0), observe(blur_key, angle, 0.0)

    def move(key, inner, action):
        angle, speed, time = inner
        shake_key, blur_key = jax.random.split(key)
        speed = speed + LEAN * jnp.sin(angle) + TORQUE * (action - 1) + SHAKE * jax.random.normal(shake_key)
        angle = angle + speed
        observation = observe(blur_key, angle, speed)
        return (angle, speed, time + 1), observation, 1000.0, jnp.abs(angle) > FALLEN, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(2), Discrete(3), limit), start, move)


QUEUE, ARRIVALS, CROSSING_NOISE, DRIFTS = 10, (0.5, 0.25), 0.5, 8
"""The longest queue, the probability of a car on each road, the noise of the reward, the number of distractors."""


def _crossing(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(100, max_steps)

    def observe(queues, light, drift):
        return _numbers(queues / QUEUE, light, drift)

    def start(key, index):
        queue_key, drift_key = jax.random.split(key)
        queues = jax.random.randint(queue_key, (2,), 0, 4)
        drift = jax.random.normal(drift_key, (DRIFTS,))
        return (queues, 0, drift, 0), observe(queues, 0, drift)

    def move(key, inner, action):
        queues, light, drift, time = inner
        arrival_key, noise_key, drift_key = jax.random.split(key, 3)
        served = (jnp.arange(2) == light) & (action == 0)
        arrived = jax.random.uniform(arrival_key, (2,)) < jnp.array(ARRIVALS)
        queues = jnp.minimum(jnp.maximum(queues - served, 0) + arrived, QUEUE)
        light = jnp.where(action == 1, 1 - light, light)
        reward = -0.1 * queues.sum() + CROSSING_NOISE * jax.random.normal(noise_key)
        drift = 0.95 * drift + np.sqrt(1 - 0.95**2) * jax.random.normal(drift_key, (DRIFTS,))
        return (queues, light, drift, time + 1), observe(queues, light, drift), reward, False, time + 1 >= limit

    return Single(EnvSpec(env_id, _vector(3 + DRIFTS), Discrete(2), limit), start, move)


ITEMS, ROOM, VALUES, WEIGHTS = 16, 12, 6, 4
"""The number of items, the knapsack's room, and the largest value and weight of an item."""


def _knapsack(env_id: str, max_steps: int | None) -> Single:
    limit = _limit(ITEMS, max_steps)

    def item(key):
        value_key, weight_key = jax.random.split(key)
        return jax.random.randint(value_key, (), 1, VALUES + 1), jax.random.randint(weight_key, (), 1, WEIGHTS + 1)

    def observe(value, weight, room, time):
        return _numbers(value / VALUES, weight / WEIGHTS, room / ROOM, time / ITEMS)

    def start(key, index):
        value, weight = item(key)
        return (value, weight, ROOM, 0, 0), observe(value, weight, ROOM, 0)

    def move(key, inner, action):
        value, weight, room, total, time = inner
        accepts = action == 1
        room, total, time = room - accepts * weight, total + accepts * value, time + 1
        torn, done = room < 0, time >= ITEMS
        reward = jnp.where(done & ~torn, total, 0)
        value, weight = item(key)
        observation = observe(value, weight, room, time)
        return (value, weight, room, total, time), observation, reward, torn | done, time >= limit

    return Single(EnvSpec(env_id, _vector(4), Discrete(2), limit), start, move)


CHOOSING: Sequence[str] = (
    "small/key", "small/inventory", "small/gates", "small/hover", "small/sort", "small/assembly",
)  # fmt: skip
"""The tasks that settings may be chosen by."""
REPORTING: Sequence[str] = (
    "small/dock", "small/garden", "small/collect", "small/stick", "small/crossing", "small/knapsack",
)  # fmt: skip
"""The tasks that results are reported on; no setting is chosen by them."""

TASKS: dict[str, Task] = {
    "small/key": Task(_key, 80_000, 0.036, 1.0),
    "small/inventory": Task(_inventory, 60_000, 8_700.0, 22_460.0),
    "small/gates": Task(_gates, 40_000, 0.2, 7.0),
    "small/hover": Task(_hover, 60_000, 0.0171, 0.098),
    "small/sort": Task(_sort, 60_000, 1.35, 20.0),
    "small/assembly": Task(_assembly, 60_000, 3.0, 12.0),
    "small/dock": Task(_dock, 80_000, 0.041, 1.0),
    "small/garden": Task(_garden, 80_000, -0.00675, 0.06),
    "small/collect": Task(_collect, 40_000, 0.493, 10.7),
    "small/stick": Task(_stick, 60_000, 11_480.0, 200_000.0),
    "small/crossing": Task(_crossing, 60_000, -115.9, -26.4),
    "small/knapsack": Task(_knapsack, 60_000, 1.72, 28.99),
}
"""Every task by id."""
