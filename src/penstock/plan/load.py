"""What a sweep has to compute, in numbers that a cost depends on: tokens, samples, and keys that queries meet."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from penstock.schedule.types import Span


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans of one micro-batch that are alike: ``number`` of them, each ``count`` tokens from position ``first``."""

    number: float
    first: float
    count: float

    def pairs(self, window: int | None) -> float:
        """Pairs of a query and a key that it attends to, of all these spans at one layer."""
        if window is None:
            return self.number * self.count * (self.first + (self.count + 1) / 2)
        last = self.first + self.count  # a query at position p sees min(p + 1, window) keys
        growing = max(0.0, min(last, window) - self.first)
        full = self.count - growing
        return self.number * (growing * (self.first + (growing + 1) / 2) + full * window)

    def keys(self, window: int | None) -> float:
        """Keys that are read from the cache for them at one layer, each once per span."""
        reached = self.first + self.count
        return self.number * (reached if window is None else min(reached, window + self.count))


@dataclass(frozen=True, slots=True)
class Load:
    """One micro-batch, or several alike together. samples: tokens whose logits are wanted. calls: micro-batches, of the
    mean sweep among several."""

    spans: tuple[Spans, ...]
    samples: float
    calls: float = 1

    @property
    def tokens(self) -> float:
        """Tokens that every product meets."""
        return sum(s.number * s.count for s in self.spans)

    @property
    def rows(self) -> float:
        """Spans in all."""
        return sum(s.number for s in self.spans)


_LOG_STEP = math.log(1.05)  # lengths within 5 % of each other count as alike
_LOG_FIFTIETH = math.log(1.02)


def load_of(spans: Iterable[Span], windows: bool = True) -> Load:
    """The load of a micro-batch that the scheduler made; spans of like lengths are joined, their means kept.

    windows: some layers look back only so far. Where none do, decode costs what the mean of its rows costs, whatever
    their lengths, and the means are rounded to a fiftieth: sweeps that follow each other are then priced once.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    samples = 0
    for span in spans:
        first, count = span.first, span.count
        samples += span.samples
        key = (1, -1) if count == 1 and not windows else (_bin(count), _bin(first))
        sums = alike.get(key)
        if sums is None:
            sums = alike[key] = [0, 0, 0]
        sums[0] += 1
        sums[1] += first
        sums[2] += count
    joined = (Spans(number, rounded(first / number), count / number) for number, first, count in alike.values())
    return Load(tuple(joined), samples)


def together(loads: Iterable[Load]) -> tuple[Load, ...]:
    """Micro-batches that are equal as one load of several calls, which costs the same."""
    return tuple(load if number == 1 else _several(load, number) for load, number in Counter(loads).items())


def _several(load: Load, number: int) -> Load:
    spans = tuple(Spans(number * s.number, s.first, s.count) for s in load.spans)
    return Load(spans, number * load.samples, number * load.calls)


def rounded(size: float) -> float:
    """The middle of a step of a fiftieth; exact up to 20."""
    return size if size <= 20 else 20 * 1.02 ** round(math.log(size / 20) / _LOG_FIFTIETH)


def _bin(size: int) -> int:
    """A whole number for sizes that are alike; exact up to 20."""
    return size if size <= 20 else 20 + int(math.log(size / 20) / _LOG_STEP)
