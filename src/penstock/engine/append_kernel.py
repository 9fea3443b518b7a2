"""Writes new keys or values to their places in KV blocks, on the CPU: converted and scattered in one pass.

torch's indexed assignment converts to a copy first and then moves element by element: 6 times the time.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.compiled.kernels import compiled
from penstock.compiled.threads import PART_BYTES, PARTS, Shared, Turns, even, share

COPY, TO_BFLOAT16, TO_FLOAT16 = range(3)
_NARROW = {torch.bfloat16: TO_BFLOAT16, torch.float16: TO_FLOAT16}


@intrinsic
def pointer(context, address):
    """An address as a pointer."""

    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@intrinsic
def float16_bits(context, bits):
    """The bits of the float16 nearest to the float32 with these bits, ties to even."""

    def emit(context, builder, signature, arguments):
        half = builder.fptrunc(builder.bitcast(arguments[0], ir.FloatType()), ir.HalfType())
        return builder.bitcast(half, ir.IntType(16))

    return types.uint16(types.uint32), emit


@numba.njit
def _scatter_tokens(mode, source, target, blocks, offsets, heads, dim, start, stop):
    """Write the tokens start ≤ t < stop. source: its address and bytes from head to head and from token to token;
    target: its own and those of blocks, heads and tokens. dim counts uint16 for COPY, else elements.
    """
    source_at, source_head, source_token = source
    target_at, target_block, target_head, target_token = target
    for t in range(start, stop):
        for head in range(heads):
            read = pointer(source_at + t * source_token + head * source_head)
            place = target_at + blocks[t] * target_block + head * target_head + offsets[t] * target_token
            written = numba.carray(pointer(place), (dim,), np.uint16)
            if mode == COPY:
                same = numba.carray(read, (dim,), np.uint16)
                for d in range(dim):
                    written[d] = same[d]
                continue
            wide = numba.carray(read, (dim,), np.uint32)
            if mode == TO_FLOAT16:
                for d in range(dim):
                    written[d] = float16_bits(wide[d])
            else:
                for d in range(dim):
                    bits = wide[d]
                    nearest = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
                    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                    rounded = np.uint32(bits + nearest) >> np.uint32(16)
                    written[d] = np.uint16(np.uint32(0x7FC0) if is_nan else rounded)


def _scatter(mode, source, target, blocks, offsets, heads, dim, cuts, turns, threads, team):
    share(_scatter_tokens, (mode, source, target, blocks, offsets, heads, dim), cuts, turns, threads, team)


@cache
def _compiled() -> Shared:
    """The kernel, compiled now or read from the disk."""
    indices = types.Array(types.int64, 1, "C")
    places = types.UniTuple(types.int64, 3), types.UniTuple(types.int64, 4)
    signature = types.void(types.int64, *places, indices, indices, types.int64, types.int64, *Turns)
    return Shared(compiled(_scatter, signature))


def can_scatter(new: torch.Tensor, arena: torch.Tensor) -> bool:
    """Whether there is compiled code for this pair: on the CPU, of one dtype or from float32 to 16 bits."""
    narrows = new.dtype == torch.float32 and arena.dtype in _NARROW
    return new.device.type == arena.device.type == "cpu" and (new.dtype == arena.dtype or narrows)


def scatter(
    new: torch.Tensor, arena: torch.Tensor, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> None:
    """Write new (kv_heads, T, dim) to ``arena[blocks[t], head, offsets[t]]``, rounded to nearest even as torch does.

    Only the last dimensions need be contiguous. Blocks and offsets are within the arena.
    """
    new = new if new.stride(2) == 1 else new.contiguous()
    heads, tokens, dim = new.shape
    same = new.dtype == arena.dtype
    places = _strides(new, 0, 1), _strides(arena, 0, 1, 2)
    width = dim * new.itemsize // 2 if same else dim
    mode = COPY if same else _NARROW[arena.dtype]
    threads = torch.get_num_threads()
    parts = max(1, min(tokens, new.nbytes // PART_BYTES, threads * PARTS))
    _compiled()(mode, *places, blocks, offsets, heads, width, cuts=even(tokens, parts), threads=threads)


def _strides(tensor: torch.Tensor, *dims: int) -> tuple[Any, ...]:
    """The address of a tensor and its strides in bytes."""
    return tensor.data_ptr(), *(tensor.stride(d) * tensor.itemsize for d in dims)
