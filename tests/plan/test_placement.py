from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.plan.placement import bytes_by_tier, place_within, spread
from penstock.plan.policy import TIERS, Shares, Tier

pages = st.lists(st.integers(1, 10**9), max_size=60)


@st.composite
def any_shares(draw: st.DrawFn) -> Shares:
    parts = draw(st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any))
    return Shares(*(part / sum(parts) for part in parts))


@given(pages, any_shares())
def test_every_prefix_meets_the_shares_within_one_page(page_bytes: list[int], shares: Shares) -> None:
    placed = spread(page_bytes, shares)
    assert len(placed) == len(page_bytes)
    held = dict.fromkeys(TIERS, 0)
    for count, (tier, nbytes) in enumerate(zip(placed, page_bytes, strict=True), 1):
        held[tier] += nbytes
        for each in TIERS:
            off = abs(held[each] - Fraction(shares.of(each)) * sum(page_bytes[:count]))
            assert off < max(page_bytes[:count])
    assert all(shares.of(tier) > 0 for tier in placed)


def test_half_of_equal_pages_alternate() -> None:
    assert spread([8] * 6, Shares(cpu=0.5, disk=0.5)) == ["cpu", "disk"] * 3


def test_a_whole_share_takes_everything() -> None:
    assert spread([5, 1, 9], Shares(disk=1.0)) == ["disk"] * 3


@given(pages, st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_budgets_hold_and_the_fastest_fills_first(page_bytes: list[int], parts: list[float]) -> None:
    total = sum(page_bytes)
    budgets: dict[Tier, int] = {"gpu": int(parts[0] * total), "cpu": int(parts[1] * total), "disk": total}
    placed = place_within(page_bytes, budgets)
    held = {tier: sum(n for n, at in zip(page_bytes, placed, strict=True) if at == tier) for tier in TIERS}
    assert all(held[tier] <= budgets[tier] for tier in TIERS)
    for faster, slower in (("gpu", "cpu"), ("gpu", "disk"), ("cpu", "disk")):
        below = [n for n, at in zip(page_bytes, placed, strict=True) if at == slower]
        assert all(held[faster] + n > budgets[faster] for n in below)


def test_resident_pages_are_spread_evenly() -> None:
    placed = place_within([10] * 40, {"cpu": 100, "disk": 400})
    resident = [page for page, tier in enumerate(placed) if tier == "cpu"]
    assert len(resident) == 10
    assert {after - before for before, after in pairwise(resident)} == {4}


def test_pages_that_fit_nowhere_are_refused_with_the_missing_bytes() -> None:
    with pytest.raises(UserError, match="2 MiB of pages fit no tier"):
        place_within([2**20] * 4, {"cpu": 2 * 2**20})
    assert place_within([], {}) == []


def test_bytes_by_tier() -> None:
    assert bytes_by_tier([5, 1, 9], ["disk", "cpu", "disk"]) == {"gpu": 0, "cpu": 1, "disk": 14}
    assert bytes_by_tier([], []) == dict.fromkeys(TIERS, 0)
