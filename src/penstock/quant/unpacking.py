"""Packed rows made float32 on the CPU, by a compiled kernel."""

from collections.abc import Callable
from functools import cache, partial

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import types

from penstock.compiled.threads import in_threads
from penstock.compiled.widen import widen
from penstock.quant.forms import Form, number


def unpack(packed: npt.NDArray[np.uint8], form: Form, target: npt.NDArray[np.float32]) -> None:
    """Write packed rows (rows, bytes) to target (rows, columns), with as many threads as torch computes with."""
    threads = max(1, min(len(packed), torch.get_num_threads()))
    cuts = [len(packed) * part // threads for part in range(threads + 1)]
    work = unpacker(form)
    in_threads(lambda start, stop: work(packed, target, start, stop), cuts)


def unpacker(form: Form) -> Callable[..., None]:
    """The same for rows start ≤ row < stop in the calling thread: a function of packed, target, start and stop."""
    return partial(_compiled(number(form)), (0,) * (number(form) + 1), form.group)


def _unpack(form, group, packed, target, start, stop):
    """Rows start ≤ row < stop; what the last block of a row has beyond its columns is cut off."""
    columns = target.shape[1]
    whole = columns // group * group
    rest = np.empty(group, np.float32)
    packed_at, target_at, rest_at = packed.ctypes.data, target.ctypes.data, rest.ctypes.data
    for row in range(start, stop):
        at = packed_at + row * packed.strides[0]
        widen(packed, form, at, 0, whole, target_at + row * target.strides[0])
        if whole < columns:
            widen(packed, form, at, whole, columns - whole, rest_at)
            for k in range(whole, columns):
                target[row, k] = rest[k - whole]


@cache
def _compiled(form: int) -> Callable[..., None]:
    rows, wide = types.Array(types.uint8, 2, "A"), types.Array(types.float32, 2, "A")
    signature = types.void(types.UniTuple(types.int64, form + 1), types.intp, rows, wide, types.intp, types.intp)
    compiled: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(_unpack)
    return compiled
