"""Products of few tokens in bfloat16 with packed or 16-bit weights on CPUs that multiply pairs: ``compiled.pairs``.

A group's products are summed before its scale is applied, and its minimum meets the sums of the tokens' elements there,
which are made once for all rows. So elements are never made at all. Rows are taken by bands and columns by pieces: a
tile's tokens stay in the nearest cache while a band's rows pass, and those in the next one for the other tiles.
"""

from collections.abc import Sequence
from functools import cache, reduce

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
from penstock.compiled.pairs import SUMS, Coded, add_pairs, coded, has_minimum, load_pairs, ones
from penstock.compiled.record import records_of_rows
from penstock.compiled.threads import Shared, Turns, share
from penstock.compiled.vectors import Emitter, Integer
from penstock.engine.operand import Operand, kind, stored
from penstock.quant.rows import BLOCK

TILES = {1: 8, 4: 4, 8: 2}  # tokens of a tile, and rows of weights: their sums are what the registers hold
DEEP = 8192  # elements of a tile's tokens in a piece of columns: half of a nearest cache, whole groups of any format
BAND = 64  # rows
_AT_ONCE = 2  # rows, and blocks of each, whose codes are in registers while the tokens pass
_BLOCK_SUMS = 4 * SUMS  # bytes of a block's sums of elements: one for each token of a tile, side by side


@intrinsic
def multiply_rows(context, weight, rows, tokens, form, row, stride, first, columns, x, x_stride, sums, out, apart):
    """Add to ``out`` (tokens, rows) float32 the products of rows of weights with ``x`` (tokens, …) bfloat16.

    Of so many columns from ``first`` on, which begins a group. As many rows and tokens as the tuples are long, stored
    as ``weight`` and ``form`` tell (``codes.layout_of``); addresses of whole rows, and bytes from row to row. x ends
    with zeros up to a whole block; sums: of its blocks (``sum_blocks``).
    """
    stored, row_range, token_range = layout_of(weight, form), range(rows.count), range(tokens.count)

    def emit(context, builder, signature, arguments):
        _, _, _, _, row, stride, first, columns, x, x_stride, sums, out, apart = arguments
        wide, single = Emitter(builder, SUMS), Emitter(builder, 1)
        totals = [[wide.zero() for _ in token_range] for _ in row_range]
        minima = [wide.zero() for _ in row_range]  # of a row, what they add for each token
        row = single.at(row, (builder.udiv(first, first.type(stored.group)), stored.record_bytes))
        x, sums = single.at(x, (first, 2)), single.at(sums, (first, _BLOCK_SUMS // BLOCK))

        def add(groups: list[Coded], numbers: range, blocks: Sequence[ir.Value | int], here: ir.Value) -> None:
            """Products of some rows' blocks with the tokens ``here``, where the blocks' group has its columns."""
            codes = [[half for block in blocks for half in groups[r].halves_of(block)] for r in numbers]
            for t in token_range:
                places = [single.at(here, (t, x_stride), (block, 2 * BLOCK)) for block in blocks]
                met = [half for place in places for half in _halves(builder, place)]
                for r, of_row in zip(numbers, codes, strict=True):
                    scale, total = groups[r].scale, totals[r][t]
                    dots = builder.load(total) if scale is None else ir.Constant(wide.float, [0.0] * SUMS)
                    for a, b in zip(of_row, met, strict=True):
                        dots = add_pairs(wide, dots, a, b)
                    if scale is None:
                        builder.store(dots, total)
                    else:
                        wide.add_product(total, dots, scale)

        for number, blocks, places in records_of_rows(wide, stored, row, stride, rows.count, columns):
            groups = [coded(wide, stored, place) for place in places]
            here = single.at(x, (number, 2 * stored.group))
            for at in range(0, len(blocks), _AT_ONCE):
                for r in range(0, rows.count, _AT_ONCE):
                    add(groups, row_range[r : r + _AT_ONCE], blocks[at : at + _AT_ONCE], here)
            if has_minimum(stored.record):
                place = single.at(sums, (number, stored.group // BLOCK * _BLOCK_SUMS))
                of_blocks = [wide.load(single.at(place, (block, _BLOCK_SUMS))) for block in blocks]
                elements = reduce(builder.fadd, of_blocks)
                for group, total in zip(groups, minima, strict=True):
                    wide.add_product(total, elements, group.minimum)
        for t in token_range:
            for r in range(0, rows.count, 4):
                of_rows = [(totals[each][t], minima[each]) for each in row_range[r : r + 4]]
                _add_results(
                    wide, [_with_minima(wide, *each, t) for each in of_rows], single.at(out, (t, apart), (r, 4))
                )
        return context.get_dummy_value()

    return types.void(weight, rows, tokens, form, *[Integer] * 9), emit


def _with_minima(wide: Emitter, total: ir.Value, minima: ir.Value, token: int) -> ir.Value:
    """The sums of a row and token, and in one lane what the row's minima add for it."""
    builder = wide.builder
    lane = ir.Constant(ir.VectorType(ir.IntType(1), SUMS), [lane == token for lane in range(SUMS)])
    added = builder.select(lane, builder.load(minima), ir.Constant(wide.float, [0.0] * SUMS))
    return builder.fadd(builder.load(total), added)


def _add_results(wide: Emitter, sums: list[ir.Value], place: ir.Value) -> None:
    """Add to neighbours in memory the sums over the lanes of as many vectors."""
    builder, results = wide.builder, wide.lane_sums(sums)
    held = builder.load(builder.inttoptr(place, results.type.as_pointer()), typ=results.type, align=4)
    wide.store(builder.fadd(held, results), place)


@intrinsic
def sum_blocks(context, tokens, x, x_stride, columns, sums):
    """Write for each block of a tile of tokens at ``x`` the sums of their elements, side by side; addresses."""

    def emit(context, builder, signature, arguments):
        _, x, x_stride, columns, sums = arguments
        wide = Emitter(builder, SUMS)
        blocks = builder.udiv(builder.add(columns, columns.type(BLOCK - 1)), columns.type(BLOCK))
        with cgutils.for_range(builder, blocks) as loop:
            totals = []
            for t in range(tokens.count):
                total = ir.Constant(wide.float, [0.0] * SUMS)
                for half in _halves(builder, wide.at(x, (t, x_stride), (loop.index, 2 * BLOCK))):
                    total = add_pairs(wide, total, half, ones(builder))
                totals.append(total)
            for t in range(0, tokens.count, 4):
                wide.store(wide.lane_sums(totals[t : t + 4]), wide.at(sums, (loop.index, _BLOCK_SUMS), (t, 4)))
        return context.get_dummy_value()

    return types.void(tokens, *[Integer] * 4), emit


def _halves(builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """The two halves of a block of a token."""
    return [load_pairs(builder, builder.add(address, address.type(at))) for at in (0, BLOCK)]


@numba.njit(inline="always")
def _multiply(rows, tokens, form, weight, row, x, tile, first, columns, sums, made):
    """Add the product of a tile of tokens with as many rows of weights as the tuple is long, of some columns."""
    t, stride = tile * len(tokens), weight.strides[0]
    row_at, out = weight.ctypes.data + row * stride, made.ctypes.data + t * made.strides[0] + 4 * row
    met, summed = x.ctypes.data + t * x.strides[0], sums.ctypes.data + tile * sums.strides[0]
    apart = x.strides[0], made.strides[0]
    multiply_rows(weight, rows, tokens, form, row_at, stride, first, columns, met, apart[0], summed, out, apart[1])


@numba.njit
def _multiply_rows(rows, one, tokens, form, weight, x, columns, sums, made, start, stop):
    made[:, start:stop] = np.float32(0.0)
    deep = DEEP // len(tokens)
    for band in range(start, stop, BAND):
        last = min(band + BAND, stop)
        whole = last - (last - band) % len(rows)
        for first in range(0, columns, deep):
            depth = min(deep, columns - first)
            for tile in range(len(x) // len(tokens)):
                for row in range(band, whole, len(rows)):
                    _multiply(rows, tokens, form, weight, row, x, tile, first, depth, sums, made)
                for row in range(whole, last):
                    _multiply(one, tokens, form, weight, row, x, tile, first, depth, sums, made)


def _multiply_few(rows, one, tokens, form, weight, x, columns, summed, out, cuts, turns, threads, team):
    """The product of tokens x, filled up to whole tiles, with weight, to out (T, n). summed: blocks to sum first."""
    tiles = len(x) // len(tokens)
    sums, made = np.zeros((tiles, summed, SUMS), np.float32), np.empty((len(x), len(weight)), np.float32)
    if summed:
        for tile in range(tiles):
            met = x.ctypes.data + tile * len(tokens) * x.strides[0]
            sum_blocks(tokens, met, x.strides[0], columns, sums.ctypes.data + tile * sums.strides[0])
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
