"""One query token per row against its KV blocks, on the CPU: a compiled kernel that is held by memory, not arithmetic.

Two tile products are written as vector instructions, because no loop that a compiler vectorises by itself keeps a tile
of accumulators in registers while each stored element is read and widened once for all query heads of its group.
Importing this module imports numba (about half a second); what it compiles is kept on disk for the next process.
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

from penstock.compiled.kernels import compiled
from penstock.compiled.softmax import LOG2_E, begin, end, fold
from penstock.compiled.threads import PART_BYTES, PARTS, Shared, Turns, cut_rows, share
from penstock.compiled.vectors import LANES, STORED, WIDE, Emitter, Integer, element_bytes, pieces

TILE = 4 if WIDE else 2  # keys, or vectors of values, worked on together: times 4 heads, what the registers hold
HEADS = 4


@intrinsic
def score_tile(context, tile, stored, queries, keys, count, dim, scores, stride, ahead):
    """Scores of as many query heads as ``tile`` is long and ``count`` keys, of the kind of ``stored``; then addresses.

    queries: (heads, dim) float32; keys: (count, dim); scores: (heads, ·) float32, ``stride`` bytes from head to head;
    ahead: what is read next, prefetched at the same pace.
    """
    number, kind = tile.count, stored.dtype

    def emit(context, builder, signature, arguments):
        _, _, queries, keys, count, dim, scores, stride, ahead = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        q_stride = single.at(ir.Constant(dim.type, 0), (dim, 4))
        k_stride = single.at(ir.Constant(dim.type, 0), (dim, element_bytes(kind)))
        for step, key in pieces(builder, count, (TILE, 1)):
            totals = [[wide.zero() for _ in range(step)] for _ in range(number)]
            for _, d in pieces(builder, dim, (LANES,)):
                row = single.at(keys, (key, k_stride), (d, element_bytes(kind)))
                next_row = single.at(ahead, (key, k_stride), (d, element_bytes(kind)))
                loaded = [wide.load(single.at(row, (t, k_stride)), kind) for t in range(step)]
                for t in range(step):
                    single.prefetch(single.at(next_row, (t, k_stride)))
                for h in range(number):
                    query = wide.load(single.at(queries, (h, q_stride), (d, 4)))
                    for t in range(step):
                        wide.add_product(totals[h][t], query, loaded[t])
            for h in range(number):
                sums = wide.lane_sums([builder.load(total) for total in totals[h]])
                wide.store(sums, single.at(scores, (h, stride), (key, 4)))
            rest = builder.srem(dim, ir.Constant(dim.type, LANES))
            with cgutils.for_range(builder, rest) as loop:
                d = builder.sub(dim, builder.add(loop.index, ir.Constant(dim.type, 1)))
                for t in range(step):
                    part = single.load(single.at(keys, (key, k_stride), (t, k_stride), (d, element_bytes(kind))), kind)
                    for h in range(number):
                        place = single.at(scores, (h, stride), (key, 4), (t, 4))
                        product = builder.fmul(single.load(single.at(queries, (h, q_stride), (d, 4))), part)
                        single.store(builder.fadd(single.load(place), product), place)
        return context.get_dummy_value()

    return types.void(tile, stored, *[Integer] * 7), emit


@intrinsic
def weigh_tile(context, tile, stored, weights, stride, values, count, dim, sums, ahead):
    """Add ``count`` values, weighted for each of a tile's query heads, to ``sums`` (heads, dim) float32.

    weights: (heads, ·) float32, ``stride`` bytes from head to head; values: (count, dim) of the kind of ``stored``.
    """
    number, kind = tile.count, stored.dtype

    def emit(context, builder, signature, arguments):
        _, _, weights, stride, values, count, dim, sums, ahead = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        s_stride = single.at(ir.Constant(dim.type, 0), (dim, 4))
        v_stride = single.at(ir.Constant(dim.type, 0), (dim, element_bytes(kind)))
        for step, d in pieces(builder, dim, (TILE * LANES, LANES, 1)):
            emitter, width = (single, 1) if step == 1 else (wide, step // LANES)
            places = {
                (h, w): single.at(sums, (h, s_stride), (d, 4), (w, 4 * LANES))
                for h in range(number)
                for w in range(width)
            }
            totals = {at: emitter.local(emitter.load(place)) for at, place in places.items()}
            for _, key in pieces(builder, count, (1,)):
                row = single.at(values, (key, v_stride), (d, element_bytes(kind)))
                loaded = [emitter.load(single.at(row, (w, LANES * element_bytes(kind))), kind) for w in range(width)]
                next_row = single.at(ahead, (key, v_stride), (d, element_bytes(kind)))
                for line in range(0, width * LANES * element_bytes(kind), 64):
                    emitter.prefetch(single.at(next_row, (1, line)))
                for h in range(number):
                    weight = emitter.spread(single.load(single.at(weights, (h, stride), (key, 4))))
                    for w in range(width):
                        emitter.add_product(totals[h, w], weight, loaded[w])
            for at, place in places.items():
                emitter.store(builder.load(totals[at]), place)
        return context.get_dummy_value()

    return types.void(tile, stored, *[Integer] * 7), emit


@numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"})
def _decode_heads(tile, q, k, v, table, tokens, lengths, lowest, scaling, softcap, out, lse, start, stop):
    """Attend for the (row, kv head) pairs start ≤ row · kv_heads + head < stop. Arrays as ``decode`` has them."""
    if start == stop:
        return
    kv_heads, block_tokens, dk = k.shape[1:]
    dv = v.shape[3]
    group = q.shape[1] // kv_heads
    width = (group + len(tile) - 1) // len(tile) * len(tile)  # heads of a group, filled up to whole tiles
    queries, sums = np.empty((kv_heads * width, dk), np.float32), np.empty((kv_heads * width, dv), np.float32)
    scores = np.empty((kv_heads * width, block_tokens), np.float32)
    top, total = np.empty(kv_heads * width, np.float32), np.empty(kv_heads * width, np.float32)
    k_at, v_at = k.ctypes.data, v.ctypes.data
    queries_at, sums_at, scores_at, stride = queries.ctypes.data, sums.ctypes.data, scores.ctypes.data, 4 * block_tokens
    factor = np.float32(scaling if softcap > 0 else scaling * LOG2_E)
    cap = np.float32(softcap * LOG2_E)
    twice = np.float32(2 * LOG2_E / softcap if softcap > 0 else 0)

    for row in range(start // kv_heads, (stop + kv_heads - 1) // kv_heads):
        token, low, length = tokens[row], lowest[tokens[row]], lengths[row]
        head_from = max(start - row * kv_heads, 0)
        head_to = min(stop - row * kv_heads, kv_heads)
        heads = head_from * width, head_to * width
        begin(q, token, factor, group, width, heads[0], heads[1], queries, sums, top, total)

        for index in range(low // block_tokens, (length + block_tokens - 1) // block_tokens):
            block = table[row, index]
            if block < 0:
                continue
            first = max(low - index * block_tokens, 0)
            count = min(length - index * block_tokens, block_tokens) - first
            following = max(table[row, min(index + 1, table.shape[1] - 1)], 0)
            # all heads' keys, then all heads' values: the order in which a block lies in memory
            for head in range(head_from, head_to):
                keys = k_at + block * k.strides[0] + head * k.strides[1] + first * k.strides[2]
                ahead = v_at + block * v.strides[0] + head * v.strides[1] + first * v.strides[2]
                for h in range(head * width, (head + 1) * width, len(tile)):
                    query, score = queries_at + h * 4 * dk, scores_at + h * stride
                    score_tile(tile, k, query, keys, count, dk, score, stride, ahead)
            for h in range(heads[0], heads[1]):
                fold(scores, sums, top, total, h, count, dv, cap, twice)
            for head in range(head_from, head_to):
                values = v_at + block * v.strides[0] + head * v.strides[1] + first * v.strides[2]
                ahead = k_at + following * k.strides[0] + head * k.strides[1]
                for h in range(head * width, (head + 1) * width, len(tile)):
                    weight, total_at = scores_at + h * stride, sums_at + h * 4 * dv
                    weigh_tile(tile, v, weight, stride, values, count, dv, total_at, ahead)

        end(out, lse, token, group, width, heads[0], heads[1], sums, top, total)


def _decode(tile, q, k, v, table, tokens, lengths, lowest, scaling, softcap, out, lse, cuts, turns, threads, team):
    reads = np.ones(len(table), np.int64)  # of a row without a key as much as of one that has one
    for row in range(len(table)):
        here = k.shape[2] * (table[row] >= 0).sum()
        reads[row] = max(1, min(lengths[row] - lowest[tokens[row]], here))
    cut_rows(reads, k.shape[1], cuts)
    given = tile, q, k, v, table, tokens, lengths, lowest, scaling, softcap, out, lse
    share(_decode_heads, given, cuts, turns, threads, team)


@cache
def _compiled(stored: str, tile: int) -> Shared:
    """The kernel for a kind of stored element and heads at a time: compiled now (seconds) or read from the disk."""
    kind = types.Array(getattr(types, stored), 4, "A")
    signature = types.void(
        types.UniTuple(types.int64, tile),
        types.Array(types.float32, 3, "A"),
        *(kind, kind),
        types.Array(types.int32, 2, "C"),
        *[types.Array(types.int64, 1, "C")] * 3,
        *(types.float64, types.float64),
        *(types.Array(types.float32, 3, "C"), types.Array(types.float32, 2, "C")),
        *Turns,
    )
    # Reordering sums lets the softmax vectorise; NaN and infinity keep their meaning.
    return Shared(compiled(_decode, signature, {"reassoc", "contract", "nsz", "arcp"}))


def decode(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    table: npt.NDArray[np.int32],
    tokens: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    lowest: npt.NDArray[np.int64],
    scaling: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Attention of the rows that have one token in a call, written to their tokens' places in ``out`` and ``lse``.

    q (T, heads, dk), out (T, heads, dv), lse (T, heads): float32, the last two contiguous. k_arena, v_arena
    (n_blocks, kv_heads, block_tokens, dk or dv): contiguous inside a block. table (R, width): block ids, -1 = skip.
    tokens (R,): the rows' places in the call; lengths (R,): keys of each row; lowest (T,): first key of each token.
    """
    group = q.shape[1] // k_arena.shape[1]
    tile = tile_of(group)
    kernel = _compiled(str(STORED[k_arena.dtype]).removeprefix("torch."), tile)
    k, v = (arena.view(STORED[arena.dtype]).numpy() for arena in (k_arena, v_arena))
    cuts, threads = room_for_cuts(table.size * (k[0].nbytes + v[0].nbytes))
    shared = (q.numpy(), k, v, table, tokens, lengths, lowest, scaling, softcap or 0.0)
    kernel((0,) * tile, *shared, out.numpy(), lse.numpy(), cuts=cuts, threads=threads)


def tile_of(group: int) -> int:
    """Query heads that a kernel takes together, of ``group`` that share a kv head."""
    return -(-group // -(-group // HEADS))


def room_for_cuts(most_bytes: int) -> tuple[npt.NDArray[np.int64], int]:
    """Room for the cuts of attention that reads so many bytes at most, and the threads that take its parts."""
    threads = torch.get_num_threads()
    return np.empty(1 + max(1, min(threads * PARTS, most_bytes // PART_BYTES)), np.int64), threads
