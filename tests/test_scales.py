"""Red flags of scale, held against numbers worked out by hand and against plain loops."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bircher.agents.loss_terms import TABLE
from bircher.agents.metrics import observation_scale
from bircher.analysis import flags
from bircher.analysis.flags import (
    Facts,
    coarse_support,
    observations_out_of_scale,
    round_up,
    saturated,
    scaled,
    value_size,
)
from bircher.config.config import AGENTS, compose
from bircher.runs import logger

FACTS = Facts(1000, 20.0, ("value",), 1000, 0.5, atom_distance=0.8)
PLAIN = FACTS._replace(transform=False)


def lines(count: int = 6) -> list[dict[str, float]]:
    """Lines of a run whose returns rise."""
    return [{"env_steps": 10 * i, "learner_steps": i, "act/episode_return": float(i)} for i in range(count)]


def scale_by_a_loop(observation: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The root mean square and the standard deviation of each number over the rows in `mask`; the largest of each."""
    sizes, deviations = [], []
    for number in range(observation.shape[-1]):
        values = [observation[b, t, number] for b, t in np.ndindex(*mask.shape) if mask[b, t]]
        mean = sum(values) / len(values)
        sizes.append(math.sqrt(sum(value**2 for value in values) / len(values)))
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
    return max(sizes), max(deviations)


@pytest.mark.parametrize(("offset", "raised"), [(0.0, False), (300.0, True)])
def test_the_scale_of_a_batch_is_that_of_a_loop_over_its_valid_rows(offset: float, raised: bool) -> None:
    """The first number of a row is b / 4 + t / 8 from an offset, the second is constant; a masked row is huge."""
    batch, length = 3, 7
    position = offset + np.arange(batch)[:, None] / 4 + np.arange(length) / 8
    observation = np.stack([position, np.full_like(position, -0.1)], -1)
    mask = (np.arange(batch)[:, None] + np.arange(length)) % 4 != 3
    observation[~mask] = 1e6
    found = observation_scale(jnp.asarray(observation, jnp.float32), jnp.asarray(mask))
    size, deviation = scale_by_a_loop(observation, mask)
    assert float(found["act/observation_size"]) == pytest.approx(size, rel=1e-5)
    assert float(found["act/observation_deviation"]) == pytest.approx(deviation, rel=1e-3)
    story = [{**line, **{name: float(value) for name, value in found.items()}} for line in lines()]
    flags = list(observations_out_of_scale(story, FACTS))
    assert [flag.number for flag in flags] == ([14] if raised else [])
    assert not raised or "root mean square of 301" in flags[0].evidence


@pytest.mark.parametrize(
    ("size", "deviation", "raised"),
    [(6.0, 0.59, True), (6.0, 0.61, False), (4.9, 0.48, False), (1.0, 0.0099, True), (1.0, 0.0101, False)],
)
def test_the_bounds_of_an_offset_and_of_numbers_that_hardly_vary(size: float, deviation: float, raised: bool) -> None:
    """An offset is above 10 deviations, and is a fault by itself above 5."""
    story = lines()
    for line in story:
        line |= {"act/observation_size": size, "act/observation_deviation": deviation}
    assert bool(list(observations_out_of_scale(story, FACTS))) == raised
    assert not list(observations_out_of_scale(story[:2], FACTS)), "three lines at least"


def test_the_size_of_targets_is_that_of_those_which_are_not_zero() -> None:
    """Of four targets 0, 0, 0 and 8 the mean size is 2 and the mean square 16; of 4, 4, 4 and 4 they are 4 and 16."""
    rare, even = ({"target/value_size": size, "target/value_square": 16.0} for size in (2.0, 4.0))
    story = lines(2)
    story[0] |= rare
    assert value_size(story) == 8.0
    story[1] |= even
    assert value_size(story) == pytest.approx((16 + 16) / (2 + 4))
    assert value_size(lines(2)) == 0.0


def test_a_return_in_the_units_of_the_atoms() -> None:
    assert scaled(3.0, FACTS) == pytest.approx(math.sqrt(4) - 1 + 0.001 * 3) and scaled(3.0, PLAIN) == 3.0
    tiny = pytest.approx(0.501e-13, rel=1e-6, abs=0)
    assert scaled(1e-13, FACTS) == tiny, "where sqrt(1 + x) - 1 has lost its digits"


@pytest.mark.parametrize(("value", "rounded"), [(0.0123, 0.02), (0.02, 0.02), (567.0, 600.0), (9.1, 10.0), (1.0, 1.0)])
def test_advice_is_rounded_up_to_one_digit(value: float, rounded: float) -> None:
    assert round_up(value) == pytest.approx(rounded)


def coarse(size: float, explained: float, count: int = 8) -> list[dict[str, float]]:
    story = lines(count)
    for line in story:
        line |= {"target/value_size": size, "target/value_square": size**2, "target/explained_variance": explained}
    return story


def test_a_support_is_coarse_below_a_twentieth_of_the_distance_of_atoms() -> None:
    """Atoms lie 0.8 apart, so that 0.04 is the bound; the support that is advised is 20 times the targets."""
    (flag,) = coarse_support(coarse(0.039, 0.1), PLAIN)
    assert "0.049 of the distance between two atoms of model.support=20; values explain 10% " in flag.evidence
    assert flag.advice == "model.value_unit=returns, or model.support=0.8, or multiply rewards by about 30"
    assert not list(coarse_support(coarse(0.041, 0.1), PLAIN))
    (flag,) = coarse_support(coarse(0.078, 0.1), FACTS)
    advice = "model.value_unit=returns, or model.support=0.8, or multiply rewards by about 20"
    assert flag.advice == advice, "h(x) halves small returns"
    assert not list(coarse_support(coarse(0.039, 0.51), PLAIN)), "more than half of the variance is explained"
    assert not list(coarse_support(coarse(0.039, 0.1, count=3), PLAIN)), "of three lines two are late"


@pytest.mark.parametrize(("rises", "share", "raised"), [(True, 1.0, False), (False, 1.0, True), (False, 0.4, False)])
@pytest.mark.parametrize("term", flags.FOLLOW_RETURNS)
def test_a_coarse_support_is_not_flagged_if_returns_rise(term, rises, share, raised) -> None:
    """The run itself must show the fault, in its second half."""
    story = coarse(0.039, 0.1, count=12)
    for i, line in enumerate(story):
        line |= {"act/episode_return": float(i if rises else i % 2), "env_steps": share * 1000 * (i + 1) / 12}
    assert bool(list(coarse_support(story, PLAIN._replace(terms=(term, "value"))))) == raised
    assert list(coarse_support(story, PLAIN)), "a search needs the values"


def test_which_agents_follow_returns() -> None:
    terms = {name: logger.facts(compose("toy/cliff", {"agent": name})).terms for name in AGENTS}
    follow = {name for name, found in terms.items() if set(found) & set(flags.FOLLOW_RETURNS)}
    assert follow == {"muesli", "ppo", "pg", "trpo_penalty"} and set(flags.FOLLOW_RETURNS) < set(TABLE)


def test_the_advised_support_is_twice_the_needed_one() -> None:
    story = coarse(90.0, 0.9)
    for line, share in zip(story, [0.0, 0.002, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0], strict=True):
        line["target/support_overflow"] = share
    (flag,) = saturated(story, PLAIN)
    assert "3.0% " in flag.evidence and "at learner step 2," in flag.evidence and "model.support=200 " in flag.advice
    (flag,) = saturated(story, FACTS)  # h(90) is 8.6, which 20 holds
    assert "model.support=40 " in flag.advice
    assert not list(saturated(story[:1] + story[3:], PLAIN))


def test_numbers_in_sentences() -> None:
    assert [flags.plain(value) for value in (0.012345, 12.345, 999.0, 30018.4)] == ["0.0123", "12.3", "999", "30,018"]
