"""Choosing scale, minimum and codes of each group: by its least and largest element, or by what loses least.

Of a group, plain rounding maps the least element to 0 and the largest to the highest code. Fitting starts there and
with narrower ranges, which clip the outermost elements and are finer for all others; from each start it alternates
between the best codes for a scale and a minimum and the best scale and minimum (least squares) for these codes, and
keeps what has the least squared error. The same alternation as in HQQ (Badri and Shaji, Half-Quadratic Quantization of
large language models, 2023), with squared errors and a search of ranges instead of its sparse norm.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from penstock.compiled.kernels import compiled
from penstock.compiled.threads import PARTS, Shared, even, share
from penstock.quant.grouped import PARAMETER_BYTES, Grouped

RANGES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72)  # of a group's own, tried as starts
REFITS = 3
KV_RANGES = (1.0, 0.9, 0.8)  # of keys and values, which are packed as they are computed: no time for more
SMALLEST, SMALLEST_NORMAL, LARGEST = np.float32(2.0**-24), np.float32(2.0**-14), np.float32(65504.0)  # half precision
_PART = 1 << 12  # elements, at least: a thread that looks for work takes a few microseconds to find it
# A scale that half precision cannot hold loses more than the format should: what is refused for it.
COARSER, TOLERATED = np.float32(1.25), np.float32(2.0**-9)  # times the step; of the largest element, as bfloat16 does


def pack(values: npt.NDArray[np.float32], form: Grouped) -> npt.NDArray[np.uint8]:
    """Rows of float32 (rows, columns) as packed rows (rows, ``form.row_bytes``).

    Raises ValueError for values that are not finite, and for such as half precision holds no scale or minimum for.
    """
    starts, refits = ((1.0,), 0) if form.plain else (RANGES, REFITS)
    packed, bad = _packed(values, form, starts, refits, exacting=True)
    if bad.any():
        row = int(bad.argmax())
        why = "too large or too small for half precision" if np.isfinite(values[row]).all() else "not finite"
        raise ValueError(f"row {row} has elements that are {why}")
    return packed


def pack_kv(values: npt.NDArray[np.float32], form: Grouped) -> npt.NDArray[np.uint8]:
    """``pack`` for keys or values of a run, quickly; a row that half precision does not hold comes back as NaN.

    What is too small for its steps is rounded to them: next to other keys and values it is nothing.
    """
    packed, bad = _packed(values, form, KV_RANGES, 0, exacting=False)
    if bad.any():
        packed[bad] = 0xFF  # NaN as a scale, whatever the codes
    return packed


def _packed(
    values: npt.NDArray[np.float32], form: Grouped, ranges: Sequence[float], refits: int, *, exacting: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Packed rows, and which of them could not be packed. exacting: a scale may not be much coarser than its group."""
    import torch  # the number of threads that a run computes with

    rows, columns = values.shape
    packed = np.zeros((rows, form.row_bytes(columns)), np.uint8)
    starts = np.array(ranges, np.float32)
    threads, bad = torch.get_num_threads(), np.zeros(rows, np.bool_)
    cuts = even(rows, max(1, min(rows, threads * PARTS, values.size // _PART)))
    values = np.ascontiguousarray(values, np.float32)
    given = values, packed, bad, form.bits, form.group, starts, refits, exacting
    _compiled()(given, cuts=cuts, threads=threads)
    return packed, bad


@numba.njit(fastmath={"reassoc", "contract", "nsz"})
def _pack_rows(
    values: Any,
    packed: Any,
    bad: Any,
    bits: int,
    group: int,
    starts: Any,
    refits: int,
    exacting: bool,
    first: int,
    last: int,
) -> None:
    columns = values.shape[1]
    levels = np.float32(2**bits - 1)
    record = PARAMETER_BYTES + group * bits // 8
    codes, best = np.empty(group, np.float32), np.empty(group, np.float32)
    pair = np.empty(2, np.float32)
    words = pair.view(np.uint32)
    for row in range(first, last):
        for g in range((columns + group - 1) // group):
            x = values[row, g * group : min((g + 1) * group, columns)]
            count, number = len(x), np.float32(len(x))
            low, high, total = x[0], x[0], np.float32(0.0)
            for j in range(count):
                low, high = min(low, x[j]), max(high, x[j])
                total += x[j] * np.float32(0.0)
            if total != np.float32(0.0):
                bad[row] = True
                continue
            least = np.float32(np.inf)
            best_scale, best_minimum = np.float32(0.0), np.float32(0.0)
            for start in range(len(starts)):
                span = (high - low) * starts[start]
                minimum = low + (high - low - span) / np.float32(2.0)
                scale = span / levels
                for refit in range(refits + 1):
                    # what is stored: both in half precision, to which codes are then chosen
                    scale, minimum = _half(scale, words, pair, True), _half(minimum, words, pair, False)
                    inverse = np.float32(1.0) / scale if scale > 0 else np.float32(0.0)
                    error = np.float32(0.0)
                    for j in range(count):
                        code = min(max(np.rint((x[j] - minimum) * inverse), np.float32(0.0)), levels)
                        lost = x[j] - (minimum + scale * code)
                        error += lost * lost
                        codes[j] = code
                    if error < least:
                        least, best_scale, best_minimum = error, scale, minimum
                        for j in range(count):
                            best[j] = codes[j]
                    if refit == refits:
                        break
                    # least squares of x - low = (minimum - low) + scale · code
                    s_c, s_cc, s_x, s_cx = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
                    for j in range(count):
                        s_c += codes[j]
                        s_cc += codes[j] * codes[j]
                        s_x += x[j] - low
                        s_cx += codes[j] * (x[j] - low)
                    spread = number * s_cc - s_c * s_c
                    if spread <= 0:
                        break
                    scale = (number * s_cx - s_c * s_x) / spread
                    if scale <= 0:
                        break
                    minimum = low + (s_x - scale * s_c) / number
            if not least < np.float32(np.inf):  # not even its error is a number
                bad[row] = True
                continue
            coarse = exacting and best_scale / np.float32(2.0) > max(abs(low), abs(high)) * TOLERATED
            if max(abs(best_minimum), best_scale) > LARGEST or (
                coarse and best_scale > COARSER * (high - low) / levels
            ):
                bad[row] = True
                continue
            at = g * record
            for k in range(2):
                code = _bits(best_scale if k == 0 else best_minimum, words, pair)
                packed[row, at + 2 * k], packed[row, at + 2 * k + 1] = code & 0xFF, code >> 8
            at += PARAMETER_BYTES
            if bits == 8:
                for j in range(count):
                    packed[row, at + j] = np.uint8(best[j])
            else:
                for j in range(count):
                    place = at + (j // 32) * 16 + j % 16
                    packed[row, place] |= np.uint8(best[j]) << (4 * ((j % 32) // 16))


@numba.njit(inline="always")
def _half(value: Any, words: Any, pair: Any, up: bool) -> Any:
    """The float32 nearest to a value among those of half precision; up: of the smallest, none below it."""
    if abs(value) < SMALLEST_NORMAL:
        steps = value / SMALLEST
        return (np.ceil(steps) if up else np.rint(steps)) * SMALLEST
    pair[0] = value
    word = np.int64(words[0])
    words[0] = (word + 0xFFF + ((word >> 13) & 1)) & 0xFFFFE000
    return pair[0]


@numba.njit(inline="always")
def _bits(value: Any, words: Any, pair: Any) -> Any:
    """The sixteen bits of a number of half precision."""
    pair[0] = value
    word = np.int64(words[0])
    sign = (word >> 16) & 0x8000
    if abs(value) < SMALLEST_NORMAL:
        return sign | np.int64(abs(value) / SMALLEST)
    return sign | ((((word >> 23) & 0xFF) - 112) << 10) | ((word >> 13) & 0x3FF)


def _pack(given: Any, cuts: Any, turns: Any, threads: int, team: int) -> None:
    share(_pack_rows, given, cuts, turns, threads, team)


@cache
def _compiled() -> Shared:
    return Shared(compiled(_pack))
