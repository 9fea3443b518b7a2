"""Codes and scales that lie apart in checkpoints, put together into rows as they run, at the speed of disks."""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.compiled.kernels import compiled
from penstock.quant.fp8 import SCALE_BYTES, Fp8
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.rows import BLOCK

Bytes = npt.NDArray[np.uint8]

_FP8_NAN, _MXFP4_NAN = np.uint8(0x7F), np.uint8(0xFF)  # the former without its sign: there are no infinities
_LARGEST = 2.0**119  # scales that kernels may multiply by 256


def pack_fp8(codes: Bytes, scales: npt.NDArray[np.float32]) -> Bytes:
    """Rows of codes (rows, columns) and the scales of their groups (rows, groups).

    Raises ValueError for what kernels do not take: codes and scales that are not numbers, and scales beyond 2^119.
    """
    rows, columns = codes.shape
    form = Fp8()
    packed = np.zeros((rows, form.row_bytes(columns)), np.uint8)
    stored = np.ascontiguousarray(scales, np.float32).view(np.uint8)
    if _fp8()(codes, stored, packed, form.group) or not (np.abs(scales) < _LARGEST).all():
        raise ValueError("fp8 codes or scales that are not numbers")
    return packed


def pack_mxfp4(codes: Bytes, scales: Bytes) -> Bytes:
    """Codes (…, blocks, 16), two neighbours in a byte, and scales (…, blocks), as (…, bytes of a row).

    Raises ValueError for scales that are not numbers.
    """
    packed = np.empty((prod(scales.shape), Mxfp4().record_bytes), np.uint8)
    if _mxfp4()(codes.reshape(len(packed), BLOCK // 2), scales.reshape(-1), packed):
        raise ValueError("MXFP4 scales that are not numbers")
    return packed.reshape(*scales.shape[:-1], scales.shape[-1] * packed.shape[1])


def _put_fp8(codes: Any, scales: Any, packed: Any, group: int) -> Any:
    """Whether a code is no number."""
    rows, columns = codes.shape
    bad = np.uint8(0)
    for row in range(rows):
        for first in range(0, columns, group):
            number = first // group
            place = number * (group + SCALE_BYTES)
            for k in range(SCALE_BYTES):
                packed[row, place + k] = scales[row, number * SCALE_BYTES + k]
            count = min(group, columns - first)
            source = codes[row, first : first + count]
            target = packed[row, place + SCALE_BYTES : place + SCALE_BYTES + count]
            for k in range(count):
                target[k] = source[k]
        line = codes[row]
        for k in range(columns):  # all in bytes, or the loop would be four times as long
            bad = np.uint8(bad | np.uint8(np.uint8(line[k] & _FP8_NAN) + np.uint8(1)) & np.uint8(128))
    return bad != 0


def _put_mxfp4(codes: Any, scales: Any, packed: Any) -> Any:
    """Whether a scale is no number. Of a block's halves, the first goes to low halves of bytes, the second to high."""
    bad = False
    for block in range(len(scales)):
        bad |= scales[block] == _MXFP4_NAN
        packed[block, 0] = scales[block]
        for k in range(BLOCK // 4):
            first, second = codes[block, k], codes[block, BLOCK // 4 + k]
            packed[block, 1 + 2 * k] = first & 15 | second << 4
            packed[block, 2 + 2 * k] = first >> 4 | second & 0xF0
    return bad


@cache
def _fp8() -> Callable[..., bool]:
    return compiled(_put_fp8)


@cache
def _mxfp4() -> Callable[..., bool]:
    return compiled(_put_mxfp4)
