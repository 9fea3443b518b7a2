"""Straight lines and planes through measured times; the relative error counts, so that small times weigh as much."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = fixed_s + amount · each_s, neither of them negative."""

    fixed_s: float
    each_s: float

    def seconds(self, amount: float) -> float:
        """The time of an amount."""
        return self.fixed_s + amount * self.each_s


def fit_line(amounts: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line closest to (amount, seconds) pairs with two amounts or more."""
    fixed, each = fit_terms([(1.0, amount) for amount in amounts], seconds)
    return Line(fixed, each)


def fit_terms(amounts: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Seconds of one of each kind, where row i says how many of each kind took ``seconds[i]`` together.

    A kind that comes out negative, which is noise, costs nothing, and the others are fitted again.
    """
    times = np.asarray(seconds, float)
    rows = np.asarray(amounts, float) / times[:, None]
    kept = list(range(rows.shape[1]))
    while kept:
        found, *_ = np.linalg.lstsq(rows[:, kept], np.ones(len(times)))
        if (found >= 0).all():
            terms = dict(zip(kept, found.tolist(), strict=True))
            return [terms.get(kind, 0.0) for kind in range(rows.shape[1])]
        kept.pop(int(found.argmin()))
    return [0.0] * rows.shape[1]
