"""Packed matrices: what comes back of what was packed, on rows of any length."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.quant.elements import elements
from penstock.quant.grouped import BITS, GROUPS, Grouped
from penstock.quant.packed import Packed
from penstock.quant.rounding import pack

FORMS = [Grouped(bits, group, plain) for bits in BITS for group in GROUPS for plain in (True, False)]


def packed(values: np.ndarray, form: Grouped) -> Packed:
    return Packed(form, values.shape[1], torch.from_numpy(pack(values.astype(np.float32), form)))


def rows_of(seed: int, shape: tuple[int, int], offset: float, scale: float) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (offset + scale * draw.standard_t(4, shape)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 300)),
    offset=st.sampled_from([0.0, 0.3, -7.0]),
    scale=st.sampled_from([1e-3, 0.02, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_plain_rounding_errs_by_half_a_step_and_fitting_by_no_more_in_all(form, shape, offset, scale, seed):
    values = rows_of(seed, shape, offset, scale)
    lost = np.abs(packed(values, Grouped(form.bits, form.group, plain=True)).wide(torch.float32).numpy() - values)
    for first in range(0, shape[1], form.group):
        group = values[:, first : first + form.group].astype(np.float64)
        span = group.max(1) - group.min(1)
        # scale and minimum are rounded to half precision: 2^-12 of each, or 2^-24 and, of the scale, up
        step = span * (1 + 2**-11) / (2**form.bits - 1) + 2**-24
        ends = (span + np.abs(group.min(1))) * 2**-11 + 2**-24
        assert (lost[:, first : first + form.group].max(1) <= step / 2 + ends).all()
    fitted = packed(values, Grouped(form.bits, form.group)).wide(torch.float32).numpy()
    assert ((fitted - values) ** 2).sum() <= (lost**2).sum() * (1 + 1e-4) + 1e-30


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_fitting_loses_less_on_weights_like_a_models(form):
    values = rows_of(1, (64, 512), 0.0, 0.02)

    def lost(form: Grouped) -> float:
        return float(((packed(values, form).wide(torch.float32).numpy() - values) ** 2).mean())

    assert lost(Grouped(form.bits, form.group)) < 0.97 * lost(Grouped(form.bits, form.group, plain=True)) or (
        form.bits == 8
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 12345.678, -1e-30])
def test_a_constant_row_comes_back(form, value):
    values = np.full((2, 100), value, np.float32)
    np.testing.assert_allclose(packed(values, form).wide(torch.float32).numpy(), values, rtol=2**-11, atol=2**-24)


@pytest.mark.parametrize("form", [form for form in FORMS if form.group == 32], ids=lambda form: form.name)
def test_codes_that_are_there_already_come_back(form):
    """Four-bit grids in groups of 32, as GGUF's Q4_0 has them, lose next to nothing."""
    draw = np.random.default_rng(3)
    codes = draw.integers(0, 16, (8, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    values = ((codes - 8) * draw.uniform(0.001, 0.1, (8, 4, 1))).reshape(8, 128).astype(np.float32)
    scale = np.abs(values).reshape(8, 4, 32).max(2).repeat(32, 1)
    lost = np.abs(packed(values, form).wide(torch.float32).numpy() - values)
    assert (lost <= scale * 2**-10).all()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("columns", [1, 31, 32, 64, 65, 200, 576])
def test_torchs_operations_and_the_kernel_unpack_the_same(form, columns):
    matrix = packed(rows_of(2, (7, columns), 0.1, 1.0), form)
    assert torch.equal(elements(form, matrix.data, columns), matrix.wide(torch.float32))


def test_parts_and_dtypes():
    values = rows_of(0, (12, 96), 0.0, 1.0)
    form = Grouped(4)
    stacked = Packed(form, 96, packed(values, form).data.view(3, 4, -1))
    assert stacked.shape == (3, 4, 96)
    assert len(stacked) == 3
    whole = stacked.wide(torch.float32)
    assert torch.equal(stacked[1].wide(torch.float32), whole[1])
    assert torch.equal(stacked[1:].wide(torch.float32), whole[1:])
    assert torch.equal(stacked.wide(torch.bfloat16), whole.bfloat16())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    values = np.ones((3, 70), np.float32)
    values[1, 66] = bad
    with pytest.raises(ValueError, match="row 1 has elements that are not finite"):
        pack(values, Grouped(4))


@pytest.mark.parametrize(("bits", "scale"), [(8, 1e-6), (4, 1e-7), (4, 1e6), (8, 1e5)])
def test_what_half_precision_holds_no_scale_for_is_refused(bits, scale):
    with pytest.raises(ValueError, match=r"row \d has elements that are too large or too small for half precision"):
        pack(rows_of(0, (3, 70), 0.0, scale), Grouped(bits))


def test_a_group_that_hardly_varies_keeps_its_value():
    values = np.full((1, 64), 0.1, np.float32) + np.linspace(0, 1e-7, 64, dtype=np.float32)
    np.testing.assert_allclose(packed(values, Grouped(4)).wide(torch.float32).numpy(), values, rtol=2**-11)
