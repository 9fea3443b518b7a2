"""Scores made shares as keys come block by block, in powers of two; inlined by the kernels that attend."""

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

UNSEEN = -1e30  # the highest score before any key: finite, so that differences with it stay numbers
LOG2_E = math.log2(math.e)


@intrinsic
def float_of_bits(context, bits):
    """The float32 with these bits."""

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit


@numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"})  # type: ignore[untyped-decorator]  # numba has no types
def exp2(x: Any) -> Any:
    """2**x in float32 for x ≤ 127, to 2e-7 relative; under 2**-126 it stays there. Plain arithmetic: vectorises."""
    x = max(x, np.float32(-126.0))
    whole = np.float32(math.floor(x))
    part = x - whole
    power = np.float32(2.1702255e-4)
    power = power * part + np.float32(1.2439688e-3)
    power = power * part + np.float32(9.6788410e-3)
    power = power * part + np.float32(5.5483342e-2)
    power = power * part + np.float32(2.4022984e-1)
    power = power * part + np.float32(6.9314698e-1)
    power = power * part + np.float32(1.0)
    return power * float_of_bits(np.int32(np.int32(whole) + np.int32(127)) << np.int32(23))


@numba.njit(inline="always", fastmath={"reassoc", "contract", "nsz", "arcp"})
def fold(scores, sums, top, total, h, count, dv, cap, twice):
    """Make shares of a query head's scores of ``count`` keys of a block, and fade its sums to the highest so far.

    cap, twice: of softcapped scores, else 0.
    """
    if twice > 0:
        for t in range(count):  # tanh(x) = 1 - 2 / (e**2x + 1)
            power = exp2(min(scores[h, t] * twice, np.float32(126.0)))
            scores[h, t] = cap - cap * np.float32(2.0) / (power + np.float32(1.0))
    # whole vectors of scores: a loop's scalar rest would cost more than they do
    padded = min((count + 31) // 32 * 32, scores.shape[1])
    for t in range(count, padded):
        scores[h, t] = UNSEEN
    highest = top[h]
    for t in range(padded):
        highest = max(highest, scores[h, t])
    fade = exp2(top[h] - highest)
    seen = np.float32(0.0)
    for t in range(padded):
        share = exp2(scores[h, t] - highest)
        scores[h, t] = share
        seen += share
    top[h], total[h] = highest, total[h] * fade + seen
    if fade != np.float32(1.0):
        for d in range(dv):
            sums[h, d] *= fade


@numba.njit(inline="always")
def begin(q, token, factor, group, width, first, last, queries, sums, top, total):
    """Set out on a token's heads first ≤ h < last, a kv head's filled up to ``width``: scaled queries, empty sums."""
    for h in range(first, last):
        top[h], total[h] = UNSEEN, 0.0
        for d in range(sums.shape[1]):
            sums[h, d] = 0.0
        head = h // width * group + h % width
        for d in range(queries.shape[1]):
            queries[h, d] = q[token, head, d] * factor if h % width < group else np.float32(0.0)


@numba.njit(inline="always", fastmath={"reassoc", "contract", "nsz", "arcp"})
def end(out, lse, token, group, width, first, last, sums, top, total):
    """Write what these heads' values come to, and the log-sum-exp of their scores; -inf without any key."""
    for h in range(first, last):
        if h % width < group:
            head = h // width * group + h % width
            inverse = np.float32(1.0) / total[h] if total[h] > 0 else np.float32(0.0)
            lse[token, head] = (top[h] + math.log2(total[h])) / LOG2_E if total[h] > 0 else -np.inf
            for d in range(out.shape[2]):
                out[token, head, d] = sums[h, d] * inverse
