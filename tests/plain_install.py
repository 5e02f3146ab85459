"""Run the commands of the README in small, as a user of an installed package would.

    python tests/plain_install.py              all of them, in a temporary folder that is removed
    python tests/plain_install.py atari check  these scenarios alone

For each adapter: train, evaluate, watch, plot, resume. The package is the one installed for the Python that runs this
script. A command that fails is printed with its output. The exit status is then 1.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).resolve().parents[1] / "README.md"
PARALLEL = 2
"""Scenarios that run at the same time."""
TIMEOUT = 300
"""Seconds after which a command counts as failed."""

NETWORK = "model.torso_widths=[16] model.latent_width=16 model.dynamics_widths=[16] model.unroll_steps=2"
LOOP = (
    "env.num_envs=4 loop.rollout_length=8 "
    "optimizer.batch_size=4 optimizer.epochs=1 optimizer.minibatches=1 optimizer.updates_per_step=0.03125"
)
SMALL = f"steps=512 replay.capacity=1024 evaluation.count=0 {LOOP} {NETWORK}"
"""Compilation takes most of a small run's time, and small networks compile sooner."""
PIXELS = f"{SMALL} observation.size=[16,16] model.torso=mlp env.stack=1 env.max_steps=12"
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA's flags, unless the user has set others: a short run of CartPole-v1 takes 15 s of processor time, not 22 s."""

ENVIRONMENT = '''
import gymnasium
import numpy as np

class Corridor(gymnasium.Env):
    """Walk to the right end in at most 20 steps; actions are 1 and 2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=1)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(3)), 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.place / 6, self.time / 20], np.float32)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.place, self.time = min(max(self.place + 2 * int(action) - 3, 0), 6), self.time + 1
        return self.observe(), float(self.place == 6), self.place == 6, self.time == 20, {}

    def render(self):
        frame = np.zeros((16, 112, 3), np.uint8)
        frame[:, 16 * self.place : 16 * self.place + 16] = 255
        return frame

class MarkedCorridor(Corridor):
    """The corridor as a grid: one channel marks the place, the other one the end."""

    observation_space = gymnasium.spaces.Box(0, 1, (5, 7, 2), np.float32)

    def observe(self):
        grid = np.zeros((5, 7, 2), np.float32)
        grid[2, self.place, 0] = grid[2, 6, 1] = 1
        return grid

gymnasium.register("Corridor-v0", entry_point=Corridor)
'''

CALLABLE = """
from pathlib import Path

import bircher
from bircher.runs import launch, loaded_agent
from bircher.viz import plots
from my_envs import MarkedCorridor

SMALL = {small!r}

run = bircher.train(MarkedCorridor, out="runs/callable", **SMALL)
agent = bircher.load(run.path, env=MarkedCorridor)
assert int(agent.act(MarkedCorridor().reset(seed=0)[0])) in (1, 2)
assert bircher.evaluate(agent, episodes=2).episodes == 2
frames = loaded_agent.episode_frames(agent, 0)
assert plots.write_video(frames, Path("runs/callable/video.mp4"), 10).stat().st_size > 0
assert launch.plot(Path(run.path)).stat().st_size > 0
assert bircher.resume(run.path, env=MarkedCorridor, steps=768).counters["env_steps"] >= 768
"""


class Command(NamedTuple):
    """A command line, and the files that it must have written."""

    line: str
    writes: tuple[str, ...] = ()
    status: tuple[int, ...] = (0,)
    """The exit statuses that are expected."""


class Scenario(NamedTuple):
    """Commands that run one after the other."""

    name: str
    commands: tuple[Command, ...]


class Failure(NamedTuple):
    """A command that did not do what was expected."""

    line: str
    reason: str
    output: str


def life_of_a_run(name: str, env: str, settings: str) -> Scenario:
    """Train, evaluate, watch, plot and resume in one environment."""
    run = f"runs/{name}"
    return Scenario(
        name,
        (
            Command(f"bircher train {env} {settings} --out {run}", (f"{run}/config.yaml", f"{run}/metrics.jsonl")),
            Command(f"bircher eval {run} --episodes 2 --json"),
            Command(f"bircher watch {run} --video {run}/video.mp4", (f"{run}/video.mp4",)),
            Command(f"bircher plot {run}", (f"{run}/learning_curve.png",)),
            Command(f"bircher train --resume {run} steps=768"),
        ),
    )


def more(scenario: Scenario, *commands: Command) -> Scenario:
    """The scenario with further commands after its own."""
    return scenario._replace(commands=scenario.commands + commands)


SCENARIOS = (
    Scenario("check", (Command("bircher check"), Command("bircher --version"))),
    more(
        life_of_a_run("lunarlander", "LunarLander-v3", SMALL),
        Command("bircher doctor runs/lunarlander", status=(0, 3)),
        Command("bircher diagnose runs/lunarlander --steps 1024", ("runs/lunarlander/diagnosis.png",)),
    ),
    life_of_a_run("cartpole", "CartPole-v1", SMALL),
    life_of_a_run("minatar", "Breakout-MinAtar", f"{SMALL} env.max_steps=30"),
    more(
        life_of_a_run("tic_tac_toe", "tic_tac_toe", f"agent=gumbel_muzero search.num_simulations=4 {SMALL}"),
        Command("bircher eval runs/tic_tac_toe --opponent minimax --episodes 4"),
        Command("bircher match runs/tic_tac_toe random --episodes 4"),
        Command("bircher search runs/tic_tac_toe --out tree.svg", ("tree.svg",)),
    ),
    life_of_a_run("frozenlake", "FrozenLake-v1", SMALL),
    life_of_a_run("atari", "Breakout-v5", f"{PIXELS} observation.gray=true"),
    life_of_a_run("registered", "my_envs:Corridor-v0", SMALL),
    Scenario("callable", (Command("python callable_env.py", ("runs/callable/video.mp4",)),)),
    Scenario("python", (Command("python readme.py"),)),
    Scenario(
        "settings",
        (
            Command("bircher config LunarLander-v3"),
            Command("bircher config LunarLander-v3 --summary"),
            Command("bircher envs MinAtar"),
            Command(f"bircher train CartPole-v1 agent=muzero search.num_simulations=4 {SMALL}"),
            Command(f"bircher train CartPole-v1 agent=ppo losses.cmpo.weight=0.01 {SMALL}"),
            Command(f"bircher train hex agent=gumbel_muzero loop=pipeline search.num_simulations=2 {SMALL}"),
            Command(f"bircher train LunarLander-v3 observation=pixels env.num_workers=1 {PIXELS}"),
        ),
    ),
    Scenario(
        "compare",
        (
            Command(
                f"bircher compare muesli ppo --env CartPole-v1 --seeds 1 --steps 512 --episodes 2 {LOOP} {NETWORK}"
                " evaluation.count=1 evaluation.episodes=2 --out comparison"
            ),
        ),
    ),
)  # fmt: skip


def small_settings() -> dict[str, object]:
    """`SMALL` as keyword arguments of `bircher.train`."""
    pairs = (pair.split("=") for pair in SMALL.split())
    return {key: [16] if value == "[16]" else float(value) if "." in value else int(value) for key, value in pairs}


def readme_snippet() -> str:
    """The README's Python example with a short training."""
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    for before, after in (("seed=0)", f"seed=0, **{small_settings()!r})"), ("episodes=100", "episodes=2")):
        if before not in code:
            raise SystemExit(f"the README's Python example has no {before!r} any more: mend {Path(__file__).name}")
        code = code.replace(before, after)
    return f"{code}\nassert report.episodes == 2\n"


def failure(command: Command, folder: Path, environment: dict[str, str]) -> Failure | None:
    """Run a command in a folder, and return what is wrong with the outcome, if anything."""
    try:
        done = subprocess.run(
            shlex.split(command.line), cwd=folder, env=environment, text=True, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return Failure(command.line, f"not done after {TIMEOUT} s", (error.stdout or b"").decode(errors="replace"))
    if done.returncode not in command.status:
        return Failure(command.line, f"exit status {done.returncode}", done.stdout)
    missing = [name for name in command.writes if not (folder / name).is_file() or not (folder / name).stat().st_size]
    return Failure(command.line, f"did not write {', '.join(missing)}", done.stdout) if missing else None


def run(scenario: Scenario, folder: Path, environment: dict[str, str]) -> list[Failure]:
    """Run a scenario's commands and report each with its time; the first that fails ends the scenario."""
    for command in scenario.commands:
        began = time.monotonic()
        failed = failure(command, folder, environment)
        result = "failed" if failed else "ok"
        print(f"{result:6} {time.monotonic() - began:6.1f} s  {scenario.name:12} {command.line[:90]}", flush=True)
        if failed:
            return [failed]
    return []


def prepared(folder: Path) -> Iterator[tuple[str, str]]:
    """The names and contents of the files that a user would have written."""
    yield "my_envs.py", ENVIRONMENT
    yield "callable_env.py", CALLABLE.format(small={**small_settings(), "model.torso": "mlp"})
    yield "readme.py", readme_snippet()


def main(*names: str) -> int:
    """Run the scenarios with these names, or all of them; return the exit status."""
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := set(names) - set(scenarios):
        print(f"unknown scenarios {', '.join(sorted(unknown))}: expected {', '.join(scenarios)}", file=sys.stderr)
        return 2
    chosen = [scenarios[name] for name in names or scenarios]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bircher-") as name:
        folder = Path(name)
        for file, content in prepared(folder):
            (folder / file).write_text(content, encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "JAX_"))}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment.setdefault("XLA_FLAGS", QUICK_COMPILATION)
        environment["BIRCHER_CACHE"] = str(folder / "cache")
        with ThreadPoolExecutor(PARALLEL) as pool:
            failures = sum(pool.map(lambda scenario: run(scenario, folder, environment), chosen), [])
    for failed in failures:
        print(f"\n== {failed.line}\n== {failed.reason}\n{failed.output}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(chosen) - len(failures)} of {len(chosen)} scenarios passed in {time.monotonic() - began:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
