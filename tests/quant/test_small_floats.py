"""fp8 and MXFP4 as they run: the very numbers that transformers makes of what checkpoints store."""

import gguf
import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from penstock.engine.linear import Widening
from penstock.quant.elements import elements
from penstock.quant.fp8 import Fp8
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.packed import Packed
from penstock.quant.rearranging import pack_fp8, pack_mxfp4

ALL_NUMBERS = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


def fp8(rows: int, columns: int, scale: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Codes, every one there is among them, and a scale of every group of a row."""
    draw = np.random.default_rng(0)
    codes = draw.permutation(np.resize(ALL_NUMBERS, rows * columns)).reshape(rows, columns)
    scales = scale * draw.uniform(0.1, 1, (rows, -(-columns // 128)))
    return codes, scales.astype(np.float32)


def mxfp4(rows: int, columns: int, scales: tuple[int, int] = (110, 130)) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales as checkpoints hold them."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (rows, columns // 32, 16), np.uint8)
    return blocks, draw.integers(*scales, (rows, columns // 32), np.uint8)


def packed(form: Fp8 | Mxfp4, columns: int, codes: np.ndarray, scales: np.ndarray) -> Packed:
    data = pack_fp8(codes, scales) if isinstance(form, Fp8) else pack_mxfp4(codes, scales)
    assert data.shape[1] == form.row_bytes(columns)
    return Packed(form, columns, torch.from_numpy(data))


@pytest.mark.parametrize("columns", [128, 384, 1024])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e-41, 6e35])  # of which some round to subnormals
def test_fp8_is_bit_equal(columns, scale):
    codes, scales = fp8(256, columns, scale)
    stored = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None)._dequantize_one(stored, torch.from_numpy(scales), torch.bfloat16).float()
    got = packed(Fp8(), columns, codes, scales)
    assert torch.equal(got.wide(torch.float32), expected)
    assert torch.equal(got.wide(torch.bfloat16).float(), expected)
    assert torch.equal(elements(got.form, got.data, columns), expected)


@pytest.mark.parametrize("columns", [1, 31, 33, 127, 130, 200])
def test_fp8_rows_of_any_length(columns):
    codes, scales = fp8(9, columns)
    wide = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
    expected = (wide * torch.from_numpy(scales).repeat_interleave(128, 1)[:, :columns]).bfloat16().float()
    got = packed(Fp8(), columns, codes, scales)
    assert torch.equal(got.wide(torch.float32), expected)
    assert torch.equal(elements(got.form, got.data, columns), expected)


@pytest.mark.parametrize("columns", [32, 96, 2880])
@pytest.mark.parametrize("scales", [(110, 130), (0, 3), (0, 255)])
def test_mxfp4_is_bit_equal(columns, scales):
    stored = mxfp4(70, columns, scales)
    blocks, exponents = (torch.from_numpy(each)[None] for each in stored)
    expected = convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16)[0].T.float()
    got = packed(Mxfp4(), columns, *stored)
    assert torch.equal(got.wide(torch.float32), expected)
    assert torch.equal(got.wide(torch.bfloat16).float(), expected)
    assert torch.equal(elements(got.form, got.data, columns), expected)


def test_a_row_of_mxfp4_is_one_of_ggufs():
    columns = 96
    stored = packed(Mxfp4(), columns, *mxfp4(20, columns))
    expected = gguf.dequantize(stored.data.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(stored.wide(torch.float32), torch.from_numpy(expected))


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("form", [Fp8(), Mxfp4()], ids=lambda form: form.name)
def test_products(form, tokens):
    columns = 416 if isinstance(form, Mxfp4) else 403
    weights = packed(form, columns, *(fp8(101, columns) if isinstance(form, Fp8) else mxfp4(101, columns)))
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ weights.wide(torch.float32).double().T
    got = Widening(torch.float32, torch.device("cpu")).linear(x, weights, None)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_is_not_a_number_is_refused():
    codes, scales = fp8(2, 128)
    for bad in (0x7F, 0xFF):
        with pytest.raises(ValueError, match="fp8 codes or scales that are not numbers"):
            pack_fp8(np.where(codes == 0, np.uint8(bad), codes), scales)
    for bad in (np.inf, np.nan, 1e38):
        with pytest.raises(ValueError, match="fp8 codes or scales that are not numbers"):
            pack_fp8(codes, np.full_like(scales, bad))
    blocks, exponents = mxfp4(2, 64)
    exponents[1, 1] = 255
    with pytest.raises(ValueError, match="MXFP4 scales that are not numbers"):
        pack_mxfp4(blocks, exponents)


def test_rows_of_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="33 elements are no whole blocks of mxfp4"):
        Mxfp4().row_bytes(33)
