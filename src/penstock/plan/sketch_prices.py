"""Prices of sweeps of which only sums are known."""

from collections.abc import Sequence

from penstock.plan.cost import Priced, SweepCost
from penstock.plan.load import Load, Spans, rounded


class SketchPrices:
    """Prices by one cost model; sweeps that are alike to a fiftieth are priced once."""

    def __init__(self, cost: SweepCost) -> None:
        self._cost = cost
        self._memo: dict[tuple[float, ...], Priced] = {}

    def sweep(
        self, decoding: int, keys: int, spans: Sequence[tuple[int, int]], finished: int, batch_tokens: int
    ) -> Priced:
        """A sweep of so many rows that decode, keys that they attend to in all, and spans of prompts.

        spans: (first, count) of each. finished: of them, those that end their prompts. batch_tokens: of a call at most.
        """
        tokens = decoding + sum(count for _, count in spans)
        calls = -(-tokens // batch_tokens)
        parts = []
        if decoding:
            number = rounded(decoding)
            parts.append((number, rounded(keys / decoding), 1.0, number))
        if spans:
            first, count = (sum(amounts) / len(spans) for amounts in zip(*spans, strict=True))
            parts.append((rounded(len(spans)), rounded(first), rounded(count), rounded(finished)))
        key = (float(calls), *(amount for part in parts for amount in part))
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._cost.price(_loads(parts, calls))
        return found


def _loads(parts: Sequence[tuple[float, float, float, float]], calls: int) -> list[Load]:
    """Micro-batches: those of rows that decode and those of prompts are priced apart where there are several."""
    spans = [Spans(number, first, count) for number, first, count, _ in parts]
    samples = [part[3] for part in parts]
    if len(parts) == 1 or calls == 1:
        return [Load(tuple(spans), sum(samples), calls)]
    tokens = [number * count for number, _, count, _ in parts]
    decode_calls = min(calls - 1, max(1, round(calls * tokens[0] / sum(tokens))))
    return [
        Load((span,), sampled, number)
        for span, sampled, number in zip(spans, samples, (decode_calls, calls - decode_calls), strict=True)
    ]
