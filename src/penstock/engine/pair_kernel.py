"""Products of few tokens in bfloat16 with packed or 16-bit weights on CPUs that multiply pairs: ``compiled.pairs``.

A group's products are summed before its scale is applied, and its minimum meets the sum of a token's elements there,
which is made once for all rows. So elements are never made at all.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import nn

from penstock.compiled.codes import layout_of
from penstock.compiled.kernels import compiled
from penstock.compiled.pairs import SUMS, add_pairs, coded, has_minimum, load_pairs, ones
from penstock.compiled.record import records_of_rows
from penstock.compiled.vectors import Emitter, Integer
from penstock.engine.operand import Operand
from penstock.quant.rows import BLOCK

TILES = {1: 8, 4: 4, 8: 2}  # tokens of a tile, and rows of weights: their sums are what the registers hold
_BLOCK_SUMS = 4 * SUMS  # bytes of a block's vector


@intrinsic
def multiply_rows(
    context, weight, rows, tokens, form, row, stride, columns, x, x_stride, sums, sums_stride, out, apart
):
    """Write to ``out`` (tokens, rows) float32 the products of rows of weights with ``x`` (tokens, columns) bfloat16.

    As many rows and tokens as the tuples are long, stored as ``weight`` and ``form`` tell (``codes.layout_of``);
    addresses and bytes from row to row. x ends with zeros up to a whole block; sums: of its blocks (``sum_blocks``).
    """
    stored, row_range, token_range = layout_of(weight, form), range(rows.count), range(tokens.count)

    def emit(context, builder, signature, arguments):
        _, _, _, _, row, stride, columns, x, x_stride, sums, sums_stride, out, apart = arguments
        wide, single = Emitter(builder, SUMS), Emitter(builder, 1)
        totals = [[wide.zero() for _ in token_range] for _ in row_range]
        nothing = ir.Constant(wide.float, [0.0] * SUMS)

        for number, blocks, places in records_of_rows(wide, stored, row, stride, rows.count, columns):
            group = [coded(wide, stored, place) for place in places]
            dots = [[nothing for _ in token_range] for _ in row_range]
            elements = [nothing for _ in token_range]
            for block in blocks:
                here = single.at(x, (number, 2 * stored.group), (block, 2 * BLOCK))
                place = single.at(sums, (number, stored.group // BLOCK * _BLOCK_SUMS), (block, _BLOCK_SUMS))
                halves = [each.halves_of(block) for each in group]
                for t in token_range:
                    met = _halves(builder, single.at(here, (t, x_stride)))
                    for r in row_range:
                        for codes, of_token in zip(halves[r], met, strict=True):
                            dots[r][t] = add_pairs(wide, dots[r][t], codes, of_token)
                    if group[0].minimum is not None:
                        elements[t] = builder.fadd(elements[t], wide.load(single.at(place, (t, sums_stride))))
            for r, each in enumerate(group):
                for t in token_range:
                    if each.scale is None:
                        builder.store(builder.fadd(builder.load(totals[r][t]), dots[r][t]), totals[r][t])
                    else:
                        wide.add_product(totals[r][t], dots[r][t], each.scale)
                    if each.minimum is not None:
                        wide.add_product(totals[r][t], elements[t], each.minimum)
        for t in token_range:
            for first in range(0, rows.count, 4):
                found = [builder.load(totals[r][t]) for r in row_range[first : first + 4]]
                wide.store(wide.lane_sums(found), single.at(out, (t, apart), (first, 4)))
        return context.get_dummy_value()

    return types.void(weight, rows, tokens, form, *[Integer] * 9), emit


@intrinsic
def sum_blocks(context, x, columns, sums):
    """Write for each block of a token at ``x`` a vector of sums of its elements; addresses."""

    def emit(context, builder, signature, arguments):
        x, columns, sums = arguments
        wide = Emitter(builder, SUMS)
        size = ir.Constant(columns.type, BLOCK)
        blocks = builder.udiv(builder.add(columns, ir.Constant(columns.type, BLOCK - 1)), size)
        with cgutils.for_range(builder, blocks) as loop:
            total = ir.Constant(wide.float, [0.0] * SUMS)
            for half in _halves(builder, wide.at(x, (loop.index, 2 * BLOCK))):
                total = add_pairs(wide, total, half, ones(builder))
            wide.store(total, wide.at(sums, (loop.index, _BLOCK_SUMS)))
        return context.get_dummy_value()

    return types.void(*[Integer] * 3), emit


def _halves(builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """The two halves of a block of a token."""
    return [load_pairs(builder, builder.add(address, address.type(at))) for at in (0, BLOCK)]


@numba.njit(inline="always")
def _multiply(rows, tokens, form, weight, first, x, columns, sums, out):
    """The product of all tokens with as many rows of weights as the tuple is long."""
    stride = weight.strides[0]
    row = weight.ctypes.data + first * stride
    for t in range(0, len(x), len(tokens)):
        met, summed = x.ctypes.data + t * x.strides[0], sums.ctypes.data + t * sums.strides[0]
        place = out.ctypes.data + t * out.strides[0] + 4 * first
        apart = x.strides[0], sums.strides[0], out.strides[0]
        multiply_rows(
            weight, rows, tokens, form, row, stride, columns, met, apart[0], summed, apart[1], place, apart[2]
        )


def _multiply_few(rows, one, tokens, form, weight, x, columns, sums, out, start, stop):
    whole = start + (stop - start) // len(rows) * len(rows)
    for first in range(start, whole, len(rows)):
        _multiply(rows, tokens, form, weight, first, x, columns, sums, out)
    for first in range(whole, stop):
        _multiply(one, tokens, form, weight, first, x, columns, sums, out)


def _sum(x, columns, sums):
    for t in range(len(x)):
        sum_blocks(x.ctypes.data + t * x.strides[0], columns, sums.ctypes.data + t * sums.strides[0])


@cache
def _compiled(stored: str, rows: int, tokens: int, form: int) -> Callable[..., None]:
    """The kernel for a format of weights and a number of tokens: compiled now, or read from the disk."""
    signature = types.void(
        *(types.UniTuple(types.int64, number) for number in (rows, 1, tokens, form)),
        types.Array(getattr(types, stored), 2, "A"),
        types.Array(types.uint16, 2, "C"),
        types.intp,
        types.Array(types.float32, 3, "C"),
        types.Array(types.float32, 2, "A"),
        *(types.intp, types.intp),
    )
    return compiled(_multiply_few, signature)


@cache
def _compiled_sum() -> Callable[..., None]:
    signature = types.void(types.Array(types.uint16, 2, "C"), types.intp, types.Array(types.float32, 3, "C"))
    return compiled(_sum, signature)


def tile_of(tokens: int) -> int:
    """Tokens that are multiplied together, of so many."""
    return next((tile for tile in TILES if tokens <= tile), max(TILES))


def work(x: torch.Tensor, weights: Operand, out: npt.NDArray[np.float32]) -> Callable[[int, int], None]:
    """What writes the products of x (T, in) with rows start ≤ n < stop of weights to those columns of out (T', n).

    T' is T filled up to whole tiles.
    """
    tile = tile_of(x.shape[0])
    columns, missing = x.shape[1], (0, -x.shape[1] % BLOCK, 0, len(out) - x.shape[0])
    met = (nn.functional.pad(x, missing) if any(missing) else x.contiguous()).view(torch.uint16).numpy()
    blocks = met.shape[1] // BLOCK if has_minimum(weights.record) else 0
    sums = np.empty((len(out), blocks, SUMS), np.float32)
    if blocks:
        _compiled_sum()(met, columns, sums)
    kernel = _compiled(weights.kind, TILES[tile], tile, len(weights.form))
    lengths = (0,) * TILES[tile], (0,), (0,) * tile, weights.form
    return lambda start, stop: kernel(*lengths, weights.array, met, columns, sums, out, start, stop)
