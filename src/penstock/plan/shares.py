"""Reading shares as people write them: ``gpu=20%,cpu=50%,disk=30%``."""

from collections.abc import Mapping
from fractions import Fraction

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Shares, Tier


def parse_shares(given: str | Mapping[str, float | str] | Shares, what: str = "shares") -> Shares:
    """The shares that a person wrote: ``cpu=40%,disk=60%``, ``cpu`` (all of it), or a mapping of tier to percentage.

    A mapping may hold fractions that sum to 1 as well. ``what`` names the setting in the UserError that unknown or
    repeated tiers, negative percentages and sums other than 100 raise.
    """
    if isinstance(given, Shares):
        return parse_shares({tier: given.of(tier) for tier in TIERS}, what)
    if isinstance(given, Mapping):
        whole = 1 if _sums_to(given, 1) else 100
        pairs = [(str(name), str(part)) for name, part in given.items()]
    elif isinstance(given, str):
        whole = 100
        pairs = [_pair(entry) for entry in given.split(",")]
    else:
        raise UserError(f"{what} is {given!r}: give shares as text such as cpu=40%,disk=60%")
    percents: dict[Tier, Fraction] = {}
    for name, part in pairs:
        tier = _tier(name, given, what)
        if tier in percents:
            raise UserError(f"{what} {given!r} names {tier} twice: give each tier once")
        percents[tier] = _percent(part, given, what) * Fraction(100, whole)
    total = sum(percents.values(), Fraction(0))
    if abs(total - 100) > Fraction(1, 10**6):
        raise UserError(f"{what} {given!r} sums to {float(total):g} %: the shares of all tiers must sum to 100 %")
    return Shares.from_mapping({tier: float(percent / total) for tier, percent in percents.items()})


def _pair(entry: str) -> tuple[str, str]:
    name, equals, part = entry.partition("=")
    return name, part if equals else "100"


def _sums_to(given: Mapping[str, float | str], whole: int) -> bool:
    parts = [part for part in given.values() if isinstance(part, int | float)]
    return len(parts) == len(given) and abs(sum(parts) - whole) < 1e-6


def _tier(name: str, given: object, what: str) -> Tier:
    for tier in TIERS:
        if name.strip().lower() == tier:
            return tier
    raise UserError(f"{what} {given!r} names {name.strip() or 'no tier'!r}: the tiers are {', '.join(TIERS)}")


def _percent(part: str, given: object, what: str) -> Fraction:
    try:
        percent = Fraction(part.strip().removesuffix("%").strip())
    except (ValueError, ZeroDivisionError):
        percent = Fraction(-1)
    if percent < 0:
        raise UserError(f"{what} {given!r} holds {part.strip()!r}: give each share as a percentage from 0 to 100")
    return percent
