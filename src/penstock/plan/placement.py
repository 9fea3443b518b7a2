"""Which tier each page rests on: given shares met, or the fastest tiers filled first, spread evenly over the order."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.units import format_bytes


def spread(page_bytes: Sequence[int], shares: Shares) -> list[Tier]:
    """A tier per page so that bytes meet the shares as closely as whole pages allow, in every prefix of the order.

    Error diffusion over bytes: each page goes to the tier furthest below its share. In every prefix no tier is off by
    as much as the largest page (with three tiers at most 5/6 of it); a tier with no share gets nothing.
    """
    parts = {tier: Fraction(shares.of(tier)).limit_denominator(10**9) for tier in TIERS if shares.of(tier) > 0}
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
    placed: dict[int, Tier] = {}
    for tier in TIERS:
        left = [page for page in range(len(page_bytes)) if page not in placed]
        chosen = _evenly([page_bytes[page] for page in left], budgets.get(tier, 0))
        placed |= {left[index]: tier for index in chosen}
    missing = sum(page_bytes) - sum(page_bytes[page] for page in placed)
    if len(placed) < len(page_bytes):
        given = ", ".join(f"{tier} {format_bytes(budgets[tier])}" for tier in TIERS if tier in budgets)
        raise UserError(f"{format_bytes(missing)} of pages fit no tier ({given}): give one of them that much more")
    return [placed[page] for page in range(len(page_bytes))]


def _evenly(page_bytes: Sequence[int], budget: int) -> set[int]:
    """Indices of pages that fill a budget without exceeding it, spread evenly over the order."""
    total = sum(page_bytes)
    if total <= budget:
        return set(range(len(page_bytes)))
    smallest = min(page_bytes)
    chosen: set[int] = set()
    taken = passed = 0
    for index, nbytes in enumerate(page_bytes):
        if taken + smallest > budget:
            return chosen
        passed += nbytes
        nearer = taken + nbytes / 2 <= budget * (passed / total)  # taking it comes closer to the even line
        if nearer and taken + nbytes <= budget:
            chosen.add(index)
            taken += nbytes
    for index, nbytes in enumerate(page_bytes):  # what whole pages left over
        if index not in chosen and taken + nbytes <= budget:
            chosen.add(index)
            taken += nbytes
    return chosen
