"""Which tier each page rests on: given shares met, or the fastest tiers filled first, spread evenly over the order."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.units import format_bytes


def spread(page_bytes: Sequence[int], shares: Shares) -> list[Tier]:
    """A tier per page so that bytes meet the shares as closely as whole pages allow, in every prefix of the order.

    Error diffusion over bytes: each page goes to the tier furthest below its share. In every prefix no tier is off by
    as much as the largest page (with three tiers at most 5/6 of it); a tier with no share gets nothing.
    """
    parts = {tier: Fraction(shares.of(tier)).limit_denominator(10**9) for tier in TIERS if shares.of(tier) > 0}
    if len(parts) == 1:
        return [*parts] * len(page_bytes)
    short = {tier: Fraction(0) for tier in parts}
    placed: list[Tier] = []
    for nbytes in page_bytes:
        for tier, part in parts.items():
            short[tier] += part * nbytes
        chosen = max(short, key=short.__getitem__)
        short[chosen] -= nbytes
        placed.append(chosen)
    return placed


def place_within(page_bytes: Sequence[int], budgets: Mapping[Tier, int]) -> list[Tier]:
    """The simple rule: fill the fastest tier's budget (bytes) with pages spread evenly over the order, then the next.

    Raises UserError with the missing bytes where all budgets together do not hold the pages.
    """
    sizes = np.array(page_bytes, dtype=np.int64)
    homes: list[Tier] = ["disk"] * len(sizes)
    left = np.arange(len(sizes))
    for tier in TIERS:
        chosen = _evenly(sizes[left], budgets.get(tier, 0))
        for page in left[chosen].tolist():
            homes[page] = tier
        left = left[~chosen]
    if len(left):
        given = ", ".join(f"{tier} {format_bytes(budgets[tier])}" for tier in TIERS if tier in budgets)
        missing = format_bytes(int(sizes[left].sum()))
        raise UserError(f"{missing} of pages fit no tier ({given}): give one of them that much more")
    return homes


def bytes_by_tier(page_bytes: Sequence[int], homes: Sequence[Tier]) -> dict[Tier, int]:
    """Bytes of pages on each tier, by the tier of every page."""
    sizes, at = np.array(page_bytes, dtype=np.int64), np.array(homes, dtype=np.str_)
    return {tier: int(sizes[at == tier].sum()) for tier in TIERS}


def _evenly(sizes: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.bool_]:
    """Which pages fill a budget without exceeding it, spread evenly over the order. sizes: bytes of each."""
    total = int(sizes.sum())
    if total <= budget:
        return np.ones(len(sizes), dtype=np.bool_)
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    smallest = int(sizes.min(initial=total))
    # a page is taken where that comes closer to the even line: where no more than this is taken before it
    before = budget * (np.cumsum(sizes) / total) - sizes / 2
    most_before, before, page_bytes = np.maximum.accumulate(before).tolist(), before.tolist(), sizes.tolist()
    taken, index = 0, -1
    while (index := bisect_left(most_before, taken, index + 1)) < len(page_bytes):
        if taken <= before[index] and taken + page_bytes[index] <= budget:
            chosen[index] = True
            taken += page_bytes[index]
    if taken + smallest <= budget:  # what whole pages left over
        for index in np.flatnonzero(~chosen).tolist():
            if taken + page_bytes[index] <= budget:
                chosen[index] = True
                taken += page_bytes[index]
    return chosen
