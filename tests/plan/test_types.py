"""Ledgers: what may still be taken, and the budget that would allow more."""

import pytest

from penstock.plan.types import Ledger


def test_what_is_free_is_what_the_budget_leaves() -> None:
    ledger = Ledger({"cpu": 100}, {"cpu": 30})
    assert (ledger.free("cpu"), ledger.free("disk")) == (70, 0)
    assert ledger.least("cpu", 90) == 120


@pytest.mark.parametrize("needed", [0, 1, 777, 123_456])
def test_a_part_of_the_budget_that_is_taken_grows_with_it(needed: int) -> None:
    """The least budget, once it is given and its own part is taken, leaves just what was needed."""
    ledger = Ledger({"cpu": 10_000}, {"cpu": 300 + 10_000 // 50}, {"cpu": 1 / 50})
    least = ledger.least("cpu", needed)

    def free(budget: int) -> int:
        return Ledger({"cpu": budget}, {"cpu": 300 + budget // 50}, {"cpu": 1 / 50}).free("cpu")

    assert needed <= free(least) <= needed + 1
