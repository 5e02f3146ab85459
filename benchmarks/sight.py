"""What networks can read off from pictures: the environment's own numbers, learned from its frames by regression.

    python benchmarks/sight.py LunarLander-v3
    python benchmarks/sight.py LunarLander-v3 --torsos spatial_softmax dqn_cnn --size 64 96 --gray

Random actions, each held for a while, show pictures and what Gymnasium's environment itself would have given for
observation; a torso and one linear layer learn the second from the first.  Printed is the share of the variance that
is explained in episodes that were not learned from (1 is perfect, 0 a constant, less is worse than that), number by
number, and what an update took.  An agent must see these before it can act by them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ledger import append, commit, machine

from bircher.envs.rendering import Pixels, quieten
from bircher.networks.config import ModelConfig
from bircher.networks.encoders import make_torso
from bircher.networks.layers import Linear
from bircher.types import Discrete, EnvSpec

WIDTH = 128
CHUNK = 50
"""Updates of one call, in a loop, as training has them."""
HELD = 8
"""Most decisions that an action is held for."""


class Noted(gymnasium.Wrapper):
    """Keeps what the environment itself shows, and lets each action last."""

    def __init__(self, env: gymnasium.Env, repeat: int):
        super().__init__(env)
        self.repeat = repeat
        self.numbers: np.ndarray = np.zeros(0)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Several steps."""
        for _ in range(self.repeat):
            answer = self.env.step(action)
            if answer[2] or answer[3]:
                break
        self.numbers = np.asarray(answer[0], np.float32)
        return answer


def play(given: argparse.Namespace, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacked pictures and the numbers behind them, of whole episodes."""
    noted = Noted(gymnasium.make(given.env, render_mode="rgb_array"), given.repeat)
    env, draw = Pixels(noted, tuple(given.size), given.gray), np.random.default_rng(seed)
    seen: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    episode = 0
    while len(seen) < frames:
        picture, _ = env.reset(seed=seed + episode)
        stack, over, held, episode = [picture] * given.stack, False, 0, episode + 1
        while not over:
            if not held:
                action, held = draw.integers(env.action_space.n), draw.integers(1, HELD + 1)
            held -= 1
            picture, _, terminal, truncated, _ = env.step(action)
            over, stack = terminal or truncated, [*stack[1:], picture]
            seen.append(np.concatenate(stack, axis=-1))
            numbers.append(noted.numbers)
    env.close()
    return np.stack(seen), np.stack(numbers)


def explained(name: str, given: argparse.Namespace, learned: tuple, held_out: tuple) -> tuple[np.ndarray, float, float]:
    """Shares of the variance by number, then wall and processor milliseconds a picture of an update."""
    pictures, numbers = learned
    varying = numbers.std(0) > 1e-6
    mean, deviation = numbers.mean(0), np.where(varying, numbers.std(0), 1.0)
    targets = jnp.asarray((numbers - mean) / deviation)
    spec = EnvSpec(given.env, jax.ShapeDtypeStruct(pictures.shape[1:], np.uint8), Discrete(2))
    keys = jax.random.split(jax.random.key(given.seed), 3)
    network: Any = (
        make_torso(ModelConfig.model_validate({"torso": name}), spec, keys[0], WIDTH),
        Linear(WIDTH, targets.shape[1], keys[1]),
    )
    descent = optax.adam(optax.cosine_decay_schedule(1e-3, given.updates))

    def predict(network: Any, pictures: jax.Array) -> jax.Array:
        return network[1](network[0](pictures.astype(jnp.float32) / 255.0))

    def update(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        network, state = carry
        index = jax.random.randint(key, (given.batch,), 0, len(targets))
        error = lambda network: jnp.square(predict(network, pictures[index]) - targets[index]).mean()  # noqa: E731
        loss, gradient = jax.value_and_grad(error)(network)
        step, state = descent.update(gradient, state)
        return (eqx.apply_updates(network, step), state), loss

    pictures = jnp.asarray(pictures)
    several = jax.jit(lambda carry, key: jax.lax.scan(update, carry, jax.random.split(key, CHUNK))[0], donate_argnums=0)
    carry = several((network, descent.init(network)), keys[2])
    began, used = time.perf_counter(), time.process_time()
    for number in range(1, given.updates // CHUNK):
        carry = jax.block_until_ready(several(carry, jax.random.fold_in(keys[2], number)))
    shown = (given.updates // CHUNK - 1) * CHUNK * given.batch
    wall, processor = (1e3 * (now - then) / shown for now, then in
                       ((time.perf_counter(), began), (time.process_time(), used)))  # fmt: skip
    answer, batches = jax.jit(predict), np.array_split(held_out[0], -(-len(held_out[0]) // 250))
    found = np.concatenate([np.asarray(answer(carry[0], jnp.asarray(some))) for some in batches]) * deviation + mean
    spread = np.where(varying, held_out[1].var(0), np.nan)
    return 1.0 - np.square(found - held_out[1]).mean(0) / spread, wall, processor


def main() -> None:
    """Play, learn with each torso in turn, print, and append to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--torsos", nargs="+", default=["spatial_softmax", "dqn_cnn"])
    parser.add_argument("--size", type=int, nargs=2, default=[48, 72])
    parser.add_argument("--gray", action="store_true")
    parser.add_argument("--stack", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="steps that each action lasts")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print only, leave the ledger as it is")
    given = parser.parse_args()
    quieten()
    learned, held_out = play(given, given.frames, given.seed), play(given, given.frames // 4, given.seed + 1_000_000)
    rows = {}
    for name in given.torsos:
        shares, wall, processor = explained(name, given, learned, held_out)
        rows[name] = {"explained": [round(float(x), 3) for x in shares], "wall_ms": wall, "processor_ms": processor}
        print(
            f"{name:16s} {' '.join(f'{x:6.2f}' for x in shares)}, {processor:.2f} ms of processor a picture", flush=True
        )
    if not given.dry:
        told = {key: value for key, value in vars(given).items() if key not in ("torsos", "dry")}
        append({"name": "sight", "command": "python benchmarks/sight.py", "commit": commit(), "machine": machine(),
                **told, "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main()
