"""A comparison's page: all numbers are on it, and nothing that it would have to fetch."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from bircher.experiments import compare, report
from bircher.experiments.statistics import Band, Estimate

BAND = Band([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.5, 1.5, 2.0], [1.5, 2.5, 4.0])
FOUND = report.Findings(
    title="a <b> against c",
    rows=[
        report.Row("toy/one", "a <b>", Estimate(1.25, 1.0, 1.5), (1.0, 1.5), 1000, 2.0),
        report.Row("toy/one", "c", Estimate(-3.0, -4.0, -2.0), (-4.0, -2.0), 1000, 3.0),
    ],
    aggregates={"IQM, return": {"a <b>": Estimate(1.25, 1.0, 1.5), "c": Estimate(-3.0, -4.0, -2.0)}},
    improvement={("a <b>", "c"): Estimate(1.0, 1.0, 1.0)},
    over_steps={"toy/one": {"a <b>": BAND, "c": BAND}},
    over_seconds={"toy/one": {"a <b>": BAND}},
    commands=["bircher train toy/one agent=a seed=0"],
    notes=["two runs & no more"],
    losses=[report.LossRow("toy/one", "c", "value", 0.5, 0.125, 0.25)],
)


def test_the_table_says_each_number():
    text = report.markdown(FOUND)
    assert "| toy/one | a <b> | 1.2 | 1.0 to 1.5 | 1.0, 1.5 | 1,000 | 2 |" in text
    assert "| a <b> | c | 1.00 (1.00 to 1.00) |" in text and "| c | -3.00 (-4.00 to -2.00) |" in text
    assert "| toy/one | c | value | 0.5 | 0.125 | 25% |" in text
    assert "bircher train toy/one agent=a seed=0" in text and "- two runs & no more" in text


def test_the_page_is_whole_and_holds_its_pictures():
    page = report.html(FOUND)
    assert "a &lt;b&gt; against c" in page and "two runs &amp; no more" in page
    assert "<h2>Loss terms</h2>" in page and "<td>25%</td>" in page
    assert page.count("<svg") == 3 and "<script" not in page and 'src="' not in page
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part[: part.index("</svg>") + len("</svg>")])
    assert page == report.html(FOUND), "the same numbers give the same page"


def test_long_names_leave_room_for_the_picture():
    long = ",".join(["ppo", *(f"losses.{name * 20}.weight=0.01" for name in "abcd")])
    found = FOUND._replace(
        aggregates={name: {long: Estimate(1.0, 0.5, 2.0), "c": Estimate(0.0, 0.0, 0.0)} for name in ("IQM", "median")},
        over_steps={"toy/one": {long: BAND}},
    )
    page = report.html(found)  # a collapsed picture warns
    assert long in page and "ppo,losses.aaaaaaaaa…" in page


def test_numbers_are_plain_json():
    told = json.loads(json.dumps(report.as_json(FOUND)))
    assert told["rows"][0]["mean"] == {"value": 1.25, "low": 1.0, "high": 1.5} and told["rows"][1]["runs"] == [
        -4.0,
        -2.0,
    ]
    assert told["probability_of_improvement"] == [
        {"agent": "a <b>", "over": "c", "value": 1.0, "low": 1.0, "high": 1.0}
    ]


def test_the_returns_of_agents_are_among_the_numbers():
    row = report.Row("toy/one", "c", Estimate(3.0, 3.0, 3.0), (3.0,), 10, 1.0, {"one": 2.0, "two": 1.0})
    numbers = report.as_json(FOUND._replace(rows=[FOUND.rows[0], row]))
    assert "agents" not in numbers["rows"][0] and numbers["rows"][1]["agents"] == {"one": 2.0, "two": 1.0}
    reports = [{"agents": {"one": {"mean": mean}, "two": {"mean": 3.0}}} for mean in (1.0, 3.0)]
    assert compare._by_agent(reports) == {"one": 2.0, "two": 3.0} and compare._by_agent([{}, *reports]) is None
    assert "toy/one, c: the return is that of the team, the sum of its agents': one 2, two 1." in compare._cautions(
        [row], ["toy/one"], None
    )
