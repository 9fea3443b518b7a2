"""What each step of a trace reads, spread out."""

import numpy as np
from numpy.typing import NDArray

from penstock.trace.skip_trace import SkipTrace

_WINDOW_BYTES = 1 << 21


def read_mask(trace: SkipTrace) -> NDArray[np.bool_]:
    """R(n, l) as [steps, layers, tokens] booleans: a byte for each, so for small and medium traces."""
    shape = trace.shape
    mask = np.empty((shape.steps, shape.layers, shape.tokens), np.bool_)
    for first, bits in trace.windows(shape.steps_in(_WINDOW_BYTES)):
        octets = np.ascontiguousarray(bits, dtype="<u8").view(np.uint8)
        skipped = np.unpackbits(octets, axis=-1, count=shape.tokens, bitorder="little").view(np.bool_)
        exist = np.arange(shape.tokens) < (shape.prefill_tokens + first + np.arange(len(bits)))[:, None]
        mask[first : first + len(bits)] = exist[:, None, :] & ~skipped
    return mask
