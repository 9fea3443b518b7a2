"""GGUF's blocks as they run: the very numbers that ``gguf`` makes of them."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quant.blocks import blocks

from penstock.engine.few import MOST
from penstock.engine.few_kernel import ROWS
from penstock.engine.linear import Widening
from penstock.engine.product_kernel import CHUNK
from penstock.quant.elements import elements
from penstock.quant.forms import LAYOUTS, named, number
from penstock.quant.ggml import KINDS, Ggml
from penstock.quant.packed import Packed

SUPERBLOCKS = [kind for kind in KINDS if kind.endswith("_k")]
each_kind = pytest.mark.parametrize("kind", KINDS)


def dequantised(kind: str, data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind.upper()]))


def assert_bit_equal(form: Ggml, columns: int, data: np.ndarray) -> None:
    expected, packed = dequantised(form.kind, data), Packed(form, columns, torch.from_numpy(data))
    assert torch.equal(packed.wide(torch.float32), expected)
    assert torch.equal(elements(form, packed.data, columns), expected)


@each_kind
def test_sizes(kind):
    form = Ggml(kind)
    assert (form.group, form.record_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    assert form.row_bytes(3 * form.group) == 3 * form.record_bytes


@each_kind
@pytest.mark.parametrize("records", [1, 18, 32])
@pytest.mark.parametrize("scale", [0.05, 3e-7])  # of which scales are subnormal in half precision
def test_bit_equal(kind, records, scale):
    form = Ggml(kind)
    assert_bit_equal(form, records * form.group, blocks(kind, 37, records * form.group, scale))


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(SUPERBLOCKS), data=st.data())
def test_bit_equal_whatever_the_bytes(kind, data):
    """Any scales that are finite, large and negative ones among them."""
    form = Ggml(kind)
    rows = data.draw(
        st.lists(st.binary(min_size=form.record_bytes, max_size=form.record_bytes), min_size=1, max_size=3)
    )
    stored = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1).copy()
    high = [-1] if kind == "q6_k" else [1, 3]  # the bytes with the exponents of numbers in half precision
    stored[:, high] &= np.where(stored[:, high] & 0x7C == 0x7C, 0xBB, 0xFF).astype(np.uint8)
    assert_bit_equal(form, form.group, stored)


@each_kind
@pytest.mark.parametrize("tokens", [1, 3, MOST, MOST + 1, 40, CHUNK + 5])
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (ROWS + 1, 768), (101, 1280)])
def test_products(kind, tokens, rows, columns):
    packed = Packed(Ggml(kind), columns, torch.from_numpy(blocks(kind, rows, columns)))
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ packed.wide(torch.float32).double().T
    got = Widening(torch.float32, torch.device("cpu")).linear(x, packed, None)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_every_layout_has_a_name_and_a_number():
    assert [named(form.name) for form in LAYOUTS] == list(LAYOUTS)
    assert [number(form) for form in LAYOUTS] == list(range(len(LAYOUTS)))
    assert number(named("int4g64-plain")) == number(named("int4g64"))
    assert named("bfloat16") is None


@pytest.mark.parametrize(("kind", "columns"), [("q8_0", 33), ("q4_k", 384)])
def test_rows_of_no_whole_blocks_are_refused(kind, columns):
    with pytest.raises(ValueError, match=f"{columns} elements are no whole blocks of {kind}"):
        Ggml(kind).row_bytes(columns)
