"""Packed rows written as float32 or 16 bits by a Triton kernel: each program takes some records."""

import torch
import triton
import triton.language as tl

from penstock.cuda.elements import RECORDS, rounded
from penstock.quant.forms import Form

_TILE = 2048  # elements of a program


def unpack(data: torch.Tensor, form: Form, target: torch.Tensor) -> None:
    """Write packed rows (rows, bytes) to target (rows, columns), on data's device and its current stream.

    Rows may lie apart. Elements are rounded to the target's dtype: exact in float32.
    """
    rows, columns = target.shape
    if not target.numel():
        return
    records, tile = -(-columns // form.group), _TILE // form.group
    with torch.cuda.device_of(data):  # type: ignore[no-untyped-call]  # torch leaves it so
        _unpack[(triton.cdiv(rows * records, tile),)](
            *(data, data.stride(0), target, target.stride(0), rows, columns, records),
            *(RECORDS[form.record], form.group, form.record_bytes, tile),
        )


@triton.jit(do_not_specialize=["data_stride", "target_stride", "rows", "columns", "records"])
def _unpack(
    data,
    data_stride,
    target,
    target_stride,
    rows,
    columns,
    records,
    elements: tl.constexpr,
    group: tl.constexpr,
    record_bytes: tl.constexpr,
    tile: tl.constexpr,
):
    """Records are numbered through all rows; one that is not there is read as the first, and not written."""
    first = tl.program_id(0).to(tl.int64) * tile
    number = (first % records).to(tl.int32) + tl.arange(0, tile)[:, None]
    row, record = first // records + number // records, number % records
    place = tl.arange(0, group)[None, :]
    column = record * group + place
    there = (row < rows) & (column < columns)
    at = data + tl.where(row < rows, row * data_stride + record * record_bytes, 0)
    found = elements(at, tl.where(there, place, 0))
    tl.store(target + row * target_stride + column, rounded(found, target.dtype.element_ty), mask=there)
