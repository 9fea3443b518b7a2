"""The comparison of ways to move layers, as a person reads it."""

from dataclasses import replace

import pytest
from tests.cli.fake_planner import MACHINE, SHAPE

from penstock.cli.plan_json import paging_record
from penstock.cli.plan_paging import paging_table
from penstock.plan.paged import paged
from penstock.plan.paging import Paged, compare

MODEL = paged(SHAPE, MACHINE, 576, {"gpu": None, "cpu": None})


def lines(model: Paged = MODEL, rows: int = 5) -> list[str]:
    return [line.text for line in paging_table("tiny", "toy", model, compare(model, rows), 576)]


def test_columns_stand_below_one_another() -> None:
    said = lines()
    head = next(line for line in said if line.rstrip().endswith("even"))
    rows = said[said.index(head) + 1 : said.index("", said.index(head))]
    assert len(rows) == len(compare(MODEL, 5))
    assert all(len(line) <= len(head) <= 80 for line in rows)


def test_what_exceeds_memory_is_marked_and_the_mark_explained() -> None:
    marked = [line for line in lines() if "*" in line]
    assert marked and marked[-1].startswith("*        more than this machine")
    roomy = replace(MODEL, memory={"gpu": 1 << 40, "cpu": 1 << 40})
    assert not any("*" in line for line in lines(roomy))


def test_where_nothing_computes_below_it_is_said_and_nothing_is_figured() -> None:
    split = next(line for line in lines(replace(MODEL, slow_speed=None)) if line.startswith("static split"))
    assert split.endswith("nothing computes on cpu")


def test_as_json_it_has_the_same_ways() -> None:
    ways = compare(MODEL, 5)
    record = paging_record(MODEL, ways, 576)
    assert [way["name"] for way in record["ways"]] == [way.name for way in ways]
    assert record["ways"][0]["tok_s"] == pytest.approx(ways[0].tok_s)
    assert (record["layers"], record["fast"], record["slow"]) == (2, "gpu", "cpu")
