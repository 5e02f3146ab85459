"""Each red flag on a story that plants it, and none on a healthy one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bircher.analysis import doctor
from bircher.runs import logger

FACTS = doctor.Facts(100_000, 20.0, ("cmpo", "value", "model_reward"), 60_000, 0.75, atom_distance=0.8)
PARTS = ("encoder", "memory", "dynamics", "policy_head", "value_head", "reward_head")
SHARES = {"cmpo": 0.2, "value": 0.5, "model_reward": 0.3}


def healthy(lines: int = 100) -> list[dict[str, float]]:
    """A run that learns: a line a second, gradients on every tenth, an evaluation on every twentieth."""
    rng = np.random.default_rng(0)
    story = []
    for i in range(lines):
        share = i / (lines - 1)
        line = {
            "env_steps": 1000 * (i + 1), "learner_steps": 50 * (i + 1), "wall_seconds": i,
            "act/entropy_share": 0.9 - 0.6 * share, "act/choice_share": 1.0,
            "act/episode_return": 200 * share + rng.normal(0, 5),
            "act/episode_length": 100 + rng.normal(), "act/kl_to_behavior": 0.05, "act/deaths_at_longest": 0.02,
            "act/longest_episode": 120.0, "episodes": 10 * (i + 1),
            "target/explained_variance": -0.2 + share, "target/cmpo_kl": 0.1, "target/support_overflow": 0.0,
            "target/replay_age": 30_000, "model/gradient_norm": 1.0 + 0.3 * rng.uniform(), "speed/acting_share": 0.4,
            "model/latent_deviation": 0.15, "act/observation_size": 1.2, "act/observation_deviation": 0.6,
            "target/value_size": 20.0, "target/value_square": 500.0,
        }  # fmt: skip
        if i % 10 == 0:
            line |= {f"gradient/{term}_share": value for term, value in SHARES.items()}
            line |= {f"gradient/{term}_{part}": 0.1 for term in SHARES for part in PARTS}
        if i % 20 == 19:
            line |= {"act/repeated_observations": 0.9, "act/reward_ambiguity": 0.02}
            line["eval/return_mean"] = line["act/episode_return"] + 3
        story.append(line)
    return story


def set_all(story, name, value, since=0.0):
    for i, line in enumerate(story):
        if name in line and i >= since * len(story):
            line[name] = value


def plant_dominant(story):
    for term in SHARES:
        set_all(story, f"gradient/{term}_share", 0.97 if term == "model_reward" else 0.015, 0.5)


def plant_dead_part(story):
    for term in SHARES:
        set_all(story, f"gradient/{term}_dynamics", 0.0)


def plant_out_of_scale(story):
    set_all(story, "act/observation_size", 30_000.0)
    set_all(story, "act/observation_deviation", 50.0)


def plant_coarse(story):
    """Rewards of 0.001: the value's loss is tiny, and it explains nothing."""
    set_all(story, "target/value_size", 0.002)
    set_all(story, "target/value_square", 0.002**2)
    set_all(story, "target/explained_variance", -0.4)
    for line in story:
        line["loss/value"] = 0.001


def plant_memoryless(story):
    rng = np.random.default_rng(1)
    for line in story:
        line["act/episode_return"] = rng.normal()
        line["target/explained_variance"] = 0.1
    set_all(story, "eval/return_mean", 0.1)
    set_all(story, "act/reward_ambiguity", 0.95)


PLANTED = {
    1: plant_dominant,
    2: lambda story: set_all(story, "act/entropy_share", 0.001),
    3: lambda story: set_all(story, "act/entropy_share", 0.99),
    4: lambda story: set_all(story, "target/explained_variance", -0.4),
    5: lambda story: set_all(story, "target/cmpo_kl", 1e-8, 0.3),
    6: plant_dead_part,
    7: lambda story: story[60].update({"model/gradient_norm": 90.0}),
    8: lambda story: set_all(story, "target/support_overflow", 0.05, 0.8),
    9: lambda story: set_all(story, "act/kl_to_behavior", 2.5, 0.4),
    10: lambda story: set_all(story, "eval/return_mean", -100.0),
    11: lambda story: set_all(story, "speed/acting_share", 0.95),
    12: lambda story: set_all(story, "act/deaths_at_longest", 0.9, 0.1),
    13: lambda story: set_all(story, "model/latent_deviation", 0.003, 0.6),
    14: plant_out_of_scale,
    15: plant_coarse,
    16: plant_memoryless,
}


def test_a_healthy_run_raises_none():
    assert doctor.examine(healthy(), FACTS) == []


@pytest.mark.parametrize("number", PLANTED)
def test_each_flag_is_raised_by_its_own_cause_alone(number):
    story = healthy()
    PLANTED[number](story)
    (flag,) = doctor.examine(story, FACTS)
    assert flag.number == number
    assert all(len(text) > 5 for text in flag[1:])


@pytest.mark.parametrize(
    ("cause", "consequence"),
    [(2, 1), (2, 6), (13, 3), (13, 4), (13, 5), (13, 6), (14, 13), (14, 3), (15, 4), (16, 3)],
)
def test_a_flag_replaces_the_flags_of_its_consequences(cause, consequence):
    story = healthy()
    PLANTED[consequence](story)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [consequence]
    PLANTED[cause](story)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [cause]


@pytest.mark.parametrize("lines", [0, 1, 2, 5])
def test_a_run_that_has_hardly_begun_raises_none(lines):
    assert doctor.examine(healthy()[:lines], FACTS) == []


def test_a_flag_needs_its_updates():
    """Three measurements of a dominant term, with 500 updates between the first and the last or with fewer."""
    story = healthy()
    plant_dominant(story)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [1]
    for line in story:
        line["learner_steps"] /= 100
    assert doctor.examine(story, FACTS) == []


def test_terms_that_have_been_learned_are_not_drowned():
    """Where values are known, their gradient is gone, and the policy's has all of it."""
    story = healthy()
    plant_dominant(story)
    for line in story[len(story) // 2 :]:
        line |= {name: 0.005 for name in line if name.endswith("_encoder") and "model_reward" not in name}
    assert doctor.examine(story, FACTS) == []


def test_an_evaluation_of_few_episodes_may_lie_anywhere_within_its_error():
    """At chance between -1 and 1, sixteen episodes have a mean within 0.75 of 0, which is all of training's range."""
    story = healthy()
    PLANTED[10](story)
    for line in story:
        if "eval/return_mean" in line:
            line["eval/return_error"] = 0.1
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [10]
    for line in story:
        if "eval/return_mean" in line:
            line["eval/return_error"] = 1000.0
    assert doctor.examine(story, FACTS) == []


def test_a_term_that_only_holds_back_is_not_drowned():
    """Its gradient may grow when all others have been learned."""
    story = healthy()
    plant_dominant(story)
    facts = FACTS._replace(terms=(*FACTS.terms, "entropy"))
    assert [flag.number for flag in doctor.examine(story, facts)] == [1]
    for line in story[len(story) // 2 :]:
        line |= {name: 0.005 for name in line if name.endswith("_encoder") and "model_reward" not in name}
        line["gradient/entropy_encoder"] = 10.0
    assert doctor.examine(story, facts) == []


def test_a_correct_value_of_constant_returns_is_not_flagged():
    story = healthy()
    set_all(story, "target/explained_variance", -0.4)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [4]
    for loss, raised in ((0.3, [4]), (0.001, [])):
        for line in story:
            line["loss/value"] = loss
        assert [flag.number for flag in doctor.examine(story, FACTS)] == raised


def test_a_single_term_dominates_nothing():
    story = healthy()
    set_all(story, "gradient/value_share", 1.0)
    alone = FACTS._replace(terms=("value",))
    assert doctor.examine(story, alone) == []


def test_a_slow_learner_is_a_flag_on_policy_only():
    story = healthy()
    set_all(story, "speed/acting_share", 0.03)
    assert doctor.examine(story, FACTS) == []
    (flag,) = doctor.examine(story, FACTS._replace(replay_fraction=0.0))
    assert flag.number == 11 and "learning takes 97%" in flag.evidence


def test_numbers_that_are_none_are_left_out():
    story = healthy()
    for line in story[::3]:
        line["act/entropy_share"] = math.nan
    assert doctor.examine(story, FACTS) == []
    assert len(doctor.series(story, "act/entropy_share")) == 66
    assert len(doctor.series(story, "no/such")) == 0


def test_a_share_is_dominant_in_three_measurements_without_a_break():
    """Values that are first learned have most of the gradient for a while, in sound runs too."""
    for shares, raised in (((0.97, 0.96, 0.98), True), ((0.97, 0.92, 0.98), False), ((0.97, 0.96, 0.93), False)):
        story = healthy()
        measured = [line for line in story if "gradient/value_share" in line]
        for line in measured:
            line["gradient/value_share"] = 0.5
        for line, share in zip(measured[4:7], shares, strict=True):
            line["gradient/value_share"] = share
        for line in story:
            line["learner_steps"] /= 2  # 250 updates from one measurement to the next
        assert [flag.number for flag in doctor.examine(story, FACTS)] == ([1] if raised else [])


def test_a_gradient_of_ordinary_size_in_a_solved_task_is_no_spike():
    story = healthy()
    set_all(story, "model/gradient_norm", 1e-3, 0.5)
    story[80]["model/gradient_norm"] = 1.2
    assert not doctor.examine(story, FACTS)
    story[90]["model/gradient_norm"] = 2.0
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [7]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_policy_without_a_choice_has_no_entropy(share):
    story = healthy()
    set_all(story, "act/entropy_share", share)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [3 if share else 2]
    set_all(story, "act/choice_share", 0.5)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [3 if share else 2]
    set_all(story, "act/choice_share", 0.0)
    assert doctor.examine(story, FACTS) == []


def test_games_of_a_few_moves_may_always_end_alike():
    story = healthy()
    PLANTED[12](story)
    set_all(story, "act/longest_episode", 9.0)
    assert doctor.examine(story, FACTS) == []


def test_a_collapsed_policy_explains_vanished_gradients():
    story = healthy()
    for number in (1, 2, 6):
        PLANTED[number](story)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [2]


def test_unexplained_values_alone_are_not_flagged():
    story = healthy()
    set_all(story, "target/explained_variance", -0.01)
    assert doctor.examine(story, FACTS) == []


def test_a_watch_raises_each_flag_once_and_does_not_remember_everything(monkeypatch):
    monkeypatch.setattr(logger, "LINES", 60)
    story = healthy()
    PLANTED[1](story)
    watch = logger.DoctorMonitor(FACTS)
    raised = [flag.number for line in story for flag in watch(line, immediately=True)]
    assert raised == [1] and len(watch._lines) <= 60
    assert set(map(tuple, watch._lines)) == set(map(tuple, story)) and len(watch._names) <= 3, "names are shared"
    assert sum("eval/return_mean" in line for line in watch._lines) == 5, "evaluations stay"


@pytest.mark.parametrize(
    ("size", "deviation", "raised"),
    [
        (30_000, 50, True),
        (1e3, 70, True),
        (10, 0.1, True),
        (1e-5, 1e-5, True),
        (1, 1e-5, True),
        (1e3, 600, False),
        (8, 5, False),
        (1, 0.2, False),
        (1, 0.05, False),
    ],
)
def test_observations_are_far_from_unit_scale_where_they_are_large_or_hardly_vary(size, deviation, raised):
    story = healthy()
    set_all(story, "act/observation_size", size)
    set_all(story, "act/observation_deviation", deviation)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == ([14] if raised else [])
    assert doctor.examine(story, FACTS._replace(normalizes_observations=True)) == []


@pytest.mark.parametrize(("size", "deviation"), [(1e3, 600), (1, 0.05)])
def test_a_scale_that_was_learned_from_is_a_fault_where_returns_do_not_rise(size, deviation):
    story = healthy()
    set_all(story, "act/observation_size", size)
    set_all(story, "act/observation_deviation", deviation)
    assert doctor.examine(story, FACTS) == []
    rng = np.random.default_rng(1)
    for line in story:
        line["act/episode_return"] = rng.normal()
    set_all(story, "eval/return_mean", 0.1)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [14]


def test_observations_that_never_vary_are_a_task_of_one_state():
    story = healthy()
    set_all(story, "act/observation_deviation", 0.0)
    assert doctor.examine(story, FACTS) == []


def test_the_advice_on_observation_scale_depends_on_the_agent():
    story = healthy()
    plant_out_of_scale(story)
    (flag,) = doctor.examine(story, FACTS)
    assert "agent.normalize_observations=true" in flag.advice and "30,000" in flag.evidence and "50" in flag.evidence
    (flag,) = doctor.examine(story, FACTS._replace(normalizes_observations=None))
    assert "agent.normalize_observations" not in flag.advice and "TransformObservation" in flag.advice


def test_a_coarse_support_is_flagged_with_one_that_fits():
    story = healthy()
    plant_coarse(story)
    (flag,) = doctor.examine(story, FACTS)
    assert "model.support=0.03," in flag.advice and "about 500" in flag.advice and "0.002" in flag.evidence
    assert doctor.examine(story, FACTS._replace(support=0.03, atom_distance=0.0012)) == []


@pytest.mark.parametrize("change", ["learned", "scalar", "sparse", "none"])
def test_small_values_are_not_flagged_where(change):
    """Values explain them, or are not categorical, or are large where there are any, or there are none yet."""
    story, facts = healthy(), FACTS
    plant_coarse(story)
    if change == "learned":
        set_all(story, "target/explained_variance", 0.8)
    if change == "scalar":
        facts = FACTS._replace(atom_distance=0.0)
    if change == "sparse":  # one row in a thousand has a return of 1
        set_all(story, "target/value_square", 0.001)
        set_all(story, "target/value_size", 0.0015)
    if change == "none":
        set_all(story, "target/value_square", 0.0)
        set_all(story, "target/value_size", 0.0)
    assert doctor.examine(story, facts) == []


def test_a_saturated_support_is_flagged_with_one_that_fits_the_targets():
    story = healthy()
    PLANTED[8](story)
    assert "model.support=40 " in doctor.examine(story, FACTS)[0].advice
    set_all(story, "target/value_size", 1e6)
    set_all(story, "target/value_square", 1e12)
    assert "model.support=4000 " in doctor.examine(story, FACTS)[0].advice


@pytest.mark.parametrize("change", ["memory", "improves", "foretold", "told apart", "seldom"])
def test_ambiguous_rewards_are_not_flagged_where(change):
    story, facts = healthy(), FACTS
    plant_memoryless(story)
    if change == "memory":
        facts = FACTS._replace(memory=True)
    if change == "improves":
        for i, line in enumerate(story):
            line["act/episode_return"] += i / 10
    if change == "foretold":
        set_all(story, "target/explained_variance", 0.8)
    if change == "told apart":
        set_all(story, "act/reward_ambiguity", 0.2)
    if change == "seldom":
        set_all(story, "act/repeated_observations", 0.01)
    assert 16 not in [flag.number for flag in doctor.examine(story, facts)]


def test_a_task_of_fixed_length_has_no_time_limit():
    """All episodes end at one length from the first line on; with shorter ones at first it is a limit."""
    story = healthy()
    set_all(story, "act/deaths_at_longest", 1.0)
    assert doctor.examine(story, FACTS) == []
    set_all(story[:5], "act/deaths_at_longest", 0.1)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [12]


def test_episodes_that_grow_longer_and_longer_have_no_limit():
    """Lines of one episode each, every one the longest so far: the share of deaths at that length is 1."""
    story = healthy()
    for i, line in enumerate(story):
        line |= {"act/longest_episode": 20.0 + max(i, 20), "act/deaths_at_longest": float(i > 20), "episodes": i + 1}
    assert doctor.examine(story, FACTS) == []
    set_all(story, "act/longest_episode", 120.0)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == [12]


def test_a_run_is_judged_by_its_evaluations():
    story = healthy()
    story[-1] |= {"act/episode_return": 9.0, "episodes": 100}
    assert logger.course(story).startswith("evaluations of 4")
    for line in story:
        line.pop("eval/return_mean", None)
    for i, line in enumerate(story[:-1]):
        line |= {"episodes": i + 1, "act/episode_return": float(i)}
    # Lines of one episode each: the means of the first twenty and of the last twenty, of which the very last is 9.
    last = (sum(range(80, 99)) + 9) / 20
    assert logger.course(story) == f"training returns of 9.5 at first and {last:.4g} at last: "
    assert logger.course([{"env_steps": 1, "learner_steps": 1}]) == ""


@pytest.mark.parametrize(("weight", "raised"), [(1.0, []), (5.0, []), (1000.0, [1])])
def test_a_smaller_share_is_dominant_if_the_weight_causes_it(weight, raised):
    """PPO's value has 0.80 to 0.93 of the gradient in sound runs, at half the weight of the policy's term."""
    story = healthy()
    for share, line in zip((0.98, 0.88, 0.85, 0.95, 0.81) * 2, story[::10], strict=True):
        line |= {"gradient/model_reward_share": share, "gradient/value_share": 1 - share, "gradient/cmpo_share": 0.0}
    flags = doctor.examine(story, FACTS._replace(weights=(1.0, 0.25, weight)))
    assert [flag.number for flag in flags] == raised
    assert all("losses.model_reward.weight from 1000 toward 1," in flag.advice for flag in flags)


def test_low_weights_of_the_other_terms_make_no_weight_heavy():
    story = healthy()
    for line in story[::10]:
        line |= {"gradient/model_reward_share": 0.9, "gradient/value_share": 0.1, "gradient/cmpo_share": 0.0}
    assert doctor.examine(story, FACTS._replace(weights=(0.05, 0.03, 1.0))) == []


def test_a_heavy_term_with_a_small_gradient_is_not_flagged():
    assert doctor.examine(healthy(), FACTS._replace(weights=(1.0, 1000.0, 1.0))) == []


@pytest.mark.parametrize("part", PARTS)
def test_each_part_without_a_gradient_is_named(part: str) -> None:
    story = healthy()
    for term in SHARES:
        set_all(story, f"gradient/{term}_{part}", 0.0)
    (flag,) = doctor.examine(story, FACTS)
    assert flag.number == 6 and f"the {part.replace('_', ' ')} " in flag.evidence


@pytest.mark.parametrize(
    ("weight", "largest", "raised"),
    [(100.0, 10.0, True), (40.0, 10.0, False), (100.0, 0.0, False), (None, 10.0, False)],
    ids=["far above the rewards", "above them", "no reward found", "no bonus"],
)
def test_a_bonus_that_drowns_rewards_is_flagged(weight: float | None, largest: float, raised: bool) -> None:
    """From the second half on, and with the setting that makes it smaller."""
    story = healthy()
    for line in story if weight is not None else []:
        line |= {"target/bonus_weight": weight, "target/largest_return": largest}
    flags = doctor.examine(story, FACTS._replace(exploration_weight=100.0))
    assert [flag.number for flag in flags] == ([17] if raised else [])
    assert all("lower exploration.weight (now 100) to 1" in flag.advice for flag in flags)


def test_a_bonus_that_ends_in_time_is_not_flagged() -> None:
    story = healthy()
    for i, line in enumerate(story):
        line |= {"target/bonus_weight": max(100.0 - 2 * i, 0.0), "target/largest_return": 10.0}
    assert doctor.examine(story, FACTS) == []


@pytest.mark.parametrize(("weight", "raised"), [(5.0, True), (3.0, False)])
def test_a_smaller_bonus_is_flagged_where_returns_do_not_rise(weight: float, raised: bool) -> None:
    story = healthy()
    for line in story:
        line |= {"target/bonus_weight": weight, "target/largest_return": 10.0, "act/episode_return": 0.0}
        line.pop("eval/return_mean", None)
    assert [flag.number for flag in doctor.examine(story, FACTS)] == ([17] if raised else [])
