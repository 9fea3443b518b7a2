"""What each step of a trace reads, counted in one pass or spread out."""

import numpy as np
from numpy.typing import NDArray

from penstock.trace.bits import counts
from penstock.trace.skip_trace import SkipTrace

WINDOW_BYTES = 1 << 21  # a window and its counts stay in the cache between the two numpy calls that read them


def read_counts(trace: SkipTrace) -> NDArray[np.int64]:
    """How many items each step reads: |R(n, l)| as [steps, layers], in one pass over the trace."""
    shape = trace.shape
    items = np.empty((shape.steps, shape.layers), np.int64)
    window = max(1, WINDOW_BYTES // (8 * shape.layers * shape.words))
    for first, bits in trace.windows(window):
        exist = shape.prefill_tokens + first + np.arange(len(bits))
        items[first : first + len(bits)] = exist[:, None] - counts(bits)
    return items


def read_mask(trace: SkipTrace) -> NDArray[np.bool_]:
    """R(n, l) as [steps, layers, tokens] booleans: a byte for each, so for small and medium traces."""
    shape = trace.shape
    mask = np.empty((shape.steps, shape.layers, shape.tokens), np.bool_)
    for first, bits in trace.windows(max(1, WINDOW_BYTES // (8 * shape.layers * shape.words))):
        octets = np.ascontiguousarray(bits, dtype="<u8").view(np.uint8)
        skipped = np.unpackbits(octets, axis=-1, count=shape.tokens, bitorder="little").view(np.bool_)
        exist = np.arange(shape.tokens) < (shape.prefill_tokens + first + np.arange(len(bits)))[:, None]
        mask[first : first + len(bits)] = exist[:, None, :] & ~skipped
    return mask
