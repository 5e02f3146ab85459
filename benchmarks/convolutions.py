"""An update of IMPALA's network on one core: bircher's, in several forms, beside PyTorch's channels-last one.

    python benchmarks/convolutions.py --torch build/torch/bin/python
    python benchmarks/convolutions.py ours direct --batch 32 --dry

Sections of 16, 32 and 32 channels with 2 blocks each, a layer of 256, 18 actions and a value; bytes of 84 × 84 × 4 go
in; cross-entropy and squared error, forward, backward and Adam.  Each form is a process of its own on the same core,
and they take turns, so that what else the machine does meets all of them.  Processor time is what is compared: it does
not count what others take.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import runner
from runner import Result, Study

SHAPE, NUM_ACTIONS = (84, 84, 4), 18
SECTIONS, BLOCKS, DENSE = (16, 32, 32), 2, 256
PEER = Path(__file__).parent / "peers" / "impala_torch.py"
TORCH = "PyTorch"


def keep_memory() -> None:
    """Have glibc keep what a program frees for its next call, instead of taking it from the kernel anew.

    To be called before JAX is first used: threads that are there already keep a pool of memory each.
    """
    mallopt = ctypes.CDLL(None).mallopt
    # The numbers are those of malloc.h: one pool for all threads, no mappings of their own for large blocks.
    arena_max, mmap_max, trim_threshold = -8, -4, -1
    mallopt(arena_max, 1), mallopt(mmap_max, 0), mallopt(trim_threshold, 1 << 30)


class Form(NamedTuple):
    """What differs from bircher's own choices."""

    convolution: str = "ours"
    pool: str = "ours"
    precision: str = "float32"
    keep: bool = False
    """Whether the process keeps freed memory (`keep_memory`), which bircher leaves to whoever starts it."""
    loop: int = 1
    """Updates in one call, in a loop as training has them: XLA treats convolutions there otherwise."""
    flags: str = ""
    """For XLA."""


FORMS = {
    "ours": Form(),
    "as JAX has it": Form("direct", "reduce_window"),
    "ours, in a loop": Form(loop=4),
    "as JAX has it, in a loop": Form("direct", "reduce_window", loop=4),
    "memory kept": Form(keep=True),
    "maxima by reduce_window": Form(pool="reduce_window"),
    "maxima by strided slices": Form(pool="slices"),
    "direct": Form("direct"),
    "direct, NCHW": Form("nchw"),
    "patches": Form("patches"),
    "patches by JAX": Form("jax_patches"),
    "shifted products": Form("shifted"),
    "bfloat16": Form(precision="bfloat16"),
    "no YNNPACK": Form(flags="--xla_cpu_experimental_ynn_fusion_type="),
    "oneDNN": Form(flags="--xla_cpu_use_onednn=true"),
    "vectors of 512 bits": Form(flags="--xla_cpu_prefer_vector_width=512"),
    "no fusion emitters": Form(flags="--xla_cpu_use_fusion_emitters=false"),
    "one thread in Eigen": Form(flags="--xla_cpu_multi_thread_eigen=false"),
    "fast math": Form(flags="--xla_cpu_enable_fast_math=true"),
    "other scheduler": Form(flags="--xla_cpu_enable_concurrency_optimized_scheduler=false"),
}


def patch(form: Form) -> None:
    """Put the form in place of bircher's choices."""
    import jax
    import jax.numpy as jnp

    from bircher.networks import conv, encoders

    def lax(x, kernel, stride, layout="NHWC"):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=(layout, "HWIO", layout)
        )

    def nchw(x, kernel, stride=1, pad=True):
        return lax(x.transpose(0, 3, 1, 2), kernel, stride, "NCHW").transpose(0, 2, 3, 1)

    def jax_patches(x, kernel, stride=1, pad=True):
        size = kernel.shape[0]
        patches = jax.lax.conv_general_dilated_patches(
            x, (size, size), (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        # JAX puts a patch's inputs before its rows and columns.
        return patches @ kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])

    def shifted(x, kernel, stride=1, pad=True):
        height, width = x.shape[1:3]
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        parts = (x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))
        return sum(parts)

    def window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    def slices(x):
        for axis in (1, 2):
            length, half = x.shape[axis], -(-x.shape[axis] // 2)
            around = [(length % 2, 1) if i == axis else (0, 0) for i in range(4)]
            x = jnp.pad(x, around, constant_values=-jnp.inf)
            parts = [jax.lax.slice_in_dim(x, i, i + 2 * half - 1, 2, axis) for i in range(3)]
            x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
        return x

    known = {
        "direct": lambda x, kernel, stride=1, pad=True: lax(x, kernel, stride),
        "patches": lambda x, kernel, stride=1, pad=True: conv.by_patches(x, kernel, pad),
        "nchw": nchw, "jax_patches": jax_patches, "shifted": shifted,
    }  # fmt: skip
    if form.convolution != "ours":
        conv.convolve = known[form.convolution]
    if form.pool != "ours":
        encoders.max_pool = {"reduce_window": window, "slices": slices}[form.pool]


def make_update(form: Form, batch: int):
    """The program and what it begins with: (parameters, optimizer's state, images, actions, goals)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from bircher.networks.model import Model, ModelConfig
    from bircher.types import Discrete, EnvSpec

    patch(form)
    if form.keep:
        keep_memory()
    spec = EnvSpec("benchmark", jax.ShapeDtypeStruct(SHAPE, np.uint8), Discrete(NUM_ACTIONS))
    config = ModelConfig(
        torso="impala", sections=SECTIONS, section_blocks=BLOCKS, dense_width=DENSE, latent_width=NUM_ACTIONS + 1,
        precision=form.precision,
    )  # fmt: skip
    optimizer = optax.adam(1e-4)

    def loss(model, images, actions, goals):
        # Of the torso alone: its last layer stands for both heads.
        out = model.representation.mlp.last(model.features(images)).astype(jnp.float32)
        policy = optax.softmax_cross_entropy_with_integer_labels(out[:, :-1], actions).mean()
        return policy + jnp.square(out[:, -1] - goals).mean()

    def update(model, state, images, actions, goals):
        value, gradient = jax.value_and_grad(loss)(model, images, actions, goals)
        step, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, step), state, value

    model = Model(spec, config, jax.random.key(0), imagine=False)
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (batch, *SHAPE)).astype(np.uint8), rng.integers(0, NUM_ACTIONS, batch)
    data = tuple(jnp.asarray(x) for x in (*given, rng.normal(size=batch).astype(np.float32)))

    def updates(model, state, images, actions, goals):
        def one(carry, _):
            model, state, value = update(*carry, images, actions, goals)
            return (model, state), value

        (model, state), values = jax.lax.scan(one, (model, state), length=form.loop)
        return model, state, values[-1]

    program = jax.jit(update if form.loop == 1 else updates, donate_argnums=(0, 1))
    return program, [model, optimizer.init(model), *data]


def serve(name: str, batch: int) -> None:
    """Make as many calls as each line of the input says, and answer with the seconds of an update in each."""
    import jax

    update, arguments = make_update(FORMS[name], batch)
    for line in sys.stdin:
        wall, processor, value = [], [], 0.0
        for _ in range(int(line)):
            began, used = time.perf_counter(), time.process_time()
            arguments[0], arguments[1], value = jax.block_until_ready(update(*arguments))
            wall.append((time.perf_counter() - began) / FORMS[name].loop)
            processor.append((time.process_time() - used) / FORMS[name].loop)
        print(json.dumps({"wall": wall, "processor": processor, "loss": float(value)}), flush=True)


class Contender:
    """One process on one core, which works only while it is asked to."""

    def __init__(self, command: list[str], core: int, flags: str):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self.processor: list[float] = []
        self.wall: list[float] = []
        self._ask(2)  # compiles

    def _ask(self, count: int) -> dict:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def turn(self, count: int) -> None:
        """So many updates; each turn is remembered by its median."""
        found = self._ask(count)
        self.processor.append(statistics.median(found["processor"]))
        self.wall.append(statistics.median(found["wall"]))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def convolutions(options: argparse.Namespace) -> Iterator[Result]:
    """Measure each form and print a table; ratios to PyTorch are medians over rounds."""
    if options.serve:
        serve(options.serve, options.batch)
        return
    names = options.forms or list(FORMS)
    if unknown := [name for name in names if name not in FORMS]:
        raise SystemExit(f"unknown form {unknown[0]!r}; known: {', '.join(FORMS)}")
    contenders = {}
    if options.torch:
        contenders[TORCH] = Contender([options.torch, str(PEER), "--batch", str(options.batch)], options.core, "")
    for name in names:
        command = [sys.executable, __file__, "--serve", name, "--batch", str(options.batch)]
        contenders[name] = Contender(command, options.core, FORMS[name].flags)
    for _ in range(options.rounds):
        for contender in contenders.values():
            contender.turn(options.repeats)
    rows = report(contenders)
    for contender in contenders.values():
        contender.close()
    sizes = {"batch": options.batch, "rounds": options.rounds, "repeats": options.repeats}
    yield Result({**sizes, "rows": rows})


def report(contenders: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """Print the table and return its rows."""
    rows = {}
    for name, contender in contenders.items():
        rows[name] = {"processor_ms": 1e3 * statistics.median(contender.processor),
                      "wall_ms": 1e3 * statistics.median(contender.wall)}  # fmt: skip
        if TORCH in contenders:
            pairs = zip(contender.processor, contenders[TORCH].processor, strict=True)
            rows[name]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    print("| form | processor, ms | of PyTorch's | wall, ms |\n|---|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(f"| {name} | {row['processor_ms']:.1f} | {ratio} | {row['wall_ms']:.1f} |")
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("forms", nargs="*", help=f"of: {', '.join(FORMS)}; all if none is named")
    parser.add_argument("--torch", help="the Python of PyTorch's environment (benchmarks/peers/README.md)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8, help="updates in each turn")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)


if __name__ == "__main__":
    runner.main(__doc__, {"convolutions": Study(convolutions, _arguments)})
