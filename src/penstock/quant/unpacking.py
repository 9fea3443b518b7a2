"""Packed rows made float32 or 16 bits wide on the CPU, by a compiled kernel."""

from functools import cache

import numba
import numpy as np
import torch
from numba import types

from penstock.compiled.kernels import compiled
from penstock.compiled.threads import PART_BYTES, PARTS, Shared, Turns, even, share
from penstock.compiled.vectors import STORED
from penstock.compiled.widen import widen
from penstock.quant.forms import Form, number


def unpack(packed: torch.Tensor, form: Form, target: torch.Tensor, threads: int | None = None) -> None:
    """Write packed rows (rows, bytes) to target (rows, columns), with so many threads: as many as torch's where None.

    Elements are rounded to the target's dtype, one of ``vectors.STORED``: exact in float32.
    """
    threads = threads or torch.get_num_threads()
    parts = max(1, min(len(packed), threads * PARTS, target.nbytes // PART_BYTES))
    made = target.view(STORED[target.dtype]).numpy()
    kernel, numbered = _compiled(number(form), made.dtype.name), (0,) * (number(form) + 1)
    kernel(numbered, form.group, packed.numpy(), made, cuts=even(len(packed), parts), threads=threads)


@numba.njit
def _unpack_rows(form, group, packed, target, start, stop):
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


def _unpack(form, group, packed, target, cuts, turns, threads, team):
    share(_unpack_rows, (form, group, packed, target), cuts, turns, threads, team)


@cache
def _compiled(form: int, made: str) -> Shared:
    rows, wide = types.Array(types.uint8, 2, "A"), types.Array(getattr(types, made), 2, "A")
    return Shared(compiled(_unpack, types.void(types.UniTuple(types.int64, form + 1), types.intp, rows, wide, *Turns)))
