"""GGUF's blocks as they run: the very numbers that ``gguf`` makes of them."""

import gguf
import numpy as np
import pytest
import torch

from penstock.engine.linear import Widening
from penstock.quant.elements import elements
from penstock.quant.forms import LAYOUTS, named, number
from penstock.quant.ggml import KINDS, Ggml
from penstock.quant.packed import Packed


def stored(kind: str, rows: int, columns: int, scale: float = 0.05) -> np.ndarray:
    values = np.random.default_rng(0).normal(scale=scale, size=(rows, columns)).astype(np.float32)
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [32, 576, 1024])
@pytest.mark.parametrize("scale", [0.05, 3e-7])  # of which scales are subnormal in half precision
def test_bit_equal(kind, columns, scale):
    form, data = Ggml(kind), stored(kind, 37, columns, scale)
    assert data.shape[1] == form.row_bytes(columns)
    expected = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind.upper()]))
    packed = Packed(form, columns, torch.from_numpy(data))
    assert torch.equal(packed.wide(torch.float32), expected)
    assert torch.equal(elements(form, packed.data, columns), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_products(kind, tokens):
    packed = Packed(Ggml(kind), 576, torch.from_numpy(stored(kind, 101, 576)))
    x = torch.randn(tokens, 576, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ packed.wide(torch.float32).double().T
    got = Widening(torch.float32, torch.device("cpu")).linear(x, packed, None)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_every_layout_has_a_name_and_a_number():
    assert [named(form.name) for form in LAYOUTS] == list(LAYOUTS)
    assert [number(form) for form in LAYOUTS] == list(range(len(LAYOUTS)))
    assert number(named("int4g64-plain")) == number(named("int4g64"))
    assert named("bfloat16") is None


def test_rows_of_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="33 elements are no whole blocks of q8_0"):
        Ggml("q8_0").row_bytes(33)
