"""Whether kernels are used on a device: only where they give there what torch's own operations give, tried once."""

import logging
import subprocess
from functools import cache
from importlib.util import find_spec

import torch

from penstock.quant.elements import elements
from penstock.quant.forms import Form

FEW = 16  # tokens whose product unpacks as it multiplies: the fewest that matrix units take at once
_LEAST_CAPABILITY = (8, 0)  # what Triton supports
# No compiler or no place for what it makes; a device newer than Triton; a Triton older than 3.3, or one to come.
_TROUBLES = (RuntimeError, OSError, subprocess.CalledProcessError, TypeError, AttributeError)
_ROWS = 256  # of random bytes: in any format some have nothing but finite elements


@cache
def works(form: Form, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels unpack rows of this format to a dtype, and multiply with them, on a device.

    False without Triton and off CUDA. Where a kernel does not compile or is wrong, one line in the log says so.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    trouble = _trouble(form, dtype, device)
    if trouble is not None:
        _tell(f"Triton's kernels are not used on {torch.cuda.get_device_name(device)}: {trouble}")
    return trouble is None


@cache
def _tell(text: str) -> None:
    """Say it once."""
    logging.getLogger("penstock").warning("%s", text)


def _trouble(form: Form, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why kernels cannot be used, in one line; None where they can."""
    try:
        from triton.errors import TritonError
    except ImportError as error:
        return str(error)
    try:
        right = agrees(form, dtype, device)
    except (TritonError, *_TROUBLES) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    made = str(dtype).removeprefix("torch.")
    return None if right else f"they unpack {form.name} to {made} otherwise than torch does"


def agrees(form: Form, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels make of random bytes what torch makes of them, to the bit: elements, and products that are one.

    Elements that are not finite are not compared, nor are products with rows that have some, or subnormal ones, which
    units for matrices need not keep.
    """
    from penstock.cuda.few import multiply_few  # imports triton
    from penstock.cuda.unpacking import unpack
    from penstock.quant.packed import Packed

    columns = 2 * form.group + (form.group // 2 + 1 if form.cut_short else 0)
    shape, draw = (_ROWS, form.row_bytes(columns)), torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(device)
    expected = elements(form, data, columns).to(dtype)
    unpacked, finite = torch.empty_like(expected), expected.isfinite()
    unpack(data, form, unpacked)
    chosen = torch.linspace(0, columns - 1, FEW).long().to(device)
    x = torch.zeros(FEW, columns, dtype=dtype, device=device)
    x[torch.arange(FEW, device=device), chosen] = 1
    products = x.new_empty(FEW, _ROWS)
    multiply_few(x, Packed(form, columns, data), products)
    normal = (expected == 0) | (expected.abs() >= torch.finfo(torch.float32).tiny)
    rows = (finite & normal).all(1)
    same = torch.equal(unpacked[finite], expected[finite])
    return same and torch.equal(products[:, rows], expected[rows][:, chosen].T)
