"""Bytes of KV by a row's length: whole blocks, windows that leave some behind, homes beside the tier that computes."""

import pytest

from penstock.plan.policy import Tier
from penstock.schedule.demand import Demand
from penstock.schedule.types import GroupSpec

ENDLESS, WINDOW = GroupSpec(10), GroupSpec(4, window=5)  # a window of 5 reaches into one full block of 4


def test_blocks_are_whole() -> None:
    demand = Demand([ENDLESS], 4, "cpu", whole=False)
    assert [demand.blocks(tokens) for tokens in (1, 4, 5)] == [1, 1, 2]
    assert [demand.held(tokens) for tokens in (1, 4, 5)] == [10, 10, 20]


def test_windows_hold_what_they_reach() -> None:
    demand = Demand([ENDLESS, WINDOW], 4, "cpu", whole=False)
    assert (demand.stride_bytes, demand.endless_bytes, demand.windowed) == (14, 10, True)
    assert [demand.held(tokens) for tokens in (4, 8, 12, 400)] == [14, 28, 38, 1000 + 4 + 4]


def test_the_tier_that_computes_holds_the_tail_of_a_row_at_home_elsewhere() -> None:
    demand = Demand([ENDLESS, WINDOW], 4, "cpu", whole=False)
    assert demand.peak(9, "cpu") == {"cpu": 38}
    assert demand.peak(9, "disk") == {"cpu": 14, "disk": 24}


def test_a_prefill_that_is_not_cut_needs_all_its_blocks_at_once() -> None:
    demand = Demand([ENDLESS, WINDOW], 4, "cpu", whole=True)
    assert demand.held(9) == 42
    assert demand.peak(9, "disk") == {"cpu": 42, "disk": 28}


@pytest.mark.parametrize(("capacity", "longest"), [({"cpu": 35}, 12), ({"cpu": 9}, 0), ({"cpu": 2000}, 100)])
def test_the_longest_row_that_fits(capacity: dict, longest: int) -> None:
    assert Demand([ENDLESS], 4, "cpu", whole=False).longest(100, ["cpu"], capacity) == longest


def test_the_longest_row_takes_its_best_home() -> None:
    demand = Demand([ENDLESS], 4, "cpu", whole=False)
    assert demand.longest(100, ["cpu", "disk"], {"cpu": 10, "disk": 55}) == 24


def test_a_row_that_no_tier_holds_whole_has_its_oldest_blocks_below() -> None:
    cut, whole = (Demand([ENDLESS], 4, "gpu", whole=whole) for whole in (False, True))
    room: dict[Tier, int] = {"gpu": 25, "cpu": 39, "disk": 10}
    assert [cut.longest(100, homes, room) for homes in (["gpu"], ["gpu", "cpu"], ["gpu", "cpu", "disk"])] == [8, 20, 24]
    assert cut.longest(100, ["cpu", "disk"], room) == 20  # and the block that is written to on the gpu
    assert whole.longest(100, ["gpu", "cpu"], room) == 8
