"""Cutting a sweep's spans into micro-batches of nearly equal size.

A product takes tokens 16 at a time (a vector of float32, a tile of tensor cores), and what is left over costs as much
as 16 do. So all micro-batches but the last have a multiple of 16 tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from penstock.schedule.types import Span

TOGETHER = 16  # tokens that a product takes at a time


def pack(spans: Sequence[Span], batch_tokens: int, cut: bool) -> list[tuple[Span, ...]]:
    """Micro-batches of at most ``batch_tokens`` tokens, balanced to 16 tokens, in the order of the spans.

    Where ``cut``, a span is cut at the border of a micro-batch, so that one row may have spans in several of them, in
    order. Otherwise spans stay whole, and one longer than ``batch_tokens`` is a micro-batch alone.
    """
    tokens = sum(span.count for span in spans)
    if not tokens:
        return []
    parts = -(-tokens // batch_tokens)
    target = min(batch_tokens, -(-tokens // (parts * TOGETHER)) * TOGETHER)
    return _fill(_pieces(spans, target), target) if cut else _group(spans, target, batch_tokens)


def _pieces(spans: Iterable[Span], target: int) -> Iterable[Span]:
    """The spans, cut wherever the running count of tokens reaches a multiple of ``target``."""
    passed = 0
    for span in spans:
        rest = span
        while rest.count > (room := target - passed % target):
            yield replace(rest, count=room, samples=False)
            rest = replace(rest, first=rest.first + room, count=rest.count - room)
            passed += room
        yield rest
        passed += rest.count


def _fill(pieces: Iterable[Span], target: int) -> list[tuple[Span, ...]]:
    batches: list[tuple[Span, ...]] = []
    batch: list[Span] = []
    held = 0
    for piece in pieces:
        batch.append(piece)
        held += piece.count
        if held == target:
            batches.append(tuple(batch))
            batch, held = [], 0
    return [*batches, tuple(batch)] if batch else batches


def _group(spans: Iterable[Span], target: int, batch_tokens: int) -> list[tuple[Span, ...]]:
    batches: list[tuple[Span, ...]] = []
    batch: list[Span] = []
    held = 0
    for span in spans:
        if batch and (held >= target or held + span.count > batch_tokens):
            batches.append(tuple(batch))
            batch, held = [], 0
        batch.append(span)
        held += span.count
    return [*batches, tuple(batch)] if batch else batches
