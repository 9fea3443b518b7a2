"""Products of few tokens with packed weights by a Triton kernel: nothing unpacked is written."""

import torch
import triton
import triton.language as tl

from penstock.cuda.elements import RECORDS, rounded
from penstock.cuda.trial import FEW
from penstock.quant.packed import Packed

_ROWS, _DEPTH = 16, 256  # of weights that a program multiplies at a time
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def multiply_few(x: torch.Tensor, weight: Packed, out: torch.Tensor) -> None:
    """Write x (T, in) times weight (out, in) to out (T, out), on its device's current stream; T is at most ``FEW``.

    Elements are rounded to x's dtype, as an unpacked matrix has them, and products summed in float32. Rows of all three
    may lie apart.
    """
    (tokens, columns), rows, form = x.shape, len(weight), weight.form
    if not out.numel():
        return
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # torch leaves it so
        _multiply[(triton.cdiv(rows, _ROWS),)](
            *(x, x.stride(0), weight.data, weight.data.stride(0), out, out.stride(0)),
            *(tokens, rows, columns, -(-columns // form.group)),
            *(RECORDS[form.record], form.group, form.record_bytes),
            *(_met_as(x), FEW, _ROWS, _DEPTH // form.group),
        )


def _met_as(x: torch.Tensor) -> tl.dtype:
    """What weights and tokens are multiplied as; Triton's interpreter has no arithmetic of bfloat16."""
    return _DTYPES[torch.float32 if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x.dtype]


@triton.jit(do_not_specialize=["x_stride", "data_stride", "out_stride", "tokens", "rows", "columns", "records"])
def _multiply(
    x,
    x_stride,
    data,
    data_stride,
    out,
    out_stride,
    tokens,
    rows,
    columns,
    records,
    elements: tl.constexpr,
    group: tl.constexpr,
    record_bytes: tl.constexpr,
    met_as: tl.constexpr,
    most: tl.constexpr,
    tile: tl.constexpr,
    at_once: tl.constexpr,
):
    """What is not there is read as the first row, record or element, and meets zeros or is not written."""
    row = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    token = tl.arange(0, most)[None, :].to(tl.int64)
    begins = data + tl.where(row < rows, row * data_stride, 0)[:, None, None]
    total = tl.zeros((tile, most), tl.float32)
    for first in range(0, records, at_once):
        record = first + tl.arange(0, at_once)[None, :, None]
        place = tl.arange(0, group)[None, None, :]
        there = record * group + place < columns
        at = begins + tl.where(record < records, record * record_bytes, 0)
        found = elements(at, tl.where(there, place, 0))
        weights = rounded(tl.reshape(found, (tile, at_once * group)), x.dtype.element_ty)
        column = first * group + tl.arange(0, at_once * group)[:, None]
        met = tl.load(x + token * x_stride + column, mask=(token < tokens) & (column < columns), other=0.0)
        total = tl.dot(weights.to(met_as), met.to(met_as), total, input_precision="ieee")
    made = rounded(total, out.dtype.element_ty)
    tl.store(out + token * out_stride + row[:, None], made, mask=(token < tokens) & (row[:, None] < rows))
