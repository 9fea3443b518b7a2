"""What a trace really skips, and how much of a read set the next step reads again."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.trace import bits
from penstock.trace.skip_trace import SkipTrace

_WINDOW_BYTES = 4 << 20  # a window stays in the cache between the passes over it


@dataclass(frozen=True)
class TraceFacts:
    """Shares over all steps and layers, and what each step reads.

    skip: of the tokens there; overlap: of the tokens read (None: no two steps). reads: |R(n, l)| [steps, layers].
    """

    skip: float
    overlap: float | None
    reads: NDArray[np.int64] = field(compare=False, repr=False)


def trace_facts(trace: SkipTrace) -> TraceFacts:
    """Count a trace in one pass."""
    shape = trace.shape
    exist = shape.prefill_tokens + np.arange(shape.steps)
    skipped = np.empty((shape.steps, shape.layers), np.int64)
    counted = kept = 0
    for first, held in trace.windows(shape.steps_in(_WINDOW_BYTES), ahead=1):
        skipped[counted : first + len(held)] = bits.counts(held[counted - first :])
        counted = first + len(held)
        kept += int(bits.read_again(held, exist[first:counted]).sum())
    reads = exist[:, None] - skipped
    there, read = shape.layers * int(exist.sum()), int(reads[:-1].sum())
    return TraceFacts(int(skipped.sum()) / there if there else 0.0, kept / read if read else None, reads)
