"""Sweeps of which only sums are known: which of them cost alike, and what that is."""

from collections.abc import Sequence

from penstock.plan.cost import Priced, SweepCost
from penstock.plan.load import Load, Spans, rounded

Part = tuple[float, float, float, float]  # spans, their mean first position and length, and samples
Alike = tuple[int, tuple[Part, ...]]  # calls, and spans that decode and those of prompts, to a fiftieth


def alike(decoding: int, keys: int, spans: Sequence[tuple[int, int]], finished: int, batch_tokens: int) -> Alike:
    """What sweeps have in common with one of so many rows that decode, keys that they attend to in all, and spans of
    prompts.

    spans: (first, count) of each. finished: of them, those that end their prompts. batch_tokens: of a call at most.
    """
    parts = []
    tokens = decoding
    if decoding:
        rows = rounded(decoding)
        parts.append((rows, rounded(keys / decoding), 1.0, rows))
    if spans:
        first, count = (sum(amounts) for amounts in zip(*spans, strict=True))
        tokens += count
        number = len(spans)
        parts.append((rounded(number), rounded(first / number), rounded(count / number), rounded(finished)))
    return -(-tokens // batch_tokens), tuple(parts)


def priced(cost: SweepCost, sweeps: Sequence[Alike]) -> Sequence[Priced]:
    """What sweeps of each kind take."""
    return cost.prices([_loads(parts, calls) for calls, parts in sweeps])


def _loads(parts: Sequence[Part], calls: int) -> tuple[Load, ...]:
    """Micro-batches: those of rows that decode and those of prompts are priced apart where there are several."""
    spans = [Spans(number, first, count) for number, first, count, _ in parts]
    samples = [part[3] for part in parts]
    if len(parts) == 1 or calls == 1:
        return (Load(tuple(spans), sum(samples), calls),)
    tokens = [number * count for number, _, count, _ in parts]
    decode_calls = min(calls - 1, max(1, round(calls * tokens[0] / sum(tokens))))
    return tuple(
        Load((span,), sampled, number)
        for span, sampled, number in zip(spans, samples, (decode_calls, calls - decode_calls), strict=True)
    )
