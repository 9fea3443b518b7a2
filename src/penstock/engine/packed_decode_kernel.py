"""``decode_kernel`` for packed blocks of KV: codes become elements in registers, and meet all query heads there.

Of keys a row is a channel and vectors run along tokens, so that scores need no sum over lanes; of values a row is a
token and vectors run along channels.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.compiled.codes import layout, record
from penstock.compiled.kernels import compiled
from penstock.compiled.record import VECTORS, records
from penstock.compiled.softmax import LOG2_E, begin, end, fold
from penstock.compiled.threads import Shared, Turns, cut_rows, share
from penstock.compiled.vectors import LANES, WIDE, Emitter, Integer
from penstock.engine.decode_kernel import room_for_cuts, tile_of
from penstock.memory.kv_form import PackedBlocks
from penstock.quant.forms import number
from penstock.quant.rows import BLOCK


@intrinsic
def score_packed(context, tile, form, queries, keys, dim, row_bytes, scores, stride):
    """Scores of as many query heads as ``tile`` is long and the keys of a block, whose channels are one group each.

    queries: (heads, dim) float32; keys: ``dim`` rows of ``row_bytes``; scores: (heads, ·), ``stride`` bytes from head
    to head; all are addresses.
    """
    heads, packed = range(tile.count), layout(form)
    blocks = packed.group // BLOCK

    def emit(context, builder, signature, arguments):
        _, _, queries, keys, dim, row_bytes, scores, stride = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        q_stride = single.at(ir.Constant(dim.type, 0), (dim, 4))
        for part in _together(range(blocks)):
            totals = [[wide.zero() for _ in range(VECTORS * len(part))] for _ in heads]
            for d in _each(builder, dim):
                channel = record(wide, packed, single.at(keys, (d, row_bytes)))
                elements = [vector for block in part for vector in channel.block(block)]
                for h in heads:
                    query = wide.spread(single.load(single.at(queries, (h, q_stride), (d, 4))))
                    for v, each in enumerate(elements):
                        wide.add_product(totals[h][v], query, each)
            for h in heads:
                place = single.at(scores, (h, stride), (part[0], 4 * BLOCK))
                for v, total in enumerate(totals[h]):
                    wide.store(builder.load(total), single.at(place, (v, 4 * LANES)))
        return context.get_dummy_value()

    return types.void(tile, form, *[Integer] * 6), emit


@intrinsic
def weigh_packed(context, tile, form, weights, stride, values, count, dim, row_bytes, sums, sums_stride):
    """Add ``count`` values, weighted for each of a tile's query heads, to ``sums`` (heads, ·) float32.

    values: ``count`` rows of ``row_bytes`` and ``dim`` elements; sums has room for whole blocks of these.
    """
    heads, packed = range(tile.count), layout(form)

    def emit(context, builder, signature, arguments):
        _, _, weights, stride, values, count, dim, row_bytes, sums, sums_stride = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        for group, parts in records(builder, packed, dim):
            for part in _together(parts):
                place = single.at(sums, (group, 4 * packed.group), (part[0], 4 * BLOCK))
                vectors = range(VECTORS * len(part))
                places = {(h, v): single.at(place, (h, sums_stride), (v, 4 * LANES)) for h in heads for v in vectors}
                totals = {at: wide.local(wide.load(of)) for at, of in places.items()}
                for key in _each(builder, count):
                    token = record(wide, packed, single.at(values, (key, row_bytes), (group, packed.record_bytes)))
                    elements = [vector for block in part for vector in token.block(block)]
                    for h in heads:
                        weight = wide.spread(single.load(single.at(weights, (h, stride), (key, 4))))
                        for v, each in enumerate(elements):
                            wide.add_product(totals[h, v], weight, each)
                for at, of in places.items():
                    wide.store(builder.load(totals[at]), of)
        return context.get_dummy_value()

    return types.void(tile, form, *[Integer] * 8), emit


def _together(blocks: Sequence[Any]) -> list[Sequence[Any]]:
    """Neighbouring blocks of a record that are worked on together: as many as the registers hold sums for."""
    most = 2 if WIDE else 1
    return [blocks[at : at + most] for at in range(0, len(blocks), most)]


def _each(builder: ir.IRBuilder, count: ir.Value) -> Iterator[ir.Value]:
    """The body of a loop over indices."""
    with cgutils.for_range(builder, count) as loop:
        yield loop.index


@numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"})
def _decode_heads(tile, form, q, k, v, table, tokens, lowest, size, scaling, softcap, out, lse, start, stop):
    """Attend for the (row, kv head) pairs start ≤ row · kv_heads + head < stop. Arrays as ``decode`` has them."""
    if start == stop:
        return
    kv_heads, dk = k.shape[1:3]
    dv = out.shape[2]
    group = q.shape[1] // kv_heads
    width = (group + len(tile) - 1) // len(tile) * len(tile)  # heads of a group, filled up to whole tiles
    filled_up = (dv + BLOCK - 1) // BLOCK * BLOCK
    queries, sums = np.empty((kv_heads * width, dk), np.float32), np.empty((kv_heads * width, filled_up), np.float32)
    scores = np.empty((kv_heads * width, size), np.float32)
    top, total = np.empty(kv_heads * width, np.float32), np.empty(kv_heads * width, np.float32)
    k_at, v_at, stride = k.ctypes.data, v.ctypes.data, scores.strides[0]
    queries_at, sums_at, scores_at = queries.ctypes.data, sums.ctypes.data, scores.ctypes.data
    factor = np.float32(scaling if softcap > 0 else scaling * LOG2_E)
    cap = np.float32(softcap * LOG2_E)
    twice = np.float32(2 * LOG2_E / softcap if softcap > 0 else 0)

    for row in range(start // kv_heads, (stop + kv_heads - 1) // kv_heads):
        token, low = tokens[row], lowest[tokens[row]]
        head_from = max(start - row * kv_heads, 0)
        head_to = min(stop - row * kv_heads, kv_heads)
        heads = head_from * width, head_to * width
        begin(q, token, factor, group, width, heads[0], heads[1], queries, sums, top, total)

        for index in range(low // size, table.shape[1]):
            block = table[row, index]
            if block < 0:
                continue
            first = max(low - index * size, 0)
            for head in range(head_from, head_to):
                keys = k_at + block * k.strides[0] + head * k.strides[1]
                for h in range(head * width, (head + 1) * width, len(tile)):
                    query, score = queries_at + h * 4 * dk, scores_at + h * stride
                    score_packed(tile, form, query, keys, dk, k.strides[2], score, stride)
            seen = scores[:, first:]
            for h in range(heads[0], heads[1]):
                fold(seen, sums, top, total, h, size - first, sums.shape[1], cap, twice)
            for head in range(head_from, head_to):
                values = v_at + block * v.strides[0] + head * v.strides[1] + first * v.strides[2]
                for h in range(head * width, (head + 1) * width, len(tile)):
                    weights, sums_of = scores_at + h * stride + 4 * first, sums_at + h * sums.strides[0]
                    weigh_packed(
                        tile, form, weights, stride, values, size - first, dv, v.strides[2], sums_of, sums.strides[0]
                    )

        end(out, lse, token, group, width, heads[0], heads[1], sums, top, total)


def _decode(tile, form, q, k, v, table, tokens, lowest, size, scaling, softcap, out, lse, cuts, turns, threads, team):
    reads = np.ones(len(table), np.int64)  # of a row without a block as much as of one that has one
    for row in range(len(table)):
        reads[row] = max(1, (table[row] >= 0).sum())
    cut_rows(reads, k.shape[1], cuts)
    given = tile, form, q, k, v, table, tokens, lowest, size, scaling, softcap, out, lse
    share(_decode_heads, given, cuts, turns, threads, team)


@cache
def _compiled(form: int, tile: int) -> Shared:
    """The kernel for a format and heads at a time: compiled now (seconds) or read from the disk."""
    packed = types.Array(types.uint8, 4, "A")
    signature = types.void(
        *(types.UniTuple(types.int64, length) for length in (tile, form + 1)),
        types.Array(types.float32, 3, "A"),
        *(packed, packed),
        types.Array(types.int32, 2, "C"),
        *[types.Array(types.int64, 1, "C")] * 2,
        types.int64,
        *(types.float64, types.float64),
        *(types.Array(types.float32, 3, "C"), types.Array(types.float32, 2, "C")),
        *Turns,
    )
    return Shared(compiled(_decode, signature, {"reassoc", "contract", "nsz", "arcp"}))


def decode(
    q: torch.Tensor,
    k_blocks: PackedBlocks,
    v_blocks: PackedBlocks,
    table: npt.NDArray[np.int32],
    tokens: npt.NDArray[np.int64],
    lowest: npt.NDArray[np.int64],
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attention of rows that have one token in a call to their full blocks, written to their tokens' places.

    As ``decode_kernel.decode``; every block in ``table`` is seen to its end.
    """
    kv_heads, size = k_blocks.shape[1:3]
    group = q.shape[1] // kv_heads
    tile = tile_of(group)
    form = number(k_blocks.rows.form)
    kernel = _compiled(form, tile)
    k, v = k_blocks.rows.data.numpy(), v_blocks.rows.data.numpy()
    shared: tuple[Any, ...] = (q.numpy(), k, v, table, tokens, lowest, size, scaling, softcap or 0.0)
    cuts, threads = room_for_cuts(table.size * (k[0].nbytes + v[0].nbytes))
    lengths = (0,) * tile, (0,) * (form + 1)
    kernel(*lengths, *shared, out.numpy(), lse.numpy(), cuts=cuts, threads=threads)
