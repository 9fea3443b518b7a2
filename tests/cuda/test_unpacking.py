"""Rows that Triton's kernel unpacks: those that torch's operations make, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cuda.places import DEVICE, last_bytes, sparse

from penstock.cuda.elements import RECORDS
from penstock.cuda.unpacking import unpack
from penstock.quant.elements import elements
from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.grouped import Grouped

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy: scales of any bytes are not all finite


def stored(form: Form, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of any bytes."""
    drawn = np.random.default_rng(seed).integers(0, 256, (rows, form.row_bytes(columns)), np.uint8)
    return torch.from_numpy(drawn).to(DEVICE)


def assert_alike(form: Form, data: torch.Tensor, target: torch.Tensor) -> None:
    """target: where data was unpacked. Only fp8 has codes that are refused before, and may be read as anything."""
    expected, bits = elements(form, data, target.shape[1]).to(target.dtype), DTYPES[target.dtype]
    numbers = ~expected.isnan()
    assert numbers.any()
    assert torch.equal(target[numbers].view(bits), expected[numbers].view(bits))
    assert form.name == "fp8" or target[~numbers].isnan().all()


def test_every_format_has_a_kernel():
    assert {form.record for form in LAYOUTS} == set(RECORDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_bit_equal_whatever_the_bytes(form, dtype):
    for records in (1, 5):
        columns = records * form.group
        data, target = stored(form, 37, columns), torch.empty(37, columns, dtype=dtype, device=DEVICE)
        unpack(data, form, target)
        assert_alike(form, data, target)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from([form for form in LAYOUTS if form.cut_short]),
    dtype=st.sampled_from(list(DTYPES)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 600),
)
def test_rows_that_end_within_a_group(form, dtype, rows, columns):
    """Nothing beside the target is written."""
    data, around = stored(form, rows, columns), torch.full((rows + 2, columns), 7.0, dtype=dtype, device=DEVICE)
    unpack(data, form, around[1:-1])
    if elements(form, data, columns).isfinite().any():
        assert_alike(form, data, around[1:-1])
    assert (around[[0, -1]] == 7).all()


@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_rows_that_lie_apart_and_begin_anywhere(form):
    """Some rows of a matrix, at an odd address, into rows that are wider."""
    columns = 3 * form.group
    data = stored(form, 20, columns)
    page = torch.zeros(20, data.shape[1] + 13, dtype=torch.uint8, device=DEVICE).flatten()[7:]
    apart = page.as_strided(data.shape, (data.shape[1] + 13, 1), page.storage_offset())[:19]
    apart.copy_(data[:19])
    wide = torch.full((6, columns + 5), 7.0, device=DEVICE)
    unpack(apart[3:9], form, wide[:, :columns])
    assert_alike(form, data[3:9], wide[:, :columns])
    assert (wide[:, columns:] == 7).all()


def test_rows_beyond_four_gigabytes():
    """Offsets have 64 bits, in the packed matrix and in the target; nothing between rows is touched."""
    form, rows, apart = Grouped(4, 64), 50, 96 << 20
    data = stored(form, rows, 64)
    far = sparse(rows * apart)
    packed = far.as_strided(data.shape, (apart, 1), 0)
    packed.copy_(data)
    target = far.view(torch.bfloat16).as_strided((rows, 64), (apart // 2, 1), 4096)
    unpack(packed, form, target)
    assert_alike(form, data, target)


@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_nothing_is_read_behind_the_last_row(form):
    columns = 3 * form.group - (form.group - 5) * form.cut_short
    data, target = last_bytes(stored(form, 3, columns)), torch.empty(3, columns, device=DEVICE)
    unpack(data, form, target)
    assert_alike(form, data, target)


def test_nothing_to_unpack():
    form = Grouped(4)
    unpack(stored(form, 0, 64), form, torch.empty(0, 64, device=DEVICE))


def test_keys_that_half_precision_does_not_hold_stay_no_numbers():
    """Rows of KV that could not be packed are all ones (``quant.rounding.pack_kv``)."""
    form = Grouped(4, 64)
    target = torch.zeros(3, 64, dtype=torch.bfloat16, device=DEVICE)
    unpack(torch.full((3, form.row_bytes(64)), 255, dtype=torch.uint8, device=DEVICE), form, target)
    assert target.isnan().all()
