"""What a trace really skips, and how much of a read set the next step reads again."""

from dataclasses import dataclass

import numpy as np

from penstock.trace import bits
from penstock.trace.skip_trace import WORD_BITS, SkipTrace

_WINDOW_BYTES = 4 << 20  # a window stays in the cache between the passes over it


@dataclass(frozen=True)
class TraceFacts:
    """Shares over all steps and layers. skip: of the tokens there; overlap: of the tokens read (None: no two steps)."""

    skip: float
    overlap: float | None


def trace_facts(trace: SkipTrace) -> TraceFacts:
    """Count a trace in one pass."""
    shape = trace.shape
    window = max(1, _WINDOW_BYTES // (8 * shape.layers * shape.words))
    skipped = there = kept = read = 0
    for first, held in trace.windows(window, ahead=1):
        steps = min(window, shape.steps - first)
        exist = shape.prefill_tokens + first + np.arange(len(held))
        ones = bits.counts(held)
        skipped += int(ones[:steps].sum())
        there += shape.layers * int(exist[:steps].sum())
        before = exist[:-1]  # each step that has one after it
        read += shape.layers * int(before.sum()) - int(ones[:-1].sum())
        either = held[:-1] | held[1:]
        # Token n is new to step n + 1 and belongs to neither read set that is compared.
        new = np.uint64(1) << (before % WORD_BITS).astype(np.uint64)
        either[np.arange(len(before)), :, before // WORD_BITS] &= ~new[:, None]
        kept += shape.layers * int(before.sum()) - bits.count(either)
    return TraceFacts(skipped / there if there else 0.0, kept / read if read else None)
