"""Cuts that a search looks at."""

from dataclasses import replace

import pytest
from tests.plan.made import case

from penstock.plan.grid import beside, cuts
from penstock.plan.sizes import Cut
from penstock.plan.types import Length

MADE = case([Length(100, 20)] * 300)


def test_rows_in_flight_are_what_prompts_of_those_who_follow_leave_tokens_for() -> None:
    """Of 120 tokens that a row takes in all, it decodes 20: a sixth of a sweep's tokens are rows that decode."""
    assert MADE.in_flight(600) == pytest.approx(100)


def test_of_rows_that_are_never_in_flight_the_grid_has_the_fewest() -> None:
    rows = [cut.rows for cut in cuts(MADE) if cut.sweep == 256 and cut.batch == 256]
    assert rows == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]  # 43 are
    assert 300 in {cut.rows for cut in cuts(MADE) if cut.sweep == 512}, "all rows of the job may be in flight together"


def test_what_prompts_share_takes_nothing_of_a_sweep() -> None:
    ids = [(*range(96), number) for number in range(300)]
    shared = case([Length(97, 20, ids=one) for one in ids])
    block = shared.shape.footprint.block_tokens
    header = 96 // block * block
    assert header > 0 and shared.computed_prompt == pytest.approx(97 - header * 299 / 300)
    assert shared.in_flight(600) > 2 * MADE.in_flight(600)


def test_the_grid_does_not_depend_on_budgets() -> None:
    roomy = replace(MADE, ledger=replace(MADE.ledger, budget={"cpu": 1 << 40, "disk": 1 << 40}))
    assert list(cuts(roomy)) == list(cuts(MADE))


def test_beside_rows_that_are_never_in_flight_are_the_fewest_of_them_and_none_more() -> None:
    others = {cut.rows for cut in beside(MADE, Cut(2, 256, 300, 512))}
    assert others == {300, 256, 128, 96}  # 85 are


def test_beside_a_cut_are_more_and_fewer_rows() -> None:
    assert {cut.rows for cut in beside(MADE, Cut(2, 256, 32, 512))} == {12, 24, 32, 48}
