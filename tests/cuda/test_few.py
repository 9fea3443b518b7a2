"""Products of few tokens by Triton's kernel: those of the unpacked matrix, within the rounding of a sum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cuda.places import DEVICE, last_bytes, sparse
from tests.quant.blocks import blocks

from penstock.cuda.few import multiply_few
from penstock.cuda.trial import FEW
from penstock.quant.elements import elements
from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.fp8 import Fp8
from penstock.quant.ggml import Ggml
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed
from penstock.quant.rearranging import pack_fp8, pack_mxfp4
from penstock.quant.rounding import pack

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(form: Form, rows: int, columns: int) -> Packed:
    """Like a model's."""
    draw = np.random.default_rng(rows * columns)
    if isinstance(form, Grouped):
        data = pack(draw.normal(scale=0.02, size=(rows, columns)).astype(np.float32), form)
    elif isinstance(form, Ggml):
        data = blocks(form.kind, rows, columns)
    elif isinstance(form, Fp8):
        codes = draw.integers(0, 0x70, (rows, columns), np.uint8) | draw.integers(0, 2, (rows, columns), np.uint8) << 7
        data = pack_fp8(codes, draw.uniform(0, 0.01, (rows, -(-columns // 128))).astype(np.float32))
    else:
        codes = draw.integers(0, 256, (rows, columns // 32, 16), np.uint8)
        data = pack_mxfp4(codes, draw.integers(115, 122, codes.shape[:2], np.uint8))
    return Packed(form, columns, torch.from_numpy(data).to(DEVICE))


def assert_product(x: torch.Tensor, weight: Packed, out: torch.Tensor) -> None:
    """out: x times weight. Sums of float32 err by 2^-24 a step at most, and are rounded once."""
    matrix = elements(weight.form, weight.data, weight.columns).to(x.dtype).double()
    expected, most = x.double() @ matrix.T, x.double().abs() @ matrix.abs().T
    lost = (out.double() - expected).abs()
    assert (lost <= torch.finfo(x.dtype).eps / 2 * expected.abs() + weight.columns * 2**-24 * most + 2**-25).all()
    assert expected.abs().max() > 0


def tokens(number: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(number)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_any_format(form, dtype):
    for number, rows, records in ((1, 33, 9), (FEW, 5, 1)):
        columns = records * form.group
        x, weight = tokens(number, columns, dtype), weights(form, rows, columns)
        out = x.new_full((number, rows), torch.nan)
        multiply_few(x, weight, out)
        assert_product(x, weight, out)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from([form for form in LAYOUTS if form.cut_short]),
    dtype=st.sampled_from(DTYPES),
    number=st.integers(1, FEW),
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
)
def test_any_size(form, dtype, number, rows, columns):
    """Into some columns of a wider product, of which nothing else is written."""
    x, weight = tokens(number, columns, dtype), weights(form, rows + 2, columns)[1:-1]
    wide = x.new_full((number, rows + 9), 7.0)
    multiply_few(x, weight, wide[:, 4 : 4 + rows])
    assert_product(x, weight, wide[:, 4 : 4 + rows])
    assert (wide[:, :4] == 7).all() and (wide[:, 4 + rows :] == 7).all()


def test_a_token_that_is_no_number_spoils_no_other():
    x, weight = tokens(3, 100, torch.float32), weights(Grouped(4), 20, 100)
    x[1, 5] = torch.nan
    out = x.new_empty(3, 20)
    multiply_few(x, weight, out)
    assert out[1].isnan().all()
    assert_product(x[::2], weight, out[::2])


def test_a_row_that_is_no_number_spoils_no_other():
    x, weight = tokens(3, 100, torch.float32), weights(Grouped(4), 20, 100)
    weight.data[0, :4] = 255
    out = x.new_empty(3, 20)
    multiply_few(x, weight, out)
    assert out[:, 0].isnan().all()
    assert_product(x, weight[1:], out[:, 1:])


def test_rows_beyond_four_gigabytes():
    """Offsets have 64 bits, in the packed matrix and in the product; nothing between rows is touched."""
    form, rows, apart = Grouped(4, 64), 50, 96 << 20
    near = weights(form, rows, 64)
    far = sparse(rows * apart)
    data = far.as_strided(near.data.shape, (apart, 1), 0)
    data.copy_(near.data)
    out = far.view(torch.float16).as_strided((FEW, rows), (150 << 20, 1), 4096)
    x = tokens(FEW, 64, torch.float16)
    multiply_few(x, Packed(form, 64, data), out)
    assert_product(x, near, out)


@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_nothing_is_read_behind_the_last_row(form):
    columns = 3 * form.group - (form.group - 5) * form.cut_short
    x, weight = tokens(2, columns, torch.float32), weights(form, 3, columns)
    out = x.new_empty(2, 3)
    multiply_few(x, Packed(form, columns, last_bytes(weight.data)), out)
    assert_product(x, weight, out)


def test_no_rows():
    multiply_few(tokens(1, 64, torch.float32), weights(Grouped(4), 3, 64)[:0], torch.empty(1, 0, device=DEVICE))
