"""What a plan says of other ways, beside what it says of itself."""

from dataclasses import replace

import pytest
from tests.plan.made import case

from penstock.plan.reasons import gains, runners_up
from penstock.plan.search import Candidate, Search
from penstock.plan.types import Length

CASE = case([Length(100, 20)] * 60)


def best() -> tuple[Search, list[Candidate]]:
    search = Search(CASE)
    return search, search.best()


def runs_slower(candidate: Candidate, times: float) -> Candidate:
    """The same plan, had its virtual run taken so much longer than its sketch promised."""
    return replace(candidate, predicted=replace(candidate.predicted, seconds=times * candidate.predicted.seconds))


def test_a_plan_that_was_run_knows_its_sketch() -> None:
    first = best()[1][0]
    assert not first.sketched
    assert first.outline is not None
    assert first.bias == pytest.approx(first.outline.seconds / first.predicted.seconds)
    assert runs_slower(first, 2).bias == pytest.approx(first.bias / 2)


def test_gains_are_none_that_a_sketch_only_promises() -> None:
    first = best()[1][0]
    slower = runs_slower(first, 2)
    for gain, halved in zip(gains(CASE, first), gains(CASE, slower), strict=True):
        assert halved.tok_s == pytest.approx(gain.tok_s / 2)


def test_other_ways_are_compared_as_sketches() -> None:
    search, ranked = best()
    ways = [way.tok_s for way in runners_up(CASE, search, ranked)]
    halved = [way.tok_s for way in runners_up(CASE, search, [runs_slower(ranked[0], 2), *ranked[1:]])]
    told = [(a, b) for a, b in zip(ways, halved, strict=True) if a is not None and b is not None]
    assert len(told) >= 2
    assert all(b == pytest.approx(a / 2) for a, b in told)
