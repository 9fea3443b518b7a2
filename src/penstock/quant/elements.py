"""Packed rows made float32 by torch's own operations: for devices that have no kernel here."""

from collections.abc import Callable

import torch

from penstock.quant.forms import Form
from penstock.quant.grouped import BLOCK


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
}
