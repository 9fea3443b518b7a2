"""Packed rows made float32 or 16 bits wide on the CPU, by a compiled kernel."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from numba import types

from penstock.compiled.kernels import compiled
from penstock.compiled.threads import PART_BYTES, in_threads
from penstock.compiled.vectors import STORED
from penstock.compiled.widen import widen
from penstock.quant.forms import Form, number


def unpack(packed: torch.Tensor, form: Form, target: torch.Tensor) -> None:
    """Write packed rows (rows, bytes) to target (rows, columns), with as many threads as torch computes with at most.

    Elements are rounded to the target's dtype, one of ``vectors.STORED``: exact in float32.
    """
    parts = max(1, min(len(packed), torch.get_num_threads(), target.nbytes // PART_BYTES))
    cuts = [len(packed) * part // parts for part in range(parts + 1)]
    rows, made = packed.numpy(), target.view(STORED[target.dtype]).numpy()
    work = unpacker(form, made.dtype.name)
    in_threads(lambda start, stop: work(rows, made, start, stop), cuts)


def unpacker(form: Form, made: str) -> Callable[..., None]:
    """The same for rows start ≤ row < stop in the calling thread: a function of packed, target, start and stop.

    These are numpy arrays; made: the name of the target's elements there.
    """
    return partial(_compiled(number(form), made), (0,) * (number(form) + 1), form.group)


def _unpack(form, group, packed, target, start, stop):
    """Rows start ≤ row < stop; what the last block of a row has beyond its columns is cut off."""
    columns = target.shape[1]
    whole = columns // group * group
    rest = np.empty(group, target.dtype)
    packed_at, target_at, rest_at = packed.ctypes.data, target.ctypes.data, rest.ctypes.data
    for row in range(start, stop):
        at = packed_at + row * packed.strides[0]
        widen(packed, target, form, at, 0, whole, target_at + row * target.strides[0])
        if whole < columns:
            widen(packed, target, form, at, whole, columns - whole, rest_at)
            for k in range(whole, columns):
                target[row, k] = rest[k - whole]


@cache
def _compiled(form: int, made: str) -> Callable[..., None]:
    rows, wide = types.Array(types.uint8, 2, "A"), types.Array(getattr(types, made), 2, "A")
    signature = types.void(types.UniTuple(types.int64, form + 1), types.intp, rows, wide, types.intp, types.intp)
    return compiled(_unpack, signature)
