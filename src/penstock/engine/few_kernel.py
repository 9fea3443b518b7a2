"""Products of a few tokens with 16-bit or packed weights, in float32 on the CPU: one pass over the weights.

No element is written: weights become vectors in registers, and each meets up to four tokens; for more, rows that are in
the nearest cache are gone over again.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import nn

from penstock.compiled.codes import layout_of, record
from penstock.compiled.kernels import compiled
from penstock.compiled.record import VECTORS, Record, records_of_rows
from penstock.compiled.vectors import LANES, Emitter, Integer
from penstock.engine.operand import Operand
from penstock.quant.rows import BLOCK

TILES = 1, 4  # tokens that are multiplied together: two kernels to compile, not one for each number
ROWS = 4  # of weights together, so that sums do not wait for each other


@intrinsic
def multiply_rows(context, weight, rows, tokens, form, row, stride, columns, x, x_stride, out, out_stride):
    """Write to ``out`` (tokens, rows) the products of rows of weights with ``x`` (tokens, columns), float32; addresses.

    As many rows and tokens as the tuples are long, stored as ``weight`` and ``form`` tell (``codes.layout_of``). x ends
    with zeros up to a whole block.
    """
    stored, row_range, token_range = layout_of(weight, form), range(rows.count), range(tokens.count)

    def emit(context, builder, signature, arguments):
        _, _, _, _, row, stride, columns, x, x_stride, out, out_stride = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        apart = 2 if tokens.count == 1 else 1  # sums of each row and token that do not wait for each other
        totals = [[[wide.zero() for _ in range(apart)] for _ in token_range] for _ in row_range]

        def add(groups: list[Record], index: ir.Value | int, place: ir.Value) -> None:
            """A block of every row; ``place``: of its first column in x."""
            met = [
                [wide.load(single.at(place, (t, x_stride), (v, 4 * LANES))) for v in range(VECTORS)]
                for t in token_range
            ]
            for r, group in enumerate(groups):
                for v, weights in enumerate(group.block(index)):
                    for t in token_range:
                        wide.add_product(totals[r][t][v % apart], weights, met[t][v])

        for number, blocks, places in records_of_rows(wide, stored, row, stride, rows.count, columns):
            group = [record(wide, stored, place) for place in places]
            for block in blocks:
                add(group, block, single.at(x, (number, 4 * stored.group), (block, 4 * BLOCK)))
        for t in token_range:
            sums = []
            for r in row_range:
                values = [builder.load(total) for total in totals[r][t]]
                sums.append(values[0] if apart == 1 else builder.fadd(values[0], values[1]))
            wide.store(wide.lane_sums(sums), single.at(out, (t, out_stride)))
        return context.get_dummy_value()

    return types.void(weight, rows, tokens, form, *[Integer] * 7), emit


@numba.njit(inline="always")
def _multiply(rows, tokens, form, weight, first, x, columns, out):
    """The product of all tokens with as many rows of weights as the tuple is long."""
    stride = weight.strides[0]
    row = weight.ctypes.data + first * stride
    for t in range(0, len(x), len(tokens)):
        met, place = x.ctypes.data + t * x.strides[0], out.ctypes.data + t * out.strides[0] + 4 * first
        multiply_rows(weight, rows, tokens, form, row, stride, columns, met, x.strides[0], place, out.strides[0])


def _multiply_few(rows, one, tokens, form, weight, x, columns, out, start, stop):
    """The product of tokens x with rows start ≤ n < stop of weights, written to those columns of out (T, n)."""
    whole = start + (stop - start) // len(rows) * len(rows)
    for first in range(start, whole, len(rows)):
        _multiply(rows, tokens, form, weight, first, x, columns, out)
    for first in range(whole, stop):
        _multiply(one, tokens, form, weight, first, x, columns, out)


@cache
def _compiled(stored: str, tokens: int, form: int) -> Callable[..., None]:
    """The kernel for a format of weights and a number of tokens: compiled now, or read from the disk."""
    signature = types.void(
        *(types.UniTuple(types.int64, number) for number in (ROWS, 1, tokens, form)),
        types.Array(getattr(types, stored), 2, "A"),
        types.Array(types.float32, 2, "C"),
        types.intp,
        types.Array(types.float32, 2, "A"),
        *(types.intp, types.intp),
    )
    return compiled(_multiply_few, signature)


def tile_of(tokens: int) -> int:
    """Tokens that are multiplied together, of so many."""
    return 1 if tokens == 1 else TILES[-1]


def work(x: torch.Tensor, weights: Operand, out: npt.NDArray[np.float32]) -> Callable[[int, int], None]:
    """What writes the products of x (T, in) with rows start ≤ n < stop of weights to those columns of out (T', n).

    T' is T filled up to whole tiles.
    """
    columns, missing = x.shape[1], (0, -x.shape[1] % BLOCK, 0, len(out) - x.shape[0])
    met = (nn.functional.pad(x, missing) if any(missing) else x).float().contiguous().numpy()
    tile = tile_of(x.shape[0])
    kernel = _compiled(weights.kind, tile, len(weights.form))
    lengths = (0,) * ROWS, (0,), (0,) * tile, weights.form
    return lambda start, stop: kernel(*lengths, weights.array, met, columns, out, start, stop)
