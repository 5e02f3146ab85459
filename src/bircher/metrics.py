"""The glossary of metrics, and the lines of ``metrics.jsonl``.

The glossary has every metric that a run may log, with its unit.  A metric's group is the word before the slash.  A new
metric is a line in the table below; a new loss term is a line in ``TERMS``, and appears under ``loss/`` and
``weighted/``.  The second half reads ``metrics.jsonl``, as lines or as one array for each metric.
"""

from __future__ import annotations

import difflib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bircher import renamed

COUNTERS = {
    "env_steps": "decisions taken in the environments; reset rows do not count",
    "env_frames": "decisions times the action repeat",
    "learner_steps": "updates of the parameters",
    "episodes": "training episodes that ended",
    "wall_seconds": "seconds of this run, including those before it was resumed",
}
"""The counters on every line, next to the metrics."""

GROUPS = {
    "act": "acting in the training environments",
    "loss": "the loss terms without their weights",
    "weighted": "the loss terms times their weights: what is summed and minimized",
    "target": "the targets of the loss",
    "model": "parameters, gradients and the errors of the model",
    "gradient": "norms and cosines of the weighted gradient of each term, for each part of the network",
    "speed": "speed and memory",
    "eval": "evaluation episodes, which are not used for training",
}
"""The groups of metrics, by the word before the slash."""

TERMS = {
    "policy_gradient": "importance-weighted policy gradient on the root's policy, advantages normalized",
    "cmpo": "KL from the clipped-MPO policy to the root's policy",
    "ppo_clip": "PPO's clipped surrogate of the policy gradient",
    "mpo": "KL from the unclipped MPO policy to the root's policy",
    "kl_to_behavior": "KL from the policy that acted to the root's policy: cross-entropy minus the former's entropy",
    "ppo_value": "half the squared error of the root's value, clipped around its value when the agent acted",
    "value": "categorical cross-entropy of the root's value, as its excess over the target's entropy",
    "policy": "KL from the search's policy to the root's policy",
    "model_policy": "KL from the improved policies to those predicted after 1 to K steps of the model",
    "model_value": "excess cross-entropy of the values predicted after 1 to K steps of the model",
    "entropy": "minus the entropy of the root's policy",
    "consistency": "1 - cosine between imagined and encoded latents after 1 to K steps; or their squared distance",
    "inverse_dynamics": "cross-entropy of the action between two observations, given their features",
    "disagreement": "mean squared error of the ensemble's predictions of the next observation's features",
    "model_reward": "excess cross-entropy of the rewards predicted by 1 to K steps of the model",
}
"""Every loss term by its name in ``losses.TERM``."""

PARTS = {
    "encoder": "the representation",
    "memory": "the recurrent memory of an agent with `model.memory`",
    "dynamics": "the dynamics",
    "reader": "the layers between a latent and the heads",
    "policy_head": "the policy's head",
    "value_head": "the value's head",
    "reward_head": "the reward's head",
    "projection": "the consistency term's projection",
    "exploration": "the networks of the bonus for exploring",
}
"""The parts of a network for which gradients are logged separately."""


class Metric(NamedTuple):
    """A metric's name, unit and description."""

    name: str
    unit: str
    text: str

    def __str__(self) -> str:
        return f"{self.name} [{self.unit}]: {self.text}"


_TABLE = (
    (
        "act/episode_return",
        "reward",
        "mean undiscounted return of the training episodes ended since the last line; of several agents the sum of "
        "theirs",
    ),
    ("act/agent_return/AGENT", "reward", "mean undiscounted return of one of several agents in the same episodes"),
    ("act/episode_length", "env steps", "mean length of the same episodes"),
    ("act/last_reward", "reward", "mean reward of the step that ended each of the same episodes"),
    (
        "act/deaths_at_longest",
        "share",
        "share of the same episodes that terminated at exactly the greatest length of the run so far",
    ),
    ("act/longest_episode", "env steps", "greatest episode length of the run since it was last resumed"),
    ("act/entropy", "nats", "mean entropy of the policy at the roots of the training batch"),
    (
        "act/entropy_share",
        "share",
        "mean entropy divided by log A, at the roots of the training batch with A legal actions, A at least 2",
    ),
    ("act/choice_share", "share", "roots with two legal actions or more; at 0 act/entropy_share is undefined"),
    ("act/kl_to_behavior", "nats", "KL from the policy that acted to the current policy, in the batch"),
    ("act/kl_to_prior", "nats", "KL from the current policy to the prior of its targets"),
    ("act/clipped_ratios", "share", "actions whose probability left PPO's range around its value at acting time"),
    ("act/policy_lag", "rollouts", "mean age of the policy that acted when its rollout is learned from; with loop=ray"),
    (
        "act/observation_size",
        "1",
        "greatest root mean square of an entry of the observation, over the batch's rows and before any normalization; "
        "not logged for booleans and images in bytes",
    ),
    (
        "act/observation_deviation",
        "1",
        "greatest standard deviation of an entry of the observation, in the same way",
    ),
    (
        "act/repeated_observations",
        "share",
        "transitions of replayed sequences whose observation and action occur there at least twice, without first rows",
    ),
    (
        "act/reward_ambiguity",
        "share",
        "share of the variance of these transitions' rewards that remains between equal observations and actions",
    ),
    ("target/bonus", "reward", "mean bonus for exploring that is added to the rewards of targets, with its weight"),
    ("target/bonus_share", "share", "mean bonus divided by the sum of the mean bonus and the mean absolute reward"),
    ("target/bonus_weight", "return", "root mean square of discounted sums of bonuses: the weight now"),
    (
        "target/largest_return",
        "return",
        "largest discounted sum of rewards of the run so far, without its sign and without bonuses; only with a bonus",
    ),
    ("target/value_mean", "return", "mean of the value targets"),
    ("target/value_size", "return", "mean absolute value of the value targets"),
    ("target/value_square", "return²", "mean square of the value targets"),
    ("target/replay_age", "env steps", "mean age of the batch's steps: the replayed share times the replay's mean age"),
    ("target/advantage_mean", "1", "mean of the normalized advantages"),
    ("target/advantage_scale", "return", "root of the moving second moment by which advantages are divided"),
    ("target/advantage_deviation", "1", "root mean square of the normalized advantages; 1 when the scale is right"),
    ("target/support_overflow", "share", "value and reward targets that are clipped to the categorical support"),
    ("target/cmpo_kl", "nats", "KL from the clipped-MPO policy to its prior: the size of the policy improvement"),
    ("target/clipped_advantages", "share", "actions whose normalized advantage the CMPO bound clips"),
    ("target/search_kl", "nats", "KL from the search's policy to the network's: the size of the policy improvement"),
    ("target/search_entropy", "nats", "entropy of the search's policy"),
    ("target/value_change", "return", "mean distance between a return and the search's value of the same row"),
    (
        "target/explained_variance",
        "1",
        "1 - var(target - value) / var(target); 1 is perfect, 0 is as good as a constant; clipped at -1; without a "
        "search the value is the target network's, before these updates",
    ),
    ("target/valid_share", "share", "rows of the training batch that take part in the loss"),
    (
        "target/priority_mean",
        "return",
        "mean priority of the batch's sequences before the exponent; only with priorities",
    ),
    (
        "target/importance_least",
        "1",
        "the batch's least importance weight; the mean over its replayed sequences is 1; only with priorities",
    ),
    (
        "model/latent_deviation",
        "1",
        "mean standard deviation of a latent's entries, each in [-1, 1], over a batch's rows",
    ),
    ("model/learning_rate", "1", "learning rate of the last updates"),
    ("model/gradient_norm", "1", "global norm of the gradient before any clipping"),
    ("model/parameter_norm", "1", "global norm of the parameters"),
    ("model/update_norm", "1", "norm of the change of the parameters by all updates of a rollout together"),
    *(
        (f"model/{name}_{word}", unit, f"{text}, {depth}")
        for name, unit, text in (
            ("reward_error", "reward", "root mean square error of the reward predicted along real episodes"),
            ("value_error", "return", "root mean square error of the predicted value to that of the encoded real row"),
            ("policy_kl", "nats", "KL from the policy of the encoded real row to the predicted one"),
        )
        for word, depth in (("first", "1 step deep"), ("middle", "K steps deep"), ("last", "2 K steps deep"))
    ),
    ("model/gain", "return", "expected return of the improved policy minus that of the prior, by the model's values"),
    (
        "model/advantage_correlation",
        "1",
        "correlation of the model's advantage of the action taken with the real one-step error r + gamma v(s') - v(s)",
    ),
    (
        "model/advantage_ceiling",
        "1",
        "that correlation if the model's advantages were true, sd(advantage) / sd(one-step error), at most 1",
    ),
    ("speed/env_steps_per_second", "1/s", "environment steps a second since the last line"),
    ("speed/updates_per_second", "1/s", "updates a second since the last line"),
    ("speed/acting_share", "share", "share of acting in the time of acting and learning, if these are two programs"),
    ("speed/learner_waiting", "share", "share of the time in which the learner waited for workers; with loop=ray"),
    ("speed/workers_waiting", "share", "mean share of the time in which a worker waited for a policy; with loop=ray"),
    ("speed/memory_bytes", "bytes", "memory of the process (on a GPU: on the device)"),
    (
        "eval/return_mean",
        "reward",
        "mean undiscounted return of the evaluation episodes; of several agents the sum of theirs",
    ),
    ("eval/agent_return/AGENT", "reward", "mean undiscounted return of one of several agents in the same episodes"),
    ("eval/return_error", "reward", "standard error of that mean"),
    ("eval/return_median", "reward", "median of the same returns"),
    ("eval/return_iqm", "reward", "interquartile mean of the same returns: the mean of their middle half"),
    ("eval/human_normalized", "fraction", "mean return on Atari, scaled so that a random player has 0 and a human 1"),
    ("eval/length_mean", "env steps", "mean length of the evaluation episodes"),
    (
        "eval/cut_short",
        "fraction",
        "evaluation episodes stopped at evaluation.max_steps, with the return until then; logged if any",
    ),
)

GLOSSARY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(*line) for line in _TABLE),
        *(Metric(f"loss/{term}", "nats", text) for term, text in TERMS.items()),
        *(
            Metric(f"gradient/{term}_{part}", "1", f"norm of {term}'s gradient for {text}")
            for term in TERMS
            for part, text in PARTS.items()
        ),
        *(
            Metric(f"gradient/{term}_share", "share", f"{term}'s share of the sum of all terms' norms for the encoder")
            for term in TERMS
        ),
        *(
            Metric(
                f"gradient/cosine_{first}_{second}",
                "1",
                f"cosine of the gradients of {first} and {second} for the encoder",
            )
            for first, second in permutations(TERMS, 2)
        ),
        *(Metric(f"weighted/{term}", "nats", f"{text}; times its weight") for term, text in TERMS.items()),
    )
}
"""Every metric by its full name."""

PICTURES = {"eval/episode": "a frame of the last evaluation's last episode"}
"""The pictures that are logged, by tag."""


def of_agents(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return a number for each agent as metrics; AGENT at the end of their name is replaced by that of the agent."""
    return {name.removesuffix("AGENT") + agent: value for agent, value in values.items()}


def describe(name: str) -> Metric:
    """Return the unit and the explanation of a metric, as in docs/reference/metrics.md.

    Raises:
      KeyError: the metric is unknown; the message gives the name that is spelled most like it.
    """
    family, slash, agent = name.rpartition("/")
    if slash and agent and f"{family}/AGENT" in GLOSSARY:
        return GLOSSARY[f"{family}/AGENT"]._replace(name=name)
    if name not in GLOSSARY:
        near = difflib.get_close_matches(name, GLOSSARY, 1)
        raise KeyError(f"no metric {name!r} in the glossary" + (f"; the nearest is {near[0]!r}" if near else ""))
    return GLOSSARY[name]


def check(names: Iterable[str]) -> None:
    """Raise ``KeyError`` at the first name that is not in the glossary."""
    for name in names:
        describe(name)


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``, oldest first, with NaN for null.

    Raises:
      ValueError: a line before the last is not a JSON object of numbers with all counters; the message gives its
        number.
    """
    lines, damaged = salvage(path)
    for number, text in damaged.items():
        raise ValueError(
            f"line {number} of {path} is not a line of metrics, but {text[:60]!r}; expected a JSON object of numbers"
        )
    return lines


def salvage(path: str | Path) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """Return the lines of a ``metrics.jsonl``, and the damaged ones by the numbers of their lines.

    A damaged last line is left out, because a killed process was still writing it.
    """
    texts = dict(enumerate(Path(path).read_bytes().removesuffix(b"\n").split(b"\n"), start=1))
    lines, damaged = [], {}
    for number, text in texts.items():
        try:
            lines.append(_numbers(json.loads(text)))
        except (ValueError, OverflowError, RecursionError):
            damaged[number] = text
    damaged.pop(len(texts), None)
    return lines, damaged


def _numbers(content: Any) -> dict[str, float | int]:
    """Return the numbers of one line, each finite or NaN, with NaN for null.

    Raises:
      ValueError: the line is not an object of numbers with the counters.
      OverflowError: a number is larger than any float.
    """
    if not isinstance(content, dict):
        raise ValueError("not an object")
    numbers = {}
    for name, value in content.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is not a number")
        numbers[renamed.METRICS.get(name, name)] = value if value is not None and math.isfinite(value) else math.nan
    # A line without `env_frames` is accepted, because no function reads them from a line.
    if any(math.isnan(numbers.get(name, math.nan)) for name in COUNTERS if name != "env_frames"):
        raise ValueError("a counter is missing")
    return numbers


Line = Mapping[str, Any]
"""One line of metrics."""


class Packed(Mapping[str, float]):
    """The metrics that were logged at one time, in an array, which takes a tenth of the memory of a dictionary.

    ``names`` maps each metric's name to its position in the array.  All objects with the same metrics share one
    ``names``.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: dict[str, int], line: Line):
        self._names, self._values = names, array("d", (float(line[name]) for name in names))

    def __getitem__(self, name: str) -> float:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Series(NamedTuple):
    """The values of one metric, from the lines that contain it."""

    values: np.ndarray
    learner_steps: np.ndarray
    env_steps: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def since(self, env_steps: float) -> Series:
        """Return the part from a number of environment steps on."""
        later = self.env_steps >= env_steps
        return Series(self.values[later], self.learner_steps[later], self.env_steps[later])

    @property
    def updates(self) -> int:
        """Return the number of updates between the first and the last line."""
        return int(self.learner_steps[-1] - self.learner_steps[0]) if len(self) else 0


def series(lines: Sequence[Line], name: str) -> Series:
    """Return a metric's values, oldest first, without NaN and without the lines that do not contain the metric."""
    selected = [line for line in lines if not math.isnan(line.get(name, math.nan))]
    columns = [np.array([line[key] for line in selected], float) for key in (name, "learner_steps", "env_steps")]
    return Series(*columns)


def episodes_ended(lines: Sequence[Line]) -> Float[np.ndarray, " N"]:
    """Return the number of training episodes of each line, by the difference of their counter.

    It is at least one, because these lines contain an episode's return.
    """
    return np.maximum(np.diff([line.get("episodes", 0) for line in lines], prepend=0), 1).astype(float)


BETTER = 0.3
"""Smallest rise of the returns, as a share of their range, that counts as learning."""


def rise(lines: Sequence[Line]) -> float | None:
    """Return the rise of training's returns from the first to the last third, as a share of their range.

    The range is between the quantiles 0.05 and 0.95.  It is None where a third has fewer than two values.
    """
    returns = series(lines, "act/episode_return").values
    third = len(returns) // 3
    if third < 2:
        return None
    spread = float(np.quantile(returns, 0.95) - np.quantile(returns, 0.05))
    return float(returns[-third:].mean() - returns[:third].mean()) / max(spread, 1e-12)


def by_span(
    at: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], spans: int
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Return weighted means of positions and of values over equal spans between the least and greatest position.

    Spans without weight are left out.

    Args:
      at: positions.
      values: a value at each position.
      weights: a weight of each value.
      spans: the number of spans.
    """
    span = np.digitize(at, np.linspace(at.min(), at.max(), spans + 1)[1:-1])
    total = np.bincount(span, weights, spans)
    nonempty = total > 0
    sums = (np.bincount(span, weights * column, spans) for column in (at, values))
    mean_at, mean_values = (column[nonempty] / total[nonempty] for column in sums)
    return mean_at, mean_values


def without_faded(lines: Sequence[Line], names: Sequence[str], share: float) -> list[Line]:
    """Return the lines without those where the sum of some metrics is below a share of the greatest sum so far."""
    result, greatest = [], 0.0
    for line in lines:
        total = sum(line.get(name, 0.0) for name in names)
        greatest = max(greatest, total)
        if total >= share * greatest or not any(name in line for name in names):
            result.append(line)
    return result


def last_stretch(values: Series, condition: np.ndarray) -> Series:
    """Return the longest part at the end of a series where a condition is true for all values."""
    failures = np.flatnonzero(~condition)
    begin = int(failures[-1]) + 1 if len(failures) else 0
    return Series(values.values[begin:], values.learner_steps[begin:], values.env_steps[begin:])


def longest_above(values: Series, bound: float) -> Series:
    """Return the longest stretch, by updates, of consecutive values above `bound`."""
    best, begin = Series(*(column[:0] for column in values)), None
    for at, value in enumerate(values.values):
        begin = None if value <= bound else at if begin is None else begin
        if begin is not None:
            stretch = Series(*(column[begin : at + 1] for column in values))
            best = stretch if stretch.updates >= best.updates else best
    return best
