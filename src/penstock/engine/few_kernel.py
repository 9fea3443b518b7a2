"""Products of a few tokens with 16-bit or packed weights, in float32 on the CPU: one pass over the weights.

No element is written: weights become vectors in registers, and each meets up to four tokens; for more, rows that are in
the nearest cache are gone over again.
"""

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
from penstock.compiled.narrowing import narrow
from penstock.compiled.record import VECTORS, Record, records_of_rows
from penstock.compiled.threads import Shared, Turns, share
from penstock.compiled.vectors import LANES, Emitter, Integer
from penstock.engine.operand import Operand, kind, stored
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


@numba.njit
def _multiply_rows(rows, one, tokens, form, weight, x, columns, made, start, stop):
    whole = start + (stop - start) // len(rows) * len(rows)
    for first in range(start, whole, len(rows)):
        _multiply(rows, tokens, form, weight, first, x, columns, made)
    for first in range(whole, stop):
        _multiply(one, tokens, form, weight, first, x, columns, made)


def _multiply_few(rows, one, tokens, form, weight, x, columns, out, cuts, turns, threads, team):
    """The product of tokens x, filled up to whole tiles, with weight, to out (T, n)."""
    made = np.empty((len(x), len(weight)), np.float32)
    share(_multiply_rows, (rows, one, tokens, form, weight, x, columns, made), cuts, turns, threads, team)
    for t in range(len(out)):
        narrow(out, made.ctypes.data + t * made.strides[0], out.ctypes.data + t * out.strides[0], len(weight))


@cache
def _compiled(stored: str, made: str, tokens: int, form: int) -> Shared:
    """The kernel for a format of weights, results and a number of tokens: compiled now, or read from the disk."""
    signature = types.void(
        *(types.UniTuple(types.int64, number) for number in (ROWS, 1, tokens, form)),
        types.Array(getattr(types, stored), 2, "A"),
        types.Array(types.float32, 2, "C"),
        types.intp,
        types.Array(getattr(types, made), 2, "A"),
        *Turns,
    )
    return Shared(compiled(_multiply_few, signature))


def tile_of(tokens: int) -> int:
    """Tokens that are multiplied together, of so many."""
    return 1 if tokens == 1 else TILES[-1]


def multiply(x: torch.Tensor, weights: Operand, out: torch.Tensor, cuts: npt.NDArray[np.int64], threads: int) -> None:
    """Write the product of x (T, in) with weights to out (T, n), their rows cut among so many threads."""
    tokens, columns = x.shape
    tile = tile_of(tokens)
    missing = (0, -columns % BLOCK, 0, -tokens % tile)
    met = (nn.functional.pad(x, missing) if any(missing) else x).float().contiguous().numpy()
    kernel = _compiled(weights.kind, kind(out), tile, len(weights.form))
    lengths = (0,) * ROWS, (0,), (0,) * tile, weights.form
    kernel(*lengths, weights.array, met, columns, stored(out), cuts=cuts, threads=threads)
