"""Packed rows written in 16 bits: what torch rounds float32 ones to, bit for bit, whatever bytes are stored."""

import numpy as np
import pytest
import torch

from penstock.quant.forms import LAYOUTS
from penstock.quant.packed import Packed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_rounds_as_torch_does(form, dtype):
    """Any bytes: scales that are subnormal, infinite or no number are among them."""
    draw = np.random.default_rng(0)
    for columns in (5 * form.group, 2 * form.group - 31) if form.cut_short else (5 * form.group,):
        stored = draw.integers(0, 256, (200, form.row_bytes(columns)), np.uint8)
        packed = Packed(form, columns, torch.from_numpy(stored))
        expected, got = packed.wide(torch.float32).to(dtype), packed.wide(dtype)
        numbers = ~expected.isnan()
        assert torch.equal(got.isnan(), ~numbers)
        assert torch.equal(got[numbers].view(torch.int16), expected[numbers].view(torch.int16))
