"""Packed rows made float32 on the CPU, by a compiled kernel."""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import types

from penstock.compiled.threads import in_threads
from penstock.compiled.widen import widen
from penstock.quant.forms import Form, number
from penstock.quant.grouped import BLOCK


def unpack(packed: npt.NDArray[np.uint8], form: Form, target: npt.NDArray[np.float32]) -> None:
    """Write packed rows (rows, bytes) to target (rows, columns), with as many threads as torch computes with."""
    threads = max(1, min(len(packed), torch.get_num_threads()))
    cuts = [len(packed) * part // threads for part in range(threads + 1)]
    place = number(form)
    told, kernel = (0,) * (place + 1), _compiled(place)
    in_threads(lambda start, stop: kernel(told, packed, target, start, stop), cuts)


def _unpack(form, packed, target, start, stop):
    """Rows start ≤ row < stop; what the last block of a row has beyond its columns is cut off."""
    columns = target.shape[1]
    whole = columns // BLOCK * BLOCK
    rest = np.empty(BLOCK, np.float32)
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
    signature = types.void(types.UniTuple(types.int64, form + 1), rows, wide, types.intp, types.intp)
    compiled: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(_unpack)
    return compiled
