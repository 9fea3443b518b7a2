"""Products of few tokens in bfloat16 with packed or 16-bit weights on CPUs that multiply pairs: ``compiled.pairs``.

A group's products are summed before its scale is applied, and its minimum meets the sum of a token's elements there,
which is made once for all rows. So elements are never made at all.
"""

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
from penstock.compiled.narrowing import narrow
from penstock.compiled.pairs import SUMS, add_pairs, coded, has_minimum, load_pairs, ones
from penstock.compiled.record import records_of_rows
from penstock.compiled.threads import Shared, Turns, share
from penstock.compiled.vectors import Emitter, Integer
from penstock.engine.operand import Operand, kind, stored
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


@numba.njit
def _multiply_rows(rows, one, tokens, form, weight, x, columns, sums, made, start, stop):
    whole = start + (stop - start) // len(rows) * len(rows)
    for first in range(start, whole, len(rows)):
        _multiply(rows, tokens, form, weight, first, x, columns, sums, made)
    for first in range(whole, stop):
        _multiply(one, tokens, form, weight, first, x, columns, sums, made)


def _multiply_few(rows, one, tokens, form, weight, x, columns, summed, out, cuts, turns, threads, team):
    """The product of tokens x, filled up to whole tiles, with weight, to out (T, n). summed: blocks to sum first."""
    sums, made = np.empty((len(x), summed, SUMS), np.float32), np.empty((len(x), len(weight)), np.float32)
    if summed:
        for t in range(len(x)):
            sum_blocks(x.ctypes.data + t * x.strides[0], columns, sums.ctypes.data + t * sums.strides[0])
    share(_multiply_rows, (rows, one, tokens, form, weight, x, columns, sums, made), cuts, turns, threads, team)
    for t in range(len(out)):
        narrow(out, made.ctypes.data + t * made.strides[0], out.ctypes.data + t * out.strides[0], len(weight))


@cache
def _compiled(stored: str, made: str, rows: int, tokens: int, form: int) -> Shared:
    """The kernel for a format of weights, results and a number of tokens: compiled now, or read from the disk."""
    signature = types.void(
        *(types.UniTuple(types.int64, number) for number in (rows, 1, tokens, form)),
        types.Array(getattr(types, stored), 2, "A"),
        types.Array(types.uint16, 2, "C"),
        *(types.intp, types.intp),
        types.Array(getattr(types, made), 2, "A"),
        *Turns,
    )
    return Shared(compiled(_multiply_few, signature))


def tile_of(tokens: int) -> int:
    """Tokens that are multiplied together, of so many."""
    return next((tile for tile in TILES if tokens <= tile), max(TILES))


def multiply(x: torch.Tensor, weights: Operand, out: torch.Tensor, cuts: npt.NDArray[np.int64], threads: int) -> None:
    """Write the product of x (T, in) with weights to out (T, n), their rows cut among so many threads."""
    tokens, columns = x.shape
    tile = tile_of(tokens)
    missing = (0, -columns % BLOCK, 0, -tokens % tile)
    met = (nn.functional.pad(x, missing) if any(missing) else x.contiguous()).view(torch.uint16).numpy()
    summed = met.shape[1] // BLOCK if has_minimum(weights.record) else 0
    kernel = _compiled(weights.kind, kind(out), TILES[tile], tile, len(weights.form))
    lengths = (0,) * TILES[tile], (0,), (0,) * tile, weights.form
    kernel(*lengths, weights.array, met, columns, summed, stored(out), cuts=cuts, threads=threads)
