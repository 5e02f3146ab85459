"""Metrics over a run as arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bircher.metrics import Packed, by_span, series


def test_means_over_spans_are_those_by_hand() -> None:
    """Spans of 10 from 0 to 30; the middle one is empty, and the last holds its end."""
    at, values, weights = (np.array(x, float) for x in ([0, 4, 9, 20, 30], [1, 2, 6, 3, 5], [1, 1, 2, 3, 1]))
    where, what = by_span(at, values, weights, 3)
    np.testing.assert_allclose(where, [(0 + 4 + 18) / 4, (60 + 30) / 4])
    np.testing.assert_allclose(what, [(1 + 2 + 12) / 4, (9 + 5) / 4])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-9, 9), st.integers(0, 3)), min_size=1), st.integers(1, 9))
def test_means_over_spans_lie_between_the_extremes(rows: list[tuple[int, int, int]], spans: int) -> None:
    """Spans lie in order, and no mean outside what it is of; a single span has the mean of all."""
    at, values, weights = np.array(sorted(rows), float).T
    where, what = by_span(at, values, weights, spans)
    assert len(where) <= spans and np.all(np.diff(where) > 0)
    assert len(where) > 0 or not weights.any()
    if len(where):
        used = values[weights > 0]
        assert used.min() - 1e-9 <= what.min() and what.max() <= used.max() + 1e-9
    if spans == 1 and weights.any():
        expected = [[np.average(column, weights=weights)] for column in (at, values)]
        np.testing.assert_allclose((where, what), expected)


def test_a_packed_line_is_the_line() -> None:
    line = {"env_steps": 2**40 + 1, "learner_steps": 3, "loss/value": 0.1, "loss/policy": float("nan")}
    packed = Packed({name: place for place, name in enumerate(line)}, line)
    assert dict(packed) == pytest.approx(line, nan_ok=True) and packed["loss/value"] == 0.1
    assert list(packed) == list(line) and len(packed) == 4 and "loss/value" in packed
    assert "eval/return_mean" not in packed and packed.get("eval/return_mean", 7) == 7
    with pytest.raises(KeyError):
        packed["eval/return_mean"]
    for name in line:
        for one, other in zip(series([line], name), series([packed], name), strict=True):
            np.testing.assert_array_equal(one, other)
