"""The random and the best returns of the suites' environments: `python benchmarks/references.py`.

Each small task has a scripted player that sees the whole state. Where the best return is computed, it is by value
iteration over the states, and the player acts by its table. The command plays episodes of random actions and of the
players, and prints both beside the numbers that `bircher.envs.small` contains. With --minatar it plays random actions
in MinAtar's games, and with --random ENV in any environment; the return of several agents is that of the team.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bircher.envs import registry, small
from bircher.envs.agents import moment_of
from bircher.envs.base import random_actions
from bircher.envs.config import EnvRequest
from bircher.experiments.grid import MINATAR
from bircher.types import Key

Player = Callable[[Any], Any]
"""Inner state of one episode -> action."""


class Played(NamedTuple):
    """Returns of episodes: their mean, and half of its 95 % interval."""

    mean: float
    margin: float


class Plan(NamedTuple):
    """A player and its expected return, as far as that is known."""

    player: Player
    best: float | None


def play(env_id: str, player: Player, episodes: int = 4096, seed: int = 0) -> tuple[Played, Played]:
    """Play a number of episodes with random actions and as many with a player, one in each environment."""
    env = registry.make(EnvRequest.of(env_id, num_envs=2 * episodes), seed, role="reference")
    plays = jnp.arange(2 * episodes) >= episodes

    def step(carry: Any, key: Key) -> tuple[Any, None]:
        (state, timestep), total, running = carry
        random, own = random_actions(env.spec, key, timestep), jax.vmap(player)(state.inner)
        state, timestep = env.step(state, jnp.where(plays, own, random).astype(jnp.int32))
        total = total + jnp.where(running, timestep.reward, 0.0)
        return ((state, timestep), total, running & ~timestep.last), None

    @jax.jit
    def run(first: Any, keys: Key) -> Any:
        begin = (first, jnp.zeros(2 * episodes), jnp.ones(2 * episodes, bool))
        return jax.lax.scan(step, begin, keys)[0][1:]

    assert env.spec.max_steps is not None
    keys = jax.random.split(jax.random.key(seed), env.spec.max_steps)
    total, running = map(np.asarray, run(env.reset(), keys))
    assert not running.any(), "every task has a limit"
    return _played(total[:episodes]), _played(total[episodes:])


def _played(returns: np.ndarray) -> Played:
    return Played(float(returns.mean()), float(1.96 * returns.std() / np.sqrt(len(returns))))


def plan(env_id: str) -> Plan:
    """Return the best known player of a task."""
    return PLANS[env_id]()


def _key() -> Plan:
    size, cells = small.KEY_SIZE, small.KEY_SIZE**2
    at = {place: place[0] * size + place[1] for place in itertools.product(range(size), repeat=2)}

    def beside(place: tuple[int, ...], way: tuple[int, int]) -> int:
        row, column = (min(max(a + b, 0), size - 1) for a, b in zip(place, way, strict=True))
        return at[row, column]

    ahead = np.array([[beside(place, way) for way in small.DIRECTIONS] for place in at])
    value, policies = np.zeros((2, cells)), []
    for _ in range(60):
        worth = value.copy()  # of arriving: without and with the key
        worth[0, at[small.KEY_PLACE]] = value[1, at[small.KEY_PLACE]]
        worth[1, at[small.KEY_EXIT]] = 1.0
        moved = worth[:, ahead]
        q = (1 - small.KEY_SLIP) * moved + small.KEY_SLIP * moved.mean(-1, keepdims=True)
        value = q.max(-1)
        policies.append(q.argmax(-1))
    table = jnp.asarray(np.stack(policies[::-1]))

    def player(inner: Any) -> Any:
        place, carries, time = inner
        return table[time, carries.astype(int), place[0] * size + place[1]]

    return Plan(player, float(value[0].mean()))


def _inventory() -> Plan:
    demand = np.array(small.DEMAND)
    shape = (small.STOCK + 1, 4, 4)
    stock, soon, later, order = np.meshgrid(*(np.arange(n) for n in (*shape, 4)), indexing="ij")
    value, policies = np.zeros(shape), []
    for _ in range(small.DAYS):
        q = np.zeros((*shape, 4))
        for wanted, probability in enumerate(demand):
            there = np.minimum(stock + soon, small.STOCK)
            sold = np.minimum(there, wanted)
            reward = small.PRICE * sold - small.COST * order - small.STORAGE * (there - sold)
            q += probability * (reward + value[there - sold, later, order])
        value = q.max(-1)
        policies.append(q.argmax(-1))
    table = jnp.asarray(np.stack(policies[::-1]))
    return Plan(lambda inner: table[inner[3], inner[0], inner[1], inner[2]], float(value[4, 0, 0]))


def _gates() -> Plan:
    # Six steps are between two walls, and five suffice from one end to the other.
    gates = sum(step % small.GATE_ROWS == small.GATE_ROWS - 1 for step in range(1, 49))
    return Plan(lambda inner: 1 + jnp.sign(inner[1] - inner[2]), float(gates))


def _hover() -> Plan:
    def player(inner: Any) -> Any:
        height, speed, _ = inner
        # Brake so that the speed is 0 at height 0: the thrust and the pull accelerate alike.
        return jnp.where(height + speed + (speed + small.PULL) * jnp.abs(speed) / (2 * small.PULL) < 0, 1, 0)

    return Plan(player, None)


def _sort() -> Plan:
    return Plan(lambda inner: small.right_bin(inner[0]), 20.0)


def _assembly() -> Plan:
    tools = jnp.array(small.TOOLS)
    return Plan(lambda inner: tools[inner[2] % 2, inner[0]], float(small.STAGES))


def _dock() -> Plan:
    def player(inner: Any) -> Any:
        place, velocity, _, _ = inner
        # The velocity that stops in time; the axis that is farther from it is pushed.
        wanted = -jnp.sign(place) * jnp.minimum(0.04, 0.25 * jnp.abs(place))
        error = wanted - velocity
        axis = jnp.argmax(jnp.abs(error))
        toward = jnp.where(error[axis] > 0, jnp.array([2, 1])[axis], jnp.array([4, 3])[axis])
        return jnp.where(jnp.abs(error[axis]) > small.PUSH / 2, toward, 0)

    return Plan(player, 1.0)


def _garden() -> Plan:
    ages = small.ROTTEN + 1
    shape = (ages,) * small.PLOTS
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    older = np.where(grid == 0, 0, np.minimum(grid + 1, small.ROTTEN))
    value, policies = np.zeros(shape), []
    for _ in range(small.SEASON):
        qs = [value[tuple(np.moveaxis(older, -1, 0))]]
        for plot in range(small.PLOTS):
            age, after = grid[..., plot], older.copy()
            after[..., plot] = age == 0
            ripe = (age >= small.RIPE) & (age < small.ROTTEN)
            qs.append(0.001 * (5.0 * ripe - 1.0 * (age == 0)) + value[tuple(np.moveaxis(after, -1, 0))])
        q = np.stack(qs, -1)
        value = q.max(-1)
        policies.append(q.argmax(-1))
    table = jnp.asarray(np.stack(policies[::-1]))
    return Plan(lambda inner: table[inner[1], inner[0][0], inner[0][1], inner[0][2]], float(value[0, 0, 0]))


def _collect() -> Plan:
    size, free = len(small.FIELD), [(int(row), int(column)) for row, column in small.FREE]
    distance = {apple: dict(_distances(apple, set(free))) for apple in free}
    # Every way to an apple ends at it, so the shortest way is best.
    policy = np.zeros((size, size, size, size), int)
    for apple, place in itertools.permutations(free, 2):
        steps = [distance[apple].get((place[0] + a, place[1] + b), np.inf) for a, b in small.DIRECTIONS]
        policy[(*place, *apple)] = int(np.argmin(steps))
    apart = np.array([[distance[apple][place] for apple in free if apple != place] for place in free])
    targets = np.array([[free.index(apple) for apple in free if apple != place] for place in free])
    value = np.zeros((51, len(free)))
    for left in range(1, 51):
        enough = apart <= left
        value[left] = np.where(enough, 1 + value[np.maximum(left - apart, 0), targets], 0).mean(-1)
    table = jnp.asarray(policy)
    return Plan(lambda inner: table[*inner[0], *inner[1]], float(value[50].mean()))


def _distances(goal: tuple[int, int], free: set[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield every free place with the number of moves from it to the goal."""
    edge, seen, steps = {goal}, {goal}, 0
    while edge:
        yield from ((place, steps) for place in edge)
        edge = {(row + a, column + b) for row, column in edge for a, b in small.DIRECTIONS} & free - seen
        seen, steps = seen | edge, steps + 1


def _stick() -> Plan:
    return Plan(lambda inner: jnp.where(inner[0] + 4.0 * inner[1] < 0, 2, 0), 200_000.0)


def _crossing() -> Plan:
    size = small.QUEUE + 1
    first, second, light, action = np.meshgrid(*(np.arange(n) for n in (size, size, 2, 2)), indexing="ij")
    lights = np.where(action == 1, 1 - light, light)

    def outcomes() -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        for one, two in itertools.product((0, 1), repeat=2):
            chance = np.prod([p if car else 1 - p for p, car in zip(small.ARRIVALS, (one, two), strict=True)])
            after = [
                np.minimum(np.maximum(queue - ((light == road) & (action == 0)), 0) + car, small.QUEUE)
                for road, (queue, car) in enumerate(((first, one), (second, two)))
            ]
            yield float(chance), *after

    def back(value: np.ndarray) -> np.ndarray:
        return np.sum([p * (-0.1 * (a + b) + value[a, b, lights]) for p, a, b in outcomes()], axis=0)

    value = np.zeros((size, size, 2))
    for _ in range(100):
        value = back(value).max(-1)
    policy = back(value).argmax(-1)  # of the first step: agents do not see how many steps are left
    value = np.zeros((size, size, 2))
    for _ in range(100):
        value = np.take_along_axis(back(value), policy[..., None], -1)[..., 0]
    table = jnp.asarray(policy)
    return Plan(lambda inner: table[inner[0][0], inner[0][1], inner[1]], float(value[:4, :4, 0].mean()))


def _knapsack() -> Plan:
    room = np.arange(small.ROOM + 1)[:, None, None]
    worth, weight = np.arange(1, small.VALUES + 1)[:, None], np.arange(1, small.WEIGHTS + 1)
    value, policies = np.zeros(small.ROOM + 1), []
    for _ in range(small.ITEMS):
        accept = np.where(weight <= room, worth + value[np.maximum(room - weight, 0)], -np.inf)
        reject = np.broadcast_to(value[room], accept.shape)
        policies.append((accept > reject).astype(int))
        value = np.maximum(accept, reject).mean((-2, -1))
    table = jnp.asarray(np.stack(policies[::-1]))
    return Plan(lambda inner: table[inner[4], inner[2], inner[0] - 1, inner[1] - 1], float(value[small.ROOM]))


PLANS: dict[str, Callable[[], Plan]] = {
    "small/key": _key,
    "small/inventory": _inventory,
    "small/gates": _gates,
    "small/hover": _hover,
    "small/sort": _sort,
    "small/assembly": _assembly,
    "small/dock": _dock,
    "small/garden": _garden,
    "small/collect": _collect,
    "small/stick": _stick,
    "small/crossing": _crossing,
    "small/knapsack": _knapsack,
}


def random_play(env_id: str, episodes: int, seed: int) -> Played:
    """Return the returns of random actions in the first episodes of so many environments."""
    env = registry.make(EnvRequest.of(env_id, num_envs=episodes), seed)
    agents = env.spec.num_agents

    @jax.jit
    def step(state: Any, row: Any, key: Key) -> tuple[Any, Any, Any]:
        state, row = env.step(state, random_actions(env.spec, key, row))
        return state, row, moment_of(row, agents)

    state, row = env.reset()
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    for key in map(jax.random.key, itertools.count(seed)):
        state, row, moment = step(state, row, key)
        returns += np.where(running, moment.reward, 0.0)
        running &= ~np.asarray(moment.last)
        if not running.any():
            break
    env.close()
    return Played(float(returns.mean()), 1.96 * float(returns.std(ddof=1)) / episodes**0.5)


def main() -> None:
    """Print a line for every task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minatar", action="store_true", help="MinAtar's games instead of the small tasks")
    parser.add_argument("--random", metavar="ENV", nargs="+", help="random actions in these environments alone")
    arguments = parser.parse_args()
    for env_id in arguments.random or ():
        random = random_play(env_id, arguments.episodes, arguments.seed)
        print(f"{env_id}: {random.mean:.5g} ± {random.margin:.2g}", flush=True)
    if arguments.random:
        return
    if arguments.minatar:
        print("game, random: measured (stated)")
        for env_id, (stated, _) in MINATAR.items():
            random, _ = play(env_id, lambda inner: 0, arguments.episodes, arguments.seed)
            print(f"{env_id}: {random.mean:.5g} ± {random.margin:.2g} ({stated:g})", flush=True)
        return
    print("task, random: measured (stated); best: measured (computed, stated)")
    for env_id, task in small.TASKS.items():
        made = plan(env_id)
        random, best = play(env_id, made.player, arguments.episodes, arguments.seed)
        print(
            f"{env_id}: {random.mean:.5g} ± {random.margin:.2g} ({task.random:g}); {best.mean:.6g} ± {best.margin:.2g} "
            f"({made.best if made.best is None else f'{made.best:.6g}'}, {task.best:g})",
            flush=True,
        )


if __name__ == "__main__":
    main()
