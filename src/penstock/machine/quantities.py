"""Values of a machine file as people write them (``16GiB``, ``12.9GB/s``, ``21TFLOP/s``, ``80us``).

What cannot be read raises ValueError with what is allowed; the place and what was given are for the caller to say.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from penstock.errors import UserError
from penstock.machine.machine import Curve
from penstock.units import parse_bytes

_WRITTEN = re.compile(r"(\d{1,30}(?:\.\d{1,30})?|\.\d{1,30})\s*(\D+)")
_MOST_BYTES = 2**63 - 1  # what TOML promises to carry
_LEAST, _MOST = 1e-6, 1e30  # a rate or a time beyond these is a slip, and would overflow what is reckoned with it
_DECIMAL = {"P": 10**15, "T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3, "": 1}
_BINARY = {"Ti": 2**40, "Gi": 2**30, "Mi": 2**20, "Ki": 2**10}


@dataclass(frozen=True, slots=True)
class Unit:
    """A physical unit with its prefixes, largest first. allowed: what a number in it may be, for people."""

    factors: Mapping[str, Fraction]
    allowed: str
    may_be_zero: bool = False

    def read(self, given: object) -> float:
        """The number that a person wrote with a unit, or without one as a plain number."""
        try:
            value = self._value(given)
        except OverflowError:
            value = math.inf
        least = 0.0 if self.may_be_zero else _LEAST
        if not least <= value <= _MOST:
            raise ValueError(self.allowed)
        return value

    def _value(self, given: object) -> float:
        if isinstance(given, bool):
            return math.nan
        if isinstance(given, int | float):
            return float(given)
        match = _WRITTEN.fullmatch(given.strip()) if isinstance(given, str) else None
        factors = {symbol.lower(): factor for symbol, factor in self.factors.items()}
        if match is None or match[2].lower() not in factors:
            return math.nan
        return float(Fraction(match[1]) * factors[match[2].lower()])


def _factors(prefixes: Mapping[str, int], units: Iterable[str]) -> dict[str, Fraction]:
    return {prefix + unit: Fraction(factor) for unit in units for prefix, factor in prefixes.items()}


BANDWIDTH = Unit(
    _factors(_DECIMAL, ["B/s"]) | _factors(_BINARY, ["B/s"]),
    'give bytes per second greater than zero, such as "12.9GB/s" or 1.29e10',
)
FLOPS = Unit(
    _factors(_DECIMAL, ["FLOP/s", "FLOPS"]), 'give FLOP per second greater than zero, such as "21TFLOP/s" or 2.1e13'
)
ELEMENTS = Unit(_factors(_DECIMAL, ["/s"]), 'give elements per second greater than zero, such as "20G/s" or 2e10')
SECONDS = Unit(
    {"s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6)}
    | {"ns": Fraction(1, 10**9)},
    'give zero or more seconds, such as "80us" or 8e-5',
    may_be_zero=True,
)


def read_size(given: object) -> int:
    """A number of bytes."""
    allowed = 'give a positive size such as "16GiB" (2^30 bytes), "16GB" (10^9), or bytes as a whole number'
    if not isinstance(given, str | int) or (isinstance(given, int) and given > _MOST_BYTES):
        raise ValueError(allowed)
    try:
        nbytes = parse_bytes(given)
    except UserError:
        raise ValueError(allowed) from None
    if nbytes > _MOST_BYTES:
        raise ValueError(allowed)
    return nbytes


def read_part(given: object) -> float:
    """A part of a whole that is lost: from 0 to less than 1."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
        raise ValueError("give a number from 0 to less than 1, such as 0.12")
    return float(given)


def read_curve(given: object) -> Curve:
    """FLOP/s at every size, or a list of [size, FLOP/s]."""
    if not isinstance(given, list):
        return Curve.flat(FLOPS.read(given))
    if not given:
        raise ValueError("give at least one [size, rate], such as [[1, '80GFLOP/s'], [512, '21TFLOP/s']]")
    points = tuple(_point(number, pair) for number, pair in enumerate(given, start=1))
    for number, (before, after) in enumerate(pairwise(points), start=2):
        if after[0] <= before[0]:
            raise ValueError(f"point {number} has size {after[0]:g} after {before[0]:g}, but sizes must ascend")
    return Curve(points)


def _point(number: int, pair: object) -> tuple[float, float]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"point {number} is not [size, rate], such as [512, '21TFLOP/s']")
    size, rate = pair
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < 2**63:
        raise ValueError(f"point {number} has no size that is a number greater than zero")
    try:
        return float(size), FLOPS.read(rate)
    except ValueError as error:
        raise ValueError(f"rate of point {number}: {error}") from None
