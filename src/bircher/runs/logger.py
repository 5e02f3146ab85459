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
from bircher.training.sharding import gathered
from bircher.types import Batch, Key, Policy, Trajectory
from bircher.viz.writers import Console, JsonLines, TensorBoard, Writer, damaged_path


class ReplaySampler:
    """A sampler of `count` sequences of the replay, which are put on the networks' device."""

    def __init__(self, learn: Learner, count: int):
        self._sample = jax.jit(lambda state, key: learn.replay.sample(state, key, count).rows)
        self._ready, self._on_host = learn.replay.ready, learn.replay_on_host

    def __call__(self, state: Any, key: Key) -> Trajectory | None:
        """Return sequences, or None before the replay contains one."""
        if not bool(self._ready(state)):
            return None
        if not self._on_host:
            return gathered(self._sample(state, key))
        return jax.device_put(self._sample(state, jax.device_put(key, devices.host())), devices.default())

    def shapes(self, state: Any) -> Trajectory:
        """Return the shapes of a call's result."""
        return jax.eval_shape(self._sample, state, jax.random.key(0))


SEQUENCES = 16
"""The largest number of sequences on which the gradients of loss terms are measured."""
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options that halve the time of compilation and double that of execution, for a program that runs about ten times."""


class GradientMonitor:
    """A measurement of the loss terms' gradients on sequences of the replay: norms, shares and cosines."""

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

        self._program: Any = jax.jit(measure, compiler_options=QUICK_COMPILATION)
        self._sampler = ReplaySampler(parts.learner, size)
        self._names = tuple(agent.weights)
        self._key = jax.random.key(config.seed)
        self._compiling: Thread | None = None

    def compile(self, train: PyTree) -> None:
        """Start to compile for a state of these shapes, on another thread."""
        arguments = without_replay(train), self._sampler.shapes(train.replay), self._key
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        self._compiling = Thread(target=self._compile, args=shapes, name="gradients by term")
        self._compiling.start()

    def _compile(self, *shapes: PyTree) -> None:
        self._program = self._program.lower(*shapes).compile()

    def __call__(self, train: TrainState) -> dict[str, float]:
        """Return metrics by name; the result is {} before the replay contains a sequence."""
        if self._compiling is not None:
            self._compiling.join()
        self._key, sample_key, key = jax.random.split(self._key, 3)
        rows = self._sampler(train.replay, sample_key)
        if rows is None:
            return {}
        # Transferred in one piece: indexing on the device would run a separate program for each number.
        measured = self._program(gathered(without_replay(train)), rows, key)
        return term_gradients.as_metrics(jax.device_get(measured), self._names)


SECONDS, SHARE = 10.0, 0.01
"""The shortest time between two examinations of a run in training, and the largest share of its time that they may
take."""
EPISODES = 20
"""The fewest training episodes over which a return is averaged."""
LINES = 2_000
"""The largest number of lines that a monitor stores, about 1 MB.  If there are more, every second one is dropped,
except those of evaluations."""


def facts(config: Config) -> doctor.Facts:
    """Return the properties of a run that the red flags need in addition to its metrics."""
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
        follows_returns=model.value_unit == "returns",
        exploration_weight=config.exploration.weight if config.exploration.kind != "none" else 0.0,
    )


def examine(path: str | Path) -> list[doctor.Flag]:
    """Return the red flags that a run's metrics raise, by number.

    Raises:
      RunFolderError: the folder has no run, or the run has no metrics yet.
    """
    config, lines = _read(Path(path))
    return doctor.examine(lines, facts(config))


def _read(path: Path) -> tuple[Config, list[dict[str, Any]]]:
    return directory.read_config(path), directory.read_metrics(path)


def questions(path: str | Path) -> list[tuple[str, str]]:
    """Return the usual questions about a run, each with an answer of this run's numbers and of settings to change.

    Raises:
      RunFolderError: as for `examine`.
    """
    config, lines = _read(Path(path))

    def usual(name: str) -> float:
        values = series(lines, name).values
        return float(np.median(values)) if len(values) else math.nan

    waiting = usual("speed/learner_waiting")
    acting, memory = usual("speed/acting_share"), series(lines, "speed/memory_bytes").values
    norms = series(lines, "model/gradient_norm").values
    speed = [f"{usual(f'speed/{name}_per_second'):,.0f} {word}" for name, word in _SPEEDS]
    replay, optimizer = config.replay, config.optimizer
    share = "" if math.isnan(acting) else f", {acting:.0%} of it acting"
    if not math.isnan(waiting):
        idle = usual("speed/workers_waiting")
        share, acting = (
            f", the learner waited for workers {waiting:.0%} of the time and they for it {idle:.0%}",
            waiting,
        )
    returns = agent_returns(lines)
    gradients = f"gradients of {np.median(norms):.3g}, at most {norms.max():.3g}: " if len(norms) else ""
    return [
        ("too slow?", f"{' and '.join(speed)} a second{share}: {', '.join(speed_advice(config, acting > 0.5))}"),
        (
            "out of memory?",
            (f"{memory.max() / 2**20:,.0f} MiB at most: " if len(memory) else "")
            + f"lower replay.capacity (now {replay.capacity:,}), env.num_envs (now {config.env.num_envs}), "
            + (
                "more optimizer.minibatches"
                if _has_epochs(config)
                else f"optimizer.batch_size (now {optimizer.batch_size})"
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
            f"{course(lines)}an act/entropy_share near 1 means that the policy learned nothing, near 0 that it stopped "
            "exploring (losses.entropy.weight); then try more steps, and `bircher diagnose` for the model",
        ),
        *([("which agents?", returns)] if returns else []),
    ]


def agent_returns(lines: Sequence[Line]) -> str:
    """Return the last returns of each of several agents as a clause, of evaluations if there are any, or ""."""
    for name in ("eval/agent_return/AGENT", "act/agent_return/AGENT"):
        group = name.removesuffix("AGENT")
        line = next((line for line in reversed(lines) if any(key.startswith(group) for key in line)), None)
        if line is not None:
            own = {key.removeprefix(group): line[key] for key in line if key.startswith(group)}
            kind = "evaluation" if group.startswith("eval") else "training"
            listed = ", ".join(f"{agent} {value:.4g}" for agent, value in own.items())
            return f"last {kind} returns of the agents: {listed}; an agent that was not there counts as 0"
    return ""


def course(lines: Sequence[Line]) -> str:
    """Return a clause with the first and the last returns: of evaluations if there are two or more, else of training.

    A line of metrics may contain a single episode, so that lines are combined until they have enough.
    """
    evaluated = series(lines, "eval/return_mean").values
    if len(evaluated) > 1:
        best = f", {evaluated.max():.4g} at best" if evaluated.max() > evaluated[-1] else ""
        return f"evaluations of {evaluated[0]:.4g} at first and {evaluated[-1]:.4g} at last{best}: "
    counted = [line for line in lines if not math.isnan(line.get("act/episode_return", math.nan))]
    if not counted:
        return ""
    ended = episodes_ended(counted)
    returns = np.array([line["act/episode_return"] for line in counted])
    least = max(ended.sum() / 10, EPISODES)
    first, last = (_mean_of_first(returns[::way], ended[::way], least) for way in (1, -1))
    return f"training returns of {first:.4g} at first and {last:.4g} at last: "


def _mean_of_first(returns: np.ndarray, ended: np.ndarray, least: float) -> float:
    """Return the mean over the first `least` episodes or more, from lines with `ended` episodes each."""
    count = int(np.searchsorted(np.cumsum(ended), least)) + 1
    return float(np.average(returns[:count], weights=ended[:count]))


def _has_epochs(config: Config) -> bool:
    """Return whether rollouts are used for several epochs, from which the numbers of updates and batches follow."""
    return config.optimizer.epochs > 1


def speed_advice(config: Config, acts: bool) -> list[str]:
    """Return what would make a run faster; `acts` says whether it spends most of its time on acting."""
    updates = (
        f"optimizer.epochs (now {config.optimizer.epochs})" if _has_epochs(config) else "optimizer.updates_per_step"
    )
    more = "more ray.workers" if config.loop.name == "ray" else "more env.num_envs or env.num_threads"
    advice = [more if acts else f"fewer {updates}"]
    advice += ["loop=pipeline"] if config.loop.name == "synchronous" else []
    advice += ["loop=ray"] if config.loop.name == "pipeline" and acts else []
    evaluations = config.evaluation.count
    return [*advice, "a smaller network", *([f"a lower evaluation.count (now {evaluations})"] if evaluations else [])]


_SPEEDS = (("env_steps", "environment steps"), ("updates", "updates"))


class DoctorMonitor:
    """The red flags of a run in training; each flag is returned once."""

    def __init__(self, run_facts: doctor.Facts, lines: list[dict[str, Any]] | None = None):
        self._facts = run_facts
        self._names: dict[tuple[str, ...], dict[str, int]] = {}
        self._lines = [self._packed(line) for line in lines or []]
        self._raised: set[int] = set()
        self._next = time.monotonic() + SECONDS

    def __call__(self, line: Mapping[str, Any], immediately: bool = False) -> list[doctor.Flag]:
        """Add a line and return new flags; lines are examined at intervals, or `immediately`."""
        self._lines.append(self._packed(line))
        if len(self._lines) > LINES:
            self._lines = [line for at, line in enumerate(self._lines) if at % 2 or "eval/return_mean" in line]
        start = time.monotonic()
        if not immediately and start < self._next:
            return []
        new = [flag for flag in doctor.examine(self._lines, self._facts) if flag.number not in self._raised]
        self._raised |= {flag.number for flag in new}
        ended = time.monotonic()
        self._next = ended + max(SECONDS, (ended - start) / SHARE)
        return new

    def _packed(self, line: Mapping[str, Any]) -> Packed:
        names = self._names.setdefault(tuple(line), {name: place for place, name in enumerate(line)})
        return Packed(names, line)


def sentence(flag: doctor.Flag) -> str:
    """Return a flag as one line for the console."""
    return f"red flag {flag.number}, {flag.name}: {flag.evidence}; {flag.cause}: {flag.advice}"


class Averages:
    """The metrics of chunks of iterations: means over iterations, and over episodes if any ended."""

    def __init__(self, agents: Sequence[str] = ()) -> None:
        self._longest = 0
        self._agents = agents

    def __call__(self, progress: Progress) -> dict[str, float]:
        """Return the metrics of one chunk by name, with the longest episode of the run so far."""
        tally, metrics = progress.tally, {}
        if episodes := int(tally.episodes):
            metrics["act/episode_return"] = float(tally.return_sum) / episodes
            metrics["act/episode_length"] = float(tally.length_sum) / episodes
            metrics["act/last_reward"] = float(tally.last_reward_sum) / episodes
            self._longest = max(self._longest, int(tally.longest))
            died = int(tally.died_at_longest) if int(tally.longest) == self._longest else 0
            metrics["act/deaths_at_longest"] = died / episodes
            metrics["act/longest_episode"] = float(self._longest)
            if tally.agent_returns is not None:
                means = [float(total) / episodes for total in tally.agent_returns]
                metrics |= glossary.of_agents("act/agent_return/AGENT", dict(zip(self._agents, means, strict=True)))
        return metrics | {name: float(total) / int(progress.iterations) for name, total in progress.metrics.items()}


def scores(report: Report) -> dict[str, float]:
    """Return the metrics of an evaluation by the names of the glossary."""
    normalized, optional = report.human_normalized, {}
    if normalized is not None:
        optional["eval/human_normalized"] = normalized["mean"]
    if report.episodes > 1:
        optional["eval/return_error"] = float(np.std(report.returns, ddof=1)) / report.episodes**0.5
    if report.cut_short:
        optional["eval/cut_short"] = report.cut_short / report.episodes
    if report.agents is not None:
        means = {name: agent.mean for name, agent in report.agents.items()}
        optional |= glossary.of_agents("eval/agent_return/AGENT", means)
    return optional | {
        "eval/return_mean": report.mean,
        "eval/return_median": report.median,
        "eval/return_iqm": report.iqm,
        "eval/length_mean": report.env_steps / report.episodes,
    }


class RunLogger:
    """The writers of a run's metrics: `metrics.jsonl`, TensorBoard events and the console."""

    def __init__(self, path: Path, config: Config, restored_env_steps: int | None):
        file = path / directory.METRICS
        lines = JsonLines(file, restored_env_steps)
        self._doctor = DoctorMonitor(facts(config), glossary.read(file))
        name = config.env.id.removeprefix(CALLABLE)
        self._path = path
        self._console = Console(f"{name}, {config.agent.name}, seed {config.seed}: {path}", config.steps)
        self._writers: list[Writer] = [lines, TensorBoard(path, restored_env_steps), self._console]
        if lines.damaged:
            one = len(lines.damaged) == 1
            numbers = f"line{'' if one else 's'} {', '.join(str(number) for number in lines.damaged)}"
            self.say(
                f"{numbers} of {file} cannot be read, and {'was' if one else 'were'} moved to {damaged_path(file).name}"
            )

    def write(self, counters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write one line of metrics.

        Raises:
          RunFailed: a file cannot be written, as on a full disk. Later calls write only to the console.
        """
        self._to_each(lambda writer: writer.write(counters, metrics))
        # After an evaluation the lines are examined immediately.
        for flag in self._doctor({**counters, **metrics}, "eval/return_mean" in metrics):
            self.say(sentence(flag))

    def image(self, tag: str, picture: np.ndarray, counters: Mapping[str, Any]) -> None:
        """Write a picture [height, width, 3] of bytes; raises what `write` raises."""
        self._to_each(lambda writer: writer.image(tag, picture, counters))

    def say(self, sentence: str) -> None:
        """Print a line to the console."""
        self._console.message(sentence)

    def close(self) -> None:
        """Write buffered data and close the files; print the name of a file that cannot be written."""
        files = [writer for writer in self._writers if writer is not self._console]
        for error in _close(files):
            self.say(f"the last events of {self._path} could not be written: {error.strerror}")
        self._console.close()

    def _to_each(self, act: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                act(writer)
            except OSError as error:
                # The buffered data of the other writers is for the same disk, and cannot be written either.
                _close([writer for writer in self._writers if writer is not self._console])
                self._writers = [] if writer is self._console else [self._console]
                raise RunFailed(f"the metrics of {self._path} cannot be written: {error.strerror}") from error


def _close(writers: Iterable[Writer]) -> list[OSError]:
    """Close every writer, and return the errors of those that could not write their buffered data."""
    errors = []
    for writer in writers:
        try:
            writer.close()
        except OSError as error:
            errors.append(error)
    return errors
