"""Packed rows made float32 by torch's own operations: for devices that have no kernel here."""

from collections.abc import Callable, Sequence

import torch

from penstock.quant.forms import Form
from penstock.quant.mxfp4 import ELEMENTS, EXPONENT_SHIFT, SMALLEST
from penstock.quant.rows import BLOCK


def elements(form: Form, data: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows of packed bytes (rows, bytes) as float32 (rows, columns), on their device."""
    whole, rest = divmod(columns, form.group)
    cut = whole * form.record_bytes
    unpack = _UNPACKED[form.record]
    parts = [unpack(data[:, :cut].reshape(len(data), whole, -1)).flatten(1)] if whole else []
    if rest:
        parts.append(unpack(data[:, None, cut:]).flatten(1)[:, :rest])
    return torch.cat(parts, 1)


# Each takes records (rows, records, bytes) and gives their elements (rows, records, elements).


def _int4(records: torch.Tensor) -> torch.Tensor:
    numbers = _halves(records[..., :4])
    return numbers[..., 1:] + numbers[..., :1] * _nibbles(records[..., 4:])


def _int8(records: torch.Tensor) -> torch.Tensor:
    numbers = _halves(records[..., :4])
    return numbers[..., 1:] + numbers[..., :1] * records[..., 4:]


def _q4_0(records: torch.Tensor) -> torch.Tensor:
    return _halves(records[..., :2]) * (_nibbles(records[..., 2:]).float() - 8)


def _q8_0(records: torch.Tensor) -> torch.Tensor:
    return _halves(records[..., :2]) * records[..., 2:].contiguous().view(torch.int8)


def _q4_k(records: torch.Tensor) -> torch.Tensor:
    return _by_minimums(records, _pairs(records[..., 16:]))


def _q5_k(records: torch.Tensor) -> torch.Tensor:
    fifths = _bits(records[..., None, 16:48], range(8), 1)
    return _by_minimums(records, _pairs(records[..., 48:]) | fifths << 4)


def _q6_k(records: torch.Tensor) -> torch.Tensor:
    shape = records.shape[:2]
    fours = _bits(records[..., :128].reshape(*shape, 2, 1, 64), (0, 4), 4)
    twos = _bits(records[..., 128:192].reshape(*shape, 2, 1, 32), (0, 2, 4, 6), 2)
    codes = (fours.reshape(*shape, -1, 16) | twos.reshape(*shape, -1, 16) << 4).float() - 32
    scales = _halves(records[..., 208:]) * records[..., 192:208].contiguous().view(torch.int8)
    return (scales[..., None] * codes).flatten(2)


def _by_minimums(records: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """scale · s · code - minimum · m of codes (rows, superblocks, 8, 32): numbers in six bits in twelve bytes."""
    low, middle, high = records[..., 4:8], records[..., 8:12], records[..., 12:16]
    s = torch.cat((low & 63, high & 15 | low >> 6 << 4), -1)
    m = torch.cat((middle & 63, high >> 4 | middle >> 6 << 4), -1)
    scales, minimums = _halves(records[..., :2]) * s, _halves(records[..., 2:4]) * m
    return (scales[..., None] * codes - minimums[..., None]).flatten(2)


def _pairs(stored: torch.Tensor) -> torch.Tensor:
    """Codes of four bits of 32 bytes at a time: those in low halves, then those in high ones."""
    return _bits(stored.reshape(*stored.shape[:2], -1, 1, BLOCK), (0, 4), 4).flatten(2, 3)


def _bits(stored: torch.Tensor, shifts: Sequence[int], number: int) -> torch.Tensor:
    """So many bits of bytes (…, 1, bytes) from each of some bits on, (…, shifts, bytes)."""
    moved: torch.Tensor = stored >> torch.tensor(shifts, dtype=torch.uint8, device=stored.device)[:, None]
    return moved & (1 << number) - 1


def _fp8(records: torch.Tensor) -> torch.Tensor:
    scales = records[..., :4].contiguous().view(torch.float32)
    codes = records[..., 4:].contiguous().view(torch.float8_e4m3fn)
    return (codes.float() * scales).bfloat16().float()


def _mxfp4(records: torch.Tensor) -> torch.Tensor:
    scales = (records[..., :1].int() << EXPONENT_SHIFT).clamp_(min=SMALLEST).view(torch.float32)
    return torch.tensor(ELEMENTS, device=records.device)[_nibbles(records[..., 1:]).long()] * scales


def _halves(stored: torch.Tensor) -> torch.Tensor:
    """Numbers in half precision as float32."""
    return stored.contiguous().view(torch.float16).float()


def _nibbles(stored: torch.Tensor) -> torch.Tensor:
    """Codes of four bits: of each block those in the low halves of its bytes, then those in the high ones."""
    halves = stored.reshape(*stored.shape[:2], -1, BLOCK // 2)
    return torch.stack((halves & 15, halves >> 4), 3).flatten(2)


_UNPACKED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int4": _int4,
    "int8": _int8,
    "q4_0": _q4_0,
    "q4_1": _int4,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
}
