"""Sets of tokens as bits of uint64 words: counting and masking them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.trace.skip_trace import WORD_BITS, SkipBits


def counts(bits: SkipBits) -> NDArray[np.int64]:
    """Bits that are set in the words of the last axis: [...] int64."""
    ones = np.bitwise_count(bits) if hasattr(np, "bitwise_count") else _ones_by_table(bits)
    summed: NDArray[np.int64] = ones.sum(axis=-1, dtype=np.int64)
    return summed


def count(bits: SkipBits) -> int:
    """All bits that are set."""
    return int(counts(bits).sum())


def read_again(bits: SkipBits, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many tokens each step reads and the next one reads too: [steps - 1, layers] of [steps, layers, words].

    tokens: [steps], how many exist at each step.
    """
    before = tokens[:-1]
    either = bits[:-1] | bits[1:]
    # Token n, which is new to step n + 1, belongs to neither of the read sets that are compared.
    new = np.uint64(1) << (before % WORD_BITS).astype(np.uint64)
    either[np.arange(len(before)), :, before // WORD_BITS] &= ~new[:, None]
    read: NDArray[np.int64] = before[:, None] - counts(either)
    return read


def below(tokens: int, words: int) -> SkipBits:
    """Words whose bits are set for all tokens before this one."""
    full = min(max(tokens, 0), words * WORD_BITS)
    mask = np.zeros(words, np.uint64)
    mask[: full // WORD_BITS] = ~np.uint64(0)
    if full % WORD_BITS:
        mask[full // WORD_BITS] = np.uint64((1 << full % WORD_BITS) - 1)
    return mask


def from_tokens(tokens: NDArray[Any], words: int) -> SkipBits:
    """Words whose bits are set for these tokens, all of which they hold."""
    flags = np.zeros(words * WORD_BITS, bool)
    flags[tokens] = True
    packed = np.packbits(flags, bitorder="little").view(np.dtype("<u8"))
    return packed.astype(np.uint64, copy=False)


def _ones_by_table(bits: SkipBits) -> NDArray[np.uint8]:
    """numpy before 2.0 does not count bits."""
    table = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)
    quarters = np.ascontiguousarray(bits).view(np.uint16)
    ones: NDArray[np.uint8] = table[quarters].reshape(*bits.shape, 4).sum(axis=-1, dtype=np.uint8)
    return ones
