"""Logging of a run: metrics to every writer, sentences to the console, gradients by term, and red flags."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bircher import devices
from bircher import metrics as glossary
from bircher.agents.base import weights_at
from bircher.analysis import doctor, term_gradients
from bircher.config.config import Config
from bircher.config.presets import CALLABLE
from bircher.errors import RunFailed
from bircher.metrics import Line, Packed, episodes_ended, series
from bircher.replay.batching import crop_sequences
from bircher.runs import directory
from bircher.runs.build import Parts
from bircher.training.evaluator import Report
from bircher.training.learner import Learner, TrainState, without_replay
from bircher.training.loops import Progress
from bircher.types import Batch, Key, Policy, Trajectory
from bircher.viz.writers import Console, JsonLines, TensorBoard, Writer, damaged_path


class Replayed:
    """`count` sequences at a call."""

    def __init__(self, learn: Learner, count: int):
        self._sample = jax.jit(lambda state, key: learn.replay.sample(state, key, count).rows)
        self._ready, self._apart = learn.replay.ready, learn.replay_on_host

    def __call__(self, state: Any, key: Key) -> Trajectory | None:
        """None before the replay holds a sequence."""
        if not bool(self._ready(state)):
            return None
        if not self._apart:
            return self._sample(state, key)
        return jax.device_put(self._sample(state, jax.device_put(key, devices.host())), devices.default())

    def shapes(self, state: Any) -> Trajectory:
        """What a call gives."""
        return jax.eval_shape(self._sample, state, jax.random.key(0))


SEQUENCES = 16
"""Most sequences that the terms' gradients are measured on."""
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""It runs some ten times in all: half of the compilation's time is worth more than twice its own."""


class GradientMonitor:
    """Norms, shares and cosines of the terms' gradients on sequences of the replay."""

    def __init__(self, parts: Parts, config: Config):
        agent, optimizer = parts.agent, config.optimizer
        size = min(optimizer.batch_size, SEQUENCES)

        def measure(train: TrainState, rows: Trajectory, key: jax.Array) -> term_gradients.TermGradients:
            target_key, cut_key, loss_key = jax.random.split(key, 3)
            batch = Batch(rows, jnp.full(size, -1), jnp.ones(size))
            targets, _ = agent.targets(Policy(train.target_params, train.agent_state), batch, target_key)
            if optimizer.crop_length is not None:
                batch, targets = crop_sequences(cut_key, batch, targets, optimizer.crop_length)
            progress = jnp.minimum(train.counters.env_steps / config.steps, 1.0)
            return term_gradients.measure(agent, train.params, train.agent_state, batch, targets, loss_key, progress)

        self._program: Any = jax.jit(measure, compiler_options=QUICKLY)
        self._replayed = Replayed(parts.learner, size)
        self._names = tuple(agent.weights)
        self._key = jax.random.key(config.seed)
        self._compiling: Thread | None = None

    def compile(self, train: PyTree) -> None:
        """Begin to compile for a state of these shapes, beside whatever else is done meanwhile."""
        given = without_replay(train), self._replayed.shapes(train.replay), self._key
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
        self._compiling = Thread(target=self._compile, args=shapes, name="gradients by term")
        self._compiling.start()

    def _compile(self, *shapes: PyTree) -> None:
        self._program = self._program.lower(*shapes).compile()

    def __call__(self, train: TrainState) -> dict[str, float]:
        """Metrics by name; none before the replay holds a sequence."""
        if self._compiling is not None:
            self._compiling.join()
        self._key, sample_key, key = jax.random.split(self._key, 3)
        rows = self._replayed(train.replay, sample_key)
        if rows is None:
            return {}
        # Brought over whole: taken apart on the device, each number would be a program of its own.
        return term_gradients.as_metrics(jax.device_get(self._program(without_replay(train), rows, key)), self._names)


SECONDS, SHARE = 10.0, 0.01
"""Between two looks at a run that learns, and the most of its time that they may take."""
EPISODES = 20
"""Fewest training episodes that a return is judged by."""
LINES = 2_000
"""Most that a watch remembers, some 1 MB; of more, every second is forgotten, but for evaluations."""


def facts(config: Config) -> doctor.Facts:
    """What the flags must know besides the metrics."""
    weights = config.losses.weights()
    replay, model = config.replay, config.model
    categorical = model.value_head == "categorical"
    return doctor.Facts(
        steps=config.steps,
        support=model.support,
        terms=tuple(weights),
        weights=tuple(max(float(weights_at(weights, share)[name]) for share in (0.0, 1.0)) for name in weights),
        replay_capacity=replay.capacity,
        replay_fraction=replay.fraction,
        rewards_clipped=config.env.reward_clip is not None,
        normalizes_observations=getattr(config.agent, "normalize_observations", None),
        atom_distance=model.make_support().width if categorical else 0.0,
        transform=model.transform,
        memory=model.memory != "none",
        stack=config.env.stack,
    )


def examine(path: str | Path) -> list[doctor.Flag]:
    """The flags that a run's metrics raise, by number.

    Raises:
      RunFolderError: there is no run, or no metrics of it yet.
    """
    config, lines = _read(Path(path))
    return doctor.examine(lines, facts(config))


def _read(path: Path) -> tuple[Config, list[dict[str, Any]]]:
    return directory.read_config(path), directory.read_metrics(path)


def questions(path: str | Path) -> list[tuple[str, str]]:
    """What is usually asked of a run, each with this run's numbers and what could be changed.

    Raises:
      RunFolderError: as `examine`.
    """
    config, lines = _read(Path(path))

    def usual(name: str) -> float:
        values = series(lines, name).values
        return float(np.median(values)) if len(values) else math.nan

    acting, memory = usual("speed/acting_share"), series(lines, "speed/memory_bytes").values
    norms = series(lines, "model/gradient_norm").values
    speed = [f"{usual(f'speed/{name}_per_second'):,.0f} {word}" for name, word in _SPEEDS]
    replay, optimizer = config.replay, config.optimizer
    share = "" if math.isnan(acting) else f", {acting:.0%} of it acting"
    gradients = f"gradients of {np.median(norms):.3g}, at most {norms.max():.3g}: " if len(norms) else ""
    return [
        ("too slow?", f"{' and '.join(speed)} a second{share}: {', '.join(quicker(config, acting > 0.5))}"),
        (
            "out of memory?",
            (f"{memory.max() / 2**20:,.0f} MiB at most: " if len(memory) else "")
            + f"lower replay.capacity (now {replay.capacity:,}), env.num_envs (now {config.env.num_envs}), "
            + (
                "more optimizer.minibatches" if _deals(config) else f"optimizer.batch_size (now {optimizer.batch_size})"
            ),
        ),
        (
            "the loss explodes?",
            f"{gradients}lower optimizer.learning_rate (now {optimizer.learning_rate:g}), or "
            + (
                f"optimizer.gradient_clip_bound (now {optimizer.gradient_clip_bound:g})"
                if optimizer.gradient_clip == "norm"
                else f"optimizer.gradient_clip=norm (now {optimizer.gradient_clip})"
            ),
        ),
        (
            "nothing is learned?",
            f"{course(lines)}an act/entropy_share near 1 was taught nothing, near 0 it stopped exploring "
            "(losses.entropy.weight); then more steps, and `bircher diagnose` for the model",
        ),
    ]


def course(lines: Sequence[Line]) -> str:
    """How returns went: by the evaluations where there are two or more, else by training's first and last episodes.

    A line of metrics may hold a single episode, so that lines are taken together until they hold enough.
    """
    tested = series(lines, "eval/return_mean").values
    if len(tested) > 1:
        best = f", {tested.max():.4g} at best" if tested.max() > tested[-1] else ""
        return f"evaluations of {tested[0]:.4g} at first and {tested[-1]:.4g} at last{best}: "
    counted = [line for line in lines if not math.isnan(line.get("act/episode_return", math.nan))]
    if not counted:
        return ""
    ended = episodes_ended(counted)
    returns = np.array([line["act/episode_return"] for line in counted])
    least = max(ended.sum() / 10, EPISODES)
    first, last = (_mean_of_first(returns[::way], ended[::way], least) for way in (1, -1))
    return f"training returns of {first:.4g} at first and {last:.4g} at last: "


def _mean_of_first(returns: np.ndarray, ended: np.ndarray, least: float) -> float:
    """The mean of the first `least` episodes or more, of lines that hold `ended` episodes each."""
    count = int(np.searchsorted(np.cumsum(ended), least)) + 1
    return float(np.average(returns[:count], weights=ended[:count]))


def _deals(config: Config) -> bool:
    """Whether rollouts are dealt out in epochs, from which updates and batches follow."""
    return config.optimizer.epochs > 1


def quicker(config: Config, acts: bool) -> list[str]:
    """What would make a run quicker that mostly acts, or mostly learns."""
    updates = f"optimizer.epochs (now {config.optimizer.epochs})" if _deals(config) else "optimizer.updates_per_step"
    advice = ["more env.num_envs or env.num_threads" if acts else f"fewer {updates}"]
    advice += [] if config.loop.name == "pipeline" else ["loop=pipeline"]
    evaluations = config.evaluation.count
    return [*advice, "a smaller network", *([f"a lower evaluation.count (now {evaluations})"] if evaluations else [])]


_SPEEDS = (("env_steps", "environment steps"), ("updates", "updates"))


class DoctorMonitor:
    """Raises each flag once while a run learns."""

    def __init__(self, known: doctor.Facts, lines: list[dict[str, Any]] | None = None):
        self._facts = known
        self._names: dict[tuple[str, ...], dict[str, int]] = {}
        self._lines = [self._packed(line) for line in lines or []]
        self._raised: set[int] = set()
        self._next = time.monotonic() + SECONDS

    def __call__(self, line: Mapping[str, Any], at_once: bool = False) -> list[doctor.Flag]:
        """Flags that are new with this line; looks only now and then, unless it is to `at_once`."""
        self._lines.append(self._packed(line))
        if len(self._lines) > LINES:
            self._lines = [kept for at, kept in enumerate(self._lines) if at % 2 or "eval/return_mean" in kept]
        began = time.monotonic()
        if not at_once and began < self._next:
            return []
        new = [flag for flag in doctor.examine(self._lines, self._facts) if flag.number not in self._raised]
        self._raised |= {flag.number for flag in new}
        ended = time.monotonic()
        self._next = ended + max(SECONDS, (ended - began) / SHARE)
        return new

    def _packed(self, line: Mapping[str, Any]) -> Packed:
        names = self._names.setdefault(tuple(line), {name: place for place, name in enumerate(line)})
        return Packed(names, line)


def sentence(flag: doctor.Flag) -> str:
    """A flag in one line, for the console."""
    return f"red flag {flag.number}, {flag.name}: {flag.evidence}; {flag.cause}: {flag.advice}"


class Averages:
    """What chunks of iterations measured: means over their iterations, and over their episodes where any ended."""

    def __init__(self) -> None:
        self._longest = 0

    def __call__(self, progress: Progress) -> dict[str, float]:
        """One chunk's, by name; it knows the longest episode of the run so far."""
        tally, metrics = progress.tally, {}
        if episodes := int(tally.episodes):
            metrics["act/episode_return"] = float(tally.return_sum) / episodes
            metrics["act/episode_length"] = float(tally.length_sum) / episodes
            metrics["act/last_reward"] = float(tally.last_reward_sum) / episodes
            self._longest = max(self._longest, int(tally.longest))
            died = int(tally.died_at_longest) if int(tally.longest) == self._longest else 0
            metrics["act/deaths_at_longest"] = died / episodes
            metrics["act/longest_episode"] = float(self._longest)
        return metrics | {name: float(total) / int(progress.iterations) for name, total in progress.metrics.items()}


def scores(report: Report) -> dict[str, float]:
    """An evaluation's numbers by their glossary names."""
    normalized, some = report.human_normalized, {}
    if normalized is not None:
        some["eval/human_normalized"] = normalized["mean"]
    if report.episodes > 1:
        some["eval/return_error"] = float(np.std(report.returns, ddof=1)) / report.episodes**0.5
    if report.cut_short:
        some["eval/cut_short"] = report.cut_short / report.episodes
    return some | {
        "eval/return_mean": report.mean,
        "eval/return_median": report.median,
        "eval/return_iqm": report.iqm,
        "eval/length_mean": report.env_steps / report.episodes,
    }


class RunLogger:
    """`metrics.jsonl`, TensorBoard events and the console, as one."""

    def __init__(self, path: Path, config: Config, restored_env_steps: int | None):
        file = path / directory.METRICS
        lines = JsonLines(file, restored_env_steps)
        self._watch = DoctorMonitor(facts(config), glossary.read(file))
        name = config.env.id.removeprefix(CALLABLE)
        self._path = path
        self._console = Console(f"{name}, {config.agent.name}, seed {config.seed}: {path}", config.steps)
        self._writers: list[Writer] = [lines, TensorBoard(path, restored_env_steps), self._console]
        if lines.damaged:
            one = len(lines.damaged) == 1
            numbers = f"line{'' if one else 's'} {', '.join(str(number) for number in lines.damaged)}"
            self.say(f"{numbers} of {file} cannot be read, and {'is' if one else 'are'} now in {damaged_path(file).name}")

    def write(self, counters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write one line of metrics.

        Raises:
          RunFailed: a file cannot be written, as on a full disk; later calls write to the console alone.
        """
        self._to_each(lambda writer: writer.write(counters, metrics))
        # An evaluation is worth a look at once.
        for flag in self._watch({**counters, **metrics}, "eval/return_mean" in metrics):
            self.say(sentence(flag))

    def image(self, tag: str, picture: np.ndarray, counters: Mapping[str, Any]) -> None:
        """Write a picture [height, width, 3] of bytes; raises what `write` does."""
        self._to_each(lambda writer: writer.image(tag, picture, counters))

    def say(self, sentence: str) -> None:
        """A line for whoever watches."""
        self._console.message(sentence)

    def close(self) -> None:
        """Write what is held back; a file that does not take it is named on the console."""
        files = [writer for writer in self._writers if writer is not self._console]
        for error in _close(files):
            self.say(f"the last events of {self._path} are not written: {error.strerror}")
        self._console.close()

    def _to_each(self, act: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                act(writer)
            except OSError as error:
                # What these hold back is of the same disk, and cannot be written either.
                _close([writer for writer in self._writers if writer is not self._console])
                self._writers = [] if writer is self._console else [self._console]
                raise RunFailed(f"the metrics of {self._path} cannot be written: {error.strerror}") from error


def _close(writers: Iterable[Writer]) -> list[OSError]:
    """Close every writer; the errors of those that could not write what they held back."""
    errors = []
    for writer in writers:
        try:
            writer.close()
        except OSError as error:
            errors.append(error)
    return errors
