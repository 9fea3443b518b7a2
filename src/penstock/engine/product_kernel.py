"""Products in float32 with narrower weights on the CPU, widened inside the kernel.

A tile of rows of weights times tokens is held in registers; the rows are widened just before, into the nearest cache.
So widening costs what the packing of any matrix product costs, and the weights are read from memory at half the bytes.
The order is that of Goto and van de Geijn (Anatomy of high-performance matrix multiplication, 2008): tokens are packed
once per call, a panel of weights per tile, and sums over a depth of DEPTH are added to the result.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.compiled.kernels import compiled
from penstock.compiled.threads import PARTS, Shared, Turns, even, share
from penstock.compiled.vectors import LANES, LINE, WIDE, Emitter, Integer
from penstock.compiled.widen import widen
from penstock.engine.few import multiply_few, takes_few
from penstock.engine.operand import Operand
from penstock.quant.packed import Packed

ROWS = 14 if WIDE else 6  # of weights in a tile: times 2 vectors of tokens, what the registers hold
TILE_TOKENS = 2 * LANES
DEPTH = 384  # elements of a row of weights that are widened, and multiplied, at a time; packed ones by whole groups
BAND = 8 * ROWS  # rows of weights whose results stay in cache until they are whole
CHUNK = 256  # tokens multiplied by a widened panel; more would not stay in cache
PANEL_STRIDE = 4 * (DEPTH + 16)  # bytes from row to row: not a power of two, so rows do not share cache sets
BAND_STRIDE = 4 * (CHUNK + 16)
FEWEST = 4  # tokens: for fewer, widening first and one product of a vector is faster, where the few are not taken
AHEAD = 2  # rows of weights prefetched during a tile


@intrinsic
def multiply_tile(context, rows, vectors, panel, tokens, depth, band, ahead, stride):
    """Add to ``band`` (rows, tokens) the product of ``panel`` (rows, depth) and packed ``tokens`` (depth, TILE_TOKENS).

    As many rows and vectors of tokens as the two tuples are long; then addresses of float32. AHEAD rows of 16-bit
    weights, ``stride`` bytes apart, are prefetched at the pace of the products: in bursts they would hold these up.
    """
    numbers = range(rows.count), range(vectors.count)

    def emit(context, builder, signature, arguments):
        _, _, panel, tokens, depth, band, ahead, stride = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        totals = [[wide.zero() for _ in numbers[1]] for _ in numbers[0]]
        with cgutils.for_range(builder, depth) as loop:
            column = single.at(tokens, (loop.index, 4 * TILE_TOKENS))
            loaded = [wide.load(single.at(column, (v, 4 * LANES))) for v in numbers[1]]
            for r in range(AHEAD):
                single.prefetch(single.at(ahead, (loop.index, 2), (r, stride)))
            for r in numbers[0]:
                weight = wide.spread(single.load(single.at(panel, (loop.index, 4), (r, PANEL_STRIDE))))
                for v in numbers[1]:
                    wide.add_product(totals[r][v], weight, loaded[v])
        for r in numbers[0]:
            for v in numbers[1]:
                place = single.at(band, (r, BAND_STRIDE), (v, 4 * LANES))
                wide.store(builder.fadd(wide.load(place), builder.load(totals[r][v])), place)
        return context.get_dummy_value()

    return types.void(rows, vectors, *[Integer] * 6), emit


@intrinsic
def transpose_square(context, source, source_stride, target, target_stride):
    """Write a square of LANES × LANES floats with rows made columns; addresses, and bytes from row to row."""

    def emit(context, builder, signature, arguments):
        source, source_stride, target, target_stride = arguments
        wide = Emitter(builder, LANES)
        rows = [wide.load(wide.at(source, (row, source_stride))) for row in range(LANES)]
        for row, value in enumerate(wide.transposed(rows)):
            wide.store(value, wide.at(target, (row, target_stride)))
        return context.get_dummy_value()

    return types.void(*[Integer] * 4), emit


@intrinsic
def prefetch(context, address):
    """Begin to bring the cache line at an address into the second-level cache."""

    def emit(context, builder, signature, arguments):
        Emitter(builder, 1).prefetch(arguments[0])
        return context.get_dummy_value()

    return types.void(Integer), emit


@numba.njit
def _pack_tiles(x, packed, start, stop):
    """Tiles start ≤ b < stop of x (T, in) to packed (tiles, in, TILE_TOKENS), tokens past the last as zeros."""
    tokens, depth = x.shape
    whole = depth // LANES * LANES
    x_at, packed_at, stride = x.ctypes.data, packed.ctypes.data, x.strides[0]
    for b in range(start, stop):
        for first in range(b * TILE_TOKENS, (b + 1) * TILE_TOKENS, LANES):
            place = packed_at + 4 * (b * depth * TILE_TOKENS + first - b * TILE_TOKENS)
            done = 0
            if first + LANES <= tokens:
                for k in range(0, whole, LANES):
                    source, target = x_at + first * stride + 4 * k, place + 4 * k * TILE_TOKENS
                    transpose_square(source, stride, target, 4 * TILE_TOKENS)
                done = whole
            for k in range(done, depth):
                for t in range(first, first + LANES):
                    packed[b, k, t - b * TILE_TOKENS] = x[t, k] if t < tokens else np.float32(0.0)


def _pack(x, packed, cuts, turns, threads, team):
    share(_pack_tiles, (x, packed), cuts, turns, threads, team)


@numba.njit(inline="always")
def _aligned(rows, stride):
    """Room for rows of ``stride`` bytes, at a cache line: vectors across two would take twice the loads."""
    room = np.empty(rows * stride // 4 + LINE // 4, np.float32)
    skipped = -room.ctypes.data % LINE // 4
    return room[skipped : skipped + rows * stride // 4].reshape((rows, stride // 4))


@numba.njit
def _multiply_rows(rows, two, one, form, packed, weight, row_bytes, deep, out, start, stop):
    """The product of packed tokens with the rows start ≤ n < stop of weight, written to those columns of out (T, n).

    row_bytes: of a row of weights, without what may lie between rows. deep: elements of a row that a panel takes.
    """
    panel, band = _aligned(ROWS, PANEL_STRIDE), _aligned(BAND, BAND_STRIDE)
    tiles, in_features = packed.shape[:2]
    tokens = out.shape[0]
    stride = weight.strides[0]
    weight_at, packed_at, out_at = weight.ctypes.data, packed.ctypes.data, out.ctypes.data
    panel_at, band_at = panel.ctypes.data, band.ctypes.data
    for first in range(start, stop, BAND):
        last = min(first + BAND, stop)
        band[:] = np.float32(0.0)
        for k in range(0, in_features, deep):
            depth = min(deep, in_features - k)
            lines = (depth * row_bytes // in_features + LINE - 1) // LINE
            for n in range(first, last, ROWS):
                for r in range(min(ROWS, last - n)):
                    widen(weight, panel, form, weight_at + (n + r) * stride, k, depth, panel_at + r * PANEL_STRIDE)
                # the next panel's weights come while this one is multiplied
                ahead, ahead_k = (n + ROWS, k) if n + ROWS < last else (first, k + deep)
                if ahead_k >= in_features:
                    ahead, ahead_k = last, 0
                wanted = max(0, min(ROWS, stop - ahead))
                ahead_at = weight_at + ahead * stride + ahead_k * row_bytes // in_features
                for r in range(AHEAD * tiles, wanted):
                    for line in range(lines):
                        prefetch(ahead_at + r * stride + line * LINE)
                for b in range(tiles):
                    rows_at = ahead_at + min(AHEAD * b, max(0, wanted - AHEAD)) * stride
                    tile = packed_at + 4 * (b * in_features + k) * TILE_TOKENS
                    place = band_at + (n - first) * BAND_STRIDE + 4 * b * TILE_TOKENS
                    if tokens - b * TILE_TOKENS > LANES:
                        multiply_tile(rows, two, panel_at, tile, depth, place, rows_at, stride)
                    else:
                        multiply_tile(rows, one, panel_at, tile, depth, place, rows_at, stride)
        for n in range(first, last, LANES):
            for t in range(0, tokens, LANES):
                if n + LANES <= last and t + LANES <= tokens:
                    source = band_at + (n - first) * BAND_STRIDE + 4 * t
                    transpose_square(source, BAND_STRIDE, out_at + t * out.strides[0] + 4 * n, out.strides[0])
                else:
                    for token in range(t, min(t + LANES, tokens)):
                        for row in range(n, min(n + LANES, last)):
                            out[token, row] = band[row - first, token]


def _multiply(rows, two, one, form, packed, weight, row_bytes, deep, out, cuts, turns, threads, team):
    share(_multiply_rows, (rows, two, one, form, packed, weight, row_bytes, deep, out), cuts, turns, threads, team)


@cache
def _compiled_pack() -> Shared:
    signature = types.void(types.Array(types.float32, 2, "A"), types.Array(types.float32, 3, "C"), *Turns)
    return Shared(compiled(_pack, signature))


@cache
def _compiled_multiply(stored: str, form: int) -> Shared:
    """The kernel for a kind of stored weight: compiled now (seconds) or read from the disk."""
    signature = types.void(
        *(types.UniTuple(types.int64, number) for number in (ROWS, 2, 1, form)),
        types.Array(types.float32, 3, "C"),
        types.Array(getattr(types, stored), 2, "A"),
        *(types.intp, types.intp),
        types.Array(types.float32, 2, "A"),
        *Turns,
    )
    return Shared(compiled(_multiply, signature))


class Multiplier:
    """Products with 16-bit or packed weights that are widened, or multiplied in pairs (``few``), on the way.

    Where activations are float32, however many tokens there are. Those of 16 bits are multiplied here while they are
    few: for more, weights in 16 bits and torch's product take about as long, or half.

    packed: one long float32 tensor, scratch for activations in the order in which they are read.
    """

    def __init__(self, packed: torch.Tensor) -> None:
        self._packed = packed.numpy()
        self._packed_of: torch.Tensor | None = None

    def takes(self, x: torch.Tensor, weight: torch.Tensor | Packed) -> bool:
        """Whether there is compiled code for x (T, in), weight (out, in), and it is worth its start."""
        narrow = isinstance(weight, Packed) or (weight.dtype.itemsize == 2 and weight.stride(1) == 1)
        many = x.dtype == torch.float32 and (isinstance(weight, Packed) or x.shape[0] >= FEWEST)
        suits = narrow and (many or takes_few(x, weight))
        fits = 0 < weight.shape[1] * TILE_TOKENS <= self._packed.size
        return suits and fits and x.device.type == "cpu"

    def multiply(self, x: torch.Tensor, weight: torch.Tensor | Packed, out: torch.Tensor) -> None:
        """Write x (T, in) times weight (out, in) to out (T, out), of x's dtype; the last dimensions are contiguous.

        The tensor object that was packed last is not packed again: it must not have been changed meanwhile.
        """
        if takes_few(x, weight):
            multiply_few(x, weight, out)
            return
        operand = Operand.of(weight)
        tokens, results = x.numpy(), out.numpy()
        tiles = -(-len(tokens) // TILE_TOKENS)
        at_once = self._packed.size // (tokens.shape[1] * TILE_TOKENS)  # tiles that there is room for
        for first in range(0, tiles, at_once):
            last = min(first + at_once, tiles)
            if self._packed_of is not x:
                self._pack(tokens[first * TILE_TOKENS : last * TILE_TOKENS])
            parts = -(-(last - first) * TILE_TOKENS // CHUNK)
            cuts = [first + (last - first) * part // parts for part in range(parts + 1)]
            for start, stop in pairwise(cuts):
                packed = self._packed_tiles(tokens.shape[1], start - first, stop - first)
                self._multiply(operand, packed, results[start * TILE_TOKENS : stop * TILE_TOKENS])
        self._packed_of = x if tiles <= at_once else None

    def forget(self) -> None:
        """Let go of what was packed last; the scratch may be used for something else."""
        self._packed_of = None

    def _packed_tiles(self, in_features: int, start: int, stop: int) -> npt.NDArray[np.float32]:
        size = in_features * TILE_TOKENS
        return self._packed[start * size : stop * size].reshape(stop - start, in_features, TILE_TOKENS)

    def _pack(self, tokens: npt.NDArray[np.float32]) -> None:
        self._packed_of = None
        tiles = -(-len(tokens) // TILE_TOKENS)
        packed = self._packed_tiles(tokens.shape[1], 0, tiles)
        threads = torch.get_num_threads()
        _compiled_pack()(tokens, packed, cuts=even(tiles, min(tiles, threads)), threads=threads)

    def _multiply(self, weights: Operand, packed: Any, out: Any) -> None:
        kernel = _compiled_multiply(weights.kind, len(weights.form))
        rows, threads = len(weights.array), torch.get_num_threads()
        lengths = (0,) * ROWS, (0,) * 2, (0,), weights.form
        deep = DEPTH // weights.group * weights.group
        cuts = even(rows, max(1, min(-(-rows // BAND), threads * PARTS)), BAND)
        kernel(*lengths, packed, weights.array, weights.row_bytes, deep, out, cuts=cuts, threads=threads)
