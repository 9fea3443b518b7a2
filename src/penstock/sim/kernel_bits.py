"""Words of 64 tokens in compiled code: counting, finding, and counters that are sliced into bit planes.

All words are uint64 and all positions int64; numba makes doubles of sums that mix the two.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.sim.kernel_cache import part

NO_TOKEN = np.uint64(0)
ONE = np.uint64(1)
EVERY = np.uint64(0xFFFFFFFFFFFFFFFF)


@intrinsic
def ones(context, word):
    """How many bits are set."""

    def emit(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), emit


@intrinsic
def lowest(context, word):
    """The place of the lowest bit of a word that has one."""

    def emit(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), emit


@intrinsic
def highest(context, word):
    """The place of the highest bit of a word that has one."""

    def emit(context, builder, signature, arguments):
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.uint64), emit


@part
def bit(place):
    """The word with one bit."""
    return ONE << np.uint64(place)


@part
def has(row, token):
    """Whether a token is in a row of words."""
    return (row[token >> 6] >> np.uint64(token & 63)) & ONE != NO_TOKEN


@part
def keep_lowest(word, count):
    """The lowest `count` bits that are set."""
    kept = NO_TOKEN
    for _ in range(count):
        kept |= word & (~word + ONE)
        word &= word - ONE
    return kept


@part
def keep_highest(word, count):
    """The highest `count` bits that are set."""
    for _ in range(ones(word) - count):
        word &= word - ONE
    return word


@part
def exchange(planes, come, gone, more, less, words):
    """Count the tokens of one row in a counter [planes, words], no longer those of another; two rows to work in."""
    for w in range(words):
        more[w] = come[w] & ~gone[w]
        less[w] = gone[w] & ~come[w]
    for p in range(planes.shape[0]):
        plane = planes[p]
        for w in range(words):
            digit, up, down = plane[w], more[w], less[w]
            plane[w] = digit ^ (up | down)
            more[w] = up & digit
            less[w] = down & ~digit


@part
def where_equal(planes, number, equal, words):
    """Set `equal` to the tokens that a counter holds this number for."""
    for w in range(words):
        equal[w] = EVERY
    for place, plane in enumerate(planes):
        flip = NO_TOKEN if number >> place & 1 else EVERY
        for w in range(words):
            equal[w] &= plane[w] ^ flip


@part
def write_number(planes, number, row, words):
    """Let a counter hold this number for the tokens of a row."""
    for p in range(planes.shape[0]):
        plane = planes[p]
        digit = EVERY if number >> p & 1 else NO_TOKEN
        for w in range(words):
            plane[w] ^= (plane[w] ^ digit) & row[w]


@part
def sum_over(planes, row, words):
    """The sum of a counter over the tokens of a row."""
    total = 0
    for place, plane in enumerate(planes):
        count = 0
        for w in range(words):
            count += ones(plane[w] & row[w])
        total += count << place
    return total
