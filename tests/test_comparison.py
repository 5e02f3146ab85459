"""What is said of few runs, against rliable."""

from __future__ import annotations

import numpy as np
import pytest
from rliable import library, metrics
from scipy.stats import trim_mean

from bircher.experiments import compare, statistics
from bircher.experiments.statistics import Curve

GENERATOR = np.random.default_rng(0)
OURS = {"a": [1.0, 3.0, 2.5, 7.0], "b": [0.5, 0.25, 0.75, 0.0], "c": [-3.0, -1.0, 0.0, 4.0]}
THEIRS = {"a": [2.0, 2.0, 2.5, 1.0], "b": [0.5, 0.5, 0.9, 0.1], "c": [-9.0, -2.0, 1.0, 0.0]}


def matrix(scores):
    return np.stack(list(scores.values()), axis=1)


def test_statistics_are_rliables():
    assert statistics.iqm(OURS, GENERATOR).value == pytest.approx(metrics.aggregate_iqm(matrix(OURS)))
    assert statistics.median(OURS, GENERATOR).value == pytest.approx(metrics.aggregate_median(matrix(OURS)))
    found = statistics.probability_of_improvement(OURS, THEIRS, GENERATOR).value
    assert found == pytest.approx(metrics.probability_of_improvement(matrix(OURS), matrix(THEIRS)))


@pytest.mark.slow
def test_intervals_are_rliables():
    """On numbers without steps, where a quantile does not jump from one resampling to the next."""
    draw = np.random.default_rng(1)
    one, other = ({env: list(draw.normal(mean, 1.0, 8)) for env, mean in zip("abc", means, strict=True)}
                  for means in ((0.0, 1.0, 2.0), (0.3, 0.9, 1.0)))  # fmt: skip
    together = {"x,y": (matrix(one), matrix(other))}
    oracle = {
        "iqm": library.get_interval_estimates(
            {"x": matrix(one)}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
        ),
        "median": library.get_interval_estimates(
            {"x": matrix(one)}, lambda x: np.array([metrics.aggregate_median(x)]), reps=2000
        ),
        "improvement": library.get_interval_estimates(together, metrics.probability_of_improvement, reps=1000),
    }
    ours = {
        "iqm": statistics.iqm(one, GENERATOR),
        "median": statistics.median(one, GENERATOR),
        "improvement": statistics.probability_of_improvement(one, other, GENERATOR),
    }
    for name, (_, intervals) in oracle.items():
        low, high = np.ravel(next(iter(intervals.values())))
        assert ours[name].low == pytest.approx(low, abs=0.1 * (high - low)), name
        assert ours[name].high == pytest.approx(high, abs=0.1 * (high - low)), name


def test_the_interquartile_mean_is_scipys():
    values = np.concatenate([OURS["a"], OURS["b"], OURS["c"]])
    assert statistics.iqm(OURS, GENERATOR).value == pytest.approx(trim_mean(values, 0.25))


def test_improvement_counts_pairs_and_ties_half():
    estimate = statistics.probability_of_improvement({"a": [1.0, 2.0]}, {"a": [1.0, 0.0]}, GENERATOR)
    assert estimate.value == (0.5 + 1 + 1 + 1) / 4
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    with pytest.raises(ValueError, match="no environment has runs of both"):
        statistics.probability_of_improvement({"a": [1.0]}, {"b": [1.0]}, GENERATOR)


def test_one_seed_has_no_spread_and_many_have_less():
    single = statistics.iqm({"a": [3.0]}, GENERATOR)
    assert single == (3.0, 3.0, 3.0)
    widths = []
    for runs in (5, 80):
        found = statistics.iqm({"a": np.random.default_rng(1).normal(size=runs).tolist()}, GENERATOR)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_normalized_scores_run_from_the_floor_to_the_best_mean():
    scores = {"x": {"a": [10.0, 20.0], "b": [0.0]}, "y": {"a": [5.0, 5.0], "b": [-1.0]}}
    found = statistics.normalize(scores, {"a": 5.0, "b": 1.0})
    assert found == {"x": {"a": [0.5, 1.5], "b": [0.0]}, "y": {"a": [0.0, 0.0], "b": [0.0]}}


def test_a_band_covers_the_steps_that_all_runs_have():
    curves = [Curve([10, 20, 40], [1.0, 2.0, 4.0], [0.0, 1.0, 3.0]), Curve([0, 30], [0.0, 6.0], [0.0, 6.0])]
    steps = statistics.band(curves, "env_steps", 3)
    assert steps.x == [10, 20, 30]
    assert steps.mean == [1.0, 2.5, 4.0] and steps.low == [0.0, 1.0, 2.0] and steps.high == [2.0, 4.0, 6.0]
    assert statistics.band(curves, "wall_seconds", 2).x == [1.0, 4.0]


def test_the_size_of_a_loss_term_is_its_mean_late_in_the_runs():
    def run(*values: float) -> list[dict[str, float]]:
        steps = range(100, 100 * len(values) + 1, 100)
        return [
            {"env_steps": step, "loss/value": value, "weighted/value": -value / 2, "loss/policy": 1.0,
             "weighted/policy": 1.0}
            for step, value in zip(steps, values, strict=True)
        ]  # fmt: skip

    runs = [run(9.0, 9.0, 4.0), run(9.0, 9.0, 9.0, 9.0, 7.0, 9.0)]
    rows = {row.term: row for row in compare._losses("toy/one", "ppo", [*runs, [{"env_steps": 5}]])}
    assert set(rows) == {"policy", "value"}, "terms that no run has are left out"
    assert (rows["value"].loss, rows["value"].weighted) == (6.0, -3.0)
    assert rows["value"].share == 0.75 and rows["policy"].share == 0.25
